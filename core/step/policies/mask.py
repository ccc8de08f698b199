"""A step mask (cache-dit's steps computation mask, SCM): which steps to compute, said by the user, a string or a name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ..clock import Clock, Grid
from ..plan import Plan
from .base import COMPUTE, SKIP, Decision, Indicator, RunContext

Bins = tuple[tuple[int, ...], tuple[int, ...]]
# cache-dit's predefined policies by number of steps: bins of computed steps and of skipped ones between them
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
    """compute[0] computed steps, cache[0] skipped ones, compute[1] computed ...; raises ValueError for what is no count of steps."""
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
    """ "1,1,0,1" or "1101", 1 = compute. Raises ValueError for anything else."""
    marks = [c for c in text if c not in ", \t\n"]
    if not marks or len(marks) > LONGEST or set(marks) - {"0", "1"}:
        raise ValueError(f"a step mask is a list of 1 (compute) and 0 (skip), such as 1,1,1,0,0,1, not {text[:60]!r}")
    return tuple(c == "1" for c in marks)


@dataclass(frozen=True)
class StepMask:
    """A mask for `len(steps)` steps, or, by `name`, one that knows several lengths. static: a 0 is skipped. dynamic: at a 0
    the method decides."""

    steps: tuple[bool, ...] = ()
    name: str = ""
    policy: Literal["static", "dynamic"] = "static"

    def __post_init__(self) -> None:
        if self.name and self.name not in NAMES:
            raise ValueError(f"a step mask is called {', '.join(NAMES)}, not {self.name!r}")
        if not self.name and not self.steps:
            raise ValueError("a step mask needs at least one step")

    def on(self, grid: Grid) -> tuple[bool, ...]:
        """What the mask says of each of the grid's steps. A mask of another length is stretched: up to any step, the same share
        of the mask is computed as of the run, to the nearest step, and the first step is."""
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
class Mask:
    """Follows a StepMask."""

    mask: StepMask
    compute: frozenset[int] = frozenset()
    plan: Plan | None = None

    def start(self, setting: RunContext) -> Mask:
        steps = self.mask.on(setting.grid) if setting.grid.steps else ()
        compute = frozenset(i for i, c in enumerate(steps) if c)
        setting.force(compute)
        static = self.mask.policy == "static"
        anchors = tuple(i for i, f in enumerate(setting.forced) if f)
        return replace(self, compute=compute, plan=Plan(setting.grid, anchors) if static else None)

    def decide(self, clock: Clock, indicator: Indicator) -> Decision | None:
        if clock.arrived(self.compute):
            return COMPUTE("mask")
        return SKIP("mask") if self.plan is not None else None
