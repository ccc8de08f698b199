"""Guards: where an evaluation is computed whatever the method would say."""

from __future__ import annotations

from dataclasses import dataclass

from ..clock import Clock, Grid
from ..predictors import Predictor
from .base import COMPUTE, Decision


@dataclass(frozen=True)
class Warmup:
    """The first `steps` steps are computed: everything is decided there, and predictors need something to go by."""

    steps: int

    def start(self, grid: Grid, predictor: Predictor) -> Warmup:
        return self

    def decide(self, clock: Clock, indicator: float | None = None) -> Decision | None:
        return COMPUTE("warmup") if clock.step < self.steps else None


@dataclass(frozen=True)
class LastStep:
    """The last step is computed: no later one could mend it."""

    def start(self, grid: Grid, predictor: Predictor) -> LastStep:
        return self

    def decide(self, clock: Clock, indicator: float | None = None) -> Decision | None:
        return COMPUTE("last step") if clock.last_step else None


@dataclass(frozen=True)
class Window:
    """Outside start_percent..end_percent everything is computed. Percent as in ComfyUI: of the timestep range, not of the steps."""

    start_percent: float
    end_percent: float
    high: float = 0.0
    low: float = 0.0

    def start(self, grid: Grid, predictor: Predictor) -> Window:
        return Window(
            self.start_percent, self.end_percent, grid.sigma_at(self.start_percent), grid.sigma_at(self.end_percent)
        )

    def decide(self, clock: Clock, indicator: float | None = None) -> Decision | None:
        return None if self.low <= clock.sigma <= self.high else COMPUTE("window")


@dataclass(frozen=True)
class Cap:
    """At most `skips` evaluations in a row are skipped; 0 means no limit."""

    skips: int

    def start(self, grid: Grid, predictor: Predictor) -> Cap:
        return self

    def decide(self, clock: Clock, indicator: float | None = None) -> Decision | None:
        return COMPUTE("cap") if self.skips and clock.skips >= self.skips else None
