"""The first tier: entries in memory. The least recently used are removed first, also when the machine runs short of memory."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

import psutil

from ..errors import NotCacheable
from ..keys import Key
from ..reasons import LARGER_THAN_BUDGET, in_tier
from .base import Progress, Usage

SHARE = 0.1  # default budget as a share of the machine's memory
WATCH = 2.0  # seconds between two checks of the free memory


def free() -> int:
    """Bytes of memory that are available without swapping."""
    return int(psutil.virtual_memory().available)


class MemoryTier:
    """Entries as immutable bytes.

    budget: largest number of bytes in all. reserve: bytes that are to stay free on the machine. If fewer are free, the tier removes its
    oldest entries. ComfyUI drops its own results when less than a tenth of the memory is free (at least 2 GB, at most 10 GB), so the
    default reserve is a quarter larger. free: returns the bytes of free memory.
    """

    name = "memory"

    def __init__(self, budget: int | None = None, reserve: int | None = None, free: Callable[[], int] = free) -> None:
        total = int(psutil.virtual_memory().total)
        self.budget = int(total * SHARE) if budget is None else budget
        self.reserve = int(1.25 * min(max(total // 10, 2 << 30), 10 << 30)) if reserve is None else reserve
        self._free = free
        self._lock = threading.RLock()
        self._held: OrderedDict[Key, tuple[bytes, float]] = OrderedDict()  # with the monotonic time of the last use
        self._bytes = 0
        self._watch: threading.Thread | None = None
        self._closed = threading.Event()

    def get(self, key: Key, on_progress: Progress | None = None) -> bytes | None:
        with self._lock:
            if key not in self._held:
                return None
            data, _ = self._held.pop(key)
            self._held[key] = data, time.monotonic()
            return data

    def put(self, key: Key, data: bytes) -> None:
        if len(data) > self.budget:
            raise NotCacheable(in_tier(LARGER_THAN_BUDGET, self.name))
        with self._lock:
            self.delete(key)
            self._held[key] = data, time.monotonic()
            self._bytes += len(data)
            self.shrink()
            if self._watch is None and self._held and not self._closed.is_set():
                self._watch = threading.Thread(target=self._watch_memory, name="skipstone-memory", daemon=True)
                self._watch.start()

    def delete(self, key: Key) -> None:
        with self._lock:
            data, _ = self._held.pop(key, (b"", 0.0))
            self._bytes -= len(data)

    def shrink(self) -> None:
        """Remove the least recently used entries until budget and reserve are kept."""
        with self._lock:
            excess = max(self._bytes - self.budget, self.reserve - self._free())
            while excess > 0 and self._held:
                _, (data, _) = self._held.popitem(last=False)
                self._bytes -= len(data)
                excess -= len(data)

    def clear(self, kind: str | None = None, older_than: float | None = None) -> Usage:
        removed, now = Usage(), time.monotonic()
        with self._lock:
            for key, (data, used) in list(self._held.items()):
                if (kind is None or key.kind == kind) and (older_than is None or now - used >= older_than):
                    self.delete(key)
                    removed += Usage(1, len(data))
        return removed

    def usage(self) -> dict[str, Usage]:
        held: dict[str, Usage] = {}
        with self._lock:
            for key, (data, _) in self._held.items():
                held[key.kind] = held.get(key.kind, Usage()) + Usage(1, len(data))
        return held

    def close(self) -> None:
        self._closed.set()
        self.clear()

    def _watch_memory(self) -> None:
        """Check the free memory while there are entries: models are also loaded at times when the memo is not used."""
        while not self._closed.wait(WATCH):
            with self._lock:
                self.shrink()
                if not self._held:
                    self._watch = None
                    return
