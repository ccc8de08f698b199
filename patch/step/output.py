"""The output-level hook: skips whole evaluations, above batching, ControlNet and torch.compile, and below guidance.

All models look alike there: a latent x at sigma in, one denoised D per conditioning out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ...core.step.calibration.gram_recorder import GramRecorder
from ...core.step.run import Run
from ...core.texts import Text
from .hook_base import EvaluationHook
from .sigmas import SigmaReader

HOST = torch.device("cpu")
LARGE = 256 << 20  # bytes of anchors that "auto" keeps where the model computes
OOM = Text(
    "anchors_dropped",
    "memory ran out: the anchors were dropped and are kept in main memory from there on, and that evaluation ran again",
)


class OutputHook(EvaluationHook):
    """One run's wrappers. Calls that are not part of a sampler's evaluation pass through unchanged."""

    def __init__(
        self,
        run: Run,
        sigmas: SigmaReader,
        recorder: GramRecorder | None = None,
        offload: torch.device | None = None,
    ) -> None:
        super().__init__(run, sigmas, recorder)
        self.recorder = recorder
        self.offload = offload  # where anchors go that are LARGE together; None: they stay

    def size(self, model: Any, noise_shape: Sequence[int], conds: Sequence[dict[str, Any]]) -> int:
        # float32 latents; beside the anchors what is predicted
        anchors = min(self.run.trajectory.anchors, self.run.clock.grid.steps) + 1
        size = math.prod(noise_shape) * 4 * anchors * max(len(conds), 1)
        if size > LARGE and self.offload is not None:
            self.run.device = self.offload
            return 0
        return size

    def predict_noise(self, executor: Any, x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        denoised = super().predict_noise(executor, x, timestep, *args, **kwargs)
        if self.recorder is not None and self.run.decision is not None and self.run.decision.compute:
            self.record(self.recorder.observe, self.run.clock.sigma, x, denoised)
        return denoised

    def calc_cond_batch(
        self, executor: Any, model: Any, conds: list[Any], x: Tensor, timestep: Tensor, model_options: dict[str, Any]
    ) -> list[Tensor]:
        run = self.run
        slots = self.slots(conds, x, timestep, model_options)
        present = [s for s in slots if s is not None]
        if not present:
            return executor(model, conds, x, timestep, model_options)
        if run.decide(present, run.input_of(x) if run.indicator else None).compute:
            denoised = self._computed(executor, model, conds, x, timestep, model_options)
            for slot, d in zip(slots, denoised, strict=True):
                if slot is not None:
                    run.observe(slot, x, d)
            if self.recorder is not None and len(present) == len(denoised) == 2:
                # ComfyUI's order: the conditional pass, then the unconditional one
                self.record(self.recorder.observe_passes, run.clock.sigma, x, *denoised)
        else:
            denoised = [torch.zeros_like(x) if s is None else run.predict(s, x) for s in slots]
        self.observe_parts(slots, x, denoised)
        return denoised

    def _computed(self, executor: Any, *args: Any) -> list[Tensor]:
        """The model's own output. If memory runs out while anchors are held where it computes, they are dropped, and it runs again."""
        try:
            return executor(*args)
        except Exception as error:
            held = any(
                isinstance(a, Tensor) and a.is_cuda for h in self.run.histories.values() for a in h.anchors.values()
            )
            if not held or not comfy.model_management.is_oom(error):
                raise
        self.run.report.note(OOM)
        self.run.drop()
        self.run.device = HOST
        comfy.model_management.soft_empty_cache()
        return executor(*args)
