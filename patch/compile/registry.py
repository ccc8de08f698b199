"""Compilers and backends of installed packages."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points

import torch._dynamo

from ...core.compile_options import TORCH

GROUP = "skipstone.compilers"
"""Entry points of this group: callables (module, mode=, backend=, fullgraph=, dynamic=, options=) that return a replacement of
module.forward. A widget's value is looked up among these names and never imported."""


@lru_cache(maxsize=1)
def offered() -> dict[str, EntryPoint]:
    """Compilers by name."""
    return {point.name: point for point in entry_points(group=GROUP) if point.name != TORCH}


def backends() -> list[str]:
    """Backends of torch.compile. Their own requirements may be missing."""
    return list(torch._dynamo.list_backends())
