"""Prompts as they come to ComfyUI's server, before it looks at them."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

from .executing import server


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
