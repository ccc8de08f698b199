"""The third tier: a Redis or Valkey that several processes and machines share. Needs the package `redis` (skipstone[redis]).

The address comes from the machine's owner (settings or environment), never from a workflow, and is in no message but for host and port.
What the server sends is not trusted: sizes are asked for before anything is read, pieces of another length are a miss, and the store
checks every entry. Time-outs here only end threads; how long a run waits is decided in tier_worker.py.

    skipstone:<format>:<kind>:<digest>             the entry in its envelope (signature.py)
    skipstone:<format>:<kind>:<digest>:computing   which process computes it, and how long that takes: "<token> <seconds>"

With a namespace the format is followed by @<namespace>. In a Cluster the digest stands in braces, so that an entry and its lease are in
one hash slot.
"""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ..errors import CorruptEntry, NotCacheable
from ..keys import FORMAT, Key
from .base import Lease, Progress, Unavailable, Unreachable, Usage
from .redis_address import answers, connected, disconnect, parsed, pool_of
from .signature import Envelope

CHUNK = 256 << 10  # bytes that have to arrive within one stall_timeout: 6 MB/s are enough
CLAIM = 5.0  # seconds for which a claim holds without being renewed
PING = 15.0
COUNTING = 4.0  # seconds for which entries are counted

_CLAIM = re.compile(rb"([0-9a-f]{16}) (\d{1,5}\.\d{3})?")


