"""Putting a step cache on a MODEL: one wrapper that holds configuration; a run's state is born in it and dies with it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.patcher_extension
from comfy.patcher_extension import WrappersMP

from ..core.step.clock import Grid
from ..core.step.method import Method
from ..core.step.recorder import Recorder
from ..core.step.report import Report
from ..core.step.run import Run
from .blocks import BlockHook
from .calibration import Recipe, can_keep, keep, nearest, recipe_of, stored
from .errors import StepCacheError
from .evaluation import EvaluationHook
from .events import changes
from .output import OutputHook
from .reach import reach_of
from .samplers import integrator_of, stepped, steps_alone
from .sigma import SigmaReader

KEY = "skipstone"
# step caches of ComfyUI itself, by the key of their wrapper
RIVALS = {"easycache": "EasyCache", "lazycache": "LazyCache"}

STEPS_OF_ITS_OWN = "this sampler chooses its own steps, so that costs cannot be recorded"

Listener = Callable[[Report], None]
log = logging.getLogger(__name__)


def attach(model: Any, method: Method, listeners: tuple[Listener, ...] = ()) -> Any:
    """A clone of the MODEL (a comfy ModelPatcher) that samples with `method`; `listeners` get the report of every run.

    Raises StepCacheError when the MODEL cannot be sampled, has a step cache already, or has blocks that the method cannot work on.
    """
    if not hasattr(model, "add_wrapper_with_key") or getattr(model.model, "model_sampling", None) is None:
        raise StepCacheError(
            f"{method.name} needs a diffusion MODEL that a sampler can run, and got {type(model).__name__}. "
            "Connect the MODEL output of a checkpoint or diffusion model loader."
        )
    _refuse_second(method, model.model_options, model.wrappers)
    if method.blocks is not None:
        reach_of(method, model.model.diffusion_model)
    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, StepCache(method, listeners))
    return patched


def _refuse_second(
    method: Method, model_options: dict[str, Any], wrappers: dict[str, Any], own: StepCache | None = None
) -> None:
    merged = [wrappers, model_options.get("transformer_options", {}).get("wrappers", {})]
    outer = {key: ws for source in merged for key, ws in source.get(WrappersMP.OUTER_SAMPLE, {}).items() if ws}
    others = [w.method.title for w in outer.get(KEY, ()) if w is not own]
    others += [name for key, name in RIVALS.items() if key in outer]
    if others:
        raise StepCacheError(
            f"two step caches on one model: {method.title} and {others[0]}. Each would skip on what the other made up. "
            "Remove or bypass one of the two nodes."
        )


class StepCache:
    """The OUTER_SAMPLE wrapper: configuration only. ComfyUI shares it between clones of a model."""

    def __init__(self, method: Method, listeners: tuple[Listener, ...]) -> None:
        self.method = method
        self.listeners = listeners

    def __call__(
        self, executor: Any, noise: Any, latent: Any, sampler: Any, sigmas: Any, *args: Any, **kwargs: Any
    ) -> Any:
        guider = executor.class_obj
        _refuse_second(self.method, guider.model_options, {}, own=self)
        course = _born(self.method, guider, sampler, sigmas, latent)
        run = course.run
        # on the run's own copy of the options: whoever is around us may call twice, and finds them as they were
        given = guider.model_options
        guider.model_options = comfy.model_patcher.create_model_options_clone(given)
        for kind, wrapper in course.hook.wrappers.items():
            comfy.patcher_extension.add_wrapper_with_key(
                kind, KEY, wrapper, guider.model_options, is_model_options=True
            )
        finished = False
        try:
            result = executor(noise, latent, sampler, sigmas, *args, **kwargs)
            finished = True
            return result
        finally:
            guider.model_options = given
            if finished:
                course.learn()
            report = run.close(finished)
            log.info("[Skipstone] %s", report.line())
            for note in report.notes:
                log.warning("[Skipstone] %s: %s", report.method, note)
            for listener in self.listeners:
                try:
                    listener(report)
                except Exception:  # nobody who only listens ends the run, or hides the error that did
                    log.exception("[Skipstone] the report of %s was not taken", report.method)


@dataclass
class Course:
    """A run, and what is to be learned from it."""

    run: Run
    hook: EvaluationHook
    recipe: Recipe | None = None
    recorder: Recorder | None = None
    always: bool = False  # every run of this node is recorded

    def learn(self) -> None:
        """Keep the costs that were recorded. Whatever goes wrong is said and changes nothing else."""
        if self.recorder is None or self.recipe is None:
            return
        try:
            gram = keep(self.recipe, self.run.clock.grid, self.recorder.gram(self.recipe.text))
        except (ValueError, OSError) as error:
            self.run.report.note(f"the costs of your model could not be recorded: {error}")
            return
        then = "set calibration to auto to use them" if self.always else "runs like it skip from now on"
        self.run.report.note(
            f"this run was computed in full to learn the costs of your model ({self.recipe.text}; {gram.runs} run(s) kept): {then}"
        )


def _born(method: Method, guider: Any, sampler: Any, sigmas: Any, latent: Any) -> Course:
    # asked of the patcher: object patches (shift nodes) are not on the model yet
    patcher = guider.model_patcher
    sampling = patcher.get_model_object("model_sampling")
    flow = isinstance(sampling, comfy.model_sampling.CONST)
    grid = Grid.of(stepped(sampler, sigmas.tolist()), flow, sampling.percent_to_sigma)
    integrator = integrator_of(sampler)
    device = {"auto": None, "gpu": patcher.load_device, "cpu": patcher.offload_device}[method.history_device]
    events = changes(getattr(guider, "conds", None) or {}, grid)

    recipe, costs, recorder, problem = None, None, None, ""
    if method.calibration in ("auto", "record") and grid.falling and grid.steps > 1:
        try:
            recipe = recipe_of(guider, sampler, grid, latent)
            costs, problem = stored(recipe, grid)
        except Exception as error:  # a model that cannot be looked at is sampled with the default costs
            log.debug("[Skipstone] no recipe", exc_info=True)
            problem = f"your model could not be told from others ({error})"
        if not problem and (method.calibration == "record" or costs is None):
            problem = STEPS_OF_ITS_OWN if steps_alone(sampler) else can_keep()
            if not problem:
                recorder = Recorder(grid, method.suited(integrator)[1])
    run = Run(method, grid, integrator, device, events=events, costs=costs, learning=recorder is not None)
    if problem:
        run.report.note(f"{problem}; default costs are used")
    elif recorder is not None and recipe is not None and costs is None:
        difference = nearest(recipe)
        if difference:
            run.report.note(f"there is a calibration of this model, but for {difference}: it is not used")
    reader = SigmaReader(sampler, grid.sigmas)
    hook: EvaluationHook
    if method.blocks is None:
        hook = OutputHook(run, reader, recorder)
    else:
        reach = reach_of(method, patcher.model.diffusion_model)
        run.report.share = reach.share
        offload = patcher.offload_device if method.history_device == "auto" and device is None else None
        hook = BlockHook(run, reader, reach, offload, recorder)
    return Course(run, hook, recipe, recorder, method.calibration == "record")
