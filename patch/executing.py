"""Which prompt is being executed, as ComfyUI's server knows it."""

from __future__ import annotations

from typing import Any

from ..core.step.journal import Place


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
    try:
        from server import PromptServer

        running, _ = PromptServer.instance.prompt_queue.get_current_queue_volatile()
        extra = next(item[3] for item in running if item[1] == prompt)
        return str(extra["extra_pnginfo"]["workflow"]["id"])
    except (ImportError, AttributeError, StopIteration, LookupError, TypeError):
        return ""
