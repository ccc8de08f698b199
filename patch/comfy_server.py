"""ComfyUI's server: prompts as they arrive, and the one that is running."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

from ..core.step.report.report_log import Place


def server() -> Any | None:
    """ComfyUI's server; None where there is none, as in a script."""
    try:
        from server import PromptServer
    except ImportError:
        return None
    return getattr(PromptServer, "instance", None)


def at_work(prompt: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Of a prompt that the server is working at: its nodes by their ids, and what was sent beside it."""
    try:
        queue = server().prompt_queue  # type: ignore[union-attr]
        running, _ = getattr(queue, "get_current_queue_volatile", queue.get_current_queue)()
        return next((item[2], item[3]) for item in running if item[1] == prompt)
    except (AttributeError, StopIteration, LookupError, TypeError):
        return None


def place() -> Place:
    """Where the code that asks is running: empty where no server executes it (a script, a test)."""
    try:
        from comfy_execution.utils import get_executing_context

        context: Any = get_executing_context()
    except ImportError:
        return Place()
    if context is None:
        return Place()
    return Place(_workflow(context.prompt_id), context.prompt_id, str(context.node_id))


def _workflow(prompt: str) -> str:
    """The id that the front end has given the workflow of a running prompt. A prompt of a script's may have none."""
    _, beside = at_work(prompt) or ({}, {})
    try:
        return str(beside["extra_pnginfo"]["workflow"]["id"])
    except (LookupError, TypeError):
        return ""


def sources_of(graph: Any, node: str | None, name: str) -> set[str] | None:
    """The ids of all nodes that an input of a running node comes from, near and far. None where there is no graph, as in a script."""
    try:
        found, ahead = set[str](), [graph.get_node(node)["inputs"][name]]
        while ahead:
            link = ahead.pop()
            if isinstance(link, list) and len(link) == 2 and str(link[0]) not in found:
                found.add(str(link[0]))
                ahead += graph.get_node(link[0])["inputs"].values()
        return found
    except Exception:
        return None


def on_prompt(handler: Callable[[dict[str, Any]], dict[str, Any]]) -> bool:
    """`handler` gets what was posted to /prompt and returns what is to be taken in its place; whether there is a server to ask for that."""
    add = getattr(server(), "add_on_prompt_handler", None)
    if add is None:
        return False
    add(handler)
    return True


def known_nodes() -> Container[str]:
    """The ids of all nodes that this ComfyUI has."""
    import nodes

    return nodes.NODE_CLASS_MAPPINGS
