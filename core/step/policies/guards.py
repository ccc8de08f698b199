"""Guards: evaluations that are computed whatever the method would decide. Each answers COMPUTE or has no opinion."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..clock import Clock
from ..context import RunContext
from ..reasons import Reason
from .base import COMPUTE, Decision, Policy, ReadIndicator, RunPolicy


class NoOpinion(RunPolicy):
    """A guard that has nothing to guard in this run."""

    def decide(self, clock: Clock, indicator: ReadIndicator) -> None:
        return None


@dataclass(frozen=True)
class Warmup(Policy):
    """The first `steps` steps of a trajectory, and at most the share `max_share` of a run: they set the composition.

    A run that goes on from another one's latent, or from a picture, has none: it needs only the anchors of its predictor.
    """

    steps: int
    max_share: float = 1.0

    def start(self, context: RunContext) -> Warmup:
        steps = min(self.steps, math.ceil(self.max_share * context.grid.steps)) if context.grid.begins else 0
        context.force(range(steps))
        return replace(self, steps=steps)

    def decide(self, clock: Clock, indicator: ReadIndicator) -> Decision | None:
        return COMPUTE(Reason.WARMUP) if clock.step < self.steps else None


@dataclass(frozen=True)
class Full(Policy):
    """Every evaluation, for this reason."""

    reason: Reason

    def start(self, context: RunContext) -> Full:
        context.force(range(context.grid.steps))
        return self

    def decide(self, clock: Clock, indicator: ReadIndicator) -> Decision | None:
        return COMPUTE(self.reason)


@dataclass(frozen=True)
class LastStep(Policy):
    """The last step of a trajectory: no later step could correct its error. A run that ends above sigma zero has none."""

    def start(self, context: RunContext) -> RunPolicy:
        if not context.grid.ends:
            return NoOpinion()
        context.force((context.grid.steps - 1,))
        return self

    def decide(self, clock: Clock, indicator: ReadIndicator) -> Decision | None:
        return COMPUTE(Reason.LAST_STEP) if clock.last_step else None


@dataclass(frozen=True)
class ConditioningChanges(Policy):
    """Steps at which a conditioning begins, ends or changes: computed when the sampler first reaches them."""

    steps: frozenset[int]

    def start(self, context: RunContext) -> ConditioningChanges:
        context.force(self.steps)
        context.breaks |= self.steps
        return self

    def decide(self, clock: Clock, indicator: ReadIndicator) -> Decision | None:
        return COMPUTE(Reason.CONDITIONING_CHANGE) if clock.reached(self.steps) else None


@dataclass(frozen=True)
class Window(Policy):
    """Evaluations outside start_percent..end_percent of the run.

    Parameters
    ----------
    start_percent, end_percent: 0..1, of ComfyUI's timestep range.
    of_steps: they are shares of the steps instead.
    """

    start_percent: float
    end_percent: float
    of_steps: bool = False
    high: float = 0.0  # sigma; set by `start`
    low: float = 0.0

    def start(self, context: RunContext) -> Window:
        grid = context.grid
        if self.of_steps:
            first, end = (int(p * grid.steps) for p in (self.start_percent, self.end_percent))
            high = grid.sigmas[min(first, grid.steps)]
            # the step at `end` is outside
            low = grid.sigmas[end - 1] if 0 < end <= grid.steps else high + 1
        else:
            high, low = grid.sigma_at(self.start_percent), grid.sigma_at(self.end_percent)
        context.force(i for i, s in enumerate(grid.sigmas[:-1]) if not low <= s <= high)
        return replace(self, high=high, low=low)

    def decide(self, clock: Clock, indicator: ReadIndicator) -> Decision | None:
        return None if self.low <= clock.sigma <= self.high else COMPUTE(Reason.WINDOW)


@dataclass(frozen=True)
class Total(Policy):
    """All evaluations after `skips` were skipped in the run; 0 means no limit."""

    skips: int

    def decide(self, clock: Clock, indicator: ReadIndicator) -> Decision | None:
        return COMPUTE(Reason.TOTAL) if self.skips and clock.skipped >= self.skips else None


@dataclass(frozen=True)
class Cap(Policy):
    """The evaluation after `skips` in a row were skipped; 0 means no limit.

    Planners count steps, so they are told how many whole steps that allows with this sampler.
    """

    skips: int

    def start(self, context: RunContext) -> Cap:
        if self.skips:
            context.max_skipped_steps = min(context.max_skipped_steps, self.skips // context.evaluations_per_step)
        return self

    def decide(self, clock: Clock, indicator: ReadIndicator) -> Decision | None:
        return COMPUTE(Reason.CAP) if self.skips and clock.skips >= self.skips else None
