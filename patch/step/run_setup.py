"""Sets up a run: the facts known before its first step, its hook, and the recording of a calibration."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.model_sampling

from ...core.step.auto.method import AutoMethod
from ...core.step.auto.selection import SamplerInfo
from ...core.step.calibration.block_profile import BlockProfile, BlockProfiler
from ...core.step.calibration.gram import Gram
from ...core.step.calibration.gram_recorder import GramRecorder
from ...core.step.clock import Grid
from ...core.step.method import Method
from ...core.step.report import messages
from ...core.step.run import Run
from ..blocks.base import BlockSupport
from ..blocks.hook import HOST, BlockHook
from ..blocks.resolver import block_support_of, known
from .calibration import MOST_STEPS, Recipe, can_keep, keep, nearest, recipe_of, stored
from .conditioning_changes import changes
from .hook_base import EvaluationHook
from .output import OutputHook
from .samplers import adaptive_steps, evaluations_per_step, integrator_of, observe, run_sigmas, second_order
from .sigmas import SigmaReader, pinnable
from .sparse_attention import sparse_ranges

ADAPTIVE_STEPS = "this sampler chooses its own steps, so a run with it cannot be used for calibration"
TOO_LONG = f"runs of more than {MOST_STEPS} steps are not recorded"
log = logging.getLogger(__name__)


@dataclass
class RunSession:
    """A run with its hook, and what is recorded from it.

    Parameters
    ----------
    recorded: makes the calibration of the recording, given the recipe's text; None where nothing is recorded.
    plan_with: a run like this one with the given costs, to report how many steps the next run computes.
    always: every run of this node is recorded.
    """

    run: Run
    hook: EvaluationHook
    sampler: Any
    recipe: Recipe | None = None
    recorded: Callable[[str], Gram | BlockProfile] | None = None
    plan_with: Callable[[Gram], Run] | None = None
    always: bool = False

    def finish(self) -> None:
        """The run finished: keep the recording and the sampler's behaviour. Failures are reported and change nothing else."""
        try:
            observe(self.sampler, len(self.run.report.evaluations), self.run.clock.grid.steps)
            self._learn()
        except Exception as error:
            log.debug("[Skipstone] nothing was learned", exc_info=True)
            self.run.report.hint = f"the calibration could not be recorded: {error}"
            self.run.report.note(self.run.report.hint)

    def _learn(self) -> None:
        if self.recorded is None or self.recipe is None:
            return
        report, grid = self.run.report, self.run.clock.grid
        kept = keep(self.recipe, grid, self.recorded(self.recipe.text))
        hint = "measured and saved. Set calibration to auto to use it" if self.always else messages.learned(None, 0)
        if self.plan_with and isinstance(kept, Gram) and not self.always:
            planned = self.plan_with(kept).report.planned
            hint = messages.learned(len(planned), grid.steps)
        report.hint = hint
        report.note(f"{hint} (setup: {self.recipe.text}; runs recorded: {kept.runs})", warning=False)


