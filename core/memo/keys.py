"""Keys of cached values: digests of everything that a value is computed from, equal in every process and on every machine.

BLAKE3 is used because it is collision-resistant: a store may be shared with users who choose their inputs freely, and no two inputs can be
constructed that have one key. It hashes over 4 GB/s on one core with AVX2, uses more cores for large tensors, and ComfyUI requires it.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Any

import torch
from blake3 import blake3

from . import reasons
from .errors import NotCacheable
from .tensors import raw

FORMAT = 1
"""Version of keys and entries. Increment it whenever the meaning of either changes: entries of earlier versions are then misses."""

DEPTH = 32  # largest nesting depth of lists, tuples and dicts; the codec uses it too

_KIND = re.compile(r"[a-z][a-z0-9-]{0,31}")
_DIGEST = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Key:
    """The key of a value.

    kind: a category for statistics and clearing, such as "vae" or "text". digest: 160 bits of BLAKE3 as 40 hex digits. Both are restricted
    to characters that are safe in paths and in names of Redis and S3. Raises ValueError for other strings.
    """

    kind: str
    digest: str

    def __post_init__(self) -> None:
        if not (_KIND.fullmatch(self.kind) and _DIGEST.fullmatch(self.digest)):
            raise ValueError(f"{self.kind!r}, {self.digest!r} is no key: make keys with key()")

    def __str__(self) -> str:
        return f"{self.kind}/{self.digest}"


def key(kind: str, *parts: object) -> Key:
    """The key of a value of this kind that is computed from these parts. Raises NotCacheable as digest() does."""
    return Key(kind, digest(kind, *parts))


def digest(*parts: object) -> str:
    """Digest of any nesting of tensors, lists, tuples, dicts with str keys, bytes, str, int, float, bool and None, as 40 hex digits.

    Tensors are compared by dtype, shape and elements, not by strides or device; dicts regardless of order; floats by their bits, so 0.0
    differs from -0.0. 1, 1.0, True and "1" have different digests. Raises NotCacheable for other types.
    """
    hasher = blake3(b"skipstone memo %d\0" % FORMAT, max_threads=blake3.AUTO)
    _feed(hasher, parts, 0)
    return hasher.hexdigest(20)


def _feed(hasher: blake3, part: Any, depth: int) -> None:
    # every part is hashed as tag, length or count, and content, so different nestings hash different bytes
    if depth > DEPTH:
        raise NotCacheable(reasons.NESTED)
    kind = type(part)
    if part is None or kind is bool:
        hasher.update(b"n" if part is None else b"t" if part else b"f")
    elif isinstance(part, torch.Tensor):
        hasher.update(b"T" + f"{part.dtype}{list(part.shape)}".encode() + b"\0")
        hasher.update(raw(part))
    elif kind is float:
        hasher.update(struct.pack("<cd", b"d", part))
    elif kind is int:
        _sized(hasher, b"i", b"%x" % part)
    elif kind is str:
        _sized(hasher, b"s", part.encode("utf-8", "surrogatepass"))
    elif kind is bytes:
        _sized(hasher, b"b", part)
    elif kind in (list, tuple):
        hasher.update(struct.pack("<cQ", b"l" if kind is list else b"u", len(part)))
        for item in part:
            _feed(hasher, item, depth + 1)
    elif kind is dict:
        if not all(type(name) is str for name in part):
            raise NotCacheable(reasons.KEYS)
        hasher.update(struct.pack("<cQ", b"m", len(part)))
        for name in sorted(part):
            _feed(hasher, name, depth + 1)
            _feed(hasher, part[name], depth + 1)
    else:
        raise NotCacheable(reasons.CLASS.of(name=kind.__name__))


def _sized(hasher: blake3, tag: bytes, content: bytes) -> None:
    hasher.update(struct.pack("<cQ", tag, len(content)) + content)
