"""ComfyUI's server: prompts as they arrive, and the one that is running."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container
from typing import Any

from ..core.step.report.report_log import Place
from ..core.texts import Text

log = logging.getLogger(__name__)


def server() -> Any | None:
    """The PromptServer; None where there is none, as in a script."""
    try:
        from server import PromptServer
    except ImportError:
        return None
    return getattr(PromptServer, "instance", None)


def running_prompt(prompt: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """A running prompt's nodes by id, and its extra data; None if it is not running."""
    try:
        queue = server().prompt_queue  # type: ignore[union-attr]
        running, _ = getattr(queue, "get_current_queue_volatile", queue.get_current_queue)()
        return next((item[2], item[3]) for item in running if item[1] == prompt)
    except (AttributeError, StopIteration, LookupError, TypeError):
        return None


def place() -> Place:
    """The place of the calling code's execution: empty where no server executes it (a script, a test)."""
    context = _context()
    if context is None:
        return Place()
    return Place(_workflow(context.prompt_id), context.prompt_id, str(context.node_id))


def prompt_id() -> str:
    """The id of the prompt that is executed; "" where no server executes one."""
    context = _context()
    return "" if context is None else str(context.prompt_id)


def _context() -> Any | None:
    try:
        from comfy_execution.utils import get_executing_context
    except ImportError:
        return None
    return get_executing_context()


STATUS = "skipstone.status"
"""The event of show_text. ComfyUI's own text on a node is removed at the end of the job by newer front ends."""


def show_text(text: str, node: str) -> None:
    """Show a line of text on a node of the running prompt, in every page that shows its workflow; a Text in the language chosen there.
    No-op without a server or a node."""
    there = server()
    if node and there is not None:
        told = text.as_dict() if isinstance(text, Text) else {"text": text}
        there.send_sync(STATUS, {"workflow": place().workflow, "node": node, **told})


def _workflow(prompt: str) -> str:
    """The front end's id of a running prompt's workflow; "" for prompts of scripts without one."""
    _, beside = running_prompt(prompt) or ({}, {})
    try:
        return str(beside["extra_pnginfo"]["workflow"]["id"])
    except (LookupError, TypeError):
        return ""


def sources_of(graph: Any, node: str | None, name: str) -> set[str] | None:
    """The ids of all nodes upstream of an input of a running node; None where there is no graph, as in a script.

    Where a node of the graph cannot be read, its own upstream nodes are missing from the answer.
    """
    if graph is None or node is None:
        return None
    found: set[str] = set()
    pending = [_inputs(graph, node).get(name)]
    while pending:
        link = pending.pop()
        if isinstance(link, list) and len(link) == 2 and str(link[0]) not in found:
            found.add(str(link[0]))
            pending += _inputs(graph, link[0]).values()
    return found


def _inputs(graph: Any, node: Any) -> dict[str, Any]:
    try:
        return dict(graph.get_node(node)["inputs"])
    except Exception:
        log.debug("[Skipstone] node %s of the running prompt cannot be read", node, exc_info=True)
        return {}


def on_prompt(handler: Callable[[dict[str, Any]], dict[str, Any]]) -> bool:
    """Have `handler` receive each body posted to /prompt and return its replacement. False where there is no server."""
    add = getattr(server(), "add_on_prompt_handler", None)
    if add is None:
        return False
    add(handler)
    return True


def on_free(call: Callable[[], None]) -> bool:
    """Call `call` when somebody asks the server to free memory or to unload models (POST /free). Returns whether there is a server.

    To be called before the server starts.
    """
    middlewares = getattr(getattr(server(), "app", None), "middlewares", None)
    if middlewares is None:
        return False
    from aiohttp import web

    @web.middleware
    async def free(request: Any, handler: Any) -> Any:  # ComfyUI's own middlewares pass `handler` by name
        answer = await handler(request)
        if request.method == "POST" and request.path in ("/free", "/api/free"):
            try:
                asked = await request.json()  # which ComfyUI has read already
                if asked.get("free_memory") or asked.get("unload_models"):
                    call()
            except Exception:
                log.exception("[Skipstone] /free")
        return answer

    middlewares.append(free)
    return True


def known_nodes() -> Container[str]:
    """The ids of all nodes that this ComfyUI has."""
    import nodes

    return nodes.NODE_CLASS_MAPPINGS
