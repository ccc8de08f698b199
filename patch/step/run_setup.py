"""Sets up a run: the facts known before its first step, its hook, and the recording of a calibration."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.model_sampling

from ...core.step.auto.method import AutoMethod
from ...core.step.auto.selection import SamplerInfo
from ...core.step.calibration.block_profile import BlockProfile, BlockProfiler
from ...core.step.calibration.costs import MOST_RUNS, Costs, Origin, Recording, costs_for
from ...core.step.calibration.gram import Value
from ...core.step.calibration.gram_recorder import GramRecorder
from ...core.step.calibration.recipe import Recipe
from ...core.step.clock import Grid
from ...core.step.method import Method
from ...core.step.policies import Schedule
from ...core.step.report import messages
from ...core.step.run import Run
from ..blocks.base import BlockSupport
from ..blocks.hook import HOST, BlockHook
from ..blocks.resolver import block_support_of, known
from .calibration import (
    can_keep,
    guidance_of,
    keep,
    keep_partial,
    profile_for,
    recipe_of,
    recordings,
)
from .conditioning_changes import changes
from .hook_base import EvaluationHook
from .output import OutputHook
from .sampler_response import response_of
from .samplers import adaptive_steps, evaluations_per_step, foreign, integrator_of, observe, run_sigmas, second_order
from .shared_trajectory import join
from .sigma_ranges import sigma_ranges
from .sigmas import SigmaReader, pinnable

LONGEST_PROFILE = 1000  # steps of a run whose block profile is recorded
TOO_LONG = messages.LONG_PROFILE.of(most=LONGEST_PROFILE)
log = logging.getLogger(__name__)


@dataclass
class RunSession:
    """A run with its hook, and what is recorded from it.

    Parameters
    ----------
    recorder: of this run; None where nothing is recorded.
    full: every step is computed for the recording.
    replanned: makes a run like this one with the costs known after it, to report how many steps the next run computes.
    always: every run of this node is recorded in full.
    """

    run: Run
    hook: EvaluationHook
    sampler: Any
    recipe: Recipe | None = None
    recorder: GramRecorder | BlockProfiler | None = None
    full: bool = False
    replanned: Callable[[], Run] | None = None
    always: bool = False

    def finish(self) -> None:
        """The run finished: keep the recording and the sampler's behaviour. Failures are reported and change nothing else."""
        try:
            run = self.run
            observe(self.sampler, len(run.report.evaluations), run.clock.grid.steps, run.noisy)
            join(run.clock.grid, run.report)
            self._learn()
        except Exception as error:
            log.debug("[Skipstone] nothing was learned", exc_info=True)
            if self.full:
                self.run.report.hint = messages.NOT_RECORDED.of(error=error)
                self.run.report.note(self.run.report.hint)

    def _learn(self) -> None:
        if self.recorder is None or self.recipe is None:
            return
        if not self.full:
            if isinstance(self.recorder, GramRecorder):
                keep_partial(self.recipe, self.recorder.gram(self.recipe.text, full=False))
            return
        report, text = self.run.report, self.recipe.text
        recorded = self.recorder.profile(text) if isinstance(self.recorder, BlockProfiler) else self.recorder.gram(text)
        kept = keep(self.recipe, recorded)
        hint = messages.MEASURED if self.always else messages.learned(None, 0)
        if self.replanned and not self.always:
            planned = self.replanned().report.planned
            hint = messages.learned(len(planned), self.run.clock.grid.steps)
        report.hint = hint
        report.note(messages.RECORDED.of(hint=hint, setup=text, runs=kept.runs), warning=False)


