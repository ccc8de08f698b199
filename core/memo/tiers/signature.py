"""Signatures on entries of a shared tier: only those who hold the key can write entries that others take for a value.

A shared store may be writable by more people than those whose pictures depend on it. With a key, from SKIPSTONE_MEMO_KEY, each entry
carries a keyed BLAKE3 digest over its place and content. An entry without one, or with one by another key, is a miss.
"""

from __future__ import annotations

import hmac

from blake3 import blake3

SIZE = 32  # bytes
_CONTEXT = "skipstone memo 2026-11 signed entries"


class Signer:
    """Signs and checks with a key derived from `secret`, a text of any length."""

    def __init__(self, secret: str) -> None:
        self._key = blake3(secret.encode("utf-8", "surrogatepass"), derive_key_context=_CONTEXT).digest()

    def sign(self, place: str, data: bytes | memoryview) -> bytes:
        """SIZE bytes for this content in this place: an entry that is copied to another place does not fit there."""
        hasher = blake3(place.encode() + b"\0", key=self._key)
        hasher.update(data)
        return hasher.digest(SIZE)

    def fits(self, place: str, data: bytes | memoryview, signature: bytes | memoryview) -> bool:
        return hmac.compare_digest(self.sign(place, data), bytes(signature))
