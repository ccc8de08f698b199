"""Each evaluation's sigma on the host, without a host sync where it is known beforehand.

Samplers pass sigma as a tensor on the device, and reading it waits for everything queued there. Most samplers evaluate the model at known
points of the grid: there sigma is taken from the grid, and an asynchronous copy is compared with it once it has arrived.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .samplers import evaluated_sigmas

TOLERANCE = 1e-3  # relative; SDE samplers shift the first sigma slightly


class PendingSigma:
    """An asynchronous copy of a scalar from a CUDA device to the host."""

    def __init__(self, value: Tensor) -> None:
        self.host = torch.empty(1, dtype=value.dtype, pin_memory=True)
        self.host.copy_(value.flatten()[:1], non_blocking=True)
        self.event = torch.cuda.Event()
        self.event.record()

    def get(self) -> float | None:
        """The value, or None while the copy is pending."""
        return float(self.host.numpy()[0]) if self.event.query() else None


def waits(value: Tensor) -> bool:
    """True if reading this tensor waits for its device, and it can be copied asynchronously."""
    return value.is_cuda


class SigmaReader:
    """For one run of a ComfyUI SAMPLER on `sigmas` (N + 1 host floats)."""

    def __init__(self, sampler: Any, sigmas: Sequence[float]) -> None:
        self.expected: list[float] | None = evaluated_sigmas(sampler, sigmas)
        self.next = 0
        self.pending: list[tuple[PendingSigma, float]] = []
        # an evaluation was at another sigma than expected; the reader's owner clears it
        self.wrong = False

    def read(self, timestep: Tensor) -> float:
        """Sigma of the next evaluation. timestep: the sampler's tensor, shape (B,)."""
        if not waits(timestep) or self.expected is None or self.next >= len(self.expected):
            return float(timestep.flatten()[0])
        sigma = self.expected[self.next]
        self.next += 1
        self.pending.append((PendingSigma(timestep), sigma))
        while self.pending and (value := self.pending[0][0].get()) is not None:
            _, expected = self.pending.pop(0)
            if abs(value - expected) > TOLERANCE * max(abs(expected), TOLERANCE):
                self.expected, self.wrong, self.pending = None, True, []
                return float(timestep.flatten()[0])
        return sigma
