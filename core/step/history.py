"""A slot's anchors: the outputs of its last computed evaluations, own copies, on the device asked for."""

from __future__ import annotations

import logging
from collections.abc import Container, Mapping

import torch
from torch import Tensor

SLICE = 1 << 24  # elements that are added up at a time, so that a sum of large anchors needs little room beside them
CHUNK = 1 << 25  # bytes: PyTorch rounds page-locked memory up to a power of two
QUEUES = ("cuda", "xpu")  # devices that copy to and from page-locked memory while the host goes on
log = logging.getLogger(__name__)


class HostMemory:
    """Page-locked memory on the host, in chunks that are used again. Copies between it and a device keep the host from waiting, and
    stay in order with what else the device does.

    limit: bytes that may be had, 0 for none. Beyond them, or where the machine has no more, plain memory does.
    """

    def __init__(self, limit: float = float("inf")) -> None:
        self.limit = limit
        self.had = 0  # bytes, those in `free` included
        self.free: dict[int, list[Tensor]] = {}  # chunks by size

    def take(self, nbytes: int) -> Tensor | None:
        """A chunk of at least so many bytes, uint8; None where none can be had."""
        size = 1 << max(nbytes - 1, 0).bit_length()
        if self.free.get(size):
            return self.free[size].pop()
        if self.had + size > self.limit:
            return None
        try:
            chunk = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        except RuntimeError:  # the machine has no more of it
            self.limit = self.had
            return None
        self.had += size
        return chunk

    def give(self, chunks: list[Tensor]) -> None:
        """These are no longer needed. The device may still read them: what is copied to them next comes after that."""
        for chunk in chunks:
            self.free.setdefault(chunk.numel(), []).append(chunk)

    def close(self) -> None:
        """Give everything back to the machine, once the device has done what is queued. PyTorch would keep it for this process."""
        self.free.clear()
        if not self.had:
            return
        self.had = 0
        try:
            torch._C._host_emptyCache()
        except Exception:  # a PyTorch without it, or a device in an error state
            log.debug("[Skipstone] page-locked memory stays with PyTorch", exc_info=True)


