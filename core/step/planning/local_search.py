"""Improves a plan by moving one anchor at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..calibration.gram import Array
from .simulation import Plans

REACH = 3  # steps by which one anchor is moved, at most
ROUNDS = 12  # anchors moved one after the other, at most


def improved(
    plan: Sequence[int], errors: Callable[[Plans], Array], forced: Sequence[bool], longest: float, ends: bool = True
) -> tuple[int, ...]:
    """The plan that is reached by making the best move while it lowers the error.

    plan: ascending. errors: of B plans, shape (B,). forced: for each step, whether it is computed in any case. longest: the largest
    distance of two anchors. ends: the last step is computed; otherwise the plan goes on to the end.
    """
    best = np.array([plan], np.intp)
    error = errors(best)[0]
    for _ in range(ROUNDS):
        near = _neighbours(best[0], forced, longest, ends)
        if not len(near):
            break
        found = errors(near)
        at = int(found.argmin())
        if found[at] >= error * (1 - 1e-6):
            break
        best, error = near[at : at + 1], found[at]
    return tuple(int(i) for i in best[0])


def _neighbours(plan: NDArray[np.intp], forced: Sequence[bool], longest: float, ends: bool) -> Plans:
    steps = len(forced)
    fixed = {0, steps - 1} if ends else {0}
    held, found = set(plan.tolist()), set()
    for anchor in held - fixed:
        if forced[anchor]:
            continue
        for to in range(max(anchor - REACH, 1), min(anchor + REACH + 1, steps)):
            if to not in held:
                found.add(tuple(sorted(held - {anchor} | {to})))
    plans = np.array(sorted(found), np.intp).reshape(-1, len(plan))
    lengths = np.diff(plans if ends else np.c_[plans, np.full(len(plans), steps)])
    return plans[(lengths <= longest).all(1)]
