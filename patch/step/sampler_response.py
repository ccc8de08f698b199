"""The response of a multistep sampler to the model's outputs, found by sampling with outputs that are unit vectors."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ...core.step.planning.planner import LARGEST
from ...core.step.planning.response import Response
from .samplers import integrator_of

log = logging.getLogger(__name__)


class _Unit:
    """A model whose output (x - D) / sigma in evaluation i is the unit vector i. Latents have shape (1, N, 1, 1)."""

    def __init__(self, patcher: Any) -> None:
        self.inner_model = SimpleNamespace(model_patcher=patcher)
        self.latents: list[Tensor] = []

    def __call__(self, x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        output = torch.zeros_like(x)
        output[0, len(self.latents)] = 1
        self.latents.append(x.flatten())
        return x - sigma.reshape(-1, 1, 1, 1) * output


def response_of(sampler: Any, sigmas: Sequence[float], patcher: Any) -> Response | None:
    """The response of a SAMPLER of ComfyUI's that evaluates once a step and uses its own past. None for others, where it fails, and for
    more than LARGEST steps, which are planned on a coarser grid.

    sigmas: N + 1 values. patcher: the run's ModelPatcher, from which some samplers read the model's sampling.
    """
    steps = len(sigmas) - 1
    if integrator_of(sampler) != "multistep" or not 1 < steps <= LARGEST:
        return None
    model, latent = _Unit(patcher), torch.zeros(1, steps, 1, 1, dtype=torch.float64)
    try:
        # res_multistep draws noise even though it adds none
        with torch.random.fork_rng(devices=()), torch.inference_mode():
            out = sampler.sampler_function(
                model,
                latent,
                torch.tensor(sigmas, dtype=torch.float64),
                extra_args={"model_options": {}, "seed": 0},
                disable=True,
                **sampler.extra_options,
            )
            latents = torch.stack([*model.latents[1:], out.flatten()])  # [i, j]: after step i, by output j
    except Exception:
        log.debug("[Skipstone] the sampler's response is not known", exc_info=True)
        return None
    if latents.shape != (steps, steps) or not bool(latents.isfinite().all()):
        return None
    return Response(tuple(latents[-1].tolist()), tuple(latents.diagonal().tolist()))
