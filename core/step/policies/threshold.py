"""Plain threshold: nothing adds up, the indicator's current value decides."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..clock import Clock
from ..context import RunContext
from ..reasons import Reason
from .base import COMPUTE, AdaptiveState, Decision, Policy, ReadIndicator, check_threshold


@dataclass(frozen=True)
class Threshold(Policy):
    """Skip while the indicator is below the threshold, as First Block Cache and DBCache do. Raises ValueError for one below 0.

    Parameters
    ----------
    threshold: in the indicator's unit.
    typical: above 0, the threshold is this multiple of `Reading.typical`, which needs no knowledge of the model; `threshold` is ignored.
    """

    threshold: float = 0.0
    typical: float = 0.0

    def __post_init__(self) -> None:
        check_threshold(self.threshold, self.typical)

    def start(self, context: RunContext) -> ThresholdState:
        return ThresholdState(self)


class ThresholdState(AdaptiveState):
    """A Threshold in one run."""

    def __init__(self, config: Threshold) -> None:
        super().__init__(config.threshold)
        self.config = config

    def decide(self, clock: Clock, indicator: ReadIndicator) -> Decision:
        reading = indicator()
        if reading is None:
            return COMPUTE(Reason.HISTORY)
        if not math.isfinite(reading.value):
            return COMPUTE(Reason.NOT_FINITE)
        if self.config.typical:
            self.threshold = self.config.typical * reading.typical
            return self.compare_typical(reading.value, self.threshold, reading.change)
        return self.compare(reading.value, self.threshold)