class RedisTier:
    """Entries in a shared Redis, each for `ttl` seconds after its last use. largest: bytes of an entry, as stored.

    url: see redis_address.py; the certificate is checked with TLS. namespace, read_only, secret: see Settings. stall_timeout: seconds for
    which a run waits without progress. Raises ValueError for a URL that names no server, without repeating it.
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
        self.where = self._address.where
        self.ttl, self.largest, self.stall_timeout = ttl, largest, stall_timeout
        self._token = secrets.token_hex(8)
        self._lock = threading.Lock()
        self._client: Any = None
        self._why: Unavailable = Unreachable(f"no connection to {self.where}: entries are not shared")
        self._pinged = 0.0
        self._read_only = read_only
        self._envelope = Envelope(secret)
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

    def put(self, key: Key, data: bytes) -> None:
        if self._read_only:
            return
        name = self._name(key)
        if len(data) + self._envelope.overhead > self.largest:
            raise NotCacheable(f"{self.name}: larger than {self.largest >> 20} MB")
        with self._server() as client:
            client.set(name, self._envelope.wrap(name, data), px=self._ms(self.ttl))

    def delete(self, key: Key) -> None:
        if self._read_only:
            return
        with self._server() as client:
            client.delete(self._name(key))

    def clear(self, kind: str | None = None, older_than: float | None = None) -> Usage:
        removed = Usage()
        if self._read_only:
            return removed
        with self._server() as client:
            for names in self._names(client, kind):
                sizes = self._each(client, "strlen", names)
                # a use sets the time to live anew
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
                    raise Unavailable("has too many entries to count them")
        return held

    # who computes what

    def claim(self, key: Key, estimate: float | None) -> Lease:
        import redis

        if self._read_only:
            return Lease(ours=True)
        name, says = (
            self._name(key) + ":computing",
            f"{self._token} {'' if estimate is None else f'{min(estimate, 9999):.3f}'}",
        )
        with self._server() as client:
            try:
                if client.set(name, says, nx=True, px=self._ms(CLAIM)):
                    return Lease(ours=True)
                asked = client.pipeline(transaction=False).getrange(name, 0, 99).pttl(name)
                said, left = asked.execute()
            except redis.exceptions.ResponseError:  # full, or a replica: then nobody can be told
                return Lease(ours=True)
        theirs = _CLAIM.fullmatch(said)
        if theirs is None or not 0 <= left <= self._ms(CLAIM):
            return Lease(ours=True)  # nobody's who would renew it: not to be waited for
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
        """The name of our claim, "" if it lapsed and is another's."""
        name = self._name(key) + ":computing"
        if self._read_only:
            yield None, ""
            return
        with self._server() as client:
            yield client, name if client.getrange(name, 0, len(self._token) - 1) == self._token.encode() else ""

    # the connection

    def probe(self) -> None:
        """Connect anew, and try what a run will ask for."""
        self.close()
        client = self._connected()
        with self._lock:
            self._client, self._pinged = client, time.monotonic()

    def trial(self) -> float:
        """Seconds that the server takes to keep a word and to say it again, asked over a connection of its own.

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
                    raise Unavailable(f"{self.where} does not keep what it is given")
                return time.perf_counter() - started
        finally:
            one.close()

    def _connected(self) -> Any:
        """A client that has had an answer. Raises Unavailable."""
        try:
            import redis  # noqa: F401
        except ImportError:
            raise Unavailable('the package `redis` is missing: pip install "redis>=5"') from None
        try:
            client = connected(self._address)
            answers(client)
        except (*_errors(), OSError, ValueError, TypeError) as error:
            why = self._explained(error)
            self._why = why
            raise why from error
        return client

    def maintain(self) -> None:
        """Notice a server that went away before a run has to."""
        if time.monotonic() - self._pinged > PING:
            self._pinged = time.monotonic()
            with self._server() as client:
                answers(client)

    def close(self) -> None:
        """Also the connections that threads left behind still wait for."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            with suppress(Exception):
                disconnect(client)

    @contextmanager
    def _server(self) -> Iterator[Any]:
        """The client; what it raises inside says what is wrong."""
        with self._lock:
            client = self._client
        if client is None:
            raise type(self._why)(str(self._why), self._why.detail)  # a raised one keeps its frames alive
        try:
            yield client
        except _errors() as error:
            raise self._explained(error) from error

    def _fetched(self, client: Any, name: str, on_progress: Progress) -> bytearray | None:
        """The value of a name, or None where there is none, or less of it than the server said. Two round trips."""
        asked = client.pipeline(transaction=False).strlen(name).getrange(name, 0, CHUNK - 1)
        if not self._read_only:
            asked.pexpire(name, self._ms(self.ttl))
        size, head = asked.execute(raise_on_error=False)[:2]
        for answer in (size, head):  # a replica that may not be written to need not note the use
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
            return None  # a server that sends what it likes
        if not self._envelope.plausible(head, size):
            raise CorruptEntry("not an entry")
        data = bytearray(size)
        data[: len(head)] = head
        got = len(head)
        for piece in self._pieces(client, name, range(got, size, CHUNK), size):
            on_progress()
            if len(piece) != min(CHUNK, size - got):
                return None  # gone meanwhile, or a server that sends what it likes
            data[got : got + len(piece)] = piece
            got += len(piece)
        return data if got == size else None

    def _pieces(self, client: Any, name: str, starts: range, size: int) -> Iterator[bytes]:
        """Pieces of a value, all asked for at once and yielded as they arrive."""
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
            if left:  # answers that nobody reads
                connection.disconnect()
            pool.release(connection)

    def _explained(self, error: Exception) -> Unavailable:
        import redis

        known = redis.exceptions
        if isinstance(error, known.RedisClusterException) and isinstance(error.__cause__, Exception):
            error = error.__cause__  # the reason for which no node could be used
        text = str(error)
        if isinstance(error, known.AuthenticationError | known.AuthorizationError | known.NoPermissionError):
            return Unavailable(
                f"{self.where} wants another user or password: set them in the address, in SKIPSTONE_MEMO_REDIS"
            )
        if isinstance(error, getattr(known, "OutOfMemoryError", ())) or text.startswith("OOM"):
            return Unavailable(
                f"{self.where} is full and takes nothing more: give it a maxmemory-policy such as allkeys-lru, or more memory"
            )
        if isinstance(error, known.ReadOnlyError):
            return Unavailable(f"{self.where} is a replica that must not be written to: set the address of its master")
        if isinstance(error, known.ResponseError):
            return Unavailable(f"{self.where} refuses", text[:80])
        if isinstance(error, ValueError | TypeError):
            # the text might repeat the address
            return Unavailable("the address in the settings is not understood", type(error).__name__)
        return Unreachable(f"no connection to {self.where}: entries are not shared", type(error).__name__)

    # names and bytes

    def _name(self, key: Key) -> str:
        opening, closing = self._braces
        return f"{self._prefix}{key.kind}:{opening}{key.digest}{closing}"

    def _names(self, client: Any, kind: str | None) -> Iterator[list[bytes]]:
        """The names of our entries, some hundred at a time."""
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


def _errors() -> tuple[Any, ...]:
    """What the package raises for servers: the errors of its Cluster client have a base class of their own."""
    import redis

    return redis.exceptions.RedisError, redis.exceptions.RedisClusterException
