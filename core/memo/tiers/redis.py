"""The third tier: a Redis or Valkey that several processes and machines share. Needs the package `redis` (skipstone[redis]).

The address comes from the machine's owner (settings or environment), never from a workflow, and is in no message but for host and port.
What the server says is not trusted: sizes are asked for before anything is read, reads come in pieces that each have to arrive in time,
expansion is bounded, and the store checks every entry. Time-outs here only end threads; what a run waits is lane.py's.

    skipstone:<format>:<kind>:<digest>             a byte, 0: the entry follows; 1: 8 bytes of its size, and it follows deflated
    skipstone:<format>:<kind>:<digest>:computing   who computes it, and how long that takes: "<token> <seconds>"
"""

from __future__ import annotations

import re
import secrets
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ..codec import LARGEST, PREFIX, plausible
from ..errors import CorruptEntry, NotCacheable
from ..keys import FORMAT, Key
from .base import Beat, Lease, Unavailable, Usage

CHUNK = 256 << 10  # bytes that have to arrive within one patience: 6 MB/s are enough
SOCKET = 2.0  # seconds after which a thread of the background gives up on the server
CLAIM = 5.0  # seconds for which a claim holds without being renewed
PING = 15.0
COUNTING = 4.0  # seconds for which entries are counted
PAYS = 0.5  # deflated to less than this it is worth the time to inflate: a 1 Gbit network moves a MB in 8 ms, zlib makes one in 3
SAMPLE = 64 << 10
EXPANSION = 4, 16 << 20  # an entry may inflate to so many times its size, or to so many bytes

_PLAIN, _DEFLATED = b"\0", b"\1"
_CLAIM = re.compile(rb"([0-9a-f]{16}) (\d{1,5}\.\d{3})?")


def with_password(url: str) -> bool:
    """Whether an address holds a password, in either of the places where the package `redis` looks for one."""
    try:
        parts = urlsplit(url)
        return bool(parts.password) or "password" in parse_qs(parts.query)
    except ValueError:
        return "@" in url


