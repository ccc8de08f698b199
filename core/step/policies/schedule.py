"""A schedule that is known before the first step: solved by PSSP from edge costs, evenly spaced, or a published one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..calibration.costs import default
from ..clock import Clock, Grid
from ..context import RunContext
from ..plan import Plan
from ..planning.parts import part_budget
from ..planning.planner import Question, solve
from ..planning.published_schedules import PUBLISHED_SCHEDULES
from ..reasons import Reason
from .base import COMPUTE, SKIP, Decision, Policy, ReadIndicator

EVEN = "even"


@dataclass(frozen=True)
class Budget:
    """The largest share of steps to compute, as (number of steps, share) pairs with linear interpolation between them.

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

    def share(self, steps: float) -> float:
        at, shares = zip(*self.shares, strict=True)
        return float(np.interp(steps, at, shares))

    def count(self, grid: Grid) -> int:
        """Steps to compute on a grid: at most the share, at least 1. Of a part of a trajectory: what the whole one's budget leaves after
        the steps before, so that the parts together keep to it."""
        first, total = grid.whole
        share = self.share(total)
        return max(math.floor(share * (first + grid.steps) + 1e-6) - math.floor(share * first + 1e-6), 1)


@dataclass(frozen=True)
class Schedule(Policy):
    """Compute the steps of a plan and skip the others.

    Raises ValueError for an unknown name, a gamma outside 1..16, or a negative max_error.

    Parameters
    ----------
    budget: ignored with `max_error` and with a published schedule.
    gamma: PSSP's exponent: 1 minimises the sum of errors, more suppresses peaks.
    name: "" solves PSSP for the run's predictor; EVEN spaces the steps evenly, without costs; otherwise a key of PUBLISHED_SCHEDULES.
    max_error: above 0, compute as few steps as keep the predicted error below this share of the run's displacement.
    limit: above 0, compute more steps than the budget where the predicted error would be above this share.
    cautious: max_error is divided by the margin of the costs.
    """

    budget: Budget
    gamma: float = 2.0
    name: str = ""
    max_error: float = 0.0
    limit: float = 0.0
    cautious: bool = False
    plan: Plan | None = None
    predicted_error: float | None = None
    source: str = ""

    def __post_init__(self) -> None:
        if self.name and self.name != EVEN and self.name not in PUBLISHED_SCHEDULES:
            raise ValueError(f"there is no schedule {self.name!r}; there are {EVEN}, {', '.join(PUBLISHED_SCHEDULES)}")
        if not 1 <= self.gamma <= 16:
            raise ValueError(f"gamma is an exponent from 1 to 16 (1 sums errors, more avoids peaks), not {self.gamma}")
        if not self.max_error >= 0:
            raise ValueError(f"max_error is a share of the whole displacement, 0 for none, not {self.max_error}")

    def start(self, context: RunContext) -> Schedule:
        grid, forced = context.grid, context.forced
        if grid.steps < 2 or not grid.falling or all(forced):
            return replace(self, plan=Plan(grid, tuple(range(grid.steps))))
        if self.name == EVEN:
            return replace(self, plan=Plan(grid, _even(self.budget.count(grid), forced)))
        if self.name:
            return replace(self, plan=PUBLISHED_SCHEDULES[self.name].plan(grid))
        costs = context.costs or default(grid, kept=context.kept)
        safety = 10 ** (-context.margin / 20) if self.cautious else 1.0
        question = Question(
            context.predictor,
            grid.sigmas,
            grid.flow,
            costs,
            self.budget.count(grid),
            self.gamma,
            tuple(forced),
            context.max_skipped_steps,
            self.max_error * safety,
            self.limit,
            grid.ends,
            context.breaks,
            cfg=context.cfg,
            response=context.response,
        )
        if not (grid.begins and grid.ends):
            share = self.budget.share(grid.whole[1])
            question = replace(question, budget=part_budget(grid, share, question, context.kept))
        solution = solve(question)
        line = solution.predictor.line
        plan = Plan(grid, solution.anchors, slope=line.slope if line else None, gain=solution.predictor.correction)
        return replace(self, plan=plan, predicted_error=solution.error, source=costs.recipe)

    def decide(self, clock: Clock, indicator: ReadIndicator) -> Decision:
        assert self.plan is not None
        return COMPUTE(Reason.SCHEDULE) if clock.reached(self.plan.anchors) else SKIP(Reason.SCHEDULE)


def _even(count: int, forced: Sequence[bool]) -> tuple[int, ...]:
    """The first and all forced steps, and as many evenly spaced ones as fit into `count`."""
    steps = len(forced)
    must = {0, *(i for i, f in enumerate(forced) if f)}
    for spread in range(count, 1, -1):
        anchors = must | {int(i) for i in np.linspace(0, steps - 1, spread).round()}
        if len(anchors) <= count:
            return tuple(sorted(anchors))
    return tuple(sorted(must))