class HostCopy:
    """A tensor of a device, kept in page-locked chunks of at most CHUNK bytes."""

    def __init__(self, value: Tensor, chunks: list[Tensor]) -> None:
        self.shape, self.dtype, self.order = value.shape, value.dtype, _order(value)
        self.nbytes = value.numel() * value.element_size()
        self.chunks = chunks
        self.each = CHUNK // value.element_size()
        flat = _flat(value, self.order)
        for i, chunk in enumerate(chunks):
            part = flat[i * self.each : (i + 1) * self.each]
            chunk.view(self.dtype)[: part.numel()].copy_(part, non_blocking=True)

    @classmethod
    def of(cls, value: Tensor, memory: HostMemory) -> HostCopy | None:
        """None where there is no page-locked memory to be had for it."""
        chunks: list[Tensor] = []
        left = value.numel() * value.element_size()
        while left > 0:
            chunk = memory.take(min(left, CHUNK))
            if chunk is None:
                memory.give(chunks)
                return None
            chunks.append(chunk)
            left -= CHUNK
        return cls(value, chunks)

    def read(self, start: int, stop: int, device: torch.device) -> Tensor:
        """Elements start to stop, in the order of memory, on `device`. They do not cross a chunk."""
        chunk = self.chunks[start // self.each].view(self.dtype)
        begin = start % self.each
        # what comes to the host must have arrived before it is read
        return chunk[begin : begin + stop - start].to(device, non_blocking=device.type in QUEUES)


Anchor = Tensor | HostCopy


class History:
    """A slot's anchors: evaluation number -> output, oldest first.

    Values are tensors of any shape, all of one shape and dtype; they belong to the history alone. With `device`
    None they stay where the model computes.
    """

    def __init__(self, device: torch.device | None = None, memory: HostMemory | None = None) -> None:
        self.device = device
        self.memory = memory or HostMemory()
        self.anchors: dict[int, Anchor] = {}

    def observe(self, evaluation: int, value: Tensor, keep: Container[int]) -> None:
        """Take `value`, which nobody else may write to, as this evaluation's output; of the older ones stay those in `keep`."""
        like = {k for k, v in self.anchors.items() if v.shape == value.shape and v.dtype == value.dtype}
        self.trim({k for k in like if k in keep and k != evaluation})
        self.anchors[evaluation] = self._moved(value)

    def trim(self, keep: Container[int]) -> None:
        """Drop the anchors that are not in `keep`."""
        for evaluation in [k for k in self.anchors if k not in keep]:
            dropped = self.anchors.pop(evaluation)
            if isinstance(dropped, HostCopy):
                self.memory.give(dropped.chunks)

    def _moved(self, value: Tensor) -> Anchor:
        if self.device is None or self.device == value.device:
            return value
        copy = None
        if self.device.type == "cpu" and value.device.type in QUEUES:
            copy = HostCopy.of(value, self.memory)
        return copy or value.to(self.device)

    def combine(self, weights: Mapping[int, float], device: torch.device) -> Tensor:
        """The sum of weights[evaluation] * value over the anchors, a new tensor on `device`.

        It is summed in float32 (float64 for float64) and rounded once. A sum beyond float16's range becomes the largest number of that.
        """
        if not weights:
            raise ValueError("a prediction needs at least one anchor")
        anchors = [(self.anchors[evaluation], weight) for evaluation, weight in weights.items()]
        newest = anchors[-1][0]
        order = newest.order if isinstance(newest, HostCopy) else _order(newest)
        total = torch.empty([newest.shape[d] for d in order], dtype=newest.dtype, device=device)
        flat = total.view(-1)
        # no slice crosses a chunk
        each = min(SLICE, CHUNK // newest.dtype.itemsize)
        for start in range(0, flat.numel(), each):
            stop = min(start + each, flat.numel())
            flat[start:stop].copy_(_sum([(_read(a, order, start, stop, device), w) for a, w in anchors]))
        return total.permute(sorted(range(len(order)), key=order.__getitem__))

    def clear(self) -> None:
        self.trim(())


def _sum(parts: list[tuple[Tensor, float]]) -> Tensor:
    dtype = parts[0][0].dtype
    if len(parts) == 1 and parts[0][1] == 1:
        return parts[0][0]
    total: Tensor | None = None
    for value, weight in parts:
        if total is None:
            total = value.to(torch.promote_types(dtype, torch.float32)) * weight
        else:
            total.add_(value, alpha=weight)
    assert total is not None
    if dtype == torch.float16:
        limit = torch.finfo(dtype).max
        total.clamp_(-limit, limit)
    return total


def _order(value: Tensor) -> tuple[int, ...]:
    """The dimensions in the order of memory, outermost first."""
    strides = value.stride()
    return tuple(sorted(range(value.ndim), key=lambda d: -strides[d]))


def _flat(value: Tensor, order: tuple[int, ...]) -> Tensor:
    """The elements in an order of memory: a view where it is the tensor's own."""
    return value.permute(order).reshape(-1)


def _read(anchor: Anchor, order: tuple[int, ...], start: int, stop: int, device: torch.device) -> Tensor:
    """Elements start to stop of an anchor, in an order of memory, on `device`."""
    if not isinstance(anchor, HostCopy):
        # from memory that is not page-locked: CUDA copies it aside and goes on; on other devices that is slow, or wrong
        return _flat(anchor, order)[start:stop].to(device, non_blocking=device.type == "cuda")
    if anchor.order != order:  # the network gave it in another layout
        whole = torch.cat([c.view(anchor.dtype).to(device) for c in anchor.chunks])[: anchor.shape.numel()]
        back = sorted(range(len(order)), key=anchor.order.__getitem__)
        value = whole.view([anchor.shape[d] for d in anchor.order]).permute(back)
        return _flat(value, order)[start:stop]
    return anchor.read(start, stop, device)
