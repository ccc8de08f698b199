"""Skipstone for ComfyUI: step caches and a memo for encoders. This file is only the door; see `nodes/`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .nodes import SkipstoneExtension

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> SkipstoneExtension:
    """What ComfyUI calls to get the nodes; imported here, so that importing the pack alone needs no ComfyUI."""
    from .nodes import SkipstoneExtension

    return SkipstoneExtension()
