"""Metrics of a store in Prometheus' text format: counts, bytes, latencies and the state of each tier. No path, address or password."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .store import Store

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Upper bounds of latencies, in seconds."""

_PREFIX = "skipstone_memo_"
_HELP = {
    "lookups_total": ("counter", "Look-ups in a tier, by kind of value and result."),
    "values_total": ("counter", "Values asked for, by kind: reused from a tier, or computed."),
    "saved_seconds": ("gauge", "Seconds that computing the reused values took when they were computed, less what finding them took."),
    "computing_seconds_total": ("counter", "Seconds spent computing values that were in no tier."),
    "not_kept_total": ("counter", "Values, or copies of one in a tier, that were not kept."),
    "read_seconds": ("histogram", "Time that a run waited for a read of a tier, hit, miss or failure."),
    "write_seconds": ("histogram", "Time that a write to a tier took in the background."),
    "read_bytes_total": ("counter", "Bytes of entries read from a tier."),
    "written_bytes_total": ("counter", "Bytes of entries written to a tier."),
    "failures_total": ("counter", "Operations of a tier that failed or were abandoned."),
    "up": ("gauge", "1 while a tier is asked for values, 0 while it rests after a failure or is not there yet."),
    "abandoned_reads": ("gauge", "Threads that still wait for a read that the run no longer waits for."),
    "waiting_bytes": ("gauge", "Bytes of writes that wait: queued, or held until the tier can be reached."),
    "entries": ("gauge", "Entries held in memory."),
    "bytes": ("gauge", "Bytes held in memory."),
    "budget_bytes": ("gauge", "Bytes that a tier may hold at most."),
}  # fmt: skip


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


def text(store: Store) -> str:
    """All metrics of a store. Asks no tier but memory for anything."""
    found: dict[str, list[str]] = {name: [] for name in _HELP}
    for name, labels, value in _samples(store):
        family = next((n for n in _HELP if name == n or name.removeprefix(f"{n}_") in ("bucket", "sum", "count")), name)
        found[family].append(f"{_PREFIX}{name}{_labels(labels)} {value:.10g}")
    lines = []
    for name, samples in found.items():
        if samples:
            kind, about = _HELP[name]
            lines += [f"# HELP {_PREFIX}{name} {about}", f"# TYPE {_PREFIX}{name} {kind}", *samples]
    return "\n".join(lines) + "\n"


def _samples(store: Store) -> Iterator[tuple[str, dict[str, str], float]]:
    yield from store.stats.samples()
    for name, tier in store.tiers.items():
        yield from store.metrics[name].samples(name)
        yield "up", {"tier": name}, int(store.serves(name))
        budget = getattr(tier, "budget", None)
        if budget is not None:
            yield "budget_bytes", {"tier": name}, budget
    yield from store.state_samples()


def _labels(labels: Mapping[str, str]) -> str:
    told = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return f"{{{told}}}" if told else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
