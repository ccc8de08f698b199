"""Which conditionings an evaluation asks about: a slot is a conditioning's own sequence of evaluations.

A uuid is not enough: regional prompts copy it into the negative, context windows and guidance patches (SLG, PAG ...) ask
about the same conditioning several times an evaluation. What is in force at this sigma belongs to the slot too, so
that a prompt, ControlNet or hook that begins or ends makes a new slot, which has no history and is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ...core.step.run import Slot

Cond = dict[str, Any]


def slots_of(
    conds: Sequence[list[Cond] | None], x: Tensor, sigma: float, options: dict[str, Any], call: int
) -> list[Slot | None]:
    """One slot for each of the call's conditionings; None for one that says nothing here (its output is zero).

    conds: ComfyUI's lists of cond dicts, as CALC_COND_BATCH gets them. x: the latent. options: transformer_options.
    call: the how manieth call of this evaluation it is.
    """
    window = options.get("context_window")
    frame = (call, tuple(x.shape), _window(window), _patches(options))
    slots: list[Slot | None] = []
    for position, cond in enumerate(conds):
        active = tuple(_in_force(c, sigma) for c in cond or () if _covers(c, sigma))
        slots.append((*frame, position, active) if active else None)
    return slots


def _covers(cond: Cond, sigma: float) -> bool:
    """As comfy.samplers.get_area_and_mult decides it. Default conds fill what others leave, so they always count."""
    return "default" in cond or within(sigma, cond.get("timestep_start", sigma), cond.get("timestep_end", sigma))


def within(sigma: float, start: float, end: float) -> bool:
    """ComfyUI compares bounds with the sigma tensor, in single precision: grids do hit the very sigma of a percent."""
    return bool(np.float32(end) <= np.float32(sigma) <= np.float32(start))


def _in_force(cond: Cond, sigma: float) -> tuple[object, ...]:
    return (cond.get("uuid"), tuple(_controls(cond.get("control"), sigma)), tuple(_keyframes(cond.get("hooks"), sigma)))


def _controls(control: Any, sigma: float) -> Iterable[bool]:
    """Of a chain of ControlNets: which are within their range of sigmas."""
    while control is not None:
        span = getattr(control, "timestep_range", None)
        yield span is None or within(sigma, *span)
        control = getattr(control, "previous_controlnet", None)


def _keyframes(hooks: Any, sigma: float) -> Iterable[int]:
    """Of a group of hooks: the keyframe that each has come to."""
    for hook in getattr(hooks, "hooks", ()):
        frames = getattr(getattr(hook, "hook_keyframe", None), "keyframes", ())
        yield sum(within(sigma, f.start_t, 0.0) for f in frames)


def _window(window: Any) -> tuple[int, ...]:
    return tuple(getattr(window, "index_list", ()))


def _patches(options: dict[str, Any]) -> frozenset[object]:
    """What is patched in this call, by place: guidance nodes run the model again with some blocks replaced."""
    replaced = options.get("patches_replace", {})
    added = options.get("patches", {})
    return frozenset(
        [(kind, place) for kind, places in replaced.items() for place in places]
        + [(kind, len(patches)) for kind, patches in added.items()]
    )
