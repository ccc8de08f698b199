"""Step masks (cache-dit's steps computation mask, SCM): the user names the steps to compute, as a string or a preset's name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ..clock import Clock, Grid
from ..context import RunContext
from ..plan import Plan
from ..reasons import Reason
from .base import COMPUTE, SKIP, Decision, Policy, ReadIndicator

Bins = tuple[tuple[int, ...], tuple[int, ...]]
# cache-dit's predefined masks by number of steps: bins of computed steps, and of skipped steps between them
# (cache_dit.steps_mask, https://github.com/vipshop/cache-dit)
NAMED_BINS: dict[int, dict[str, Bins]] = {
    28: {
        "slow": ((8, 3, 3, 2, 1, 1), (1, 2, 2, 2, 3)),
        "medium": ((6, 2, 2, 2, 2, 1), (1, 3, 3, 3, 3)),
        "fast": ((6, 1, 1, 1, 1, 1), (1, 3, 4, 5, 4)),
        "ultra": ((4, 1, 1, 1, 1), (2, 5, 6, 7)),
    },
    15: {
        "slow": ((4, 2, 2, 2, 1), (1, 1, 1, 1)),
        "medium": ((4, 2, 1, 1, 1), (1, 1, 2, 2)),
        "fast": ((3, 1, 1, 1, 1), (1, 2, 2, 3)),
        "ultra": ((2, 1, 1, 1, 1), (1, 2, 3, 3)),
    },
    9: {
        "slow": ((5, 3), (1,)),
        "medium": ((5, 1, 1), (1, 1)),
        "fast": ((4, 1, 1), (1, 2)),
        "ultra": ((3, 1, 1), (2, 2)),
    },
    8: {
        "slow": ((5, 2), (1,)),
        "medium": ((4, 1, 1), (1, 1)),
        "fast": ((3, 1, 1), (1, 2)),
        "ultra": ((2, 1, 1), (2, 2)),
    },
}
NAMES = ("slow", "medium", "fast", "ultra")
LONGEST = 10_000


def from_bins(compute: Sequence[int], cache: Sequence[int]) -> tuple[bool, ...]:
    """The mask of compute[0] computed steps, cache[0] skipped steps, compute[1] computed steps and so on; True means compute.

    Raises ValueError for negative counts, or more than LONGEST steps.
    """
    if not compute or any(n < 0 for n in (*compute, *cache)) or sum(compute) + sum(cache) > LONGEST:
        raise ValueError("bins are numbers of steps, separated by commas: compute 4,2,1 and cache 2,3, say")
    if not len(cache) <= len(compute) <= len(cache) + 1:
        raise ValueError(
            f"compute and cache bins take turns, compute first: there are {len(compute)} and {len(cache)} of them"
        )
    steps: list[bool] = []
    for i, n in enumerate(compute):
        steps += [True] * n + [False] * (cache[i] if i < len(cache) else 0)
    return tuple(steps)


def from_text(text: str) -> tuple[bool, ...]:
    """The mask of a text such as "1,1,0,1" or "1101", 1 = compute. Raises ValueError for any other text."""
    marks = [c for c in text if c not in ", \t\n"]
    if not marks or len(marks) > LONGEST or set(marks) - {"0", "1"}:
        raise ValueError(f"a step mask is a list of 1 (compute) and 0 (skip), such as 1,1,1,0,0,1, not {text[:60]!r}")
    return tuple(c == "1" for c in marks)


@dataclass(frozen=True)
class StepMask:
    """A mask as data. Raises ValueError for an unknown name, and for neither name nor steps.

    Parameters
    ----------
    steps: True for a step to compute.
    name: one of NAMES, in place of `steps`: a preset that depends on the number of steps.
    policy: "static": steps that are not computed are skipped. "dynamic": the method decides about them.
    """

    steps: tuple[bool, ...] = ()
    name: str = ""
    policy: Literal["static", "dynamic"] = "static"

    def __post_init__(self) -> None:
        if self.name and self.name not in NAMES:
            raise ValueError(f"a step mask is called {', '.join(NAMES)}, not {self.name!r}")
        if not self.name and not self.steps:
            raise ValueError("a step mask needs at least one step")

    def on(self, grid: Grid) -> tuple[bool, ...]:
        """The mask on the grid's N steps, shape (N,). A mask of another length is stretched so that up to any step the same share of
        steps is computed, rounded to whole steps; its first step stays as it is."""
        steps = self.steps
        n = grid.steps
        if self.name:
            known = next((k for k in sorted(NAMED_BINS) if k >= n), 28) if n <= 15 else 28
            steps = from_bins(*NAMED_BINS[known][self.name])
        if len(steps) == n:
            return steps
        done = np.concatenate(([0.0], np.cumsum(steps)))
        places = np.arange(n + 1) * len(steps) / n
        counts = np.floor(np.interp(places, np.arange(len(done)), done) * n / len(steps) + 0.5)
        return tuple(bool(up) or (i == 0 and steps[0]) for i, up in enumerate(np.diff(counts) > 0))


@dataclass(frozen=True)
class Mask(Policy):
    """Compute the steps of a StepMask."""

    mask: StepMask
    compute: frozenset[int] = frozenset()
    plan: Plan | None = None

    def start(self, context: RunContext) -> Mask:
        steps = self.mask.on(context.grid) if context.grid.steps else ()
        compute = frozenset(i for i, c in enumerate(steps) if c)
        context.force(compute)
        static = self.mask.policy == "static"
        anchors = tuple(i for i, f in enumerate(context.forced) if f)
        return replace(self, compute=compute, plan=Plan(context.grid, anchors) if static else None)

    def decide(self, clock: Clock, indicator: ReadIndicator) -> Decision | None:
        if clock.reached(self.compute):
            return COMPUTE(Reason.MASK)
        return SKIP(Reason.MASK) if self.plan is not None else None