class RedisTier:
    """Entries in a shared Redis, each for `ttl` seconds after its last use. largest: bytes of an entry, as stored.

    url: redis://, rediss:// (TLS, the certificate is checked) or unix://, as the package `redis` takes it. patience: seconds a
    run waits without a sign of life. Raises ValueError for a URL of another scheme, without repeating it.
    """

    name = "redis"

    def __init__(self, url: str, ttl: float = 14 * 86400.0, largest: int = 64 << 20, patience: float = 0.03) -> None:
        try:
            parts = urlsplit(url)
            where = parts.path if parts.scheme == "unix" else f"{parts.hostname}:{parts.port or 6379}"
        except ValueError:  # its text may hold a piece of the password
            raise ValueError(
                "the address of Redis is no URL: in a password, write / as %2F, @ as %40, # as %23"
            ) from None
        if parts.scheme not in ("redis", "rediss", "unix"):
            raise ValueError("the address of Redis begins with redis://, rediss:// (TLS) or unix://")
        self._url, self._tls, self.where = url, parts.scheme == "rediss", where
        self.ttl, self.largest, self.patience = ttl, largest, patience
        self._token = secrets.token_hex(8)
        self._lock = threading.Lock()
        self._client: Any = None
        self._why = f"no connection to {where}: entries are not shared", ""
        self._pinged = 0.0
        self._entry = re.compile(rb"skipstone:%d:([a-z][a-z0-9-]{0,31}):[0-9a-f]{40}" % FORMAT)

    # entries

    def get(self, key: Key, beat: Beat) -> bytes | bytearray | None:
        with self._server() as client:
            data = self._fetched(client, self._name(key), beat)
        return None if data is None else self._unpacked(data, beat)

    def put(self, key: Key, data: bytes) -> None:
        packed = self._packed(data)
        if len(packed) > self.largest:
            raise NotCacheable(f"{self.name}: larger than {self.largest >> 20} MB")
        with self._server() as client:
            client.set(self._name(key), packed, px=self._ms(self.ttl))

    def delete(self, key: Key) -> None:
        with self._server() as client:
            client.delete(self._name(key))

    def clear(self, kind: str | None = None, older_than: float | None = None) -> Usage:
        removed = Usage()
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
                    client.unlink(*(name for name, _ in gone))
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
        one = RedisTier(self._url, self.ttl, self.largest, self.patience)
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
            import redis
        except ImportError:
            raise Unavailable('the package `redis` is missing: pip install "redis>=5"') from None
        options: dict[str, Any] = {"ssl_check_hostname": True} if self._tls else {}
        try:
            client = redis.Redis.from_url(
                self._url,
                socket_timeout=SOCKET,
                socket_connect_timeout=SOCKET,
                socket_keepalive=True,
                retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
                protocol=2,
                **options,
            )
            client.ping()
            client.strlen("skipstone:probe")
        except (redis.exceptions.RedisError, OSError, ValueError, TypeError) as error:
            why = self._explained(error)
            self._why = str(why), why.detail
            raise why from error
        return client

    def tend(self) -> None:
        """Notice a server that went away before a run has to."""
        if time.monotonic() - self._pinged > PING:
            self._pinged = time.monotonic()
            with self._server() as client:
                client.ping()

    def close(self) -> None:
        """Also the connections that threads left behind still wait for."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            with suppress(Exception):
                client.connection_pool.disconnect(inuse_connections=True)

    @contextmanager
    def _server(self) -> Iterator[Any]:
        """The client; what it raises inside says what is wrong."""
        with self._lock:
            client = self._client
        if client is None:
            raise Unavailable(*self._why)
        import redis

        try:
            yield client
        except redis.exceptions.RedisError as error:
            raise self._explained(error) from error

    def _fetched(self, client: Any, name: str, beat: Beat) -> bytearray | None:
        asked = client.pipeline(transaction=False).strlen(name).pexpire(name, self._ms(self.ttl))
        size, _ = asked.execute(raise_on_error=False)  # a replica that may not be written to need not note the use
        if isinstance(size, Exception):
            if "WRONGTYPE" in str(size) or "wrong kind" in str(size):
                raise CorruptEntry("of another type")
            raise size
        beat()
        if size == 0 or size > self.largest:
            return None
        data = bytearray()
        while len(data) < size:
            chunk = client.getrange(name, len(data), min(len(data) + CHUNK, size) - 1)
            beat()
            if not chunk:
                return None  # gone meanwhile
            if not data and not self._may_be_ours(chunk, size):
                raise CorruptEntry("not an entry")
            data += chunk
        return data

    def _explained(self, error: Exception) -> Unavailable:
        import redis

        known = redis.exceptions
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
        return Unavailable(f"no connection to {self.where}: entries are not shared", type(error).__name__)

    # names and bytes

    def _name(self, key: Key) -> str:
        return f"skipstone:{FORMAT}:{key.kind}:{key.digest}"

    def _names(self, client: Any, kind: str | None) -> Iterator[list[bytes]]:
        """The names of our entries, some hundred at a time."""
        found: set[bytes] = set()
        prefix = f"skipstone:{FORMAT}:"
        for name in client.scan_iter(match=prefix + "*", count=1000):
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

    def _packed(self, data: bytes) -> bytes:
        """Deflated if a piece from the middle says that this pays: floats do not, masks and padded embeddings do."""
        middle = len(data) // 2
        sample = data[max(middle - SAMPLE // 2, 0) : middle + SAMPLE // 2]
        if len(zlib.compress(sample, 1)) < PAYS * len(sample):
            deflated = zlib.compress(data, 1)
            factor, free = EXPANSION
            if len(deflated) < PAYS * len(data) and len(data) <= max(factor * len(deflated), free):
                return _DEFLATED + struct.pack("<Q", len(data)) + deflated
        return _PLAIN + data

    def _unpacked(self, data: bytearray, beat: Beat) -> bytearray:
        if data[:1] == _PLAIN:
            return data[1:]
        (size,) = struct.unpack_from("<Q", data, 1)
        out, stream = bytearray(), zlib.decompressobj()
        try:
            for start in range(9, len(data), CHUNK):
                out += stream.decompress(data[start : start + CHUNK], size - len(out) + 1)
                beat()
                if len(out) > size:
                    break
        except zlib.error as error:
            raise CorruptEntry("not inflatable") from error
        if len(out) != size:
            raise CorruptEntry("not of the size it says")
        return out

    def _may_be_ours(self, head: bytes, size: int) -> bool:
        if head[:1] == _PLAIN:
            return plausible(head[1 : PREFIX + 9], size - 1)
        if head[:1] != _DEFLATED or len(head) < 9:
            return False
        (inflated,) = struct.unpack_from("<Q", head, 1)
        factor, free = EXPANSION
        return bool(inflated <= min(LARGEST, max(factor * size, free)))
