"""The output-level hook: skips whole evaluations, above batching, ControlNet and torch.compile, and below guidance.

All models look alike there: a latent x at sigma in, one denoised D per conditioning out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...core.step.calibration.gram_recorder import GramRecorder
from ...core.step.run import Run
from .hook_base import EvaluationHook
from .sigmas import SigmaReader


class OutputHook(EvaluationHook):
    """One run's wrappers. Calls that are not part of a sampler's evaluation pass through unchanged."""

    def __init__(self, run: Run, sigmas: SigmaReader, recorder: GramRecorder | None = None) -> None:
        super().__init__(run, sigmas, recorder)
        self.recorder = recorder

    def predict_noise(self, executor: Any, x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        denoised = super().predict_noise(executor, x, timestep, *args, **kwargs)
        if self.recorder is not None:
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
            denoised = executor(model, conds, x, timestep, model_options)
            for slot, d in zip(slots, denoised, strict=True):
                if slot is not None:
                    run.observe(slot, x, d)
            return denoised
        return [torch.zeros_like(x) if s is None else run.predict(s, x) for s in slots]
