"""MagCache's schedule: the residual's size from step to step is known beforehand, and with it the error of each skip."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from ...texts import Text
from ..calibration.block_profile import BlockProfile
from ..clock import Clock
from ..context import RunContext
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
from ..reasons import Reason
from ..report.messages import OWN_MODEL
from .base import COMPUTE, SKIP, Decision, Policy, ReadIndicator, check_threshold

NO_RATIOS = Text(
    "no_ratios", "no magnitude ratios are published for this model and none were measured on it: every step is computed"
)
WITHOUT_RATIOS = Text("without_ratios", "connect a step_mask, or use First Block Cache, which needs no table")
NONE_LEFT = Text("none_left", "no step was left to skip: lower warmup or add steps")
RAISE_ERROR = Text(
    "error_too_large",
    "raise the threshold ({threshold}); smallest error of a skip: {smallest}",
)


@dataclass(frozen=True)
class Ratios(Policy):
    """Skip while the sum of |1 - rho| stays below `error`, with rho the residual's size at a step over that at the last anchor.

    Ma et al. 2025, https://arxiv.org/abs/2506.09045. The schedule is computed before the run and touches no tensor.
    Raises ValueError for an unknown table, an error below 0, a retention outside 0..1, or a negative number of steps.

    Parameters
    ----------
    error: the threshold on the sum.
    retention: share of the steps computed at the start.
    max_skips: steps skipped in a row at most; 0 means no limit.
    table: AUTO: the ratios published for the model, else those measured on it. MEASURED: the measured ones. Otherwise a name in
        published/magcache.json. Without ratios every step is computed.
    typical: above 0, the threshold is this multiple of the run's median |1 - ratio|, and `error` is ignored.
    """

    error: float = 0.0
    retention: float = 0.0
    max_skips: int = 0
    table: str = AUTO
    typical: float = 0.0
    plan: Plan | None = None
    source: str = ""
    note: str = ""
    smallest: float = math.inf  # the smallest sum that a skip would have had

    def __post_init__(self) -> None:
        check_name("table", self.table, names(MAGCACHE))
        check_threshold(self.error, self.typical)
        if not 0 <= self.retention <= 1:
            raise ValueError(f"retention is a share of the steps, from 0 to 1, not {self.retention}")
        if self.max_skips < 0:
            raise ValueError(f"the most steps to skip in a row is a number of steps, not {self.max_skips}")

    def requires_profile(self, network: Network, profile: BlockProfile | None) -> bool:
        return self._choose(network, profile, 0)[1] is None

    def _choose(self, network: Network, profile: BlockProfile | None, steps: int) -> tuple[str, Magnitudes | None]:
        row = None if self.table == MEASURED else row_of(MAGCACHE, self.table, network, steps)
        if row is not None:
            return row.name, magnitudes(row.name)
        return MEASURED, profile.magnitudes if profile else None

    def start(self, context: RunContext) -> Ratios:
        grid = context.grid
        name, sizes = self._choose(context.network, context.block_profile, grid.steps)
        everything = Plan(grid, tuple(range(grid.steps)))
        if sizes is None:
            return replace(self, plan=everything, note=NO_RATIOS)
        if grid.steps < 1 or not grid.falling:
            return replace(self, plan=everything)
        ratios = sizes.ratios(grid)
        error = self.error
        if self.typical and grid.steps > 1:
            error = self.typical * float(np.median(np.abs(1 - ratios[1:])))
        longest = min(self.max_skips or math.inf, context.max_skipped_steps)
        anchors, smallest = [], math.inf
        total, rho, skipped = 0.0, 1.0, 0
        for i, ratio in enumerate(ratios):
            if i > 0 and i >= int(self.retention * grid.steps) and not context.forced[i]:
                rho *= ratio
                total += abs(1 - rho)
                skipped += 1
                smallest = min(smallest, total)
                if total < error and skipped <= longest:
                    continue
            anchors.append(i)
            total, rho, skipped = 0.0, 1.0, 0
        return replace(
            self,
            plan=Plan(grid, tuple(anchors)),
            error=error,
            smallest=smallest,
            source=OWN_MODEL if name == MEASURED else name,
        )

    def decide(self, clock: Clock, indicator: ReadIndicator) -> Decision:
        assert self.plan is not None
        return COMPUTE(Reason.RATIO) if clock.reached(self.plan.anchors) else SKIP(Reason.RATIO)

    def advice(self) -> str:
        if self.note == NO_RATIOS:
            return WITHOUT_RATIOS
        if not math.isfinite(self.smallest):
            return NONE_LEFT
        return RAISE_ERROR.of(smallest=f"{self.smallest:.3g}", threshold=f"{self.error:.3g}")
