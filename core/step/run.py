"""One run of a sampler: the clock, the policies at work, every slot's history, and the report. Made and dropped by patch/."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable

import torch
from torch import Tensor

from .auto.selection import GUESS, Choice, decibels
from .calibration.block_profile import BlockProfile
from .calibration.gram import Gram
from .clock import Clock, Grid
from .history import History
from .method import Method
from .plan import Plan
from .policies import (
    COMPUTE,
    SKIP,
    AccumulatorState,
    Decision,
    Events,
    LastStep,
    Policy,
    Ratios,
    RunContext,
    RunPolicy,
    Schedule,
    ThresholdState,
    Warmup,
)
from .predictors import Integrator
from .published.coefficients import Network
from .report.report import Evaluation, Report
from .report.timing import StepTimer
from .trajectory import Trajectory, Weights

Slot = Hashable


class Run:
    """Decides once an evaluation for all slots, and answers for those that are skipped.

    The order of calls: `tick` once an evaluation; `decide` with the slots at hand, as often as they are asked for (one
    decision an evaluation); then `observe` or `predict` for each slot; `close` at the end.

    What is kept and predicted at output level is the velocity (x - D) / sigma, D, or what the network adds to its input:
    Method.suited. At block level it is residuals, which `keep` takes as they are and `recall` predicts.

    events: steps at which a conditioning changes. network: what is known of the model. costs, lessons: what full runs of it taught.
    learning: this run is computed in full, because that is being recorded.
    """

    def __init__(
        self,
        method: Method,
        grid: Grid,
        integrator: Integrator,
        device: torch.device | None = None,
        *,
        events: Collection[int] = (),
        network: Network | None = None,
        costs: Gram | None = None,
        lessons: BlockProfile | None = None,
        learning: bool = False,
    ) -> None:
        predictor, self.keeps = method.suited(integrator)
        self.need = predictor.need
        self.device = device
        self.learning = learning
        self.choice: Choice | None = method.choice
        self.clock = Clock(grid)
        setting = RunContext(grid, predictor, costs, network=network or {}, lessons=lessons)
        rules: list[Policy] = [LastStep(), Events(frozenset(events))]
        if learning:
            rules.append(Warmup(grid.steps))
        self.policies: list[RunPolicy] = [p.start(setting) for p in (*rules, *method.policies)]
        plans = (getattr(p, "plan", None) for p in self.policies)
        plan = next((p for p in plans if p is not None), Plan(grid))
        self.prediction = predictor.start(plan)
        self.track = Trajectory(max(predictor.depth, 1), predictor.reads_predictions)
        self.histories: dict[Slot, History] = {}
        self.indicator = method.indicator.start(setting) if method.indicator else None
        self.watched: Slot | None = None  # the slot that the indicator looks at
        self.read: list[float | None] = []  # what it said in this evaluation, if it was asked
        self.report = Report(
            method.name,
            method.variant,
            grid.steps,
            predictor=predictor.name,
            planned=list(plan.anchors),
            threshold=self._threshold(),
            learning=learning,
        )
        if self.choice:
            self.report.chosen = self.choice.sentence(method.name, plan.anchors, grid.steps, learning)
            if self.choice.decibels and plan.anchors and not (learning or costs):
                self.report.note(GUESS)
        for p in self.policies:
            if isinstance(p, Schedule) and p.plan is plan:
                self.report.error, self.report.costs = p.error, p.costs
                if costs and p.error:
                    self.report.decibels = decibels(p.error, integrator)
        for part in () if learning else (*self.policies, self.indicator):
            if getattr(part, "note", ""):
                self.report.note(part.note)  # type: ignore[union-attr]
            self.report.costs = getattr(part, "source", "") or self.report.costs
        self.decision: Decision | None = None
        self.weights: Weights | None = None
        self.fresh = False  # a slot appeared where a skip had been decided: the next evaluation is computed
        self.laps = StepTimer() if method.blocks else None
        self.on_host = False  # what is kept comes from the CPU
        self.watch: Callable[[Report], None] | None = None  # is shown the report after every decision
        self.started = time.perf_counter()
        if not grid.falling:
            self.report.note("nothing is skipped, because this sampler's sigmas do not fall from step to step")

    def tick(self, sigma: float) -> None:
        """A new evaluation by the sampler at this sigma."""
        self._pass()
        self.clock.tick(sigma)
        if self.clock.rose:
            self.forget()

    def forget(self) -> None:
        """What was said so far no longer counts: what comes now is computed, or predicted from what follows."""
        self.track.clear()
        for history in self.histories.values():
            history.clear()
        if self.indicator:
            self.indicator.clear()

    def drop(self) -> None:
        """Memory is short: nothing that was kept is held any longer, and nothing of the evaluation under way will be."""
        self.forget()
        self.histories.clear()

    def decide(self, slots: Iterable[Slot], seen: Tensor | None = None) -> Decision:
        """Compute or skip the current evaluation. `slots` are those of the call at hand, `seen` is what the indicator looks at."""
        slots = list(slots)
        if self.decision is None:
            began = time.perf_counter()
            self._look(slots[0], seen)
            self.decision = self._decide(slots)
            if self.decision.compute and not all(self._known(s) for s in slots):
                # a slot that is new knows nothing older than what comes now: from here on all know the same
                self.track.clear()
            clock, chosen = self.clock, self.decision
            value = self.read[0] if self.read else None
            held, limit = self._held(value)
            self.report.evaluations.append(
                Evaluation(clock.step, clock.sigma, chosen.compute, chosen.reason, value, held, limit)
            )
            if self.laps:
                self.laps.decided(chosen.compute, self.on_host or value is not None)
            if clock.sigma <= 0:
                pass  # no velocity can be told there, and nothing follows from it
            elif chosen.compute:
                self.track.computed(clock.evaluation, clock.sigma)
                self.prediction.computed(self.track)
                self._trim()
            else:
                self.weights = self.prediction.weights(clock, self.track)
                self.track.predicted(clock.evaluation, clock.sigma, self.weights)
            now = time.perf_counter()
            self.report.deciding += now - began
            self.report.seconds = now - self.started
            if self.watch:
                self.watch(self.report)
        if not self.decision.compute and not all(self._known(s) for s in slots):
            self.fresh = True
            return COMPUTE("new conditioning")
        return self.decision

    def _look(self, slot: Slot, seen: Tensor | None) -> None:
        """The indicator follows the first slot of an evaluation, as long as it is the same one."""
        self.read = []
        if self.indicator is None or seen is None or self.clock.sigma <= 0:
            return
        if slot != self.watched:
            self.watched = slot
            self.indicator.clear()
        self.indicator.look(seen, self.clock.moved)

    def _indicated(self) -> float | None:
        if not self.read:
            self.read.append(self.indicator.read() if self.indicator else None)
            value = self.read[0]
            self.clock.ratio = getattr(self.indicator, "ratio", 1.0)
            self.clock.typical = getattr(self.indicator, "typical", 0.0)
            if value is not None and not math.isfinite(value):
                self.report.note("the indicator was not a finite number: those evaluations were computed")
        return self.read[0]

    def _decide(self, slots: list[Slot]) -> Decision:
        if not self.clock.grid.falling or self.clock.sigma <= 0:
            return COMPUTE("no place on the schedule")
        opinions = (p.decide(self.clock, self._indicated) for p in self.policies)
        opinion = next((d for d in opinions if d is not None), SKIP("method"))
        if opinion.compute:
            return opinion
        if self.fresh:
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

    def input_of(self, x: Tensor) -> Tensor:
        """What the network is given for the latent x: x itself in flow models, at unit variance in others."""
        return x if self.clock.grid.flow else x / (1 + self.clock.sigma**2) ** 0.5

    def _trim(self) -> None:
        """What no later evaluation is predicted from goes before the model runs, as that of windows that have moved on."""
        for history in self.histories.values():
            history.trim(self.track.needed)
        self.histories = {slot: history for slot, history in self.histories.items() if history.anchors}

    def observe(self, slot: Slot, x: Tensor, denoised: Tensor) -> None:
        """The model's own answer for a slot. x and denoised: the latent and D at the clock's sigma, of any one shape;
        neither is kept or written to."""
        if self.clock.sigma <= 0:
            return
        value = denoised.clone() if self.keeps == "denoised" else (x - denoised) / self.clock.sigma
        if self.indicator and slot == self.watched:
            self.indicator.computed((x - denoised) / self.clock.sigma if self.keeps == "denoised" else value)
        if self.keeps == "residual":
            value -= self.input_of(x)
        self.keep(slot, value)

    def keep(self, slot: Slot, value: Tensor) -> None:
        """Take `value`, which nobody else may write to, as what was computed for the slot in this evaluation."""
        self.on_host = value.device.type == "cpu"
        history = self.histories.setdefault(slot, History(self.device))
        history.observe(self.clock.evaluation, value, self.track.needed)

    def predict(self, slot: Slot, x: Tensor) -> Tensor:
        """D for a slot of a skipped evaluation: a new tensor of x's shape, on x's device."""
        value = self.recall(slot, x.device)
        if self.keeps == "denoised":
            return value
        if self.keeps == "residual":
            value += self.input_of(x)
        return x - value * self.clock.sigma

    def recall(self, slot: Slot, device: torch.device) -> Tensor:
        """What is predicted in a skipped evaluation in place of what `keep` would have been given: a new tensor on `device`."""
        assert self.weights is not None
        return self.histories[slot].combine(self.weights, device)

    def _pass(self) -> None:
        if self.decision is not None:
            self.clock.passed(self.decision.compute)
        self.decision = self.weights = None

    def close(self, finished: bool, listeners: Iterable[Callable[[Report], None]] = ()) -> Report:
        """End of the run, also on error: the histories are dropped, the report is closed and handed to the listeners."""
        self._pass()
        self.histories.clear()
        self.track.clear()
        self.indicator = None
        if (
            finished
            and self.report.evaluations
            and not (self.report.skipped or self.learning)
            and self.clock.grid.falling
        ):
            self.report.hint = self._remedy()
            self.report.note(self._why_nothing())
        self.report.threshold = self._threshold()
        if self.laps and self.laps.share is not None:
            self.report.share = self.laps.share
        self.report.finished = finished
        self.report.seconds = time.perf_counter() - self.started
        if finished and self.choice and not self.learning and (missed := self.choice.missed(self.report)):
            self.report.note(missed)
        for listener in listeners:
            listener(self.report)
        return self.report

    def _held(self, value: float | None) -> tuple[float | None, float | None]:
        """What was made of the indicator's value in this evaluation, and what that was held against."""
        if value is None or not math.isfinite(value):
            return None, None
        adaptive = (p.held for p in self.policies if isinstance(p, AccumulatorState | ThresholdState))
        return next((held for held in adaptive if held), (None, None))

    def _threshold(self) -> float | None:
        """What an adaptive policy's indicator is, or was last, held against."""
        return next((p.threshold for p in self.policies if isinstance(p, AccumulatorState | ThresholdState)), None)

    def _why_nothing(self) -> str:
        reasons = Counter(e.reason for e in self.report.evaluations)
        why = ", ".join(f"{reason} ({n})" for reason, n in reasons.most_common())
        return f"nothing was skipped: every evaluation was computed for {why}; {self._remedy()}"

    def _remedy(self) -> str:
        if self.choice:
            return self.choice.advice
        return next(
            (p.advice() for p in self.policies if isinstance(p, AccumulatorState | ThresholdState | Ratios)), ADVICE
        )


ADVICE = "to skip more take a faster preset, a smaller budget, a wider start_percent..end_percent, or more steps"
