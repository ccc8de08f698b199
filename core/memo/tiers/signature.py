"""The form of entries in a shared tier, and their signatures.

A shared store may be writable by more people than those whose pictures depend on it. With a key, from SKIPSTONE_MEMO_KEY, each entry
carries a keyed BLAKE3 digest of its place and content. An entry without that digest, or with one of another key, is a miss.
"""

from __future__ import annotations

import hmac

from blake3 import blake3

from ..codec import PREFIX, plausible
from ..errors import CorruptEntry

SIZE = 32  # bytes of a signature
HEAD = 1 + SIZE + PREFIX + 8  # bytes of the beginning that Envelope.plausible() looks at
_CONTEXT = "skipstone memo 2026-11 signed entries"
_PLAIN, _DEFLATED, _SIGNED = b"\0", b"\1", b"\2"  # versions before 0.2 deflated some entries in Redis: those are misses


class Signer:
    """Signs and checks with a key derived from `secret`, a text of any length."""

    def __init__(self, secret: str) -> None:
        self._key = blake3(secret.encode("utf-8", "surrogatepass"), derive_key_context=_CONTEXT).digest()

    def sign(self, place: str, data: bytes | memoryview) -> bytes:
        """SIZE bytes for this content in this place: an entry that is copied to another place does not fit there."""
        hasher = blake3(place.encode() + b"\0", key=self._key)
        hasher.update(data)
        return hasher.digest(SIZE)

    def fits(self, place: str, data: bytes | memoryview, signature: bytes | bytearray) -> bool:
        return hmac.compare_digest(self.sign(place, data), bytes(signature))


class Envelope:
    """The form of entries in a shared tier: byte 0 and the entry; with a secret, byte 2, a signature and the entry."""

    def __init__(self, secret: str = "") -> None:
        self._signer = Signer(secret) if secret else None
        self._marker = _SIGNED if secret else _PLAIN
        self.overhead = 1 + SIZE if secret else 1
        """Bytes before the entry."""

    def wrap(self, place: str, data: bytes) -> bytes:
        """The entry as it is stored at `place`, its name in the tier."""
        signature = b"" if self._signer is None else self._signer.sign(place, data)
        return b"".join((self._marker, signature, data))

    def is_foreign(self, head: bytes | bytearray) -> bool:
        """Whether an entry with these first bytes was written by an earlier version, or is signed where this process has no secret, or the
        reverse. Such an entry is a miss, and not a corrupt one."""
        return head[:1] in {_PLAIN, _DEFLATED, _SIGNED} - {self._marker}

    def plausible(self, head: bytes | bytearray, size: int) -> bool:
        """Whether the first HEAD bytes can be those of a wrapped entry of `size` bytes. Asked before the rest is read."""
        entry = memoryview(head)[self.overhead : self.overhead + PREFIX + 8]
        return head[:1] == self._marker and plausible(entry, size - self.overhead)

    def unwrap(self, place: str, wrapped: bytes | bytearray) -> bytearray:
        """The entry in bytes that were read at `place`. Raises CorruptEntry where the signature does not fit."""
        entry = memoryview(wrapped)[self.overhead :]
        if self._signer is not None and not self._signer.fits(place, entry, wrapped[1 : self.overhead]):
            raise CorruptEntry("wrongly signed")
        return bytearray(entry)
