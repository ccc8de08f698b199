"""The third tier: a Redis or Valkey that several processes and machines share. Needs the package `redis` (skipstone[redis]).

The address comes from the machine's owner (settings or environment), never from a workflow. Messages contain its host and port only.
Replies of the server are not trusted: sizes are requested before data is read, pieces of another length are a miss, and the store checks
every entry. The time-outs set here end threads of the background; tier_worker.py decides how long a run waits.

    skipstone:<format>:<kind>:<digest>             the entry in its envelope (signature.py)
    skipstone:<format>:<kind>:<digest>:computing   the lease: which process computes the value, and its estimate: "<token> <seconds>"

With a namespace the format is followed by @<namespace>. In a Cluster the digest stands in braces, so that an entry and its lease are in
one hash slot.
"""

from __future__ import annotations

import re
import secrets
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ...texts import Text
from ..errors import CorruptEntry
from ..keys import FORMAT, Key
from .base import Lease, Progress, Unavailable, Unreachable, Usage
from .redis_address import answers, connected, disconnect, parsed, pool_of
from .shared import KEEPS_NOTHING, NO_CONNECTION, NO_PACKAGE, TOO_MANY_ENTRIES, SharedTier

CHUNK = 256 << 10  # bytes that have to arrive within one stall_timeout: 6 MB/s are enough
CLAIM = 5.0  # seconds after which a lease lapses unless it is renewed
PING = 15.0  # seconds between two checks of the connection
COUNTING = 4.0  # longest time for counting entries, in seconds

_REFUSED = Text(
    "redis_refused", "{where} wants another user or password: set them in the address, in SKIPSTONE_MEMO_REDIS"
)
_FULL = Text(
    "redis_full",
    "{where} is full and accepts no more entries: give it a maxmemory-policy such as allkeys-lru, or more memory",
)
_REPLICA = Text("redis_replica", "{where} is a read-only replica: set the address of its master")
_REJECTS = Text("redis_rejects", "{where} rejects a command")
_INVALID = Text("redis_invalid_address", "the address in the settings is not valid")

_CLAIM = re.compile(rb"([0-9a-f]{16}) (\d{1,5}\.\d{3})?")