def start_run(
    method: Method | AutoMethod, guider: Any, sampler: Any, sigmas: Any, latent: Any, shapes: Any = None
) -> RunSession:
    """The session of a run that `guider` (a comfy CFGGuider or the like) is about to sample.

    latent: shape (B, C, ...). shapes: of the modalities in a packed latent, (B, 1, elements of all); None for others.

    Raises StepCacheError where the method cannot work on the model's blocks.
    """
    # from the patcher: object patches (shift nodes) are not on the model yet
    patcher = guider.model_patcher
    sampling = patcher.get_model_object("model_sampling")
    flow = isinstance(sampling, comfy.model_sampling.CONST)
    given = sigmas.tolist()
    ends = not given or given[-1] == 0
    grid = Grid.of(run_sigmas(sampler, given), flow, sampling.percent_to_sigma, _highest(sampling), ends)
    integrator = integrator_of(sampler)
    cfg = guidance_of(guider) or 1.0
    method = method.resolve(SamplerInfo(integrator, grid.steps, adaptive_steps(sampler), second_order(sampler), cfg))
    device = {"auto": None, "gpu": patcher.load_device, "cpu": HOST}[method.history_device]
    conds = getattr(guider, "conds", None) or {}
    ranges = sigma_ranges(patcher, getattr(guider, "model_options", None) or {})
    support = block_support_of(method, patcher.model.diffusion_model) if method.blocks else None
    network = known(patcher, conds)

    parts = [math.prod(shape[1:]) for shape in shapes or ()] if len(shapes or ()) > 1 else []
    calibration = _Calibration(method, guider, sampler, grid, latent, support)
    learning = calibration.computes_in_full(method.requires_profile(network, calibration.profile))
    make = partial(
        Run,
        method,
        grid,
        integrator,
        device,
        events=changes(conds, grid, ranges),
        network=network,
        evaluations_per_step=evaluations_per_step(sampler),
        computes_on=patcher.load_device,
        pinnable=pinnable(patcher.load_device),
        parts=parts,
        modalities=_names(shapes or ()),
        cfg=cfg,
        response=response_of(sampler, grid.sigmas, patcher),
        watches_noise=foreign(sampler),
    )
    costs = calibration.costs()
    run = make(costs=costs, block_profile=calibration.profile, learning=learning)
    if calibration.problem:
        built_in = costs is not None and costs.origin is Origin.SHIPPED
        run.report.note(messages.BUILT_IN.of(problem=calibration.problem) if built_in else calibration.problem)

    # with MPS the device and the host share one memory
    shared = patcher.load_device == HOST or patcher.load_device.type == "mps"
    offload = HOST if method.history_device == "auto" and not shared else None
    reader, always = SigmaReader(sampler, grid.sigmas, run.memory), method.calibration == "record"
    if support is None:
        # a plan without skips is no reason to record: nothing would be skipped with the recording either
        skips = len(run.report.planned) < grid.steps
        recorded = learning or (calibration.records_partly and skips)
        recorder = GramRecorder(grid, run.keeps, calibration.cfg, parts) if recorded else None
        hook: EvaluationHook = OutputHook(run, reader, recorder, offload)

        def replanned() -> Run:
            return make(costs=calibration.costs(anew=True))

        session = RunSession(run, hook, sampler, calibration.recipe, recorder, learning, replanned, always)
    else:
        run.report.share = support.share
        profiler = BlockProfiler(grid) if learning else None
        hook = BlockHook(run, reader, support, offload, profiler)
        session = RunSession(run, hook, sampler, calibration.recipe, profiler, learning, always=always)
    hook.unused, hook.latent, hook.ranges = _unused(guider), _shape(latent), ranges
    return session


def _names(shapes: Sequence[Sequence[int]]) -> list[str]:
    """Of the modalities in a packed latent: a shape (B, C, T, H, W) is a video's, and what comes with it its sound."""
    if sum(len(shape) == 5 for shape in shapes) == 1 and len(shapes) == 2:
        return [messages.VIDEO if len(shape) == 5 else messages.AUDIO for shape in shapes]
    return [messages.PART.of(number=i + 1) for i in range(len(shapes))]


def _highest(sampling: Any) -> float | None:
    """The highest sigma of a comfy model_sampling; None where it does not tell."""
    try:
        return float(sampling.sigma_max)
    except (AttributeError, TypeError, ValueError):
        return None


