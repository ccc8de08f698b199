"""MagCache's schedule: how the residual's size changes from step to step is known beforehand, so what a skip costs is too."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from ..calibration.block_profile import BlockProfile
from ..clock import Clock
from ..plan import Plan
from ..published.coefficients import (
    AUTO,
    MAGCACHE,
    MEASURED,
    Magnitudes,
    Network,
    check_name,
    magnitudes,
    names,
    row_of,
)
from .base import COMPUTE, SKIP, Decision, Indicator, RunContext


@dataclass(frozen=True)
class Ratios:
    """Skip while the sum of |1 - rho| stays below `error`, rho the residual's size at a step over that at the last computed one, and
    at most `most` steps in a row (0: no limit); the first `retention` of the steps are computed. (Ma et al., NeurIPS 2025.)

    table: AUTO takes the ratios published for the model at hand, and those measured in a run of it where none are; MEASURED the
    measured ones; otherwise a name in magcache.json. Without any, everything is computed. The schedule is worked out at the start,
    from no tensor.
    typical: above 0, the threshold is so many times the median |1 - ratio| of the run's steps, and `error` is of no account.
    Raises ValueError for an unknown table, an error below 0, a retention that is no share.
    """

    error: float = 0.0
    retention: float = 0.0
    most: int = 0
    table: str = AUTO
    typical: float = 0.0
    plan: Plan | None = None
    source: str = ""
    note: str = ""
    smallest: float = math.inf  # sum that a skip would have had at least

    def __post_init__(self) -> None:
        check_name("table", self.table, names(MAGCACHE))
        for value in (self.error, self.typical):
            if not value >= 0:
                raise ValueError(f"the threshold is at least 0 (which computes everything), not {value}")
        if not 0 <= self.retention <= 1:
            raise ValueError(f"retention is a share of the steps, from 0 to 1, not {self.retention}")
        if self.most < 0:
            raise ValueError(f"the most steps to skip in a row is a number of steps, not {self.most}")

    def lacks(self, network: Network, lessons: BlockProfile | None) -> bool:
        """Does it need a full run of the user's own model, and there was none?"""
        return self._chosen(network, lessons, 0)[1] is None

    def _chosen(self, network: Network, lessons: BlockProfile | None, steps: int) -> tuple[str, Magnitudes | None]:
        row = None if self.table == MEASURED else row_of(MAGCACHE, self.table, network, steps)
        if row is not None:
            return row.name, magnitudes(row.name)
        return MEASURED, lessons.magnitudes if lessons else None

    def start(self, setting: RunContext) -> Ratios:
        grid = setting.grid
        name, sizes = self._chosen(setting.network, setting.lessons, grid.steps)
        if sizes is None:
            return replace(
                self,
                plan=Plan(grid, tuple(range(grid.steps))),
                note="no magnitude ratios are published for this model, and none were measured in a run of it: everything is computed",
            )
        if grid.steps < 1 or not grid.falling:
            return replace(self, plan=Plan(grid, tuple(range(grid.steps))))
        anchors, smallest, most = [], math.inf, min(self.most or math.inf, setting.longest)
        total, rho, skipped, ratios = 0.0, 1.0, 0, sizes.ratios(grid)
        error = (
            self.typical * float(np.median(np.abs(1 - ratios[1:]))) if self.typical and grid.steps > 1 else self.error
        )
        for i, ratio in enumerate(ratios):
            if i > 0 and i >= int(self.retention * grid.steps) and not setting.forced[i]:
                rho *= ratio
                total += abs(1 - rho)
                skipped += 1
                smallest = min(smallest, total)
                if total < error and skipped <= most:
                    continue
            anchors.append(i)
            total, rho, skipped = 0.0, 1.0, 0
        return replace(
            self,
            plan=Plan(grid, tuple(anchors)),
            error=error,
            smallest=smallest,
            source="a run of this model" if name == MEASURED else name,
        )

    def decide(self, clock: Clock, indicator: Indicator) -> Decision:
        assert self.plan is not None
        return COMPUTE("ratio") if clock.arrived(self.plan.anchors) else SKIP("ratio")

    def advice(self) -> str:
        """For a run without a skip: how near it came, and what to turn."""
        if self.note.startswith("no "):
            return "connect a step_mask, or take First Block Cache, which needs no table"
        if not math.isfinite(self.smallest):
            return "no step was left to skip: lower warmup and start_percent, or take more steps"
        return (
            f"the smallest error of a skip was {self.smallest:.3g} against a threshold of {self.error:.3g}: raise the threshold above "
            "it, pick a faster preset, or take more steps"
        )
