"""Fills a run's report: from the method and its policies when the run starts, from each decision, and from the run's end."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import torch

from ..auto.selection import typical_decibels
from ..calibration.costs import Origin
from ..clock import Clock
from ..indicators.base import IndicatorState
from ..indicators.reading import Reading
from ..method import Method
from ..plan import Plan
from ..policies import Decision, Reason, RunPolicy
from ..predictors import Integrator
from . import messages
from .report import Evaluation, Report
from .timing import StepTimer

Listener = Callable[[Report], None]
# computed by design, in runs that skip as well
PLANNED = {Reason.WARMUP, Reason.LAST_STEP, Reason.HISTORY, Reason.SCHEDULE, Reason.INTERVAL, Reason.RATIO}


class ReportBuilder:
    """One run's report under construction.

    Parameters
    ----------
    method: the run's method.
    policies, indicator: as started for the run; `note`, `source`, `threshold` and `predicted_error` are taken from them.
    plan: the run's plan; without anchors where policies decide as the run goes.
    predictor: name of the predictor.
    integrator: the sampler's kind.
    cfg: the run's guidance.
    learning: the run is computed in full because it is recorded.
    origin: of the costs.
    computes_on: the model's device; None: the host.
    """

    def __init__(
        self,
        method: Method,
        policies: Sequence[RunPolicy],
        indicator: IndicatorState | None,
        plan: Plan,
        predictor: str,
        integrator: Integrator,
        *,
        cfg: float = 1.0,
        learning: bool,
        origin: Origin,
        computes_on: torch.device | None = None,
    ) -> None:
        steps = plan.grid.steps
        self.policies = policies
        self.choice = method.choice
        self.timer = StepTimer(computes_on)
        self.watch: Listener | None = None  # receives the report after every decision
        self.report = Report(
            method.name,
            method.variant,
            steps,
            predictor=predictor,
            planned=list(plan.anchors),
            threshold=self._threshold(),
            learning=learning,
        )
        own = origin in (Origin.MEASURED, Origin.LEARNED)
        if self.choice:
            self.report.chosen = self.choice.sentence(method.name, plan.anchors, steps, learning)
            if self.choice.decibels and plan.anchors and not (learning or own):
                self.report.note(messages.UNCALIBRATED, warning=False)
        for policy in policies:
            if policy.plan is plan and policy.predicted_error is not None:
                self.report.error = policy.predicted_error
                if own and policy.predicted_error:
                    self.report.decibels = typical_decibels(policy.predicted_error, integrator, cfg)
        if not learning:
            for part in (*policies, indicator):
                if part is not None and part.note:
                    self.report.note(part.note)
                if part is not None and part.source:
                    self.report.costs = part.source
        if not plan.grid.falling:
            self.report.note(messages.NO_SCHEDULE, warning=False)
        self.started: float | None = None

    def begin_evaluation(self) -> None:
        """An evaluation begins; the run's time counts from the first one, because the model is loaded before it."""
        if self.started is None:
            self.started = time.perf_counter()
        self.timer.mark()

    def decided(self, clock: Clock, decision: Decision, reading: Reading | None, deciding: float) -> None:
        """A decision was made. deciding: seconds on the host that it took."""
        value = reading.value if reading else None
        if value is not None and not math.isfinite(value):
            self.report.note(messages.NOT_FINITE)
        compared = None
        if value is not None and math.isfinite(value):
            compared = next((p.compared for p in self.policies if p.compared), None)
        self.report.evaluations.append(
            Evaluation(
                clock.step,
                clock.sigma,
                decision.compute,
                decision.reason,
                value,
                compared.score if compared else None,
                compared.threshold if compared else None,
            )
        )
        self.timer.decided(decision.compute)
        self.report.deciding += deciding
        if self.watch:
            self._read_clocks()
            self.watch(self.report)

    def recomputed(self, reason: Reason) -> None:
        """The last evaluation was decided to be skipped, and was computed after all."""
        last = self.report.evaluations[-1]
        last.computed, last.reason = True, reason
        self.timer.decided(True)

    def wait(self) -> None:
        """Wait for the device: the run is over."""
        self.timer.close()

    def _read_clocks(self) -> None:
        self.timer.read()
        report = self.report
        report.seconds = 0.0 if self.started is None else time.perf_counter() - self.started
        report.computed_seconds = self.timer.computed or 0.0
        if self.timer.share is not None:
            report.share = self.timer.share

    def close(self, finished: bool, falling: bool) -> Report:
        """The run ended. finished: without an error or an interrupt. falling: the grid's sigmas fall."""
        report = self.report
        if finished and report.evaluations and not (report.skipped or report.learning) and falling:
            report.hint = self._advice()
            reasons = Counter(e.reason for e in report.evaluations).most_common()
            complete = (messages.too_few(report.steps), messages.no_room(report.steps))  # without a list of reasons
            if report.hint in complete or report.hint in report.notes:
                report.note(report.hint, warning=False)
            else:
                report.note(messages.nothing_skipped(reasons, report.hint), warning=False)
        if report.skipped and (sentence := messages.modalities(report.modalities)):
            report.note(sentence, warning=False)
        if report.learning and not finished:
            report.hint = messages.STOPPED_LEARNING
        report.threshold = self._threshold()
        report.finished, report.interrupted = finished, not finished
        self._read_clocks()
        if finished and self.choice and not report.learning and (missed := self.choice.missed(report)):
            report.note(missed, warning=False)
        return report

    def _threshold(self) -> float | None:
        return next((p.threshold for p in self.policies if p.threshold is not None), None)

    def _advice(self) -> str:
        if self._too_short():
            return messages.too_few(self.report.steps)
        for found in (messages.NOISE, messages.MOVING_WINDOWS):
            if found in self.report.notes:
                return found
        others = Counter(e.reason for e in self.report.evaluations if e.reason not in PLANNED)
        reason, count = next(iter(others.most_common(1)), (None, 0))
        often = count >= messages.OFTEN * len(self.report.evaluations)
        if reason in messages.REMEDIES and (often or reason is Reason.UNKNOWN_PART):
            return messages.REMEDIES[reason]
        if self._no_room():
            return messages.no_room(self.report.steps)
        if self.choice:
            return self.choice.advice
        return next(filter(None, (p.advice() for p in self.policies)), messages.TO_SKIP_MORE)

    def _no_room(self) -> bool:
        """Whether Step Cache (Auto) planned to compute every step, because a skip would be visible."""
        limited = self.choice is not None and not self.choice.speedup and not self.choice.decibels
        return limited and len(self.report.planned) == self.report.steps

    def _too_short(self) -> bool:
        """Whether the steps of a short run are all planned, or before the first skip that the method could make. A target quality has
        other remedies than more steps."""
        steps = self.report.steps
        unavoidable = {e.reason for e in self.report.evaluations} <= {Reason.WARMUP, Reason.HISTORY, Reason.LAST_STEP}
        planned = len(self.report.planned) == steps and not (self.choice and self.choice.decibels)
        return steps < messages.TOO_FEW and (planned or unavoidable)


def first_plan(policies: Iterable[RunPolicy]) -> Plan | None:
    """The plan of the first policy that has one."""
    return next((p.plan for p in policies if p.plan is not None), None)
