"""A schedule that is known before the first step: solved by PSSP from edge costs, or one of those published."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np

from ..calibration.gram import Gram, default
from ..clock import Clock, Grid
from ..plan import Plan
from ..planning.edge_costs import edge_costs, size, weights
from ..planning.pssp import Paths
from ..planning.published_schedules import PUBLISHED_SCHEDULES
from ..predictors import Corrected, Predictor
from .base import COMPUTE, SKIP, Decision, Indicator, RunContext


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

    def share(self, steps: int) -> float:
        at, shares = zip(*self.shares, strict=True)
        return float(np.interp(steps, at, shares))

    def count(self, steps: int) -> int:
        """How many of so many steps to compute: at most the share, at least 1."""
        return max(math.floor(self.share(steps) * steps + 1e-6), 1)


EVEN = "even"


@dataclass(frozen=True)
class Schedule:
    """Compute the steps of a plan, skip the others.

    gamma: PSSP's exponent, at least 1. name: "" to solve PSSP for the predictor that will run, EVEN for steps evenly spaced (no
    costs are looked at), or a key of PUBLISHED_SCHEDULES. max_error: above 0, PSSP's budget is the least keeping the predicted error below
    this share of the whole run's displacement, and `budget` is not looked at. Raises ValueError for an unknown name, a gamma
    that is no exponent, a max_error below 0.
    """

    budget: Budget
    gamma: float = 2.0
    name: str = ""
    max_error: float = 0.0
    plan: Plan | None = None
    error: float | None = None  # predicted, as a share of the whole displacement; None where no costs were looked at
    costs: str = ""  # the recipe of the costs that the plan was solved with

    def __post_init__(self) -> None:
        if self.name and self.name != EVEN and self.name not in PUBLISHED_SCHEDULES:
            raise ValueError(f"there is no schedule {self.name!r}; there are {EVEN}, {', '.join(PUBLISHED_SCHEDULES)}")
        if not 1 <= self.gamma <= 16:
            raise ValueError(f"gamma is an exponent from 1 to 16 (1 sums errors, more avoids peaks), not {self.gamma}")
        if not self.max_error >= 0:
            raise ValueError(f"max_error is a share of the whole displacement, 0 for none, not {self.max_error}")

    def start(self, setting: RunContext) -> Schedule:
        grid = setting.grid
        if grid.steps < 1 or not grid.falling:
            return replace(self, plan=Plan(grid, tuple(range(grid.steps))))
        if self.name == EVEN:
            return replace(self, plan=Plan(grid, _even(grid.steps, self.budget.count(grid.steps), setting.forced)))
        if self.name:
            return replace(self, plan=PUBLISHED_SCHEDULES[self.name].plan(grid))
        costs = setting.costs or _default()
        count = grid.steps if self.max_error else self.budget.count(grid.steps)
        forced, longest = tuple(setting.forced), setting.longest
        predictors = setting.predictor.candidates if isinstance(setting.predictor, Corrected) else (setting.predictor,)
        found = [_solved(p, grid, costs, count, self.gamma, forced, longest, self.max_error) for p in predictors]
        best = min(range(len(found)), key=lambda i: (len(found[i].anchors), found[i].price))
        plan = Plan(grid, found[best].anchors, slope=getattr(predictors[best], "slope", None))
        return replace(self, plan=plan, error=found[best].error, costs=costs.recipe)

    def decide(self, clock: Clock, indicator: Indicator) -> Decision:
        assert self.plan is not None
        return COMPUTE("schedule") if clock.arrived(self.plan.anchors) else SKIP("schedule")


def _even(steps: int, count: int, forced: list[bool]) -> tuple[int, ...]:
    """At most `count` steps where those forced allow it: as many at even distances, first and last among them, as fit beside those."""
    must = {0, steps - 1, *(i for i, f in enumerate(forced) if f)}
    for spread in range(count, 1, -1):
        anchors = must | {int(i) for i in np.linspace(0, steps - 1, spread).round()}
        if len(anchors) <= count:
            return tuple(sorted(anchors))
    return tuple(sorted(must))


@dataclass(frozen=True)
class _Solution:
    """price: what PSSP made least. error: predicted, as a share of the whole displacement."""

    anchors: tuple[int, ...]
    price: float
    error: float


@lru_cache(maxsize=64)
def _solved(
    predictor: Predictor,
    grid: Grid,
    costs: Gram,
    budget: int,
    gamma: float,
    forced: tuple[bool, ...],
    longest: float,
    max_error: float,
) -> _Solution:
    """The same question comes with every run of a workflow: asked once."""
    cost = edge_costs(predictor, grid, costs)
    if math.isfinite(longest):
        b, c = np.indices(cost.shape[1:])
        cost = np.where(c - b - 1 > longest, np.inf, cost)
        ends = [i for i, f in enumerate(forced) if f or i in (0, grid.steps - 1)]
        budget = max(budget, 1 + sum(math.ceil((end - start) / (longest + 1)) for start, end in pairwise(ends)))
    paths, whole = Paths(cost, budget, gamma, np.array(forced), weights(grid)), size(grid, costs)
    if max_error:
        for count in range(paths.least, grid.steps):
            path = paths.best(count)
            if len(path) > 1 and paths.error(path) <= max_error * whole:
                return _Solution(path, paths.price(path), paths.error(path) / whole)
    path = paths.best()
    return _Solution(path, paths.price(path), paths.error(path) / whole)


@lru_cache(maxsize=1)
def _default() -> Gram:
    return default()
