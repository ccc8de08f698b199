"""What a tier is: bytes by key. It may raise what it likes: the store makes a miss of it, and says it once."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ..keys import Key

Progress = Callable[[], None]
"""Called whenever a read got on: who reads is waited for as long as that goes on, and `stall_timeout` more."""


NAMESPACE = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


@dataclass(frozen=True)
class Usage:
    """What a tier holds, or what was removed from it. bytes: as the tier stores them."""

    entries: int = 0
    bytes: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.entries + other.entries, self.bytes + other.bytes)


class Unavailable(Exception):
    """The tier cannot serve now. The message says what is wrong and how to mend it: no passwords, and the same words every time,
    as it is said once; what varies is a second argument.
    """

    def __init__(self, what: str, detail: str = "") -> None:
        super().__init__(what)
        self.detail = detail


class Unreachable(Unavailable):
    """There is no connection at present. Writes are held for a while, and done when there is one again."""


class Tier(Protocol):
    """Bytes by key. Methods may be called from several threads.

    It may also have `budget`, the bytes it holds at most, and `where`, the place as its own messages name it.
    """

    name: str  # for statistics and clearing

    def get(self, key: Key, on_progress: Progress) -> bytes | bytearray | None:
        """The bytes that were put, as far as the tier can tell; None where there are none. Counts as a use."""
        ...

    def put(self, key: Key, data: bytes) -> None:
        """Keep them, in place of what was there. Raises NotCacheable for what this tier does not take."""
        ...

    def delete(self, key: Key) -> None: ...

    def clear(self, kind: str | None = None, older_than: float | None = None) -> Usage:
        """Remove all entries, or those of a kind, or those not used for so many seconds; what was removed."""
        ...

    def usage(self) -> dict[str, Usage]:
        """What is held, by kind."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class LowerTier(Tier, Protocol):
    """A tier behind memory: slow or far, so it works in threads of its own (tier_worker.py)."""

    stall_timeout: float  # seconds for which a run may wait without a sign of life from it

    def probe(self) -> None:
        """Connect or look; returns when the tier can serve, and raises if it cannot. From the background."""
        ...

    def maintain(self) -> None:
        """Housekeeping, every few seconds, from the background."""
        ...


@dataclass(frozen=True)
class Lease:
    """Who computes a value: we, or another, who expects to need so many seconds (None: does not know)."""

    ours: bool
    estimate: float | None = None


@runtime_checkable
class LeasingTier(Protocol):
    """A tier through which processes tell each other what they are computing."""

    def claim(self, key: Key, estimate: float | None) -> Lease:
        """Ours if nobody else's. A claim lapses a few seconds after its last renewal."""
        ...

    def renew(self, key: Key) -> None: ...

    def release(self, key: Key) -> None: ...
