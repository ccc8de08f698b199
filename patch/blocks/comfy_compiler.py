"""ComfyUI's own compiler (0.34 and later) and its fetching of weights: what both ask of code that runs between a model's blocks.

The compiler records the allocations of a call, or of a block, and gives the same memory out again in the next one. What is to outlive the
recording has to be allocated while that is paused, and no tensor that was made in it may be kept.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch.nn import Module

try:
    from comfy import model_prefetch
except ImportError:  # ComfyUI before dynamic VRAM
    model_prefetch = None

log = logging.getLogger(__name__)


def records() -> bool:
    """Can this ComfyUI record allocations?"""
    return hasattr(model_prefetch, "pause_malloc_graph")


def paused() -> AbstractContextManager[Any]:
    """While it lasts, allocations are not recorded. Does nothing where nothing is recorded."""
    if not records():
        return nullcontext()
    try:
        pause: AbstractContextManager[Any] = model_prefetch.pause_malloc_graph()
        return pause
    except Exception:  # a ComfyUI whose function is another
        log.debug("[Skipstone] recording cannot be paused", exc_info=True)
        return nullcontext()


def leave_out(blocks: Collection[Module]) -> None:
    """The weights of these blocks of the call under way are not fetched: they do not run. Those on their way already are let go in
    their turn, as ever."""
    queues = getattr(model_prefetch, "PREFETCH_QUEUES", None)
    if not isinstance(queues, list):
        return
    for queue in reversed(queues):
        places = [i for i, entry in enumerate(queue) if any(entry is block for block in blocks)]
        for place in places:
            queue[place] = None
        if places:
            return


def let_go() -> None:
    """A call came to no end: the weights that were fetched for it are held no longer. ComfyUI lets them go only after the node."""
    cleanup = getattr(model_prefetch, "cleanup_prefetch_queues", None)
    if cleanup is None:
        return
    try:
        cleanup()
    except Exception:
        log.debug("[Skipstone] fetched weights could not be let go", exc_info=True)