def start_run(method: Method | AutoMethod, guider: Any, sampler: Any, sigmas: Any, latent: Any) -> RunSession:
    """The session of a run that `guider` (a comfy CFGGuider or the like) is about to sample.

    latent: shape (B, C, ...). Raises StepCacheError where the method cannot work on the model's blocks.
    """
    # from the patcher: object patches (shift nodes) are not on the model yet
    patcher = guider.model_patcher
    sampling = patcher.get_model_object("model_sampling")
    flow = isinstance(sampling, comfy.model_sampling.CONST)
    grid = Grid.of(run_sigmas(sampler, sigmas.tolist()), flow, sampling.percent_to_sigma)
    integrator = integrator_of(sampler)
    method = method.resolve(SamplerInfo(integrator, grid.steps, adaptive_steps(sampler), second_order(sampler)))
    device = {"auto": None, "gpu": patcher.load_device, "cpu": HOST}[method.history_device]
    conds = getattr(guider, "conds", None) or {}
    options = (getattr(guider, "model_options", None) or {}).get("transformer_options", {})
    support = block_support_of(method, patcher.model.diffusion_model) if method.blocks else None
    network = known(patcher, conds)

    calibration = _calibration(method, guider, sampler, grid, latent, support)
    costs, profile = calibration.costs, calibration.profile
    lacking = support is None or method.requires_profile(network, profile)
    learning = calibration.wanted and (lacking or method.calibration == "record")
    make = partial(
        Run,
        method,
        grid,
        integrator,
        device,
        events=changes(conds, grid, sparse_ranges(options)),
        network=network,
        evaluations_per_step=evaluations_per_step(sampler),
        computes_on=patcher.load_device,
        pinnable=pinnable(patcher.load_device),
    )
    run = make(costs=costs, block_profile=profile, learning=learning)
    if calibration.problem and lacking:
        run.report.note(f"{calibration.problem}; built-in costs are used" if support is None else calibration.problem)
    elif learning and calibration.recipe is not None and costs is None and profile is None:
        difference = nearest(calibration.recipe)
        if difference:
            run.report.note(f"new settings ({difference}): learning again", warning=False)

    # with MPS the device and the host share one memory
    shared = patcher.load_device == HOST or patcher.load_device.type == "mps"
    offload = HOST if method.history_device == "auto" and not shared else None
    reader, always = SigmaReader(sampler, grid.sigmas, run.memory), method.calibration == "record"
    if support is None:
        recorder = GramRecorder(grid, method.suited(integrator)[1]) if learning else None
        hook: EvaluationHook = OutputHook(run, reader, recorder, offload)
        hook.unused = _unused(guider)
        plan_with = (lambda gram: make(costs=gram)) if recorder else None
        recorded = recorder.gram if recorder else None
        return RunSession(run, hook, sampler, calibration.recipe, recorded, plan_with, always)
    run.report.share = support.share
    profiler = BlockProfiler(grid) if learning else None
    hook = BlockHook(run, reader, support, offload, profiler)
    hook.unused = _unused(guider)
    return RunSession(run, hook, sampler, calibration.recipe, profiler.profile if profiler else None, None, always)


def _unused(guider: Any) -> str:
    """The name of the conditionings that ComfyUI leaves out at a CFG of 1; "" where all are run."""
    cfg = getattr(guider, "cfg", None)
    always = (getattr(guider, "model_options", None) or {}).get("disable_cfg1_optimization", False)
    return "negative" if isinstance(cfg, int | float) and math.isclose(cfg, 1.0) and not always else ""


@dataclass
class _Calibration:
    """Knowledge of the model from earlier runs.

    wanted: this run is to be recorded. problem: why that is not possible, or why a stored calibration cannot be used.
    """

    recipe: Recipe | None = None
    costs: Gram | None = None
    profile: BlockProfile | None = None
    wanted: bool = False
    problem: str = ""


def _calibration(
    method: Method, guider: Any, sampler: Any, grid: Grid, latent: Any, support: BlockSupport | None
) -> _Calibration:
    found = _Calibration()
    if method.calibration not in ("auto", "record", "known") or not grid.falling or grid.steps < 2:
        return found
    try:
        found.recipe = recipe_of(guider, sampler, grid, latent, support.text if support else "")
        if support is None:
            found.costs, found.problem = stored(found.recipe, grid, Gram)
        else:
            found.profile, found.problem = stored(found.recipe, grid, BlockProfile)
    except Exception as error:  # an unusual model is sampled without a calibration
        log.debug("[Skipstone] no recipe", exc_info=True)
        found.problem = f"the model could not be identified ({error})"
    missing = found.costs is None and found.profile is None
    if not found.problem and (method.calibration == "record" or (method.calibration == "auto" and missing)):
        if adaptive_steps(sampler):
            found.problem = ADAPTIVE_STEPS
        elif grid.steps > MOST_STEPS:
            found.problem = TOO_LONG
        else:
            found.problem = can_keep()
        found.wanted = not found.problem
    return found
