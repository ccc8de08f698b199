"""One run of a sampler: clock, policies, every slot's history and the report. Made and dropped by patch/."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Sequence

import torch
from torch import Tensor

from .auto.selection import MARGIN
from .calibration.block_profile import BlockProfile
from .calibration.costs import Costs, Origin
from .clock import Clock, Grid
from .context import RunContext
from .guard import succeeds
from .history import History, HostMemory
from .indicators.base import IndicatorState
from .indicators.reading import Reading
from .method import Method
from .modalities import Modalities
from .movement import NoiseWatch
from .plan import Plan
from .planning.response import Response
from .policies import COMPUTE, SKIP, ConditioningChanges, Decision, Full, LastStep, Policy, Reason
from .predictors import Integrator
from .published.coefficients import Network
from .readback import Readback
from .report import messages
from .report.builder import ReportBuilder, first_plan
from .report.report import Report
from .track import Slot, Track
from .trajectory import Trajectory, Weights

RETURNS = 4  # the last sets of slots among which one that returns is looked for


class Run:
    """Decides once an evaluation for all slots, and predicts the output of skipped evaluations.

    Call `tick` once an evaluation; then `decide` with the slots of each call (one decision an evaluation); then `observe` or `predict`
    for each slot; `close` at the end. At output level the velocity (x - D) / sigma, D, or the network's residual is kept, see
    Method.suited; at block level residuals, which `keep` takes and `recall` predicts.

    Parameters
    ----------
    method: the configuration.
    grid: the sampler's sigmas.
    integrator: the sampler's kind.
    device: where histories are kept; None: where the model computes.
    events: steps at which a conditioning changes.
    network: facts about the model.
    costs: those of skips on this grid; None: the shipped ones.
    block_profile: block-level measurements of full runs of the model.
    learning: compute everything, because the run is recorded.
    evaluations_per_step: of the sampler.
    computes_on: the model's device, whose clock times evaluations; None: the host.
    pinnable: bytes of the host's memory that may be page-locked.
    parts, modalities: lengths and names of the modalities in a packed latent.
    cfg, response: guidance, 1 if it is not known, and the sampler's response, None if it is not; errors are predicted with them.
    watches_noise: find out whether the sampler adds noise, because its kind is unknown. `tick` and `returned` are told the latent then.
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
        costs: Costs | None = None,
        block_profile: BlockProfile | None = None,
        learning: bool = False,
        evaluations_per_step: int = 1,
        computes_on: torch.device | None = None,
        pinnable: float = float("inf"),
        parts: Sequence[int] = (),
        modalities: Sequence[str] = (),
        cfg: float = 1.0,
        response: Response | None = None,
        watches_noise: bool = False,
    ) -> None:
        predictor, self.keeps = method.suited(integrator)
        self.need = predictor.need
        self.device = device
        self.learning = learning
        self.clock = Clock(grid)
        origin = costs.origin if costs else Origin.SHIPPED
        context = RunContext(
            grid,
            predictor,
            costs.gram if costs else None,
            "denoised" if self.keeps == "denoised" else "velocity",
            network or {},
            block_profile,
            evaluations_per_step,
            cfg,
            response,
            MARGIN[origin],
            tuple(parts),
        )
        rules: list[Policy] = [LastStep(), ConditioningChanges(frozenset(events))]
        if learning:
            rules.insert(0, Full(Reason.CALIBRATION))
        self.policies = [p.start(context) for p in (*rules, *method.policies)]
        plan = first_plan(self.policies) or Plan(grid)
        self.method, self.context, self.predictor, self.plan = method, context, predictor, plan
        self.track = self._new_track()
        # by the slots of an evaluation's first call, oldest first: the current track, and another where sets of slots take turns
        self.tracks: dict[tuple[Slot, ...], Track] = {}
        self.seen: list[tuple[Slot, ...]] = []  # the last sets of slots, to find those that return
        self.same_sigma = False  # as in the evaluation before
        self.in_turn = False  # sets of slots were asked about one after the other at one sigma
        # the first set of slots at this sigma, and the last decision about it; where sets take turns
        self.leader: tuple[tuple[Slot, ...], Decision] | None = None
        self.noise = NoiseWatch() if watches_noise else None  # None: the sampler's kind is known
        self.latent: Tensor | None = None  # the evaluation's, while noise is watched for
        self.histories: dict[Slot, History] = {}
        self.memory = HostMemory(pinnable)
        self.sizes: dict[int, list[float | Readback]] = {}  # by anchor: the largest absolute values of its outputs
        self.modalities = Modalities(parts, modalities)
        self.reading: Reading | None = None
        self.was_read = False  # the indicator, in this evaluation
        self.reading_seconds = 0.0
        self.reports = ReportBuilder(
            method,
            self.policies,
            self.track.indicator,
            plan,
            predictor.name,
            integrator,
            cfg=cfg,
            learning=learning,
            origin=origin,
            computes_on=computes_on,
        )
        self.decision: Decision | None = None
        self.weights: Weights | None = None

    def _new_track(self) -> Track:
        indicator = self.method.indicator.start(self.context) if self.method.indicator else None
        return Track(self.predictor, self.plan, indicator)

    @property
    def report(self) -> Report:
        return self.reports.report

    @property
    def trajectory(self) -> Trajectory:
        return self.track.trajectory

    @property
    def indicator(self) -> IndicatorState | None:
        return self.track.indicator

    @property
    def indicated_slot(self) -> Slot | None:
        return self.track.indicated_slot

    def tick(self, sigma: float, x: Tensor | None = None) -> None:
        """The sampler begins an evaluation at this sigma. x: its latent, which is not written to."""
        self._end_evaluation()
        if self.noise is not None and x is not None:
            self._watch_noise(self.noise, x)
        self.reports.begin_evaluation()
        self.same_sigma = math.isclose(sigma, self.clock.sigma, rel_tol=1e-6)
        self.clock.tick(sigma)
        if self.clock.sigma_rose:
            self.forget()

    def returned(self, denoised: object) -> None:
        """The sampler receives this D for the latent that `tick` was told of."""
        x, self.latent = self.latent, None
        watch, decision = self.noise, self.decision
        if watch is not None and x is not None and decision is not None:
            self._measure_noise(lambda: watch.observe_output(x, denoised, decision.compute))

    def forget(self) -> None:
        """Drop what was observed so far: the next evaluation is computed, or predicted from what follows."""
        for track in {self.track, *self.tracks.values()}:
            track.forget()
        for history in self.histories.values():
            history.clear()
        self.modalities.clear()

    def drop(self) -> None:
        """Free all memory that the run holds, also of the current evaluation."""
        self.forget()
        self.histories.clear()

    def decide(self, slots: Iterable[Slot], seen: Tensor | None = None) -> Decision:
        """Compute or skip the current evaluation.

        slots: those of the current call. seen: the indicator's input, a tensor of any shape; None where there is none.
        """
        slots = list(slots)
        if self.decision is None:
            began = time.perf_counter()
            self._choose_track(tuple(slots))
            self._observe_input(slots[0], seen)
            self.decision = self._decide_in_turn(tuple(slots)) if self.in_turn else self._decide(slots)
            self._follow(self.decision, slots)
            deciding = time.perf_counter() - began - self.reading_seconds
            self.reports.decided(self.clock, self.decision, self.reading, deciding)
        if not self.decision.compute and not all(self._known(s) for s in slots):
            self.track.new_slot = True
            return COMPUTE(Reason.NEW_CONDITIONING)
        return self.decision

    def _choose_track(self, slots: tuple[Slot, ...]) -> None:
        """The track of an evaluation with these slots in its first call. A new set of slots takes the place of the current one: it is
        given a track beside it only where sets take turns at one sigma, and once it returns, because ComfyUI was told of the memory of one.
        Context windows that move from step to step return, too, and take no turns."""
        if slots not in self.tracks:
            self.in_turn = self.in_turn or (self.same_sigma and bool(self.seen))
            if self.in_turn and slots in self.seen and not all(self._known(s) for s in slots):
                self.track = self._new_track()
                self.tracks = dict(list(self.tracks.items())[-1:])
            else:
                self.tracks.clear()
            self.seen = [*self.seen[1 - RETURNS :], slots]
        # the newest is the last
        self.track = self.tracks.pop(slots, self.track)
        self.tracks[slots] = self.track

    @property
    def noisy(self) -> bool:
        """Whether the sampler was found to add noise."""
        return self.noise is not None and self.noise.noisy

    def _watch_noise(self, watch: NoiseWatch, x: Tensor) -> None:
        """Where noise was added to the latent since the last evaluation, the run goes on as an SDE sampler's: D is kept, because a velocity
        contains the noise that was in the latent, which would stay in the picture."""
        self.latent = x
        self._measure_noise(lambda: watch.observe_input(x))
        if not self.noisy or self.method.level != "output":
            return
        predictor, _ = self.method.suited("sde")
        if (self.keeps, self.predictor) != ("denoised", predictor):
            self.forget()
            self.keeps, self.predictor, self.need = "denoised", predictor, predictor.need
            self.report.predictor = predictor.name
            for track in {self.track, *self.tracks.values()}:
                track.predict_with(predictor, self.plan)

    def _measure_noise(self, observe: Callable[[], None]) -> None:
        """A failure, as by values that are not finite, ends the watch and never the sampling."""
        if not succeeds("the sampler's noise is not watched", observe):
            self.noise = self.latent = None

    def _follows_noise(self) -> bool:
        """Whether the outputs depend on noise that the sampler adds. Those of sets in turn are subtracted from each other, and little but
        what depends on the noise may be left."""
        watch = self.noise
        found = watch is not None and (watch.follows or (watch.noisy and self.in_turn))
        if found:
            self.report.note(messages.NOISE, warning=False)
        return found

    def _follow(self, decision: Decision, slots: list[Slot]) -> None:
        """Bring trajectory and prediction up to date with a decision."""
        if decision.compute and not all(self._known(s) for s in slots):
            # a new slot has no older anchors: from here on all slots have the same ones
            self.trajectory.clear()
        clock = self.clock
        if clock.sigma <= 0:
            return  # no velocity is defined there, and no evaluation follows
        if decision.compute:
            self.trajectory.computed(clock.evaluation, clock.sigma)
            self.track.prediction.computed(self.trajectory)
            self._trim()
        else:
            self.weights = self.track.prediction.weights(clock, self.trajectory)
            self.trajectory.predicted(clock.evaluation, clock.sigma, self.weights)

    def _observe_input(self, slot: Slot, seen: Tensor | None) -> None:
        """The indicator follows the first slot of an evaluation, as long as it is the same one."""
        self.reading, self.was_read, self.reading_seconds = None, False, 0.0
        if self.indicator is None or seen is None or self.clock.sigma <= 0:
            return
        track = self.track
        if slot != track.indicated_slot:
            track.indicated_slot = slot
            self.indicator.clear()
        self.indicator.observe_input(seen, not math.isclose(self.clock.sigma, track.sigma, rel_tol=1e-6))
        track.sigma = self.clock.sigma

    def _read_indicator(self) -> Reading | None:
        if not self.was_read and self.indicator:
            # the read waits for everything that is queued on the device: that is the model's time, not the decision's
            began = time.perf_counter()
            self.reading = self.indicator.read()
            self.reading_seconds = time.perf_counter() - began
            if self.reading:
                self.track.prediction.indicated(self.reading)
        self.was_read = True
        return self.reading

    def _decide_in_turn(self, slots: tuple[Slot, ...]) -> Decision:
        """One decision for all sets of slots at one sigma. Samplers that ask in turn subtract the outputs, in which what is due to noise or
        to a prediction cancels out only if all of them are computed, or all predicted from the same evaluations."""
        if self.leader is None or not self.same_sigma or self.leader[0] == slots:
            self.leader = slots, self._decide(slots)
            return self.leader[1]
        decision = self.leader[1]
        if decision.compute:
            return decision
        self._read_indicator()
        return self._possible(decision, slots)

    def _decide(self, slots: Sequence[Slot]) -> Decision:
        if not self.clock.grid.falling or self.clock.sigma <= 0:
            return COMPUTE(Reason.OFF_SCHEDULE)
        opinions = (p.decide(self.clock, self._read_indicator) for p in self.policies)
        opinion = next((d for d in opinions if d is not None), SKIP(Reason.METHOD))
        return opinion if opinion.compute else self._possible(opinion, slots)

    def _possible(self, opinion: Decision, slots: Sequence[Slot]) -> Decision:
        """`opinion`, a skip, unless a prediction is not possible here."""
        if self.noise is not None and not self.noise.ready:
            return COMPUTE(Reason.HISTORY)
        if self._follows_noise():
            return COMPUTE(Reason.NOISE)
        if self.track.new_slot:
            self.track.new_slot = False
            self.trajectory.clear()
            return COMPUTE(Reason.NEW_CONDITIONING)
        if any(len(t.trajectory.nodes) < self.need for t in self.tracks.values()):
            return COMPUTE(Reason.HISTORY)
        if not all(self._known(s) for s in slots):
            return COMPUTE(Reason.NEW_CONDITIONING)
        if not self._finite():
            self.report.note(messages.OUTPUT_NOT_FINITE)
            self.trajectory.clear()
            return COMPUTE(Reason.NOT_FINITE)
        return opinion

    def _finite(self) -> bool:
        """False if an anchor is known not to be finite. A device that lags behind is not waited for: there it is known later."""
        self.sizes = {k: v for k, v in self.sizes.items() if k in self.needed}
        own = (s for k in self.trajectory.needed for s in self.sizes.get(k, ()))
        found = (s.get() if isinstance(s, Readback) else s for s in own)
        return all(s is None or math.isfinite(s) for s in found)

    @property
    def needed(self) -> set[int]:
        """The anchors that a prediction of any track may use."""
        return self.track.trajectory.needed.union(*(t.trajectory.needed for t in self.tracks.values()))

    def _known(self, slot: Slot) -> bool:
        """Whether the slot has its own value for every anchor that a prediction may use."""
        history = self.histories.get(slot)
        return history is not None and self.trajectory.needed <= history.anchors.keys()

    def input_of(self, x: Tensor) -> Tensor:
        """The network's input for the latent x, of x's shape: x itself in flow models, scaled to unit variance in others."""
        return x if self.clock.grid.flow else x / (1 + self.clock.sigma**2) ** 0.5

    def _trim(self) -> None:
        """Free the anchors that no later prediction uses, before the model runs."""
        for history in self.histories.values():
            history.trim(self.needed)
        self.histories = {slot: history for slot, history in self.histories.items() if history.anchors}

    def observe(self, slot: Slot, x: Tensor, denoised: Tensor) -> None:
        """The model's own output for a slot.

        x, denoised: the latent and D at the clock's sigma, of one shape. Neither is kept or written to.
        """
        if self.clock.sigma <= 0:
            return
        value = denoised.clone() if self.keeps == "denoised" else (x - denoised) / self.clock.sigma
        if self.indicator and slot == self.indicated_slot:
            self.indicator.observe_output((x - denoised) / self.clock.sigma if self.keeps == "denoised" else value)
        if self.keeps == "residual":
            value -= self.input_of(x)
        self._measure(lambda: self.modalities.observe(slot, self.clock.sigma, value))
        self.keep(slot, value)

    def _measure(self, observe: Callable[[], None]) -> None:
        """Observe for the report alone. A failure ends that, and never the sampling."""
        if not succeeds("the modalities are not measured", observe):
            self.modalities = Modalities((), ())

    def keep(self, slot: Slot, value: Tensor) -> None:
        """Take `value`, a tensor of any shape that nobody else may write to, as the slot's output in this evaluation."""
        size = Readback.largest(value, self.memory)
        if size is not None:
            self.sizes.setdefault(self.clock.evaluation, []).append(size)
        history = self.histories.setdefault(slot, History(self.device, self.memory))
        history.device = self.device
        history.observe(self.clock.evaluation, value, self.needed)

    def predict(self, slot: Slot, x: Tensor) -> Tensor:
        """D for a slot of a skipped evaluation: a new tensor of x's shape, on x's device."""
        value = self.recall(slot, x.device)
        if self.keeps == "denoised":
            return value
        if self.keeps == "residual":
            value += self.input_of(x)
        return x - value * self.clock.sigma

    def recall(self, slot: Slot, device: torch.device) -> Tensor:
        """The prediction, in a skipped evaluation, of the value that `keep` takes in a computed one: a new tensor on `device`."""
        assert self.weights is not None
        return self.histories[slot].combine(self.weights, device)

    def recompute(self, reason: Reason, reported: bool = True) -> None:
        """The current evaluation is computed after all, if it was to be skipped. reported: it counts as computed in the report."""
        if self.decision is None or self.decision.compute:
            return
        self.decision = COMPUTE(reason)
        if reported:
            self.reports.recomputed(reason)

    def force(self, reason: Reason) -> None:
        """Compute the current evaluation unless a skip was decided in an earlier call."""
        if self.decision is None:
            self.decision = COMPUTE(reason)
            self.reports.decided(self.clock, self.decision, None, 0.0)

    def _end_evaluation(self) -> None:
        if self.decision is not None:
            self.clock.record(self.decision.compute)
        self.decision = self.weights = self.latent = None

    def close(self, finished: bool, listeners: Iterable[Callable[[Report], None]] = ()) -> Report:
        """End of the run, also on error: frees the histories and hands the closed report to the listeners."""
        self._end_evaluation()
        self._follows_noise()
        self.reports.wait()  # for the device, which may still read page-locked memory
        for history in self.histories.values():
            history.clear()
        self.histories.clear()
        self.sizes.clear()
        self.track = Track(self.predictor, self.plan, None)
        self.tracks.clear()
        self.memory.close()
        self._measure(lambda: self.report.modalities.update(self.modalities.errors()))
        report = self.reports.close(finished, self.clock.grid.falling)
        for listener in listeners:
            listener(report)
        return report
