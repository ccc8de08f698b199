"""Each evaluation's sigma on the host, without waiting for the device where it can be told beforehand.

A sampler hands on its sigma as a tensor on the device. To read it is to wait for all that is queued there. Most samplers
evaluate the model at known places of the grid: there the sigma is taken from the grid, and a copy, made without waiting, is
compared with it once it has arrived.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .samplers import evaluated_sigmas

TOLERANCE = 1e-3  # SDE samplers move the first sigma a little


class PendingSigma:
    """A value on its way from a CUDA device to the host."""

    def __init__(self, value: Tensor) -> None:
        self.host = torch.empty(1, dtype=value.dtype, pin_memory=True)
        self.host.copy_(value.flatten()[:1], non_blocking=True)
        self.event = torch.cuda.Event()
        self.event.record()

    def get(self) -> float | None:
        """The value, or None while it is on its way."""
        return float(self.host.numpy()[0]) if self.event.query() else None


def waits(value: Tensor) -> bool:
    """Must reading this tensor wait for a device, and can it be copied without waiting?"""
    return value.is_cuda


class SigmaReader:
    """For one run of a ComfyUI SAMPLER on `sigmas` (N + 1 host floats)."""

    def __init__(self, sampler: Any, sigmas: Sequence[float]) -> None:
        self.expected: list[float] | None = evaluated_sigmas(sampler, sigmas)
        self.next = 0
        self.arriving: list[tuple[PendingSigma, float]] = []
        self.wrong = (
            False  # an evaluation was taken for one at another sigma than it was; cleared by whoever acts on it
        )

    def read(self, timestep: Tensor) -> float:
        """Sigma of a new evaluation, in the order in which the sampler makes them. timestep: as the sampler gave it, (B,)."""
        if not waits(timestep) or self.expected is None or self.next >= len(self.expected):
            return float(timestep.flatten()[0])
        sigma = self.expected[self.next]
        self.next += 1
        self.arriving.append((PendingSigma(timestep), sigma))
        while self.arriving and (value := self.arriving[0][0].get()) is not None:
            _, meant = self.arriving.pop(0)
            if abs(value - meant) > TOLERANCE * max(abs(meant), TOLERANCE):
                self.expected, self.wrong, self.arriving = None, True, []
                return float(timestep.flatten()[0])
        return sigma