class RedisTier(SharedTier):
    """Entries in a shared Redis, each kept for `ttl` seconds after its last use.

    url: see redis_address.py; with TLS the certificate is checked. largest: bytes of the largest entry, as stored. stall_timeout: seconds
    without progress after which a run stops waiting. namespace, read_only, secret: see Settings. Raises ValueError for an invalid URL, with
    a message that does not contain the URL.
    """

    name = "redis"

    def __init__(
        self,
        url: str,
        ttl: float = 14 * 86400.0,
        largest: int = 64 << 20,
        stall_timeout: float = 0.03,
        namespace: str = "",
        read_only: bool = False,
        secret: str = "",
    ) -> None:
        self._url, self._address = url, parsed(url)
        super().__init__(self._address.where, largest, stall_timeout, read_only, secret)
        self.ttl = ttl
        self._token = secrets.token_hex(8)
        self._pinged = 0.0
        self._prefix = f"skipstone:{FORMAT}{'@' if namespace else ''}{namespace}:"
        self._braces = ("{", "}") if self._address.kind == "cluster" else ("", "")
        opening, closing = (re.escape(brace.encode()) for brace in self._braces)
        kind, digest = rb"([a-z][a-z0-9-]{0,31})", opening + rb"[0-9a-f]{40}" + closing
        self._entry = re.compile(re.escape(self._prefix.encode()) + kind + b":" + digest)

    # entries

    def get(self, key: Key, on_progress: Progress) -> bytes | bytearray | None:
        with self._server() as client:
            data = self._fetched(client, self._name(key), on_progress)
        return None if data is None else self._envelope.unwrap(self._name(key), data)

    def clear(self, kind: str | None = None, older_than: float | None = None) -> Usage:
        removed = Usage()
        if self._read_only:
            return removed
        with self._server() as client:
            for names in self._names(client, kind):
                sizes = self._each(client, "strlen", names)
                # each use resets the time to live
                left = [None] * len(names) if older_than is None else self._each(client, "pttl", names)
                gone = [
                    (name, size)
                    for name, size, ms in zip(names, sizes, left, strict=True)
                    if older_than is None or (isinstance(ms, int) and ms >= 0 and self.ttl - ms / 1000 >= older_than)
                ]
                if gone:
                    self._each(client, "unlink", [name for name, _ in gone])
                    removed += Usage(len(gone), sum(size for _, size in gone if isinstance(size, int)))
        return removed

    def usage(self) -> dict[str, Usage]:
        held: dict[str, Usage] = {}
        deadline = time.monotonic() + COUNTING
        with self._server() as client:
            for names in self._names(client, None):
                for name, size in zip(names, self._each(client, "strlen", names), strict=True):
                    kind = self._entry.fullmatch(name)
                    if kind and isinstance(size, int):
                        held[kind[1].decode()] = held.get(kind[1].decode(), Usage()) + Usage(1, size)
                if time.monotonic() > deadline:
                    raise Unavailable(TOO_MANY_ENTRIES)
        return held

    # leases

    def claim(self, key: Key, estimate: float | None) -> Lease:
        import redis

        if self._read_only:
            return Lease(ours=True)
        name = self._name(key) + ":computing"
        lease = f"{self._token} {'' if estimate is None else f'{min(estimate, 9999):.3f}'}"
        with self._server() as client:
            try:
                if client.set(name, lease, nx=True, px=self._ms(CLAIM)):
                    return Lease(ours=True)
                held, left = client.pipeline(transaction=False).getrange(name, 0, 99).pttl(name).execute()
            except redis.exceptions.ResponseError:  # the server is full, or a replica: leases cannot be shared
                return Lease(ours=True)
        theirs = _CLAIM.fullmatch(held)
        if theirs is None or not 0 <= left <= self._ms(CLAIM):
            return Lease(ours=True)  # no process of ours renews such a lease, so it is ignored
        return Lease(theirs[1].decode() == self._token, float(theirs[2]) if theirs[2] else None)

    def renew(self, key: Key) -> None:
        with self._own_claim(key) as (client, name):
            if name:
                client.pexpire(name, self._ms(CLAIM))

    def release(self, key: Key) -> None:
        with self._own_claim(key) as (client, name):
            if name:
                client.delete(name)

    @contextmanager
    def _own_claim(self, key: Key) -> Iterator[tuple[Any, str]]:
        """The client, and the name of our lease, or "" if the lease lapsed and another process took it."""
        name = self._name(key) + ":computing"
        if self._read_only:
            yield None, ""
            return
        with self._server() as client:
            yield client, name if client.getrange(name, 0, len(self._token) - 1) == self._token.encode() else ""

    # the connection

    def probe(self) -> None:
        """Open a new connection and send a command of the kind that a run sends."""
        self.close()
        client = self._connected()
        with self._lock:
            self._client, self._pinged = client, time.monotonic()

    def trial(self) -> float:
        """Seconds that the server takes to store a short value and to return it, over a connection of its own.

        Raises Unavailable.
        """
        one = RedisTier(self._url, self.ttl, self.largest, self.stall_timeout)
        try:
            one.probe()
            name, word = f"skipstone:trial:{one._token}", one._token.encode()
            with one._server() as client:
                started = time.perf_counter()
                client.set(name, word, px=self._ms(CLAIM))
                if client.getrange(name, 0, len(word) - 1) != word:
                    raise Unavailable(KEEPS_NOTHING.of(where=self.where))
                return time.perf_counter() - started
        finally:
            one.close()

    def _connected(self) -> Any:
        """A client that has received a reply. Raises Unavailable."""
        try:
            import redis  # noqa: F401
        except ImportError:
            raise Unavailable(NO_PACKAGE.of(package="redis", requirement='"redis>=5"')) from None
        errors: tuple[type[Exception], ...] = (*self._errors(), OSError, ValueError, TypeError)
        refusals: deque[Exception] = deque(maxlen=1)
        try:
            client = connected(self._address, refusals.append)
            answers(client)
        except errors as error:
            why = self._explained(refusals[0] if refusals else error)
            self._why = why
            raise why from error
        return client

    def maintain(self) -> None:
        """Check the connection every PING seconds, so that a lost connection is noticed before a run needs it."""
        if time.monotonic() - self._pinged > PING:
            self._pinged = time.monotonic()
            with self._server() as client:
                answers(client)

    def _fetched(self, client: Any, name: str, on_progress: Progress) -> bytearray | None:
        """The value of a name, or None if there is none or its size differs from the one that the server reported. Two round trips."""
        asked = client.pipeline(transaction=False).strlen(name).getrange(name, 0, CHUNK - 1)
        if not self._read_only:
            asked.pexpire(name, self._ms(self.ttl))
        size, head = asked.execute(raise_on_error=False)[:2]
        for answer in (size, head):  # an error of PEXPIRE, as on a replica, does not matter
            if isinstance(answer, Exception):
                if "WRONGTYPE" in str(answer) or "wrong kind" in str(answer):
                    raise CorruptEntry("of another type")
                raise answer
        on_progress()
        if (
            not isinstance(size, int)
            or not isinstance(head, bytes)
            or size == 0
            or size > self.largest
            or self._envelope.is_foreign(head)
        ):
            return None
        if len(head) != min(size, CHUNK):
            return None  # the server did not send what was requested
        if not self._envelope.plausible(head, size):
            raise CorruptEntry("not an entry")
        data = bytearray(size)
        data[: len(head)] = head
        got = len(head)
        for piece in self._pieces(client, name, range(got, size, CHUNK), size):
            on_progress()
            if len(piece) != min(CHUNK, size - got):
                return None  # the entry was removed meanwhile, or the server did not send what was requested
            data[got : got + len(piece)] = piece
            got += len(piece)
        return data if got == size else None

    def _pieces(self, client: Any, name: str, starts: range, size: int) -> Iterator[bytes]:
        """The pieces of a value, requested all at once and yielded as they arrive."""
        if not starts:
            return
        pool = pool_of(client, name)
        try:
            connection = pool.get_connection()
        except TypeError:  # redis-py before 5.3
            connection = pool.get_connection("GETRANGE")
        left = len(starts)
        try:
            commands = [("GETRANGE", name, start, min(start + CHUNK, size) - 1) for start in starts]
            connection.send_packed_command(connection.pack_commands(commands))
            for _ in starts:
                piece = connection.read_response(disable_decoding=True)
                left -= 1
                yield piece if isinstance(piece, bytes) else b""
        finally:
            if left:  # unread replies
                connection.disconnect()
            pool.release(connection)

    def _explained(self, error: Exception) -> Unavailable:
        import redis

        known = redis.exceptions
        if isinstance(error, known.RedisClusterException) and isinstance(error.__cause__, Exception):
            error = error.__cause__  # the reason for which no node could be used
        text = str(error)
        if isinstance(error, known.AuthenticationError | known.AuthorizationError | known.NoPermissionError):
            return Unavailable(_REFUSED.of(where=self.where))
        if isinstance(error, getattr(known, "OutOfMemoryError", ())) or text.startswith("OOM"):
            return Unavailable(_FULL.of(where=self.where))
        if isinstance(error, known.ReadOnlyError):
            return Unavailable(_REPLICA.of(where=self.where))
        if isinstance(error, known.ResponseError):
            return Unavailable(_REJECTS.of(where=self.where), text[:80])
        if isinstance(error, ValueError | TypeError):
            # the text of the error might contain the address
            return Unavailable(_INVALID, type(error).__name__)
        return Unreachable(NO_CONNECTION.of(where=self.where), type(error).__name__)

    # the interface of SharedTier

    def _errors(self) -> tuple[type[Exception], ...]:
        import redis

        # the exceptions of the Cluster client have a base class of their own
        return redis.exceptions.RedisError, redis.exceptions.RedisClusterException

    def _write(self, client: Any, name: str, data: bytes) -> None:
        client.set(name, data, px=self._ms(self.ttl))

    def _remove(self, client: Any, name: str) -> None:
        client.delete(name)

    def _disconnect(self, client: Any) -> None:
        disconnect(client)

    # names and bytes

    def _name(self, key: Key) -> str:
        opening, closing = self._braces
        return f"{self._prefix}{key.kind}:{opening}{key.digest}{closing}"

    def _names(self, client: Any, kind: str | None) -> Iterator[list[bytes]]:
        """The names of our entries, some hundreds at a time."""
        found: set[bytes] = set()
        for name in client.scan_iter(match=self._prefix + "*", count=1000):
            ours = self._entry.fullmatch(name)
            if ours and kind in (None, ours[1].decode()):
                found.add(name)
            if len(found) >= 500:
                yield sorted(found)
                found = set()
        if found:
            yield sorted(found)

    def _each(self, client: Any, command: str, names: list[bytes]) -> list[Any]:
        asked = client.pipeline(transaction=False)
        for name in names:
            getattr(asked, command)(name)
        return list(asked.execute(raise_on_error=False))

    def _ms(self, seconds: float) -> int:
        return max(int(seconds * 1000), 1)
