"""A bare threshold: nothing adds up, the indicator alone says whether this evaluation may be skipped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..clock import Clock
from .base import COMPUTE, SKIP, Decision, Indicator, Setting


@dataclass(frozen=True)
class Threshold:
    """Skip while the indicator is below the threshold, as First Block Cache and DBCache do.

    typical: above 0, the threshold is so many times the run's own typical change from one evaluation to the next
    (`Clock.typical`): it needs no knowledge of the model. known: thresholds for families, which go before both.
    Raises ValueError for a threshold below 0.
    """

    threshold: float = 0.0
    typical: float = 0.0
    known: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for value in (self.threshold, self.typical, *self.known.values()):
            if not value >= 0:
                raise ValueError(f"the threshold is at least 0 (which computes everything), not {value}")

    def start(self, setting: Setting) -> Thresholding:
        known = next((v for name, v in self.known.items() if setting.network.named(name)), None)
        if known is not None:
            return Thresholding(known)
        return Thresholding(self.threshold, self.typical)


@dataclass
class Thresholding:
    """A Threshold at work. threshold: what the indicator was last held against."""

    threshold: float
    typical: float = 0.0
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
        if value < self.smallest:
            self.smallest, self.against = value, self.threshold
        return SKIP("threshold") if value < self.threshold else COMPUTE("threshold")

    def advice(self) -> str:
        """For a run without a skip: how near it came, and what to turn."""
        if not math.isfinite(self.smallest):
            return "the threshold was never asked: widen start_percent..end_percent, lower warmup, or take more steps"
        return (
            f"the smallest change was {self.smallest:.3g} against a threshold of {self.against:.3g}: raise the threshold "
            "above it, pick a faster preset, or take more steps"
        )
