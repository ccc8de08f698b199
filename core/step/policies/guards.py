"""Guards: where an evaluation is computed whatever the method would say."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..clock import Clock
from .base import COMPUTE, Decision, Indicator, RunContext


@dataclass(frozen=True)
class Warmup:
    """The first `steps` steps are computed: everything is decided there, and predictors need something to go by. most: the share of
    a run's steps that they are at most."""

    steps: int
    most: float = 1.0

    def start(self, setting: RunContext) -> Warmup:
        steps = min(self.steps, math.ceil(self.most * setting.grid.steps))
        setting.force(range(steps))
        return replace(self, steps=steps)

    def decide(self, clock: Clock, indicator: Indicator) -> Decision | None:
        return COMPUTE("warmup") if clock.step < self.steps else None


@dataclass(frozen=True)
class Full:
    """Everything is computed. why: one word of the report."""

    why: str

    def start(self, setting: RunContext) -> Full:
        setting.force(range(setting.grid.steps))
        return self

    def decide(self, clock: Clock, indicator: Indicator) -> Decision | None:
        return COMPUTE(self.why)


@dataclass(frozen=True)
class LastStep:
    """The last step is computed: no later one could mend it."""

    def start(self, setting: RunContext) -> LastStep:
        setting.force((setting.grid.steps - 1,))
        return self

    def decide(self, clock: Clock, indicator: Indicator) -> Decision | None:
        return COMPUTE("last step") if clock.last_step else None


@dataclass(frozen=True)
class Events:
    """Steps at which a conditioning begins, ends or changes, known at the run's start: computed at the first look at them."""

    steps: frozenset[int]

    def start(self, setting: RunContext) -> Events:
        setting.force(self.steps)
        return self

    def decide(self, clock: Clock, indicator: Indicator) -> Decision | None:
        return COMPUTE("event") if clock.arrived(self.steps) else None


@dataclass(frozen=True)
class Window:
    """Outside start_percent..end_percent everything is computed. Percent as in ComfyUI: of the timestep range, or, with
    `of_steps`, of the steps."""

    start_percent: float
    end_percent: float
    of_steps: bool = False
    high: float = 0.0
    low: float = 0.0

    def start(self, setting: RunContext) -> Window:
        grid = setting.grid
        if self.of_steps:
            first, end = (int(p * grid.steps) for p in (self.start_percent, self.end_percent))
            high = grid.sigmas[min(first, grid.steps)]
            # the step at `end` is outside already
            low = grid.sigmas[end - 1] if 0 < end <= grid.steps else high + 1
        else:
            high, low = grid.sigma_at(self.start_percent), grid.sigma_at(self.end_percent)
        setting.force(i for i, s in enumerate(grid.sigmas[:-1]) if not low <= s <= high)
        return Window(self.start_percent, self.end_percent, self.of_steps, high, low)

    def decide(self, clock: Clock, indicator: Indicator) -> Decision | None:
        return None if self.low <= clock.sigma <= self.high else COMPUTE("window")


@dataclass(frozen=True)
class Total:
    """At most `skips` evaluations of the whole run are skipped; 0 means no limit."""

    skips: int

    def start(self, setting: RunContext) -> Total:
        return self

    def decide(self, clock: Clock, indicator: Indicator) -> Decision | None:
        return COMPUTE("total") if self.skips and clock.skipped >= self.skips else None


@dataclass(frozen=True)
class Cap:
    """At most `skips` evaluations in a row are skipped; 0 means no limit."""

    skips: int

    def start(self, setting: RunContext) -> Cap:
        if self.skips:
            setting.longest = min(setting.longest, self.skips)
        return self

    def decide(self, clock: Clock, indicator: Indicator) -> Decision | None:
        return COMPUTE("cap") if self.skips and clock.skips >= self.skips else None
