"""Reads a number from a device without a host sync: an asynchronous copy, read once it has arrived."""

from __future__ import annotations

import torch
from torch import Tensor

from .history import QUEUES, HostMemory

BYTES = 8  # of the largest number


class Readback:
    """An asynchronous copy of a number to the host; see `of`."""

    def __init__(self, value: Tensor, chunk: Tensor, memory: HostMemory) -> None:
        self.chunk, self.memory = chunk, memory
        self.host = chunk.view(value.dtype)[:1]
        self.host.copy_(value.detach().flatten()[:1], non_blocking=True)
        self.event = getattr(torch, value.device.type).Event()
        self.event.record()
        self.known: float | None = None

    @classmethod
    def of(cls, value: Tensor, memory: HostMemory) -> Readback | None:
        """The first element of a tensor on a device with a queue; None where it cannot be read without waiting."""
        if value.device.type not in QUEUES:
            return None
        chunk = memory.take(BYTES)
        return None if chunk is None else cls(value, chunk, memory)

    @classmethod
    def largest(cls, value: Tensor, memory: HostMemory) -> float | Readback | None:
        """The largest absolute value of a tensor, or NaN: at once for a host tensor; None where it cannot be read without waiting."""
        if not value.numel() or value.device.type not in ("cpu", *QUEUES):
            return None
        if value.device.type == "cpu":
            wide = torch.promote_types(value.dtype, torch.float32)  # numpy has no bfloat16
            return float(torch.linalg.vector_norm(value.detach(), float("inf"), dtype=wide).numpy())
        return cls.of(torch.linalg.vector_norm(value.detach(), float("inf")), memory)

    def get(self) -> float | None:
        """The number, or None while the copy is pending."""
        if self.known is None and self.event.query():
            self.known = float(self.host[0])
            self.memory.give([self.chunk])
        return self.known
