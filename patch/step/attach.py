"""Attaches a step cache to a MODEL: one wrapper that holds configuration and creates each run's state."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import comfy.model_patcher
import comfy.patcher_extension
from comfy.patcher_extension import WrappersMP

from ...core.step.auto.method import AutoMethod
from ...core.step.method import Method
from ...core.step.report.report import Report
from ..blocks.resolver import block_support_of
from ..comfy_server import prompt_id
from ..errors import StepCacheError
from . import run_log
from .run_setup import RunSession, start_run

KEY = "skipstone"
# ComfyUI's own step caches, by the key of their wrapper
RIVALS = {"easycache": "ComfyUI's EasyCache", "lazycache": "ComfyUI's LazyCache"}

Listener = Callable[[Report], None]
log = logging.getLogger(__name__)


def attach(
    model: Any, method: Method | AutoMethod, listeners: tuple[Listener, ...] = (), watchers: tuple[Listener, ...] = ()
) -> Any:
    """A clone of the MODEL that samples with `method`.

    Raises StepCacheError if the MODEL cannot be sampled, has a step cache already, or has blocks that the method cannot work on.

    Parameters
    ----------
    model: a comfy ModelPatcher.
    method: an AutoMethod is resolved anew in each run.
    listeners: receive the report of every run when it ends.
    watchers: receive the unfinished report after every decision.
    """
    if not hasattr(model, "add_wrapper_with_key") or getattr(model.model, "model_sampling", None) is None:
        raise StepCacheError(
            f"{method.name} needs a diffusion MODEL that a sampler can run, and got {type(model).__name__}. "
            "Connect the MODEL output of a checkpoint or diffusion model loader."
        )
    _refuse_second(method, model.model_options, model.wrappers)
    if isinstance(method, Method) and method.blocks is not None:
        block_support_of(method, model.model.diffusion_model)
    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, StepCache(method, listeners, watchers))
    return patched


def _refuse_second(
    method: Method | AutoMethod, model_options: dict[str, Any], wrappers: dict[str, Any], own: StepCache | None = None
) -> None:
    merged = [wrappers, model_options.get("transformer_options", {}).get("wrappers", {})]
    outer = {key: ws for source in merged for key, ws in source.get(WrappersMP.OUTER_SAMPLE, {}).items() if ws}
    others = [w.method.title for w in outer.get(KEY, ()) if w is not own]
    others += [name for key, name in RIVALS.items() if key in outer]
    if others:
        raise StepCacheError(
            f"{method.title} and {others[0]} are both on this model. Use one step cache: remove or bypass the other."
        )


class StepCache:
    """The OUTER_SAMPLE wrapper: configuration only, because ComfyUI shares it between clones of a model."""

    def __init__(
        self, method: Method | AutoMethod, listeners: tuple[Listener, ...], watchers: tuple[Listener, ...] = ()
    ) -> None:
        self.method = method
        self.listeners = listeners
        self.watchers = watchers

    def __call__(
        self, executor: Any, noise: Any, latent: Any, sampler: Any, sigmas: Any, *args: Any, **kwargs: Any
    ) -> Any:
        guider = executor.class_obj
        _refuse_second(self.method, guider.model_options, {}, own=self)
        session = start_run(self.method, guider, sampler, sigmas, latent, kwargs.get("latent_shapes"))
        run = session.run
        run.reports.watch = partial(self._send, self.watchers) if self.watchers else None
        # on a copy: an outer wrapper may call us twice, and has to find the options unchanged
        given = guider.model_options
        guider.model_options = comfy.model_patcher.create_model_options_clone(given)
        for kind, wrapper in session.hook.wrappers.items():
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
            self._close(session, finished)

    def _close(self, session: RunSession, finished: bool) -> None:
        """End a run. Nothing here may replace a finished picture, or the error that ended the run."""
        if finished:
            session.finish()
        session.hook.close()
        try:
            run_log.write(session.run.close(finished), prompt_id())
        except Exception:
            log.exception("[Skipstone] the report of %s failed", self.method.name)
        self._send(self.listeners, session.run.report)

    def _send(self, listeners: tuple[Listener, ...], report: Report) -> None:
        for listener in listeners:
            try:
                listener(report)
            except Exception:
                log.exception("[Skipstone] a listener of %s failed", self.method.name)


def listeners_of(model: Any) -> tuple[Listener, ...]:
    """The listeners of a MODEL's step cache; empty without one."""
    wrappers = getattr(model, "wrappers", {}).get(WrappersMP.OUTER_SAMPLE, {}).get(KEY, ())
    return tuple(listener for w in wrappers if isinstance(w, StepCache) for listener in w.listeners)
