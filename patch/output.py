"""The output-level hook: skip whole evaluations, above batching, ControlNet and torch.compile, below guidance.

There every model looks alike: a latent x at sigma goes in, one denoised D per conditioning comes out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.step.recorder import Recorder
from ..core.step.run import Run
from .sigma import SigmaReader
from .slots import slots_of


class OutputHook:
    """One run's wrappers. Whatever is called otherwise than by the sampler's own evaluation passes through untouched."""

    def __init__(self, run: Run, sigmas: SigmaReader, recorder: Recorder | None = None) -> None:
        self.run = run
        self.sigmas = sigmas
        self.recorder = recorder
        self.at: Tensor | None = None  # sigma of the evaluation under way, as the sampler gave it
        self.calls = 0

    def predict_noise(self, executor: Any, x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """PREDICT_NOISE: exactly one per evaluation. The clock ticks."""
        self.run.tick(self.sigmas.read(timestep))
        if self.sigmas.wrong:
            self.sigmas.wrong = False
            self.run.forget()
            if self.recorder is not None:
                self.recorder.spoil()
        self.at, self.calls = timestep, 0
        try:
            denoised = executor(x, timestep, *args, **kwargs)
        finally:
            self.at = None
        if self.recorder is not None:
            self.recorder.observe(self.run.clock.sigma, x, denoised)
        return denoised

    def _at(self, timestep: Tensor) -> bool:
        """Is this the sigma of the evaluation under way? Windows over a batch of frames hand on a part of its tensor."""
        if self.at is None or timestep is self.at:
            return self.at is not None
        return bool(timestep.flatten()[0] == self.at.flatten()[0])

    def calc_cond_batch(
        self, executor: Any, model: Any, conds: list[Any], x: Tensor, timestep: Tensor, model_options: dict[str, Any]
    ) -> list[Tensor]:
        """CALC_COND_BATCH: once per evaluation, and again for every window and every guidance that runs the model once more.

        x: the latent at sigma `timestep`, any shape. Returns one denoised tensor of x's shape per entry of `conds`.
        """
        run = self.run
        if not self._at(timestep):
            return executor(model, conds, x, timestep, model_options)
        slots = slots_of(conds, x, run.clock.sigma, model_options.get("transformer_options", {}), self.calls)
        self.calls += 1
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
