"""Slots: each conditioning's own sequence of evaluations.

A uuid does not identify a slot: regional prompts copy it into the negative, and context windows and guidance patches (SLG, PAG ...) run
the same conditioning several times an evaluation. Prompts, ControlNets and hook keyframes in force at the current sigma are part of the
key, so that a slot in which one begins or ends is new, has no history and is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ...core.step.track import Slot
from .sigma_ranges import Range

Cond = dict[str, Any]


@dataclass(frozen=True)
class Frame:
    """A call of CALC_COND_BATCH within an evaluation.

    call: its 0-based index. shape: of the latent. window: indices of the context window's frames. patches: the patches in force.
    """

    call: int
    shape: tuple[int, ...]
    window: tuple[int, ...]
    patches: frozenset[object]


@dataclass(frozen=True)
class ConditioningSlot:
    """A conditioning in a call: its position among the call's conditionings, and the parts of it that are in force."""

    frame: Frame
    position: int
    active: tuple[object, ...]


def slots_of(
    conds: Sequence[list[Cond] | None],
    x: Tensor,
    sigma: float,
    options: dict[str, Any],
    call: int,
    ranges: Sequence[Range] = (),
) -> list[Slot | None]:
    """The slot of each of the call's conditionings; None for one that is not in force here (its output is zero).

    Parameters
    ----------
    conds: ComfyUI's lists of cond dicts, as CALC_COND_BATCH receives them.
    x: the latent, any shape.
    sigma: of the current evaluation.
    options: transformer_options.
    call: 0-based index of this call within the evaluation.
    ranges: of sigma, in which another node changes the network (sigma_ranges.py).
    """
    in_force = frozenset(span for span in ranges if within(sigma, *span))
    frame = Frame(call, tuple(x.shape), window_of(options), _patches(options) | in_force)
    slots: list[Slot | None] = []
    for position, cond in enumerate(conds):
        active = tuple(_in_force(c, sigma) for c in cond or () if _covers(c, sigma))
        slots.append(ConditioningSlot(frame, position, active) if active else None)
    return slots


def _covers(cond: Cond, sigma: float) -> bool:
    """ComfyUI's rule (comfy.samplers.get_area_and_mult). Default conds fill the area that others leave, so they are always in force."""
    return "default" in cond or within(sigma, cond.get("timestep_start", sigma), cond.get("timestep_end", sigma))


def within(sigma: float, start: float, end: float) -> bool:
    """ComfyUI's comparison, in single precision: a grid's sigma can equal the bound exactly."""
    return bool(np.float32(end) <= np.float32(sigma) <= np.float32(start))


def _in_force(cond: Cond, sigma: float) -> tuple[object, ...]:
    return (cond.get("uuid"), tuple(_controls(cond.get("control"), sigma)), tuple(_keyframes(cond.get("hooks"), sigma)))


def _controls(control: Any, sigma: float) -> Iterable[bool]:
    """For each ControlNet of a chain, whether sigma is in its range."""
    while control is not None:
        span = getattr(control, "timestep_range", None)
        yield span is None or within(sigma, *span)
        control = getattr(control, "previous_controlnet", None)


def _keyframes(hooks: Any, sigma: float) -> Iterable[int]:
    """The index of each hook's current keyframe."""
    for hook in getattr(hooks, "hooks", ()):
        frames = getattr(getattr(hook, "hook_keyframe", None), "keyframes", ())
        yield sum(within(sigma, f.start_t, 0.0) for f in frames)


def window_of(options: dict[str, Any]) -> tuple[int, ...]:
    """The frames of a context window: ComfyUI's, or those of AnimateDiff-Evolved, which cuts the latent in a wrapper outside of ours."""
    frames = getattr(options.get("context_window"), "index_list", None)
    if frames is None:
        frames = (options.get("ad_params") or {}).get("sub_idxs")
    return tuple(frames or ())


def _patches(options: dict[str, Any]) -> frozenset[object]:
    """The places patched in this call: guidance nodes run the model again with some blocks replaced."""
    replaced = options.get("patches_replace", {})
    added = options.get("patches", {})
    return frozenset(
        [(kind, place) for kind, places in replaced.items() for place in places]
        + [(kind, len(patches)) for kind, patches in added.items()]
    )
