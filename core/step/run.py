"""One run of a sampler: the clock, the policies at work, every slot's history, and the report. Made and dropped by patch/."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable

import torch
from torch import Tensor

from .clock import Clock, Grid
from .history import History
from .method import Method
from .plan import Plan
from .policies import COMPUTE, SKIP, Decision, LastStep, Schedule
from .predictors import Auto, Integrator
from .report import Evaluation, Report
from .track import Track, Weights

Slot = Hashable


class Run:
    """Decides once an evaluation for all slots, and answers for those that are skipped.

    The order of calls: `tick` once an evaluation; `decide` with the slots at hand, as often as they are asked for (one
    decision an evaluation); then `observe` or `predict` for each slot; `close` at the end.

    What is kept and predicted is the velocity (x - D) / sigma. Where the sampler adds noise between evaluations it is D
    itself: a velocity says which noise is in x, and the noise added since would stay in the picture.
    """

    def __init__(self, method: Method, grid: Grid, integrator: Integrator, device: torch.device | None = None) -> None:
        predictor = method.predictor.choose(integrator) if isinstance(method.predictor, Auto) else method.predictor
        self.need = predictor.need
        self.denoised = integrator == "sde"
        self.device = device
        self.clock = Clock(grid)
        self.policies = [p.start(grid, predictor) for p in (LastStep(), *method.policies)]
        plan = next((p.plan for p in self.policies if isinstance(p, Schedule) and p.plan), Plan(grid))
        self.prediction = predictor.start(plan)
        self.track = Track(max(predictor.depth, 1))
        self.histories: dict[Slot, History] = {}
        self.report = Report(
            method.name, method.variant, grid.steps, predictor=predictor.name, planned=list(plan.anchors)
        )
        self.decision: Decision | None = None
        self.weights: Weights | None = None
        self.fresh = False  # a slot appeared where a skip had been decided: the next evaluation is computed
        self.started = time.perf_counter()
        if not grid.falling:
            self.report.note("nothing is skipped, because this sampler's sigmas do not fall from step to step")

    def tick(self, sigma: float) -> None:
        """A new evaluation by the sampler at this sigma."""
        self._pass()
        self.clock.tick(sigma)
        if self.clock.rose:
            self.track.clear()
            for history in self.histories.values():
                history.clear()

    def decide(self, slots: Iterable[Slot]) -> Decision:
        """Compute or skip the current evaluation. `slots` are those of the call at hand."""
        slots = list(slots)
        if self.decision is None:
            self.decision = self._decide(slots)
            clock, chosen = self.clock, self.decision
            self.report.evaluations.append(Evaluation(clock.step, clock.sigma, chosen.compute, chosen.reason))
            if clock.sigma <= 0:
                pass  # no velocity can be told there, and nothing follows from it
            elif chosen.compute:
                self.track.computed(clock.evaluation, clock.sigma)
                self.prediction.computed(self.track)
            else:
                self.weights = self.prediction.weights(clock, self.track)
                self.track.predicted(clock.evaluation, clock.sigma, self.weights)
        if not self.decision.compute and not all(self._known(s) for s in slots):
            self.fresh = True
            return COMPUTE("new conditioning")
        return self.decision

    def _decide(self, slots: list[Slot]) -> Decision:
        if not self.clock.grid.falling or self.clock.sigma <= 0:
            return COMPUTE("no place on the schedule")
        opinion = next((d for p in self.policies if (d := p.decide(self.clock)) is not None), SKIP("method"))
        if opinion.compute:
            return opinion
        if self.fresh:
            # the slot that appeared knows nothing older than what comes now: from here on all know the same
            self.fresh = False
            self.track.clear()
            return COMPUTE("event")
        if len(self.track.nodes) < self.need:
            return COMPUTE("history")
        if not all(self._known(s) for s in slots):
            return COMPUTE("new conditioning")
        return opinion

    def _known(self, slot: Slot) -> bool:
        """Whether the slot has its own value for every anchor that may be asked for."""
        history = self.histories.get(slot)
        return history is not None and self.track.needed <= history.anchors.keys()

    def observe(self, slot: Slot, x: Tensor, denoised: Tensor) -> None:
        """The model's own answer for a slot. x and denoised: the latent and D at the clock's sigma, of any one shape;
        neither is kept or written to."""
        if self.clock.sigma <= 0:
            return
        value = denoised.clone() if self.denoised else (x - denoised) / self.clock.sigma
        history = self.histories.setdefault(slot, History(self.device))
        history.observe(self.clock.evaluation, value, self.track.needed)

    def predict(self, slot: Slot, x: Tensor) -> Tensor:
        """D for a slot of a skipped evaluation: a new tensor of x's shape, on x's device."""
        assert self.weights is not None
        value = self.histories[slot].combine(self.weights, x.device)
        return value if self.denoised else x - value * self.clock.sigma

    def _pass(self) -> None:
        if self.decision is not None:
            self.clock.passed(self.decision.compute)
        self.decision = self.weights = None

    def close(self, finished: bool, listeners: Iterable[Callable[[Report], None]] = ()) -> Report:
        """End of the run, also on error: the histories are dropped, the report is closed and handed to the listeners."""
        self._pass()
        self.histories.clear()
        self.track.clear()
        if finished and self.report.evaluations and not self.report.skipped and self.clock.grid.falling:
            reasons = Counter(e.reason for e in self.report.evaluations)
            why = ", ".join(f"{reason} ({n})" for reason, n in reasons.most_common())
            self.report.note(f"nothing was skipped: every evaluation was computed for {why}")
        self.report.finished = finished
        self.report.seconds = time.perf_counter() - self.started
        for listener in listeners:
            listener(self.report)
        return self.report
