"""Adaptive skipping: estimated changes of the output add up until a threshold is reached, then the model is asked."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ..clock import Clock
from .base import COMPUTE, SKIP, Decision, Indicator, RunContext


@dataclass(frozen=True)
class Accumulator:
    """Skip while E = decay * E + indicator stays below the threshold; compute otherwise, and, with `reset`, begin again at 0.

    EasyCache (arXiv 2507.02860) has the other values as they stand. UCache (stable-diffusion.cpp) weighs an indicator by
    1 + penalty * (evaluations skipped in a row), and holds E against early * threshold in the first fifth of the run's
    computed evaluations and late * threshold in the last. typical: above 0, the threshold is so many times the run's own typical
    change from one evaluation to the next (`Clock.typical`), and `threshold` is of no account. Raises ValueError for a threshold
    below 0.
    """

    threshold: float = 0.0
    decay: float = 1.0
    reset: bool = True
    penalty: float = 0.0
    early: float = 1.0
    late: float = 1.0
    typical: float = 0.0

    def __post_init__(self) -> None:
        for value in (self.threshold, self.typical):
            if not value >= 0:
                raise ValueError(f"the threshold is at least 0 (which computes everything), not {value}")

    def start(self, setting: RunContext) -> AccumulatorState:
        return AccumulatorState(self, setting.grid.steps)


@dataclass
class AccumulatorState:
    """An Accumulator at work."""

    rule: Accumulator
    steps: int
    error: float = 0.0
    computed: int = 0
    threshold: float = 0.0
    held: tuple[float, float] | None = None  # what was last held against a threshold, and that threshold
    smallest: float = math.inf  # of what was held against a threshold, and that threshold
    against: float = field(default=math.nan)

    def __post_init__(self) -> None:
        self.threshold = self.rule.threshold

    def decide(self, clock: Clock, indicator: Indicator) -> Decision:
        rule, value = self.rule, indicator()
        if value is None:
            self.computed += 1
            return COMPUTE("history")
        if not math.isfinite(value):
            self.error, self.computed = 0.0, self.computed + 1
            return COMPUTE("not finite")
        if rule.reset and clock.skips == 0:
            self.error = 0.0
        self.error = rule.decay * self.error + value * (1 + rule.penalty * clock.skips)
        progress = self.computed / self.steps
        if rule.typical:
            self.threshold = rule.typical * clock.typical
        limit = self.threshold * (rule.early if progress < 0.2 else rule.late if progress > 0.8 else 1.0)
        self.held = self.error, limit
        if self.error < self.smallest:
            self.smallest, self.against = self.error, limit
        if self.error < limit:
            return SKIP("threshold")
        self.computed += 1
        return COMPUTE("threshold")

    def advice(self) -> str:
        """For a run without a skip: how near it came, and what to turn."""
        if not math.isfinite(self.smallest):
            return "the threshold was never asked: widen start_percent..end_percent, lower warmup, or take more steps"
        return (
            f"raise the threshold of {self.against:.3g} above {self.smallest:.3g}, the smallest accumulated change, pick a faster "
            "preset, or take more steps"
        )
