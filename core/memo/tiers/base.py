"""Interfaces of tiers, which store bytes by key. A tier may raise any exception: the store logs it once and treats it as a miss."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ..keys import Key

Progress = Callable[[], None]
"""Called whenever a read makes progress. A read is abandoned after `stall_timeout` seconds without a call."""


NAMESPACE = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


@dataclass(frozen=True)
class Usage:
    """Number and bytes of entries that a tier holds, or that were removed. bytes: as stored in the tier."""

    entries: int = 0
    bytes: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.entries + other.entries, self.bytes + other.bytes)


class Unavailable(Exception):
    """The tier cannot be used at present.

    The message, a Text, tells the cause and the remedy, without passwords. It has to be the same for each occurrence, because it is logged
    once; `detail` is for what varies.
    """

    def __init__(self, what: str, detail: str = "") -> None:
        super().__init__(what)
        self.detail = detail


class Unreachable(Unavailable):
    """There is no connection at present. Writes are held for a while, and done when there is one again."""


class Tier(Protocol):
    """A store of bytes by key. Methods may be called from several threads.

    It may also have `budget`, the bytes it holds at most, and `where`, the place as its own messages name it.
    """

    name: str  # for statistics and clearing

    def get(self, key: Key, on_progress: Progress) -> bytes | bytearray | None:
        """The bytes that were put, or None. Counts as a use of the entry. Raises CorruptEntry for bytes that cannot be an entry."""
        ...

    def put(self, key: Key, data: bytes) -> None:
        """Store bytes. Raises NotCacheable for an entry that this tier does not accept, such as one that is too large."""
        ...

    def delete(self, key: Key) -> None: ...

    def clear(self, kind: str | None = None, older_than: float | None = None) -> Usage:
        """Remove entries, optionally only of a kind, or unused for `older_than` seconds. Returns what was removed."""
        ...

    def usage(self) -> dict[str, Usage]:
        """Entries and bytes by kind."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class LowerTier(Tier, Protocol):
    """A tier behind memory: slow or far, so it works in threads of its own (tier_worker.py)."""

    stall_timeout: float  # seconds without progress after which a run no longer waits for a read

    def probe(self) -> None:
        """Connect. Raises if the tier cannot be used. Called by the background thread."""
        ...

    def maintain(self) -> None:
        """Housekeeping. Called by the background thread every few seconds."""
        ...


@dataclass(frozen=True)
class Lease:
    """Whether this process computes a value (`ours`) or another does, and the estimate of that one in seconds, if it has one."""

    ours: bool
    estimate: float | None = None


@runtime_checkable
class LeasingTier(Protocol):
    """A tier through which processes coordinate which of them computes a value."""

    def claim(self, key: Key, estimate: float | None) -> Lease:
        """Take the lease of a key unless another process holds it. A lease lapses a few seconds after its last renewal."""
        ...

    def renew(self, key: Key) -> None: ...

    def release(self, key: Key) -> None: ...