def _shape(latent: Any) -> tuple[int, ...]:
    """Of a latent; () where it has none."""
    return tuple(getattr(latent, "shape", ()))


def _unused(guider: Any) -> str:
    """The name of the conditionings that ComfyUI leaves out at a CFG of 1; "" where all are run."""
    cfg = getattr(guider, "cfg", None)
    always = (getattr(guider, "model_options", None) or {}).get("disable_cfg1_optimization", False)
    return "negative" if isinstance(cfg, int | float) and math.isclose(cfg, 1.0) and not always else ""


class _Calibration:
    """What is known of the model from earlier runs, and what this run is to add.

    recipe: the run's; None where the method uses none, or the model could not be identified. profile: block profile.
    records_partly: the run is recorded though it skips. problem: why nothing is recorded, or a recording cannot be used.
    """

    def __init__(
        self, method: Method, guider: Any, sampler: Any, grid: Grid, latent: Any, support: BlockSupport | None
    ) -> None:
        self.method, self.grid = method, grid
        self.cfg = guidance_of(guider)
        self.kept: Value = "denoised" if method.suited(integrator_of(sampler))[1] == "denoised" else "velocity"
        self.recipe: Recipe | None = None
        self.profile: BlockProfile | None = None
        self.records_partly = self._may_record = False
        self._known: list[Recording] = []
        self.problem = ""
        planned = any(isinstance(p, Schedule) for p in method.policies)
        if method.calibration not in ("auto", "calibrate", "record", "known") or not grid.falling or grid.steps < 2:
            return
        try:
            self.recipe = recipe_of(guider, sampler, grid, latent, support.text if support else "")
            if support is None:
                self._known, self.problem = recordings(self.recipe)
            else:
                self.profile, self.problem = profile_for(self.recipe)
        except Exception as error:  # an unusual model is sampled without a calibration
            log.debug("[Skipstone] no recipe", exc_info=True)
            self.problem = messages.UNIDENTIFIED.of(error=error)
        if self.problem or self.recipe is None or method.calibration == "known":
            return
        obstacle = self._obstacle(sampler, support)
        if method.calibration in ("record", "calibrate") or support is not None:
            self.problem = obstacle
        self._may_record = not obstacle
        key = self.recipe.key
        partly = sum(r.gram.runs for r in self._known if not r.full and r.recipe.key == key)
        known_enough = self._full_runs(exact=True) or partly >= MOST_RUNS
        self.records_partly = self._may_record and support is None and planned and not known_enough

    def _obstacle(self, sampler: Any, support: BlockSupport | None) -> str:
        """Why the run cannot be recorded; "" if it can."""
        if adaptive_steps(sampler):
            return messages.ADAPTIVE_STEPS
        if support is not None and self.grid.steps > LONGEST_PROFILE:
            return TOO_LONG
        return can_keep()

    def _full_runs(self, exact: bool = False) -> bool:
        """Whether a full run of the model is recorded; exact: with this very recipe."""
        if self.recipe is None:
            return False
        key = self.recipe.key
        full = (r.recipe for r in self._known if r.full)
        return any(other.key == key if exact else other.shares_weights(self.recipe) for other in full)

    def computes_in_full(self, lacks_profile: bool) -> bool:
        """Whether the run is computed in full to be recorded."""
        if not self._may_record or self.recipe is None:
            return False
        if self.method.calibration == "record":
            return True
        if self.method.blocks:
            return lacks_profile
        return self.method.calibration == "calibrate" and not self._full_runs()

    def costs(self, anew: bool = False) -> Costs | None:
        """The costs to plan with; None where nothing is planned. anew: the recordings are read again."""
        if self.method.blocks or not self.grid.falling or self.grid.steps < 2:
            return None
        if anew and self.recipe is not None:
            self._known, _ = recordings(self.recipe)
        return costs_for(self.recipe, self.cfg, self.grid, self.kept, self._known)
