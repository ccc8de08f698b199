"""Counts of one tier's operations: latencies, bytes and failures. The text that is made of them is in metrics.py."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterator

BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Upper bounds of latencies, in seconds."""


class Histogram:
    """Counts of latencies by BUCKETS. Not locked."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.sum += seconds


class TierMetrics:
    """Operations of one tier, counted from any thread. Bytes are those of entries."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latencies = {"read": Histogram(), "write": Histogram()}
        self._bytes = {"read": 0, "write": 0}
        self._failures = {"read": 0, "write": 0, "probe": 0}

    def observe(self, operation: str, seconds: float, size: int = 0) -> None:
        """operation: "read" or "write". size: bytes of the entry, 0 for a miss."""
        with self._lock:
            self._latencies[operation].observe(seconds)
            self._bytes[operation] += size

    def failed(self, operation: str) -> None:
        """operation: "read", "write" or "probe"."""
        with self._lock:
            self._failures[operation] += 1

    def samples(self, tier: str) -> Iterator[tuple[str, dict[str, str], float]]:
        """Names, labels and values."""
        with self._lock:
            for operation, histogram in self._latencies.items():
                reached = 0
                for bound, count in zip((*map(str, BUCKETS), "+Inf"), histogram.counts, strict=True):
                    reached += count
                    yield f"{operation}_seconds_bucket", {"tier": tier, "le": bound}, reached
                yield f"{operation}_seconds_sum", {"tier": tier}, histogram.sum
                yield f"{operation}_seconds_count", {"tier": tier}, reached
            yield "read_bytes_total", {"tier": tier}, self._bytes["read"]
            yield "written_bytes_total", {"tier": tier}, self._bytes["write"]
            for operation, number in self._failures.items():
                yield "failures_total", {"tier": tier, "operation": operation}, number
