"""Base of both hooks: tells the sampler's evaluations from other calls of the model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...core.step.calibration.block_profile import BlockProfiler
from ...core.step.calibration.gram_recorder import GramRecorder
from ...core.step.guard import succeeds
from ...core.step.movement import Continuity
from ...core.step.policies import Reason
from ...core.step.report import messages
from ...core.step.run import Run
from ...core.step.track import Slot
from ...core.texts import Text
from ..families import STATE_OPTIONS
from .sigma_ranges import Range
from .sigmas import SigmaReader
from .slots import slots_of, window_of

TEACHES_NOTHING = Text("teaches_nothing", "this run teaches nothing about the model's costs: {error}")
STATEFUL = Text("stateful", "this model keeps state from step to step, so every step is computed")

log = logging.getLogger(__name__)


class EvaluationHook:
    """One run's wrappers. Calls that are not part of a sampler's evaluation have no slots."""

    def __init__(self, run: Run, sigmas: SigmaReader, learner: GramRecorder | BlockProfiler | None = None) -> None:
        self.run = run
        self.sigmas = sigmas
        self.learner = learner
        self.at: Tensor | None = None  # sigma of the evaluation under way, as the sampler gave it
        self.x: Tensor | None = None  # its latent
        self.parts: Continuity | None = None  # from the first call on whose latent is not the evaluation's
        self.calls = 0
        self.windows: set[tuple[int, ...]] = set()  # of this evaluation
        self.last_windows = self.windows  # of the one before
        self.moves = 0  # evaluations in a row with other windows than the one before
        self.told = 0  # bytes that ComfyUI was told of
        self.unused = ""  # the name of conditionings that ComfyUI will not run
        self.latent: Sequence[int] = ()  # shape of the whole latent
        self.ranges: Sequence[Range] = ()  # of sigma, in which another node changes the network

    def record(self, observe: Callable[..., None], *args: Any) -> None:
        """Have the recording observe an evaluation. Its failure ends the recording and never the sampling."""
        try:
            observe(*args)
        except Exception as error:
            log.debug("[Skipstone] the recording failed", exc_info=True)
            if self.run.learning:
                self.run.report.note(TEACHES_NOTHING.of(error=error), warning=False)
            if self.learner is not None:
                self.learner.invalidate()

    @property
    def wrappers(self) -> dict[str, Callable[..., Any]]:
        """The wrappers of ComfyUI's functions for the run, by kind."""
        return {
            WrappersMP.PREPARE_SAMPLING: self.prepare_sampling,
            WrappersMP.PREDICT_NOISE: self.predict_noise,
            WrappersMP.CALC_COND_BATCH: self.calc_cond_batch,
        }

    def size(self, model: Any, noise_shape: Sequence[int], conds: Sequence[dict[str, Any]]) -> int:
        """Bytes that the run will hold where the model computes, at its peak. conds: the conditionings that are run."""
        raise NotImplementedError

    def prepare_sampling(
        self, executor: Any, model: Any, noise_shape: Sequence[int], conds: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """PREPARE_SAMPLING: ComfyUI is told of what will be held before it loads the model, as of a larger batch."""
        if (self.run.device is None or self.run.device.type != "cpu") and not _spread(model):
            used = [c for name, several in conds.items() if name != self.unused for c in several or ()]
            # a slot for each context window, of whose shape `noise_shape` is
            self.told = self.size(model, noise_shape, used) * _windows(kwargs.get("model_options"), self.latent)
            row = model.memory_required([1, *noise_shape[1:]])
            noise_shape = [noise_shape[0] + round(self.told / max(row, 1)), *noise_shape[1:]]
        return executor(model, noise_shape, conds, *args, **kwargs)

    def close(self) -> None:
        """The run is over: drop what is still on its way from the device."""
        self.sigmas.pending.clear()
        self.parts = None

    def calc_cond_batch(
        self, executor: Any, model: Any, conds: list[Any], x: Tensor, timestep: Tensor, model_options: dict[str, Any]
    ) -> list[Tensor]:
        """CALC_COND_BATCH: once per evaluation, and again for every window and every guidance that runs the model once more.

        x: the latent at sigma `timestep`, any shape. Returns one denoised tensor of x's shape per entry of `conds`.
        """
        raise NotImplementedError

    def predict_noise(self, executor: Any, x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """PREDICT_NOISE: once per evaluation; advances the clock."""
        self.run.tick(self.sigmas.read(timestep), x)
        if self.sigmas.wrong:
            self.sigmas.wrong = False
            self.run.forget()
            if self.learner is not None:
                self.learner.invalidate()
        self.at, self.x, self.calls = timestep, x, 0
        try:
            denoised = executor(x, timestep, *args, **kwargs)
        finally:
            self.at = self.x = None
        self.run.returned(denoised)
        self._compare_windows()
        if self.parts is not None:
            self._compare(self.parts.observe_whole, x, denoised, self.run.clock.sigma)
        return denoised

    def slots(self, conds: list[Any], x: Tensor, timestep: Tensor, model_options: dict[str, Any]) -> list[Slot | None]:
        """The slots of a call of CALC_COND_BATCH, one for each of `conds`.

        Empty if the call is not part of the sampler's evaluation, if the model keeps state of its own and has to run, or if it is not known
        which part of the latent x is.
        """
        options = model_options.get("transformer_options", {})
        if not self._under_way(timestep):
            return []
        if STATE_OPTIONS & options.keys():
            self.run.report.note(STATEFUL, warning=False)
            return []
        self.calls += 1
        if window := window_of(options):
            self.windows.add(window)
        slots = slots_of(conds, x, self.run.clock.sigma, options, self.calls - 1, self.ranges)
        if not self._is_whole(x) and not window and not self._continues(slots, x):
            self.compute_unknown_part()
            return []
        return slots

    def _compare_windows(self) -> None:
        """At the end of an evaluation: note windows that move."""
        self.moves = self.moves + 1 if self.last_windows and self.windows - self.last_windows else 0
        self.last_windows, self.windows = self.windows, set()
        if self.moves > 1:
            self.run.report.note(messages.MOVING_WINDOWS, warning=False)

    def compute_unknown_part(self) -> None:
        """The current call is computed, because it is not known which part of the latent it runs the model on."""
        self.run.report.note(messages.UNKNOWN_PART, warning=False)
        self.run.force(Reason.UNKNOWN_PART)

    def _is_whole(self, x: Tensor) -> bool:
        """Whether x is the evaluation's latent, and that is of the size of the run's."""
        assert self.x is not None
        whole = len(self.latent) != self.x.ndim or tuple(self.latent[1:]) == tuple(self.x.shape[1:])
        return whole and (x is self.x or (x.shape == self.x.shape and x.data_ptr() == self.x.data_ptr()))

    def _continues(self, slots: Sequence[Slot | None], x: Tensor) -> bool:
        """Whether a latent that nothing names is the same part of the evaluation's as at earlier evaluations."""
        assert self.x is not None
        if x.shape != self.x.shape:
            return False
        if self.parts is None:
            self.parts = Continuity(self.run.memory)
        # a sampler that hands over the latent in tiles gives evaluations of another size than the run's
        whole = None if x is self.x else self.x
        for slot in slots:
            if slot is not None:
                self._compare(self.parts.check, slot, x, whole, self.run.clock.sigma)
        return not self.parts.jumped

    def _compare(self, observe: Callable[..., None], *args: Any) -> None:
        """Have `parts` observe. Its failure never ends the sampling: the parts count as unknown from there on."""
        if not succeeds("parts of the latent cannot be compared", observe, *args):
            assert self.parts is not None
            self.parts.jumped = True

    def observe_parts(self, slots: Sequence[Slot | None], x: Tensor, denoised: Sequence[Tensor]) -> None:
        """The output of a call, computed or predicted, in the order of its slots."""
        if self.parts is not None and not self._is_whole(x):
            for slot, d in zip(slots, denoised, strict=True):
                if slot is not None:
                    self._compare(self.parts.observe_part, slot, x, d, self.run.clock.sigma)

    def _under_way(self, timestep: Tensor) -> bool:
        """True if this is the current evaluation's sigma. Windows over a batch of frames pass a slice of its tensor."""
        if self.at is None or timestep is self.at:
            return self.at is not None
        return bool(timestep.flatten()[0] == self.at.flatten()[0])


def _windows(model_options: dict[str, Any] | None, latent: Sequence[int]) -> int:
    """The number of ComfyUI's context windows over a latent: of those that overlap as little as they may. 1 without, and for several
    latents that are packed into one, whose shape ComfyUI leaves whole."""
    handler = (model_options or {}).get("context_handler")
    dim, length = getattr(handler, "dim", None), getattr(handler, "context_length", 0)
    if dim is None or dim >= len(latent) or length < 1 or (len(latent) == 3 and latent[1] == 1):
        return 1
    step = max(length - getattr(handler, "context_overlap", 0), 1)
    rest = latent[dim] if getattr(handler, "closed_loop", False) else latent[dim] - length + step
    return max(-(-rest // step), 1)


def _spread(patcher: Any) -> bool:
    """Does the MODEL run on several GPUs?"""
    models = getattr(patcher, "get_additional_models_with_key", None)
    return bool(models and models("multigpu"))
