"""Schedules that count: every so many steps, or at growing distances."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..clock import Clock
from ..plan import Plan
from .base import COMPUTE, SKIP, Decision, Indicator, RunContext


@dataclass(frozen=True)
class Interval:
    """After `warmup` steps compute every `window`-th, and let the window grow by `flex` with every step computed.

    flex 0 is TaylorSeer's fixed interval N (arXiv 2503.06923); flex > 0 is Spectrum's schedule: a step is computed when as
    many as floor(window) - 1 before it were skipped. From the share `stop` of the steps on, all are computed. Raises
    ValueError for a window below 1.
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

    def start(self, setting: RunContext) -> Interval:
        grid = setting.grid
        window, skipped, anchors = self.window, 0, []
        stop = int(self.stop * grid.steps)
        for i in range(grid.steps):
            if i >= max(self.warmup, 1) and i < stop and (skipped + 1) % int(window) != 0 and not setting.forced[i]:
                skipped += 1
                continue
            anchors.append(i)
            skipped = 0
            if i >= self.warmup:
                window += self.flex
        return replace(self, plan=Plan(grid, tuple(anchors)))

    def decide(self, clock: Clock, indicator: Indicator) -> Decision:
        assert self.plan is not None
        return COMPUTE("interval") if clock.arrived(self.plan.anchors) else SKIP("interval")
