"""Runs a lower tier: reads with a deadline, writes in the background, and no reads for some time after a failure.

Time-outs of clients do not cover name resolution, network shares that hang, or servers that send one byte at a time. A read therefore runs
in a thread. The run waits for it at most `tier.stall_timeout` seconds without progress, and at most as long as computing the value takes.
After that the read is a miss, its thread is abandoned, and reads are suspended. The suspension is so long that unsuccessful waits take at
most one `stall_timeout` per WINDOW seconds. The background thread then probes the tier, and reads resume when a probe succeeds. Exceptions
of a tier are logged and never passed on to the caller.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, TypeVar

from ..texts import Text, said
from .errors import CorruptEntry, NotCacheable
from .keys import Key, key
from .reasons import NO_WRITES, TOO_MANY_WRITES, in_tier
from .stats import Stats
from .tier_metrics import TierMetrics
from .tiers.base import Lease, LeasingTier, LowerTier, Unavailable, Unreachable, Usage

WINDOW = 120.0  # seconds; also the longest suspension of reads
RESTS = (2.0, 60.0)  # shortest and longest time between two attempts of the background thread, in seconds
MAX_CORRUPT = 5  # consecutive corrupt entries after which reads are suspended
HELD = 64 << 20  # bytes of writes that are held while the tier cannot be reached
HELD_FOR = 120.0  # seconds for which a write is held; a failover takes some tens of seconds
MAX_ABANDONED = 4  # abandoned threads at which reads are suspended until one of the threads ends
TICK = 1.0  # seconds between two rounds of maintenance
LIMIT = 5.0  # seconds for which a run waits for one read if the time to compute the value is not known
CANCEL_CHECK = 0.1  # seconds between two checks whether the run was cancelled
ABSENT = key("none", "that is never kept")  # the key of no entry

_CORRUPT = Text("tier_corrupt", "returned a corrupt entry; the value is computed again")
_SLOW = Text("tier_slow", "is slower than computing the value again; reads are suspended for a while")
_SILENT = Text("tier_silent", "no response for {ms} ms; it is skipped until it responds")
_FAILS = Text("tier_fails", "fails with {error}")

T = TypeVar("T")


@dataclass
class _Reply:
    """A read to be run by a reader thread, and its outcome."""

    function: Callable[[], Any]
    done: threading.Event = field(default_factory=threading.Event)
    result: Any = None
    error: Exception | None = None


class _Interrupted(Exception):
    """Wraps the exception that the caller's `waiting` raised."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__()
        self.cause = cause


class _Reader:
    """A thread that runs reads one after the other, until it receives None or is abandoned.

    on_ended: called when the read during which the thread was abandoned has ended.
    """

    def __init__(self, name: str, on_ended: Callable[[], None]) -> None:
        self.jobs: SimpleQueue[_Reply | None] = SimpleQueue()
        self.abandoned = False
        self.on_ended = on_ended
        threading.Thread(target=self._work, name=f"skipstone-{name}-read", daemon=True).start()

    def _work(self) -> None:
        while not self.abandoned and (job := self.jobs.get()) is not None:
            try:
                job.result = job.function()
            except Exception as error:
                job.error = error
            job.done.set()
        if self.abandoned:
            self.on_ended()


@dataclass
class _Job:
    """A call to be made by the background thread. size: bytes of data that it holds."""

    function: Callable[[], Any]
    size: int = 0
    done: threading.Event = field(default_factory=threading.Event)
    result: Any = None
    failed: bool = False


