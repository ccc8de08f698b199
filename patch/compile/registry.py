"""Compilers and backends that installed packages offer."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points

import torch._dynamo

from ...core.compile_options import TORCH

GROUP = "skipstone.compilers"
"""Entry points of this group are callables: (module, mode=, backend=, fullgraph=, dynamic=, options=) -> a callable that runs as
module.forward does. A name is looked up among these, never imported."""


@lru_cache(maxsize=1)
def offered() -> dict[str, EntryPoint]:
    """Compilers by name."""
    return {point.name: point for point in entry_points(group=GROUP) if point.name != TORCH}


def backends() -> list[str]:
    """Backends of torch.compile, whether or not what they need is installed."""
    return list(torch._dynamo.list_backends())
