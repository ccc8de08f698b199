"""The steps of a run's grid at which conditionings begin, end or change, found before the first step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ...core.step.clock import Grid
from .slots import within

Bounds = tuple[float, float]  # in force from the first percent, or sigma, to the second


def changes(conds: Mapping[str, list[Any]], grid: Grid, ranges: Iterable[Bounds] = ()) -> frozenset[int]:
    """The steps at which a conditioning differs from the step before: time ranges of prompts and ControlNets, keyframes of hooks.

    conds: a guider's conditionings, by name. ranges: of sigma, in which the model computes otherwise (sigma_ranges.py).
    """
    if grid.percent_to_sigma is None:
        return frozenset()
    every = [cond for conditioning in conds.values() for cond in conditioning or ()]
    steps = set()
    percents = {b for cond in every for b in _bounds(cond)}
    for high, low in {*((grid.sigma_at(start), grid.sigma_at(end)) for start, end in percents), *ranges}:
        active = [within(s, high, low) for s in grid.sigmas[:-1]]
        steps |= {i for i in range(1, len(active)) if active[i] != active[i - 1]}
    for cond in every:
        for hook in getattr(cond.get("hooks"), "hooks", ()):
            frames = getattr(getattr(hook, "hook_keyframe", None), "keyframes", ())
            placed = [(grid.sigma_at(_percent(f.start_percent, 0.0)), int(f.guarantee_steps)) for f in frames]
            steps |= set(_keyframe_changes(placed, grid.sigmas[:-1]))
    return frozenset(steps)


def _keyframe_changes(frames: Sequence[tuple[float, int]], sigmas: Sequence[float]) -> Iterator[int]:
    """The steps at which a hook reaches another of its keyframes (sigma, guarantee_steps), by ComfyUI's rule: a keyframe with
    guaranteed steps delays those that begin in the same step."""
    at, used = 0, 0
    for step, sigma in enumerate(sigmas):
        before = at
        if frames and used >= _guaranteed(frames[at], sigmas[0]):
            for i in range(at + 1, len(frames)):
                if not within(sigma, frames[i][0], 0.0):
                    break
                at, used = i, 0
                if _guaranteed(frames[i], sigmas[0]) > 0:
                    break
        used += 1
        if step and at != before:
            yield step


def _guaranteed(frame: tuple[float, int], highest: float) -> int:
    return 0 if frame[0] > highest else frame[1]


def _bounds(cond: Mapping[str, Any]) -> Iterable[Bounds]:
    for prefix in ("", "clip_"):
        yield _percent(cond.get(f"{prefix}start_percent"), 0.0), _percent(cond.get(f"{prefix}end_percent"), 1.0)
    control = cond.get("control")
    while control is not None:
        start, end = getattr(control, "timestep_percent_range", (0.0, 1.0))
        yield _percent(start, 0.0), _percent(end, 1.0)
        control = getattr(control, "previous_controlnet", None)


def _percent(value: Any, default: float) -> float:
    return default if value is None else float(value)
