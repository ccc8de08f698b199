"""Each evaluation's sigma on the host, without a host sync where it is known beforehand.

Samplers pass sigma as a tensor on the device, and reading it waits for everything queued there. Most samplers evaluate the model at known
points of the grid: there sigma is taken from the grid, and an asynchronous copy is compared with it once it has arrived.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import comfy.model_management
import torch
from comfy.cli_args import args
from torch import Tensor

from ...core.step.history import QUEUES, HostMemory
from ...core.step.readback import Readback
from .samplers import evaluated_sigmas

log = logging.getLogger(__name__)

TOLERANCE = 1e-3  # relative; SDE samplers shift the first sigma slightly


def waits(value: Tensor) -> bool:
    """True if reading this tensor waits for its device, and it can be copied asynchronously."""
    return value.device.type in QUEUES


def pinnable(device: torch.device) -> float:
    """Bytes of the host's memory that may be page-locked for a device.

    None where ComfyUI's options forbid it, or forbid asynchronous copies; otherwise what is left of ComfyUI's own limit.
    """
    if device.type not in QUEUES or args.disable_pinned_memory:
        return 0.0
    try:
        if not comfy.model_management.device_supports_non_blocking(device):
            return 0.0
    except Exception:
        log.debug("[Skipstone] ComfyUI cannot tell about asynchronous copies", exc_info=True)
        return 0.0
    most = getattr(comfy.model_management, "MAX_PINNED_MEMORY", -1)
    taken = getattr(comfy.model_management, "TOTAL_PINNED_MEMORY", 0)
    return float(max(most - taken, 0)) if most > 0 else float("inf")


class SigmaReader:
    """Reads sigma in one run of a ComfyUI SAMPLER on `sigmas` (N + 1 host floats)."""

    def __init__(self, sampler: Any, sigmas: Sequence[float], memory: HostMemory | None = None) -> None:
        self.memory = memory or HostMemory()
        self.expected: list[float] | None = evaluated_sigmas(sampler, sigmas)
        self.next = 0
        self.pending: list[tuple[Readback, float]] = []
        # an evaluation was at another sigma than expected; the reader's owner clears it
        self.wrong = False

    def read(self, timestep: Tensor) -> float:
        """Sigma of the next evaluation. timestep: the sampler's tensor, shape (B,)."""
        if not waits(timestep) or self.expected is None or self.next >= len(self.expected):
            return float(timestep.flatten()[0])
        sigma = self.expected[self.next]
        self.next += 1
        pending = Readback.of(timestep, self.memory)
        if pending is None:  # no page-locked memory
            self.expected, self.pending = None, []
            return float(timestep.flatten()[0])
        self.pending.append((pending, sigma))
        while self.pending and (value := self.pending[0][0].get()) is not None:
            _, expected = self.pending.pop(0)
            if abs(value - expected) > TOLERANCE * max(abs(expected), TOLERANCE):
                self.expected, self.wrong, self.pending = None, True, []
                return float(timestep.flatten()[0])
        return sigma
