"""Lower tiers without a disk or a network, that fail as they are told; and entries to put into real ones."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from skipstone.core.memo.codec import Entry, encode
from skipstone.core.memo.keys import Key, key
from skipstone.core.memo.tiers.base import Lease, Progress, Usage


def data(value: Any = "x", name: Key | None = None) -> bytes:
    """An entry; of the key "a" of latents, unless `name` is given."""
    return encode(name or key("vae", "a"), Entry(value, 1.0, 1.0))


def get(tier: Any, name: Key) -> Any:
    return tier.get(name, lambda: None)


class Fake:
    """Entries in a dict that several stores may share. `on` holds what happens first in a method, by its name."""

    def __init__(self, name: str = "fake", held: dict[Key, bytes] | None = None, stall_timeout: float = 2.0) -> None:
        self.name, self.stall_timeout = name, stall_timeout
        self.held: dict[Key, bytes] = {} if held is None else held
        self.on: dict[str, Callable[[], object]] = {}
        self.calls: list[str] = []
        self.closed = False

    def _called(self, what: str) -> None:
        self.calls.append(what)
        self.on.get(what, int)()

    def get(self, key: Key, on_progress: Progress) -> bytes | None:
        self._called("get")
        return self.held.get(key)

    def put(self, key: Key, data: bytes) -> None:
        self._called("put")
        self.held[key] = data

    def delete(self, key: Key) -> None:
        self._called("delete")
        self.held.pop(key, None)

    def clear(self, kind: str | None = None, older_than: float | None = None) -> Usage:
        self._called("clear")
        gone = [key for key in self.held if kind in (None, key.kind)]
        return sum((Usage(1, len(self.held.pop(key))) for key in gone), Usage())

    def usage(self) -> dict[str, Usage]:
        self._called("usage")
        told: dict[str, Usage] = {}
        for name, held in self.held.items():
            told[name.kind] = told.get(name.kind, Usage()) + Usage(1, len(held))
        return told

    def probe(self) -> None:
        self._called("probe")

    def maintain(self) -> None:
        self._called("maintain")

    def close(self) -> None:
        self.closed = True


class Meeting(Fake):
    """As Redis: processes, here stores, tell each other through it what they compute."""

    claims: dict[Key, object]

    def __init__(self, *args: object, claims: dict[Key, object] | None = None, **more: object) -> None:
        super().__init__(*args, **more)  # type: ignore[arg-type]
        self.claims = {} if claims is None else claims
        self.lock = threading.Lock()

    def claim(self, key: Key, estimate: float | None) -> Lease:
        self._called("claim")
        with self.lock:
            return Lease(self.claims.setdefault(key, self) is self, estimate)

    def renew(self, key: Key) -> None:
        self._called("renew")

    def release(self, key: Key) -> None:
        self._called("release")
        self.claims.pop(key, None)


def boom() -> None:
    raise RuntimeError("boom")