class TierWorker:
    """A lower tier and its threads. queue: bytes of writes that may be queued; further writes are refused."""

    def __init__(
        self, tier: LowerTier, stats: Stats, metrics: TierMetrics | None = None, queue: int = 256 << 20
    ) -> None:
        self.tier, self.stats, self.queue = tier, stats, queue
        self.metrics = TierMetrics() if metrics is None else metrics
        self.name = tier.name
        self._state = threading.Condition()
        self._jobs: deque[_Job] = deque()
        self._waiting = 0  # bytes of queued writes
        self._busy = False
        self._closing = False
        self._reader: _Reader | None = None
        self._progress = 0
        self._abandoned = 0  # abandoned threads that still run
        self._corrupt = 0  # consecutive corrupt entries
        self._claims: set[Key] = set()
        self._reads_from = math.inf  # monotonic time; reads start after the first successful probe
        self._probe_at = 0.0
        self._probe_rest = RESTS[0]
        self._writes_from = 0.0
        self._write_rest = RESTS[0]
        self._unreachable = False  # whether the last failed write failed for want of a connection
        # with the monotonic time at which the write is dropped; used by the background thread alone
        self._held: deque[tuple[float, Key, bytes]] = deque()
        self._writer = threading.Thread(target=self._work, name=f"skipstone-{tier.name}-write", daemon=True)
        self._writer.start()

    # reads: called by the run

    @property
    def serves(self) -> bool:
        """Whether the tier is read from at present."""
        return self._reads_from <= time.monotonic()

    @property
    def abandoned(self) -> int:
        """Number of threads that still run a read for which no run waits any longer."""
        return self._abandoned

    @property
    def waiting_bytes(self) -> int:
        """Bytes of writes that are queued or held."""
        return self._waiting + sum(len(data) for _, _, data in list(self._held))

    def get(
        self, key: Key, limit: float = LIMIT, waiting: Callable[[], None] | None = None
    ) -> bytes | bytearray | None:
        """The entry of a key, or None. Also None if the tier fails, is suspended, or takes more than `limit` seconds in all.

        waiting: called every CANCEL_CHECK seconds during the wait. An exception that it raises ends the wait and is passed on.
        """
        if not self.serves:
            return None
        started = time.perf_counter()

        def read() -> bytes | bytearray | CorruptEntry | None:
            try:
                return self.tier.get(key, self._on_progress)
            except CorruptEntry as what:
                return what

        got = self._ask(read, None, limit, waiting)
        size = 0 if got is None or isinstance(got, CorruptEntry) else len(got)
        self.metrics.observe("read", time.perf_counter() - started, size)
        if isinstance(got, CorruptEntry):
            self.on_corrupt_entry(key, got, time.perf_counter() - started)
            return None
        return got

    def on_corrupt_entry(self, key: Key, what: CorruptEntry, seconds: float) -> None:
        """Delete a corrupt entry. seconds: time that reading it took. Reads are suspended after MAX_CORRUPT such entries in a row."""
        self.stats.trouble(self.name, _CORRUPT, str(what))
        self.delete(key)
        self._corrupt += 1
        if self._corrupt >= MAX_CORRUPT:
            self._suspend_reads(MAX_CORRUPT * seconds)

    def mark_valid(self) -> None:
        """Note that the bytes returned by get() were a valid entry."""
        self._corrupt = 0

    def claim(self, key: Key, estimate: float | None) -> Lease | None:
        """See LeasingTier.claim. None if the tier has no leases, or fails."""
        tier = self.tier
        if not isinstance(tier, LeasingTier):
            return None
        claim = self._ask(lambda: tier.claim(key, estimate), None)
        if claim is not None and claim.ours:
            with self._state:
                self._claims.add(key)
                self._state.notify_all()  # so that the background thread renews it in time
        return claim

    def release(self, key: Key) -> None:
        """Give up a lease after the queued writes, so that a process that waits for the value finds it."""
        tier = self.tier
        with self._state:
            if key not in self._claims or not isinstance(tier, LeasingTier):
                return
        shared = tier

        def release() -> None:
            with self._state:
                self._claims.discard(key)
            shared.release(key)

        self._put_job(_Job(release))

    def _answers(self) -> bool:
        """Whether the tier answers a read within its stall_timeout. Asked before calls that may take longer."""
        self._ask(lambda: self.tier.get(ABSENT, self._on_progress), None)
        return self.serves

    def _ask(
        self,
        function: Callable[[], T],
        otherwise: T,
        limit: float = LIMIT,
        waiting: Callable[[], None] | None = None,
    ) -> T:
        if not self.serves:
            return otherwise
        started = time.perf_counter()
        try:
            return self._call(function, limit, waiting)
        except _Interrupted as error:
            raise error.cause from None
        except Exception as error:
            self._log(error)
            self.metrics.failed("read")
            self._suspend_reads(time.perf_counter() - started)
            return otherwise

    def _call(self, function: Callable[[], T], limit: float, waiting: Callable[[], None] | None) -> T:
        with self._state:
            if self._reader is None:
                self._reader = _Reader(self.name, self._on_reader_ended)
            reader = self._reader
        reply, seen = _Reply(function), self._progress
        reader.jobs.put(reply)
        now = time.monotonic()
        deadline, stalled = now + max(limit, self.tier.stall_timeout), now + self.tier.stall_timeout
        while not reply.done.wait(min(deadline - now, stalled - now, CANCEL_CHECK)):
            now = time.monotonic()
            if waiting is not None:
                try:
                    waiting()
                except BaseException as error:
                    self._abandon(reader)
                    raise _Interrupted(error) from None
            if now >= deadline:
                self._abandon(reader)
                raise Unavailable(_SLOW)
            if self._progress != seen:  # possibly by an earlier read of the same thread
                seen, stalled = self._progress, now + self.tier.stall_timeout
            elif now >= stalled:
                self._abandon(reader)
                raise TimeoutError
        self._on_progress()
        if reply.error is not None:
            raise reply.error
        result: T = reply.result
        return result

    def _abandon(self, reader: _Reader) -> None:
        """Abandon a reader thread. It ends with its present read, and the next read gets a new thread."""
        with self._state:
            reader.abandoned = True
            reader.jobs.put(None)  # the read may have ended just now, and the thread wait for the next one
            if self._reader is reader:
                self._reader = None
                self._abandoned += 1

    def _on_reader_ended(self) -> None:
        """Note that an abandoned thread has ended."""
        with self._state:
            self._abandoned -= 1
            if not self.serves and self._probe_at == math.inf:
                self._probe_at = time.monotonic() + RESTS[1]
                self._state.notify_all()

    def _on_progress(self) -> None:
        self._progress += 1

    def _suspend_reads(self, wasted: float) -> None:
        now = time.monotonic()
        rest = min(max(WINDOW * wasted / self.tier.stall_timeout, RESTS[0]), WINDOW)
        with self._state:
            # reads resume after a successful probe only
            self._reads_from = math.inf
            self._probe_at = now + rest if self._abandoned < MAX_ABANDONED else math.inf
            self._state.notify_all()

    # writes and other calls for which no run waits

    def put(self, key: Key, data: bytes) -> None:
        """Queue a write."""

        def write() -> None:
            if time.monotonic() < self._writes_from:
                self._not_written(key, data)
                return
            started = time.perf_counter()
            try:
                self.tier.put(key, data)
                self.metrics.observe("write", time.perf_counter() - started, len(data))
                self._write_rest = RESTS[0]
            except NotCacheable as reason:
                self.stats.refused(said(reason))
            except Exception as error:
                self._log(error)
                self.metrics.failed("write")
                self._unreachable = isinstance(error, Unreachable)
                self._not_written(key, data)
                self._writes_from = time.monotonic() + self._write_rest
                self._write_rest = min(2 * self._write_rest, RESTS[1])

        if not self._put_job(_Job(write, len(data))) and not self._closing:
            self.stats.refused(in_tier(TOO_MANY_WRITES, self.name))

    def _not_written(self, key: Key, data: bytes) -> None:
        """Hold a write if the tier cannot be reached, and drop the oldest held writes if they exceed HELD bytes."""
        if self._unreachable:
            self._held.append((time.monotonic() + HELD_FOR, key, data))
        else:
            self.stats.refused(in_tier(NO_WRITES, self.name))
        while self._held and sum(len(held) for _, _, held in self._held) > HELD:
            self._held.popleft()
            self.stats.refused(in_tier(NO_WRITES, self.name))

    def _write_held(self) -> None:
        """Queue the held writes if the tier can be reached again, and drop those that are too old."""
        now = time.monotonic()
        while self._held and self._held[0][0] <= now:
            self._held.popleft()
            self.stats.refused(in_tier(NO_WRITES, self.name))
        if self.serves and now >= self._writes_from:
            for _ in range(len(self._held)):
                _, key, data = self._held.popleft()
                self.put(key, data)

    def delete(self, key: Key) -> None:
        """Queue the removal of an entry. Later writes follow it."""
        self._put_job(_Job(lambda: self.tier.delete(key)))

    def clear(self, kind: str | None, older_than: float | None, timeout: float) -> Usage | None:
        """Remove entries, also those whose write is still queued. None if the tier fails or takes longer than `timeout` seconds.

        A tier that does not answer reads is not waited for.
        """
        return self._job(lambda: self.tier.clear(kind, older_than), timeout if self._answers() else 0.0)

    def usage(self, timeout: float, patient: bool = False) -> dict[str, Usage] | None:
        """Entries and bytes by kind, or None if the tier fails or takes longer than `timeout` seconds.

        patient: the calling thread may wait, so a slow answer does not suspend reads.
        """
        return self._job(self.tier.usage, timeout) if patient or self._answers() else None

    def flush(self, timeout: float) -> bool:
        """Wait until all queued calls are done. False after `timeout` seconds."""
        with self._state:
            return self._state.wait_for(lambda: not self._jobs and not self._busy, timeout)

    def ready(self, timeout: float) -> bool:
        """Wait until the tier is read from. False after `timeout` seconds."""
        with self._state:
            return self._state.wait_for(lambda: self.serves, timeout)

    def close(self, timeout: float) -> None:
        self.flush(timeout)
        with self._state:
            self._closing = True
            self._reads_from = math.inf
            self._jobs.clear()
            self._state.notify_all()
            if self._reader is not None:
                self._reader.jobs.put(None)
        self._writer.join(timeout)

    def _job(self, function: Callable[[], T], timeout: float) -> T | None:
        job = _Job(function)
        if not self._put_job(job) or not job.done.wait(timeout) or job.failed:
            return None
        result: T = job.result
        return result

    def _put_job(self, job: _Job) -> bool:
        with self._state:
            if self._closing or (job.size and self._waiting + job.size > self.queue):
                return False
            self._jobs.append(job)
            self._waiting += job.size
            self._state.notify_all()
            return True

    def _work(self) -> None:
        maintained_at = -math.inf
        while not self._closing:
            now = time.monotonic()
            if not self.serves and self._probe_at <= now:
                self._probe()
            elif self.serves and now - maintained_at >= TICK:
                maintained_at = now
                if not self._logged(self._maintain):
                    self._suspend_reads(0.0)
            if self._held:
                self._write_held()
            with self._state:
                if not self._jobs and not self._closing:
                    self._state.wait(self._pause())
                if not self._jobs:
                    continue
                job = self._jobs.popleft()
                self._waiting -= job.size
                self._busy = True
            self._run(job)
            with self._state:
                self._busy = False
                self._state.notify_all()
        self._logged(self.tier.close)

    def _pause(self) -> float:
        """Seconds until the background thread has to act: less while this process holds leases, which have to be renewed."""
        if not self.serves:
            return min(max(self._probe_at - time.monotonic(), 0.0), 10 * TICK)
        return TICK if self._claims else 5 * TICK

    def _run(self, job: _Job) -> None:
        try:
            job.result = job.function()
        except Exception as error:
            job.failed = True
            self._log(error)
        job.done.set()

    def _logged(self, function: Callable[[], None]) -> bool:
        try:
            function()
        except Exception as error:
            self._log(error)
            return False
        return True

    def _maintain(self) -> None:
        self.tier.maintain()
        if isinstance(self.tier, LeasingTier):
            for key in list(self._claims):
                self.tier.renew(key)

    def _probe(self) -> None:
        try:
            self.tier.probe()
        except Exception as error:
            self._log(error)
            self.metrics.failed("probe")
            with self._state:
                self._probe_at = time.monotonic() + self._probe_rest
                self._probe_rest = min(2 * self._probe_rest, RESTS[1])
            return
        with self._state:
            self._probe_rest = RESTS[0]
            self._writes_from, self._write_rest = 0.0, RESTS[0]
            self._reads_from = time.monotonic()
            self._state.notify_all()

    def _log(self, error: Exception) -> None:
        if isinstance(error, TimeoutError) and not str(error):
            self.stats.trouble(self.name, _SILENT.of(ms=f"{self.tier.stall_timeout * 1000:.0f}"))
        elif isinstance(error, Unavailable):
            self.stats.trouble(self.name, said(error), error.detail)
        else:
            self.stats.trouble(self.name, _FAILS.of(error=type(error).__name__), str(error))
