"""Where on a run's grid its conditionings begin, end or change: known before the first step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..core.step.clock import Grid
from .slots import within

Bounds = tuple[float, float]  # in force from the first percent to the second


def changes(conds: Mapping[str, list[Any]], grid: Grid) -> frozenset[int]:
    """The steps before which something in `conds` (a guider's, by name) begins or ends: time ranges of prompts, ranges of
    ControlNets, keyframes of hooks."""
    to_sigma = grid.percent_to_sigma
    if to_sigma is None:
        return frozenset()
    bounds = {b for conditioning in conds.values() for cond in conditioning or () for b in _bounds(cond)}
    steps = set()
    for start, end in bounds:
        high, low = _sigma(to_sigma, start), _sigma(to_sigma, end)
        active = [within(s, high, low) for s in grid.sigmas[:-1]]
        steps |= {i for i in range(1, len(active)) if active[i] != active[i - 1]}
    return frozenset(steps)


def _sigma(to_sigma: Callable[[float], float], percent: float) -> float:
    return float("inf") if percent <= 0 else 0.0 if percent >= 1 else float(to_sigma(percent))


def _bounds(cond: Mapping[str, Any]) -> Iterable[Bounds]:
    for prefix in ("", "clip_"):
        yield _percent(cond.get(f"{prefix}start_percent"), 0.0), _percent(cond.get(f"{prefix}end_percent"), 1.0)
    control = cond.get("control")
    while control is not None:
        start, end = getattr(control, "timestep_percent_range", (0.0, 1.0))
        yield _percent(start, 0.0), _percent(end, 1.0)
        control = getattr(control, "previous_controlnet", None)
    for hook in getattr(cond.get("hooks"), "hooks", ()):
        for frame in getattr(getattr(hook, "hook_keyframe", None), "keyframes", ()):
            yield _percent(getattr(frame, "start_percent", 0.0), 0.0), 1.0


def _percent(value: Any, default: float) -> float:
    return default if value is None else float(value)
