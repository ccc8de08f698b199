"""Runs a lower tier: reads with a deadline, writes in the background, and no reads for some time after a failure.

Time-outs of clients do not cover name resolution, network shares that hang, or servers that send one byte at a time. So a read runs in
a thread, and the run waits for it here: at most `tier.stall_timeout` seconds without progress, and in all no longer than computing the
value takes. After that it is a miss, the thread is abandoned, and the tier rests, for so long that waiting in vain costs at most one
`stall_timeout` in WINDOW seconds. Then the background probes it, and it serves again when that succeeds. Nothing here raises what a
tier raises.
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

from .errors import CorruptEntry, NotCacheable
from .keys import Key, key
from .stats import Stats
from .tier_metrics import TierMetrics
from .tiers.base import Lease, LeasingTier, LowerTier, Unavailable, Unreachable, Usage

WINDOW = 120.0
RESTS = (2.0, 60.0)  # seconds, the shortest and the longest between two attempts of the background
BROKEN = 5  # entries in a row after which a tier is not believed
HELD = 64 << 20  # bytes of writes that are held while there is no connection
HELD_FOR = 120.0  # seconds; a failover takes some tens
LEFT = 4  # threads that may be left behind at a time: with more the tier is not asked until one of them is back
TICK = 1.0
LIMIT = 5.0  # seconds for which a run waits for one read where nothing is known of how long computing takes
LISTEN = 0.1  # seconds between two looks whether the run was cancelled
NOTHING = key("none", "that is never kept")

T = TypeVar("T")


@dataclass
class _Reply:
    """A read for its thread to do, and what came of it."""

    function: Callable[[], Any]
    done: threading.Event = field(default_factory=threading.Event)
    result: Any = None
    error: Exception | None = None


class _Interrupted(Exception):
    """Wraps the error that the caller's `waiting` raised."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__()
        self.cause = cause


class _Reader:
    """A thread that does reads, one after the other, until it is told to stop or left behind in one. back: called when it comes
    back from there."""

    def __init__(self, name: str, back: Callable[[], None]) -> None:
        self.jobs: SimpleQueue[_Reply | None] = SimpleQueue()
        self.left = False
        self.back = back
        threading.Thread(target=self._work, name=f"skipstone-{name}-read", daemon=True).start()

    def _work(self) -> None:
        while not self.left and (job := self.jobs.get()) is not None:
            try:
                job.result = job.function()
            except Exception as error:
                job.error = error
            job.done.set()
        if self.left:
            self.back()


@dataclass
class _Job:
    """A piece of work for the background. size: bytes that wait with it."""

    function: Callable[[], Any]
    size: int = 0
    done: threading.Event = field(default_factory=threading.Event)
    result: Any = None
    failed: bool = False


