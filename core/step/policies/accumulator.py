"""Accumulated threshold: estimated changes of the output add up until a threshold is reached, then the model runs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...texts import Text
from ..clock import Clock
from ..context import RunContext
from ..reasons import Reason
from .base import COMPUTE, AdaptiveState, Decision, Policy, ReadIndicator, check_threshold


@dataclass(frozen=True)
class Accumulator(Policy):
    """Skip while E = decay * E + reading stays below the threshold.

    EasyCache (https://arxiv.org/abs/2507.02860) has the defaults; UCache (stable-diffusion.cpp) sets the others.
    Raises ValueError for a threshold below 0.

    Parameters
    ----------
    threshold: in the indicator's unit.
    decay: factor on E before each reading is added.
    reset: set E to 0 after a computed evaluation.
    penalty: each reading is weighted by 1 + penalty * (evaluations skipped in a row).
    early, late: factors on the threshold during the first and the last fifth of the run's computed evaluations.
    typical: above 0, the threshold is this multiple of `Reading.typical`, and `threshold` is ignored.
    """

    threshold: float = 0.0
    decay: float = 1.0
    reset: bool = True
    penalty: float = 0.0
    early: float = 1.0
    late: float = 1.0
    typical: float = 0.0

    def __post_init__(self) -> None:
        check_threshold(self.threshold, self.typical)

    def start(self, context: RunContext) -> AccumulatorState:
        return AccumulatorState(self, context.grid.steps)


class AccumulatorState(AdaptiveState):
    """An Accumulator in one run."""

    name = Text("accumulated_change", "accumulated change")

    def __init__(self, config: Accumulator, steps: int) -> None:
        super().__init__(config.threshold)
        self.config = config
        self.steps = steps
        self.error = 0.0  # E
        self.computed = 0

    def decide(self, clock: Clock, indicator: ReadIndicator) -> Decision:
        config, reading = self.config, indicator()
        if reading is None:
            self.computed += 1
            return COMPUTE(Reason.HISTORY)
        if not math.isfinite(reading.value):
            self.error, self.computed = 0.0, self.computed + 1
            return COMPUTE(Reason.NOT_FINITE)
        if config.reset and clock.skips == 0:
            self.error = 0.0
        self.error = config.decay * self.error + reading.value * (1 + config.penalty * clock.skips)
        progress = self.computed / self.steps
        factor = config.early if progress < 0.2 else config.late if progress > 0.8 else 1.0
        if config.typical:
            self.threshold = config.typical * reading.typical
            decision = self.compare_typical(self.error, self.threshold * factor, reading.change)
        else:
            decision = self.compare(self.error, self.threshold * factor)
        self.computed += decision.compute
        return decision
