"""A bare threshold: nothing adds up, the indicator alone says whether this evaluation may be skipped."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..clock import Clock
from .base import COMPUTE, SKIP, Decision, Indicator, RunContext


@dataclass(frozen=True)
class Threshold:
    """Skip while the indicator is below the threshold, as First Block Cache and DBCache do.

    typical: above 0, the threshold is so many times the run's own typical change from one evaluation to the next
    (`Clock.typical`): it needs no knowledge of the model, and `threshold` is of no account.
    Raises ValueError for a threshold below 0.
    """

    threshold: float = 0.0
    typical: float = 0.0

    def __post_init__(self) -> None:
        for value in (self.threshold, self.typical):
            if not value >= 0:
                raise ValueError(f"the threshold is at least 0 (which computes everything), not {value}")

    def start(self, setting: RunContext) -> ThresholdState:
        return ThresholdState(self.threshold, self.typical)


@dataclass
class ThresholdState:
    """A Threshold at work. threshold: what the indicator was last held against."""

    threshold: float
    typical: float = 0.0
    held: tuple[float, float] | None = None  # what was last held against a threshold, and that threshold
    smallest: float = math.inf  # indicator that was held against a threshold, and that threshold
    against: float = math.nan

    def decide(self, clock: Clock, indicator: Indicator) -> Decision:
        value = indicator()
        if value is None:
            return COMPUTE("history")
        if not math.isfinite(value):
            return COMPUTE("not finite")
        if self.typical:
            self.threshold = self.typical * clock.typical
        self.held = value, self.threshold
        if value < self.smallest:
            self.smallest, self.against = value, self.threshold
        return SKIP("threshold") if value < self.threshold else COMPUTE("threshold")

    def advice(self) -> str:
        """For a run without a skip: how near it came, and what to turn."""
        if not math.isfinite(self.smallest):
            return "the threshold was never asked: widen start_percent..end_percent, lower warmup, or take more steps"
        return (
            f"raise the threshold of {self.against:.3g} above {self.smallest:.3g}, the smallest change, pick a faster preset, or "
            "take more steps"
        )