class TierWorker:
    """One lower tier behind its threads. queue: bytes of writes that may wait; what comes on top is not kept."""

    def __init__(
        self, tier: LowerTier, stats: Stats, metrics: TierMetrics | None = None, queue: int = 256 << 20
    ) -> None:
        self.tier, self.stats, self.queue = tier, stats, queue
        self.metrics = TierMetrics() if metrics is None else metrics
        self.name = tier.name
        self._state = threading.Condition()
        self._jobs: deque[_Job] = deque()
        self._waiting = 0  # bytes
        self._busy = False
        self._closing = False
        self._reader: _Reader | None = None
        self._progress = 0
        self._left = 0
        self._broken = 0
        self._claims: set[Key] = set()
        self._reads_from = math.inf  # monotonic: not before the first probe
        self._probe_at = 0.0
        self._probe_rest = RESTS[0]
        self._writes_from = 0.0
        self._write_rest = RESTS[0]
        self._unreachable = False  # the reason of the last write that failed
        self._held: deque[tuple[float, Key, bytes]] = (
            deque()
        )  # monotonic time at which it is given up; of the writer's thread alone
        self._writer = threading.Thread(target=self._work, name=f"skipstone-{tier.name}-write", daemon=True)
        self._writer.start()

    # reads: from the run

    @property
    def serves(self) -> bool:
        """Whether reads are asked of the tier now."""
        return self._reads_from <= time.monotonic()

    @property
    def abandoned(self) -> int:
        """Threads that still wait for a read that the run no longer waits for."""
        return self._left

    @property
    def waiting_bytes(self) -> int:
        """Of writes that are queued or held."""
        return self._waiting + sum(len(data) for _, _, data in list(self._held))

    def get(
        self, key: Key, limit: float = LIMIT, waiting: Callable[[], None] | None = None
    ) -> bytes | bytearray | None:
        """The tier's value, or None: also if it fails, is paused, or needs more than `limit` seconds in all.

        waiting: called now and then meanwhile; what it raises ends the wait and is passed on.
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
            self.broken(key, got, time.perf_counter() - started)
            return None
        return got

    def broken(self, key: Key, what: CorruptEntry, seconds: float) -> None:
        """The tier had something else than the entry, which took so many seconds to find out: a tier full of that rests, too."""
        self.stats.trouble(self.name, "holds what is no entry of ours; it is computed again", str(what))
        self.delete(key)
        self._broken += 1
        if self._broken >= BROKEN:
            self._rest(BROKEN * seconds)

    def mark_valid(self) -> None:
        """What get() returned was an entry."""
        self._broken = 0

    def claim(self, key: Key, estimate: float | None) -> Lease | None:
        """See LeasingTier.claim; None where the tier has no claims, or fails."""
        tier = self.tier
        if not isinstance(tier, LeasingTier):
            return None
        claim = self._ask(lambda: tier.claim(key, estimate), None)
        if claim is not None and claim.ours:
            with self._state:
                self._claims.add(key)
                self._state.notify_all()  # the background shall renew it
        return claim

    def release(self, key: Key) -> None:
        """Give a claim up, after the writes that wait: who waits for the value finds it then."""
        tier = self.tier
        with self._state:
            if key not in self._claims or not isinstance(tier, LeasingTier):
                return
        shared = tier

        def give_up() -> None:
            with self._state:
                self._claims.discard(key)
            shared.release(key)

        self._put_job(_Job(give_up))

    def _answers(self) -> bool:
        """Whether the tier answers within its stall_timeout, and so may be asked for what takes long."""
        self._ask(lambda: self.tier.get(NOTHING, self._on_progress), None)
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
            self._say(error)
            self.metrics.failed("read")
            self._rest(time.perf_counter() - started)
            return otherwise

    def _call(self, function: Callable[[], T], limit: float, waiting: Callable[[], None] | None) -> T:
        with self._state:
            if self._reader is None:
                self._reader = _Reader(self.name, self._back)
            reader = self._reader
        reply, seen = _Reply(function), self._progress
        reader.jobs.put(reply)
        now = time.monotonic()
        deadline, stalled = now + max(limit, self.tier.stall_timeout), now + self.tier.stall_timeout
        while not reply.done.wait(min(deadline - now, stalled - now, LISTEN)):
            now = time.monotonic()
            if waiting is not None:
                try:
                    waiting()
                except BaseException as error:
                    self._leave(reader)
                    raise _Interrupted(error) from None
            if now >= deadline:
                self._leave(reader)
                raise Unavailable("is slower than computing the value again; it is not waited for")
            if self._progress != seen:  # another read before this one may be the one that gets on
                seen, stalled = self._progress, now + self.tier.stall_timeout
            elif now >= stalled:
                self._leave(reader)
                raise TimeoutError
        self._on_progress()
        if reply.error is not None:
            raise reply.error
        result: T = reply.result
        return result

    def _leave(self, reader: _Reader) -> None:
        """Wait no longer for a reader: it ends when its read does, and the next read gets another."""
        with self._state:
            reader.left = True
            reader.jobs.put(None)  # it may have come back just now, and wait for another
            if self._reader is reader:
                self._reader = None
                self._left += 1

    def _back(self) -> None:
        """A thread that was left behind has ended."""
        with self._state:
            self._left -= 1
            if not self.serves and self._probe_at == math.inf:
                self._probe_at = time.monotonic() + RESTS[1]
                self._state.notify_all()

    def _on_progress(self) -> None:
        self._progress += 1

    def _rest(self, wasted: float) -> None:
        now = time.monotonic()
        rest = min(max(WINDOW * wasted / self.tier.stall_timeout, RESTS[0]), WINDOW)
        with self._state:
            # ended by a probe, not by the clock alone
            self._reads_from = math.inf
            self._probe_at = now + rest if self._left < LEFT else math.inf
            self._state.notify_all()

    # writes and what else nobody waits for

    def put(self, key: Key, data: bytes) -> None:
        """Have it kept, some time."""

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
                self.stats.refused(str(reason))
            except Exception as error:
                self._say(error)
                self.metrics.failed("write")
                self._unreachable = isinstance(error, Unreachable)
                self._not_written(key, data)
                self._writes_from = time.monotonic() + self._write_rest
                self._write_rest = min(2 * self._write_rest, RESTS[1])

        if not self._put_job(_Job(write, len(data))) and not self._closing:
            self.stats.refused(f"{self.name}: too many writes at once")

    def _not_written(self, key: Key, data: bytes) -> None:
        """Hold a write if the tier may be reachable again soon. What does not fit, the oldest first, is not kept."""
        if self._unreachable:
            self._held.append((time.monotonic() + HELD_FOR, key, data))
        else:
            self.stats.refused(f"{self.name}: takes nothing at present")
        while self._held and sum(len(held) for _, _, held in self._held) > HELD:
            self._held.popleft()
            self.stats.refused(f"{self.name}: takes nothing at present")

    def _write_held(self) -> None:
        """Do the writes that were held, if the tier is there again; give up those that are too old."""
        now = time.monotonic()
        while self._held and self._held[0][0] <= now:
            self._held.popleft()
            self.stats.refused(f"{self.name}: takes nothing at present")
        if self.serves and now >= self._writes_from:
            for _ in range(len(self._held)):
                _, key, data = self._held.popleft()
                self.put(key, data)

    def delete(self, key: Key) -> None:
        """Have an entry removed, before the writes that follow."""
        self._put_job(_Job(lambda: self.tier.delete(key)))

    def clear(self, kind: str | None, older_than: float | None, timeout: float) -> Usage | None:
        """Also of what still waits to be written. None where the tier fails, needs longer, or does not answer and is not waited for."""
        return self._job(lambda: self.tier.clear(kind, older_than), timeout if self._answers() else 0.0)

    def usage(self, timeout: float, patient: bool = False) -> dict[str, Usage] | None:
        """patient: from a thread that may wait; then a slow answer does not make the tier rest."""
        return self._job(self.tier.usage, timeout) if patient or self._answers() else None

    def flush(self, timeout: float) -> bool:
        """Wait until nothing is left to write; whether that came to pass."""
        with self._state:
            return self._state.wait_for(lambda: not self._jobs and not self._busy, timeout)

    def ready(self, timeout: float) -> bool:
        """Wait until reads are asked of the tier; whether that came to pass."""
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
        tended = -math.inf
        while not self._closing:
            now = time.monotonic()
            if not self.serves and self._probe_at <= now:
                self._probe()
            elif self.serves and now - tended >= TICK:
                tended = now
                if not self._quietly(self._maintain):
                    self._rest(0.0)
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
        self._quietly(self.tier.close)

    def _pause(self) -> float:
        """Seconds to sleep: until a probe is due, and less while somebody may be waiting for our claims."""
        if not self.serves:
            return min(max(self._probe_at - time.monotonic(), 0.0), 10 * TICK)
        return TICK if self._claims else 5 * TICK

    def _run(self, job: _Job) -> None:
        try:
            job.result = job.function()
        except Exception as error:
            job.failed = True
            self._say(error)
        job.done.set()

    def _quietly(self, function: Callable[[], None]) -> bool:
        try:
            function()
        except Exception as error:
            self._say(error)
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
            self._say(error)
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

    def _say(self, error: Exception) -> None:
        if isinstance(error, TimeoutError) and not str(error):
            self.stats.trouble(
                self.name, f"no response for {self.tier.stall_timeout * 1000:.0f} ms; it is skipped until it responds"
            )
        elif isinstance(error, Unavailable):
            self.stats.trouble(self.name, str(error), error.detail)
        else:
            self.stats.trouble(self.name, f"fails with {type(error).__name__}", str(error))
