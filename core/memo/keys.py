"""Names for content: what is equal has one name in every process and on every machine, what differs has another.

BLAKE3 rather than a faster hash without a key: a Redis may be shared with people who choose their pictures and prompts
freely, and nobody can make two contents that share a name. It reads over 4 GB/s on one core with AVX2, uses more cores on
large tensors, and ComfyUI brings it.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Any

import torch
from blake3 import blake3

from .errors import NotCacheable
from .tensors import raw

FORMAT = 1
"""Of names and of entries. Raise it whenever one of them comes to mean something else: old entries are then misses."""

DEPTH = 32  # of lists in lists; also the codec's

_KIND = re.compile(r"[a-z][a-z0-9-]{0,31}")
_DIGEST = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Key:
    """kind: what is kept, `vae` or `text`: a word for statistics and clearing. digest: 160 bits of BLAKE3 as hex digits.

    Both are safe in a path and in a Redis key. Raises ValueError for anything else.
    """

    kind: str
    digest: str

    def __post_init__(self) -> None:
        if not (_KIND.fullmatch(self.kind) and _DIGEST.fullmatch(self.digest)):
            raise ValueError(f"{self.kind!r}, {self.digest!r} is no key: make keys with key()")

    def __str__(self) -> str:
        return f"{self.kind}/{self.digest}"


def key(kind: str, *parts: object) -> Key:
    """The name of the value that `kind` computes from these parts. Raises NotCacheable as digest() does."""
    return Key(kind, digest(kind, *parts))


def digest(*parts: object) -> str:
    """40 hex digits for any nesting of tensors, lists, tuples, dicts with names, bytes, str, int, float, bool and None.

    A tensor counts by dtype, shape and elements, not by strides or device; a dict by what it holds, not in what order; a
    float by its bits, so 0.0 is not -0.0; and 1, 1.0, True and "1" are four things. Raises NotCacheable for anything else.
    """
    hasher = blake3(b"skipstone memo %d\0" % FORMAT, max_threads=blake3.AUTO)
    _feed(hasher, parts, 0)
    return hasher.hexdigest(20)


def _feed(hasher: blake3, part: Any, depth: int) -> None:
    # each part is its tag, its length or count, and its content: no two nestings make the same bytes
    if depth > DEPTH:
        raise NotCacheable("nested too deep")
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
            raise NotCacheable("a dict whose keys are no strings")
        hasher.update(struct.pack("<cQ", b"m", len(part)))
        for name in sorted(part):
            _feed(hasher, name, depth + 1)
            _feed(hasher, part[name], depth + 1)
    else:
        raise NotCacheable(f"something of class {kind.__name__}")


def _sized(hasher: blake3, tag: bytes, content: bytes) -> None:
    hasher.update(struct.pack("<cQ", tag, len(content)) + content)
