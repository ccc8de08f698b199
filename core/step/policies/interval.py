"""Counted schedules: every n-th step, or steps at growing distances."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..clock import Clock
from ..context import RunContext
from ..plan import Plan
from ..reasons import Reason
from .base import COMPUTE, SKIP, Decision, Policy, ReadIndicator


@dataclass(frozen=True)
class Interval(Policy):
    """After the warmup, compute a step when floor(window) - 1 steps before it were skipped.

    flex 0 is TaylorSeer's fixed interval N (https://arxiv.org/abs/2503.06923), flex > 0 Spectrum's schedule
    (https://arxiv.org/abs/2603.01623). Raises ValueError for a window below 1 or a negative flex.

    Parameters
    ----------
    warmup: steps computed at the start.
    window: in steps.
    flex: growth of the window per computed step after the warmup, in steps.
    stop: share of the steps after which all are computed.
    """

    warmup: int
    window: float
    flex: float = 0.0
    stop: float = 1.0
    plan: Plan | None = None

    def __post_init__(self) -> None:
        if not (1 <= self.window < math.inf and 0 <= self.flex < math.inf):
            raise ValueError(
                f"the window is a number of steps, at least 1, and grows by flex, at least 0; not {self.window:g} and {self.flex:g}"
            )

    def start(self, context: RunContext) -> Interval:
        grid = context.grid
        window, skipped, anchors = self.window, 0, []
        stop = int(self.stop * grid.steps)
        for i in range(grid.steps):
            if i >= max(self.warmup, 1) and i < stop and (skipped + 1) % int(window) != 0 and not context.forced[i]:
                skipped += 1
                continue
            anchors.append(i)
            skipped = 0
            if i >= self.warmup:
                window += self.flex
        return replace(self, plan=Plan(grid, tuple(anchors)))

    def decide(self, clock: Clock, indicator: ReadIndicator) -> Decision:
        assert self.plan is not None
        return COMPUTE(Reason.INTERVAL) if clock.reached(self.plan.anchors) else SKIP(Reason.INTERVAL)
