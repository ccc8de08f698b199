"""A run from its birth: what is known before its first step, what answers in it, and what is learned from it."""

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
from ...core.step.calibration.gram_recorder import Recorder
from ...core.step.clock import Grid
from ...core.step.method import Method
from ...core.step.run import Run
from ..blocks.hook import HOST, BlockHook
from ..blocks.resolver import BlockSupport, known, reach_of
from .calibration import Recipe, can_keep, keep, nearest, recipe_of, stored
from .conditioning_changes import changes
from .hook_base import EvaluationHook
from .output import OutputHook
from .samplers import integrator_of, looks_twice, stepped, steps_alone
from .sigmas import SigmaReader

STEPS_OF_ITS_OWN = "this sampler chooses its own steps, so that nothing can be learned from it"
log = logging.getLogger(__name__)


@dataclass
class RunSession:
    """A run, the hook that it works through, and what is to be learned from it."""

    run: Run
    hook: EvaluationHook
    recipe: Recipe | None = None
    taught: Callable[[str], Gram | BlockProfile] | None = None
    next: Callable[[Gram], Run] | None = None  # a run like this one, when such costs are known
    always: bool = False  # every run of this node is recorded

    def learn(self) -> None:
        """Keep what was recorded. Whatever goes wrong is said and changes nothing else."""
        if self.taught is None or self.recipe is None:
            return
        report, note = self.run.report, self.run.report.note
        try:
            kept = keep(self.recipe, self.run.clock.grid, self.taught(self.recipe.text))
        except (ValueError, OSError) as error:
            report.hint = f"the costs of your model could not be recorded: {error}"
            note(report.hint)
            return
        then = "set calibration to auto to use them" if self.always else "runs like it skip from now on"
        if self.next and isinstance(kept, Gram) and not self.always:
            planned = self.next(kept).report.planned
            then = f"runs like it compute {len(planned)} of {self.run.clock.grid.steps} steps from now on"
        report.hint = f"learned what skipping costs on your model: {then}"
        note(
            f"this run was computed in full to learn the costs of your model ({self.recipe.text}; {kept.runs} run(s) kept): {then}"
        )


def born(method: Method | AutoMethod, guider: Any, sampler: Any, sigmas: Any, latent: Any) -> RunSession:
    """The course of a run of `guider` (a comfy CFGGuider or the like) that is about to sample `latent`. Raises StepCacheError where the
    method cannot reach into the model's blocks."""
    # asked of the patcher: object patches (shift nodes) are not on the model yet
    patcher = guider.model_patcher
    sampling = patcher.get_model_object("model_sampling")
    flow = isinstance(sampling, comfy.model_sampling.CONST)
    grid = Grid.of(stepped(sampler, sigmas.tolist()), flow, sampling.percent_to_sigma)
    integrator = integrator_of(sampler)
    method = method.resolve(SamplerInfo(integrator, grid.steps, steps_alone(sampler), looks_twice(sampler)))
    device = {"auto": None, "gpu": patcher.load_device, "cpu": HOST}[method.history_device]
    conds = getattr(guider, "conds", None) or {}
    reach = reach_of(method, patcher.model.diffusion_model) if method.blocks else None
    network = known(patcher, conds)

    lesson = _lesson(method, guider, sampler, grid, latent, reach)
    costs, lessons = lesson.costs, lesson.lessons
    learning = lesson.wanted and (reach is None or method.calibration == "record" or method.lacks(network, lessons))
    made = partial(Run, method, grid, integrator, device, events=changes(conds, grid), network=network)
    run = made(costs=costs, lessons=lessons, learning=learning)
    if lesson.problem and (reach is None or method.lacks(network, lessons)):
        run.report.note(f"{lesson.problem}; default costs are used" if reach is None else lesson.problem)
    elif learning and lesson.recipe is not None and costs is None and lessons is None:
        difference = nearest(lesson.recipe)
        if difference:
            run.report.note(f"there is a calibration of this model, but for {difference}: it is not used")

    reader, always = SigmaReader(sampler, grid.sigmas), method.calibration == "record"
    if reach is None:
        recorder = Recorder(grid, method.suited(integrator)[1]) if learning else None
        hook: EvaluationHook = OutputHook(run, reader, recorder)
        following = (lambda gram: made(costs=gram)) if recorder else None
        return RunSession(run, hook, lesson.recipe, recorder.gram if recorder else None, following, always)
    run.report.share = reach.share
    pupil = BlockProfiler(grid) if learning else None
    # with MPS the device and the host share one memory
    shared = patcher.load_device == HOST or patcher.load_device.type == "mps"
    elsewhere = HOST if method.history_device == "auto" and not shared else None
    hook = BlockHook(run, reader, reach, elsewhere, pupil)
    hook.unused = _unused(guider)
    return RunSession(run, hook, lesson.recipe, pupil.lessons if pupil else None, None, always)


def _unused(guider: Any) -> str:
    """The name of the conditionings that are not run, as ComfyUI leaves them out at a CFG of 1; "" where all are."""
    cfg = getattr(guider, "cfg", None)
    always = (getattr(guider, "model_options", None) or {}).get("disable_cfg1_optimization", False)
    return "negative" if isinstance(cfg, int | float) and math.isclose(cfg, 1.0) and not always else ""


@dataclass
class _Lesson:
    """What was learned of the model before. wanted: something new may be. problem: why not, or why what there is cannot be used."""

    recipe: Recipe | None = None
    costs: Gram | None = None
    lessons: BlockProfile | None = None
    wanted: bool = False
    problem: str = ""


def _lesson(method: Method, guider: Any, sampler: Any, grid: Grid, latent: Any, reach: BlockSupport | None) -> _Lesson:
    found = _Lesson()
    if method.calibration not in ("auto", "record", "known") or not grid.falling or grid.steps < 2:
        return found
    try:
        found.recipe = recipe_of(guider, sampler, grid, latent, reach.text if reach else "")
        if reach is None:
            found.costs, found.problem = stored(found.recipe, grid, Gram)
        else:
            found.lessons, found.problem = stored(found.recipe, grid, BlockProfile)
    except Exception as error:  # a model that cannot be looked at is sampled as one that nothing is known of
        log.debug("[Skipstone] no recipe", exc_info=True)
        found.problem = f"your model could not be told from others ({error})"
    lacking = found.costs is None and found.lessons is None
    if not found.problem and (method.calibration == "record" or (method.calibration == "auto" and lacking)):
        found.problem = STEPS_OF_ITS_OWN if steps_alone(sampler) else can_keep()
        found.wanted = not found.problem
    return found
