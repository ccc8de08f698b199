"""Prompts as they come to ComfyUI's server, before it looks at them."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any


def on_prompt(handler: Callable[[dict[str, Any]], dict[str, Any]]) -> bool:
    """`handler` gets what was posted to /prompt and returns what is to be taken in its place; whether there is a server to ask for that."""
    try:
        from server import PromptServer
    except ImportError:
        return False
    add = getattr(getattr(PromptServer, "instance", None), "add_on_prompt_handler", None)
    if add is None:
        return False
    add(handler)
    return True


def known_nodes() -> Container[str]:
    """The ids of all nodes that this ComfyUI has."""
    import nodes

    return nodes.NODE_CLASS_MAPPINGS
