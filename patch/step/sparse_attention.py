"""The range of sigma in which a model computes with sparse attention: ComfyUI's node BlockSparseAttention (0.36 and later)."""

from __future__ import annotations

from typing import Any

MOST = 32  # nodes on one model whose attention is looked at


def sparse_ranges(options: dict[str, Any]) -> tuple[tuple[float, float], ...]:
    """The first and the last sigma of each range, from a MODEL's transformer_options.

    The node keeps them in an object that its override of the attention refers to, beside the override of the node before it.
    """
    override, found = options.get("optimized_attention_override"), []
    for _ in range(MOST):
        seen = _closure(override)
        for value in seen.values():
            start, end = getattr(value, "sigma_start", None), getattr(value, "sigma_end", None)
            if isinstance(start, float) and isinstance(end, float):
                found.append((start, end))
        override = seen.get("previous")
        if override is None:
            break
    return tuple(found)


def _closure(function: Any) -> dict[str, Any]:
    """The values of the outer functions' variables that a function refers to, by name."""
    names, cells = (
        getattr(getattr(function, "__code__", None), "co_freevars", ()),
        getattr(function, "__closure__", None),
    )
    found = {}
    for name, cell in zip(names, cells or (), strict=False):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return found
