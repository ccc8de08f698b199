"""Has the encode cache note what ComfyUI's loaders return, before the first of them runs."""

from __future__ import annotations

from ..patch.memo.snapshot import watch_loaders


async def register() -> bool:
    """Called once, when the pack is loaded."""
    watch_loaders()
    return True
