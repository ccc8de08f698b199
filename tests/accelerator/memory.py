"""Bytes that are alive: on the device, and of pinned memory on the host as PyTorch's caching host allocator has them."""

from __future__ import annotations

import weakref
from collections import Counter

from torch import Tensor


def _round(nbytes: int) -> int:
    """The size of a pinned block: the next power of two (CachingHostAllocator.h)."""
    return 1 << max(nbytes - 1, 0).bit_length()


class Meter:
    """Counts storages while any tensor on them is alive."""

    def __init__(self) -> None:
        self.live = 0
        self.peak = 0
        self._tensors: Counter[int] = Counter()  # by storage
        self._sizes: dict[int, int] = {}
        self._alive: dict[int, weakref.KeyedRef[int, Tensor]] = {}  # weakref.finalize takes several times as long

    def knows(self, data: Tensor) -> bool:
        return data.untyped_storage()._cdata in self._tensors

    def count(self, tensor: Tensor, data: Tensor) -> None:
        """`tensor` is alive, and its values are in `data`, whose storage nobody else counts."""
        storage = data.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
        self._tensors[key] += 1
        ref = weakref.KeyedRef(tensor, self._gone, key)
        self._alive[id(ref)] = ref

    def _gone(self, ref: weakref.KeyedRef[int, Tensor]) -> None:
        key = ref.key
        del self._alive[id(ref)]
        self._tensors[key] -= 1
        if not self._tensors[key]:
            del self._tensors[key]
            self.live -= self._sizes.pop(key)

    def reset_peak(self) -> None:
        self.peak = self.live


class HostPool:
    """Pinned memory. Blocks are rounded up, and kept for reuse when they are freed, until the pool is emptied.

    limit: bytes that can be pinned at all; beyond it pinning fails as it does on a real machine.
    """

    def __init__(self, limit: float = float("inf")) -> None:
        self.limit = limit
        self.live = 0  # bytes of blocks in use
        self.free: Counter[int] = Counter()  # cached blocks by size
        self.peak = 0  # of `held`
        self.requests = 0
        self._blocks: dict[int, weakref.ref[object]] = {}  # by data pointer

    @property
    def held(self) -> int:
        """Bytes that are locked, in use or not."""
        return self.live + sum(size * n for size, n in self.free.items())

    def add(self, tensor: Tensor) -> None:
        """`tensor` is a new pinned allocation. Raises RuntimeError where there is no more pinned memory."""
        self.requests += 1
        size = _round(tensor.untyped_storage().nbytes())
        if self.free[size]:
            self.free[size] -= 1
        elif self.held + size > self.limit:
            raise RuntimeError("CUDA error: out of memory (pinned)")
        self.live += size
        self.peak = max(self.peak, self.held)
        storage = tensor.untyped_storage()
        pointer = storage.data_ptr()
        self._blocks[pointer] = weakref.ref(storage)
        weakref.finalize(storage, self._gone, pointer, size).atexit = False

    def _gone(self, pointer: int, size: int) -> None:
        self._blocks.pop(pointer, None)
        self.live -= size
        self.free[size] += 1

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._blocks

    def empty(self) -> None:
        """Give cached blocks back; stands in for torch._C._host_emptyCache."""
        self.free.clear()
