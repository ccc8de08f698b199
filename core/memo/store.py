"""The store: values by key, in memory first, then in each lower tier.

    store = Store([MemoryTier(), DiskTier(folder)])
    name = key("vae", weights, pixels)               # everything that the value depends on
    latent = store.compute(name, lambda: vae.encode(pixels))

compute() calls the function only on a miss, and returns its value. On a hit it returns a copy that is equal bit for bit, with its tensors
on the CPU, that the caller may write to. Failures of tiers raise nothing; exceptions of the function are passed on.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ..texts import said
from . import reasons
from .codec import Entry, decode, encode
from .errors import CorruptEntry, NotCacheable
from .keys import Key
from .stats import Stats
from .tensors import is_finite
from .tier_metrics import TierMetrics
from .tier_worker import LIMIT, TierWorker
from .tiers.base import Lease, LowerTier, Tier, Usage

UNKNOWN = 5.0  # seconds to wait at most for another process, where it is not known how long computing takes
TRUST = 120.0  # seconds after an unsuccessful wait for another process in which no run waits for one
PAUSES = (0.02, 0.2)  # seconds between two look-ups during such a wait, the first and the longest

T = TypeVar("T")


@dataclass(frozen=True)
class Found:
    """Result of Store.look(): the tier, the entry, and the duration of the look-up in seconds."""

    tier: str
    entry: Entry
    seconds: float


class Store:
    """A cache of several tiers, looked up in the order given. A LowerTier works in threads of its own. Thread-safe."""

    def __init__(self, tiers: Sequence[Tier], stats: Stats | None = None) -> None:
        self.stats = Stats() if stats is None else stats
        self._near = [tier for tier in tiers if not isinstance(tier, LowerTier)]
        self.metrics = {tier.name: TierMetrics() for tier in tiers}
        self._workers = [
            TierWorker(tier, self.stats, self.metrics[tier.name]) for tier in tiers if isinstance(tier, LowerTier)
        ]
        self._lock = threading.Lock()
        self._computing: dict[Key, int] = {}  # by which thread
        self._waits_from = 0.0  # monotonic
        self._costs: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=9))

    # values

    def compute(
        self,
        key: Key,
        function: Callable[[], T],
        waiting: Callable[[], None] | None = None,
        seen: Callable[[Found], None] | None = None,
    ) -> T:
        """The value of `key` from a tier, or as `function` computes it, which is then cached.

        If another thread, process or machine that shares a tier is computing the value, waits for it, but no longer than computing is
        estimated to take. waiting: called repeatedly during the wait; an exception that it raises ends the wait and is passed on. seen:
        called on a hit.
        """
        started = time.perf_counter()
        found = self._find(key, waiting=waiting)
        if found is None and self._taken(key):  # a patched encoder within a patched encoder
            return function()
        try:
            if found is None:
                found = self._turn(key, waiting)
            if found is not None:
                hit = Found(*found, time.perf_counter() - started)
                self.used(key, hit)
                if seen is not None:
                    seen(hit)
                value: T = hit.entry.value
                return value
            return self._computed(key, function)
        finally:
            self._release(key)

    def renew(self, key: Key, function: Callable[[], T]) -> T:
        """Compute the value and replace the cached one."""
        for worker in self._workers:
            worker.delete(key)
        return self._computed(key, function)

    def _computed(self, key: Key, function: Callable[[], T]) -> T:
        self.stats.miss(key.kind)
        started = time.perf_counter()
        value = function()
        self.put(key, value, time.perf_counter() - started)
        return value

    def get(self, key: Key) -> Any:
        """A copy of the value, or None."""
        started = time.perf_counter()
        found = self._find(key)
        if found is None:
            self.stats.miss(key.kind)
            return None
        tier, entry = found
        self.stats.hit(tier, key.kind, entry.cost, time.perf_counter() - started)
        return entry.value

    def look(self, key: Key) -> Found | None:
        """A copy of the entry, or None, without counting the look-up. Used to decide whether an encoder has to be loaded."""
        started = time.perf_counter()
        found = self._find(key, again=True)
        return None if found is None else Found(*found, time.perf_counter() - started)

    def used(self, key: Key, found: Found) -> None:
        """Count the result of look() as a hit."""
        self.stats.hit(found.tier, key.kind, found.entry.cost, found.seconds)

    def put(self, key: Key, value: Any, cost: float) -> bool:
        """Cache a value that took `cost` seconds to compute. Returns whether it can be cached; if not, the statistics have the reason."""
        self._learn(key, cost)
        self.stats.spent(key.kind, cost)
        try:
            if value is None:
                raise NotCacheable(reasons.NOTHING)
            if not is_finite(value):
                raise NotCacheable(reasons.NOT_FINITE)
            data = encode(key, Entry(value, max(cost, 0.0), max(time.time(), 0.0)))
        except NotCacheable as reason:
            self.stats.refused(reasons.of_kind(key.kind, reason))
            return False
        self._fill(key, data, self._near, self._workers)
        return True

    # tiers

    @property
    def tiers(self) -> dict[str, Tier]:
        """By name, the nearest first."""
        return {tier.name: tier for tier in (*self._near, *(worker.tier for worker in self._workers))}

    def serves(self, tier: str) -> bool:
        """Whether a tier is asked for values at present. It is not before its first connection and for some time after a failure."""
        return any(near.name == tier for near in self._near) or any(
            worker.name == tier and worker.serves for worker in self._workers
        )

    # contents

    def usage(self, timeout: float = 5.0, patient: bool = False) -> dict[str, dict[str, Usage] | None]:
        """Entries and bytes of each tier, by kind; None for a tier that does not answer within `timeout` seconds.

        Unless `patient`, a tier that is slower than a run would wait for counts as failed.
        """
        told: dict[str, dict[str, Usage] | None] = {tier.name: tier.usage() for tier in self._near}
        return told | {worker.name: worker.usage(timeout, patient) for worker in self._workers}

    def clear(
        self,
        tier: str | None = None,
        kind: str | None = None,
        older_than: float | None = None,
        timeout: float = 60.0,
    ) -> dict[str, Usage | None]:
        """Remove entries, optionally only of one tier, of one kind, or unused for `older_than` seconds. Returns what was removed, by tier.

        The result is None for a tier that failed or has not finished. Raises ValueError for an unknown tier.
        """
        names = [t.name for t in self._near] + [worker.name for worker in self._workers]
        if tier is not None and tier not in names:
            raise ValueError(f"there is no tier {tier!r}; there is {', '.join(names) or 'none'}")
        removed: dict[str, Usage | None] = {}
        for near in self._near:
            if tier in (None, near.name):
                removed[near.name] = near.clear(kind, older_than)
        for worker in self._workers:
            if tier in (None, worker.name):
                removed[worker.name] = worker.clear(kind, older_than, timeout)
        return removed

    def free_memory(self) -> Usage:
        """Remove all entries from memory; they stay in the lower tiers. Returns what was removed."""
        return sum((tier.clear() for tier in self._near), Usage())

    def report(self, patient: bool = False) -> dict[str, Any]:
        """Statistics and what is held, as Stats.as_dict says; patient as in usage()."""
        return self.stats.as_dict(self.usage(patient=patient))

    def state_samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        """The present state of the tiers as metrics (metrics.py): names, labels and values."""
        for worker in self._workers:
            yield "abandoned_reads", {"tier": worker.name}, worker.abandoned
            yield "waiting_bytes", {"tier": worker.name}, worker.waiting_bytes
        for tier in self._near:
            for kind, used in tier.usage().items():
                yield "entries", {"tier": tier.name, "kind": kind}, used.entries
                yield "bytes", {"tier": tier.name, "kind": kind}, used.bytes

    def text(self) -> str:
        """The statistics as text."""
        return self.stats.text(self.usage())

    # threads

    def ready(self, timeout: float = 5.0, tier: str | None = None) -> bool:
        """Wait until all tiers serve, or one of them. Returns whether they do. Runs need not wait: a tier that does not serve is a miss."""
        deadline = time.monotonic() + timeout
        there = [worker.ready(deadline - time.monotonic()) for worker in self._workers if tier in (None, worker.name)]
        return all(there)

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until all queued writes are done. Returns whether they are."""
        deadline = time.monotonic() + timeout
        written = [worker.flush(deadline - time.monotonic()) for worker in self._workers]
        return all(written)

    def close(self, timeout: float = 2.0) -> None:
        """Do the queued writes for at most `timeout` seconds, and end the threads. Afterwards every look-up is a miss."""
        for worker in self._workers:
            worker.close(timeout)
        for tier in self._near:
            tier.close()

    # finding and filling

    def _find(
        self, key: Key, again: bool = False, waiting: Callable[[], None] | None = None
    ) -> tuple[str, Entry] | None:
        """The name of the first tier with an entry, and the entry. again: do not count the look-up in the statistics."""
        left = LIMIT if (estimate := self._estimate(key.kind)) is None else estimate  # for all tiers together
        above: list[Tier] = []
        for tier in self._near:
            started = time.perf_counter()
            data = tier.get(key, _ignore)
            self.metrics[tier.name].observe("read", time.perf_counter() - started, len(data or b""))
            if data is not None:
                try:
                    return tier.name, decode(key, data, verify=False)
                except CorruptEntry:  # no memory for another copy
                    tier.delete(key)
            if not again:
                self.stats.passed(tier.name, key.kind)
            above.append(tier)
        for i, worker in enumerate(self._workers):
            started = time.perf_counter()
            got = worker.get(key, left, waiting)
            left -= time.perf_counter() - started
            entry = None if got is None else self._read(worker, key, got, started)
            if got is not None and entry is not None:
                if above or i:
                    self._fill(key, bytes(got), above, self._workers[:i])
                if self._estimate(key.kind) is None:
                    self._learn(key, entry.cost)  # this process has measured none yet
                return worker.name, entry
            if not again:
                self.stats.passed(worker.name, key.kind)
        return None

    def _read(self, worker: TierWorker, key: Key, data: bytes | bytearray, started: float) -> Entry | None:
        try:
            entry = decode(key, data)
            if not is_finite(entry.value):
                raise CorruptEntry("with NaN or an infinity in it")
        except CorruptEntry as what:
            worker.on_corrupt_entry(key, what, time.perf_counter() - started)
            return None
        worker.mark_valid()
        return entry

    def _fill(self, key: Key, data: bytes, near: Sequence[Tier], workers: Sequence[TierWorker]) -> None:
        for tier in near:
            started = time.perf_counter()
            try:
                tier.put(key, data)
                self.metrics[tier.name].observe("write", time.perf_counter() - started, len(data))
            except NotCacheable as reason:
                self.stats.refused(said(reason))
        for worker in workers:
            worker.put(key, data)

    # one process computes a value and the others wait

    def _turn(self, key: Key, waiting: Callable[[], None] | None) -> tuple[str, Entry] | None:
        """Wait for another process that computes the value. Returns its entry, or None if this one is to compute it."""
        claim = self._claim(key)
        if claim.ours:
            return self._find(key, again=True)  # the previous holder may have just finished
        limit = self._estimate(key.kind)
        if limit is None:
            # the other process began earlier, so it finishes before this one would
            limit = UNKNOWN if claim.estimate is None else min(claim.estimate, UNKNOWN)
        deadline, pause = time.monotonic() + limit, PAUSES[0]
        if time.monotonic() < self._waits_from:
            return None
        while (left := deadline - time.monotonic()) > 0:
            if waiting is not None:
                waiting()
            time.sleep(min(pause, left))
            pause = min(1.5 * pause, PAUSES[1])
            ours = self._claim(key).ours  # the other process gave up or has finished
            found = self._find(key, again=True, waiting=waiting)
            if found is not None or ours:
                return found
        self._waits_from = time.monotonic() + TRUST
        return None

    def _claim(self, key: Key) -> Lease:
        estimate = self._estimate(key.kind)
        with self._lock:
            if key in self._computing:
                return Lease(ours=False)
            self._computing[key] = threading.get_ident()
        for worker in self._workers:
            claim = worker.claim(key, estimate)
            if claim is not None and not claim.ours:
                with self._lock:
                    del self._computing[key]
                return claim
        return Lease(ours=True)

    def _taken(self, key: Key) -> bool:
        with self._lock:
            return self._computing.get(key) == threading.get_ident()

    def _release(self, key: Key) -> None:
        with self._lock:
            if self._computing.get(key) != threading.get_ident():
                return
            del self._computing[key]
        for worker in self._workers:
            worker.release(key)

    def _learn(self, key: Key, cost: float) -> None:
        with self._lock:
            self._costs[key.kind].append(cost)

    def _estimate(self, kind: str) -> float | None:
        with self._lock:
            costs = self._costs[kind]
            return statistics.median(costs) if costs else None


def _ignore() -> None:
    pass
