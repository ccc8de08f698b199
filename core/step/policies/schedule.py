"""A schedule that is known before the first step: solved by PSSP from edge costs, or one of those published."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from ..clock import Clock, Grid
from ..costs import edge_costs
from ..gram import Gram, default
from ..named import NAMED
from ..plan import Plan
from ..predictors import Predictor
from ..pssp import solve
from .base import COMPUTE, SKIP, Decision


@dataclass(frozen=True)
class Budget:
    """The share of the steps to compute at most, by the number of steps: (steps, share) pairs, between them linear.

    Raises ValueError for a share outside (0, 1].
    """

    shares: tuple[tuple[int, float], ...]

    def __post_init__(self) -> None:
        for _, share in self.shares:
            if not 0 < share <= 1:
                raise ValueError(f"the budget is the share of steps to compute: above 0 and at most 1, not {share}")

    @classmethod
    def of(cls, share: float) -> Budget:
        return cls(((1, share),))

    def count(self, steps: int) -> int:
        """How many of so many steps to compute: at most the share, at least 1."""
        at, shares = zip(*self.shares, strict=True)
        share = float(np.interp(steps, at, shares))
        return max(math.floor(share * steps + 1e-6), 1)


@dataclass(frozen=True)
class Schedule:
    """Compute the steps of a plan, skip the others.

    gamma: PSSP's exponent, at least 1. name: "" to solve PSSP for the predictor that will run, or a key of NAMED. warmup,
    start_percent, end_percent, max_skips: what the guards will compute anyway, so that the solver spends its budget
    knowing it. Raises ValueError for an unknown name or a gamma that is no exponent.
    """

    budget: Budget
    gamma: float = 2.0
    name: str = ""
    warmup: int = 2
    start_percent: float = 0.0
    end_percent: float = 1.0
    max_skips: int = 0
    plan: Plan | None = None

    def __post_init__(self) -> None:
        if self.name and self.name not in NAMED:
            raise ValueError(f"there is no schedule {self.name!r}; there are {', '.join(NAMED)}")
        if not 1 <= self.gamma <= 16:
            raise ValueError(f"gamma is an exponent from 1 to 16 (1 sums errors, more avoids peaks), not {self.gamma}")

    def start(self, grid: Grid, predictor: Predictor) -> Schedule:
        if grid.steps < 1 or not grid.falling:
            return replace(self, plan=Plan(grid, tuple(range(grid.steps))))
        if self.name:
            return replace(self, plan=NAMED[self.name].plan(grid))
        high, low = grid.sigma_at(self.start_percent), grid.sigma_at(self.end_percent)
        forced = tuple(i < self.warmup or not low <= s <= high for i, s in enumerate(grid.sigmas[:-1]))
        count = self.budget.count(grid.steps)
        return replace(self, plan=Plan(grid, _solved(predictor, grid, count, self.gamma, forced, self.max_skips)))

    def decide(self, clock: Clock, indicator: float | None = None) -> Decision:
        assert self.plan is not None
        # an anchor that the sampler stepped over, with larger steps of its own, is made good at the next evaluation
        due = min(clock.before + 1, clock.step)
        return COMPUTE("schedule") if any(due <= a <= clock.step for a in self.plan.anchors) else SKIP("schedule")


@lru_cache(maxsize=64)
def _solved(
    predictor: Predictor, grid: Grid, budget: int, gamma: float, forced: tuple[bool, ...], max_skips: int
) -> tuple[int, ...]:
    """The same question comes with every run of a workflow: asked once."""
    cost = edge_costs(predictor, grid.times, _default().on(grid))
    if max_skips:
        b, c = np.indices(cost.shape[1:])
        cost = np.where(c - b - 1 > max_skips, np.inf, cost)
    return solve(cost, budget, gamma, np.array(forced))


@lru_cache(maxsize=1)
def _default() -> Gram:
    return default()
