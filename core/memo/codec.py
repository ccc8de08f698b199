"""Values as bytes and back: one safetensors file with a digest before it, and what is not a tensor as JSON in its header.

    8 bytes    SKIPMEMO
    32 bytes   BLAKE3 of all that follows
    the rest   safetensors: tensors "0", "1", ...; its metadata has one entry, `skipstone`, the JSON below

    {"format": 1, "key": "vae/0123...", "cost": 1.5, "created": 1.7e9, "value": ["d", ["samples", ["t", 0]]]}

None, bool, int, finite floats and str stand for themselves. Everything else is a list with a tag: "t" tensor (its number, and
the order of its axes in memory where that is not row-major), "l" list, "u" tuple, "d" dict (pairs in their order), "f" float
that JSON does not have (its 64 bits). Nothing of Python's can be named, so nothing of it can be made.

The digest is against damage, not against malice: whoever may write entries may write wrong ones. What a hostile entry cannot do
is more than be a wrong value or a miss.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from typing import Any

import torch
from blake3 import blake3
from safetensors.torch import load, save

from .errors import CorruptEntry, NotCacheable
from .keys import DEPTH, FORMAT, Key
from .tensors import plain

MAGIC = b"SKIPMEMO"
PREFIX = len(MAGIC) + 32
HEADER = 16 << 20  # bytes of safetensors header that are read; the library itself allows 100 MB
LARGEST = 2 << 30  # bytes of an entry

# those that safetensors both writes and reads, and torch may not have all
_NAMES = "float64 float32 float16 bfloat16 complex64 int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool"
_FLOAT8 = "float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz"
DTYPES = {getattr(torch, name) for name in f"{_NAMES} {_FLOAT8}".split() if hasattr(torch, name)}


@dataclass(frozen=True)
class Entry:
    """A value as it was kept. cost: seconds that computing it took. created: seconds since 1970."""

    value: Any
    cost: float
    created: float


def encode(key: Key, entry: Entry) -> bytes:
    """The entry as bytes, independent of what the caller does to the value afterwards. Raises NotCacheable, with the reason."""
    try:
        return _encode(key, entry)
    except NotCacheable:
        raise
    except (
        Exception
    ) as error:  # an integer without end, no memory for a copy, a dtype that this safetensors does not know
        raise NotCacheable(f"its bytes cannot be had ({type(error).__name__})") from error


def decode(key: Key, data: bytes | bytearray, verify: bool = True) -> Entry:
    """The entry of these bytes; its tensors are on the CPU and nobody else's. Raises CorruptEntry, and nothing else.

    verify: compare the digest. Not needed for bytes that never left this process.
    """
    try:
        return _decode(key, data, verify)
    except CorruptEntry:
        raise
    except Exception as error:  # whatever a parser has to say to hostile bytes
        raise CorruptEntry(f"{type(error).__name__} on reading") from error


def plausible(head: bytes | bytearray, size: int) -> bool:
    """Whether these first bytes, 48 or more, may begin an entry of this size. Saves fetching what cannot be one."""
    if len(head) < PREFIX + 8 or not head.startswith(MAGIC):
        return False
    (header,) = struct.unpack_from("<Q", head, PREFIX)
    return bool(header <= min(HEADER, size - PREFIX - 8))


def _encode(key: Key, entry: Entry) -> bytes:
    tensors: list[torch.Tensor] = []
    tree = _plant(entry.value, tensors, 0)
    if sum(t.nbytes for t in tensors) > LARGEST:
        raise NotCacheable(f"larger than {LARGEST >> 30} GB")
    about = {"format": FORMAT, "key": str(key), "cost": entry.cost, "created": entry.created, "value": tree}
    text = json.dumps(about, allow_nan=False, separators=(",", ":"))
    if len(text) > HEADER // 2:  # quoted again inside the header
        raise NotCacheable("too much that is no tensor")
    body = save({str(i): t for i, t in enumerate(tensors)}, {"skipstone": text})
    return b"".join((MAGIC, blake3(body, max_threads=blake3.AUTO).digest(), body))


def _decode(key: Key, data: bytes | bytearray, verify: bool) -> Entry:
    if not plausible(data, len(data)):
        raise CorruptEntry("not an entry")
    body = bytes(memoryview(data)[PREFIX:])
    if verify and blake3(body, max_threads=blake3.AUTO).digest() != data[len(MAGIC) : PREFIX]:
        raise CorruptEntry("damaged")
    (size,) = struct.unpack_from("<Q", body)
    header = json.loads(body[8 : 8 + size])
    about = json.loads(header["__metadata__"]["skipstone"], parse_constant=_no_constant)
    if about["format"] != FORMAT:
        raise CorruptEntry("of another format")
    if about["key"] != str(key):
        raise CorruptEntry("of another key")
    cost, created = about["cost"], about["created"]
    if not all(type(n) in (int, float) and math.isfinite(n) and n >= 0 for n in (cost, created)):
        raise CorruptEntry("with impossible times")
    loaded = load(body)
    tensors = [loaded.pop(str(i)) for i in range(len(loaded))]
    used: set[int] = set()
    value = _grow(about["value"], tensors, used, 0)
    if len(used) != len(tensors):
        raise CorruptEntry("with tensors that are not in its value")
    return Entry(value, float(cost), float(created))


def _no_constant(name: str) -> float:
    raise CorruptEntry(f"with {name} in its JSON")


# from values to JSON


def _plant(value: Any, tensors: list[torch.Tensor], depth: int) -> object:
    if depth > DEPTH:
        raise NotCacheable("nested too deep")
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if math.isfinite(value) else ["f", struct.pack(">d", value).hex()]
    if isinstance(value, torch.Tensor):
        return _tensor(value, tensors)
    if kind in (list, tuple):
        return ["l" if kind is list else "u", *(_plant(v, tensors, depth + 1) for v in value)]
    if kind is dict:
        if not all(type(name) is str for name in value):
            raise NotCacheable("a dict whose keys are no strings")
        return ["d", *([name, _plant(v, tensors, depth + 1)] for name, v in value.items())]
    raise NotCacheable(f"something of class {kind.__name__}")


def _tensor(value: torch.Tensor, tensors: list[torch.Tensor]) -> list[object]:
    if type(value) is not torch.Tensor:
        raise NotCacheable(f"a tensor of class {type(value).__name__}")
    if value.dtype not in DTYPES:
        raise NotCacheable(f"a tensor of {value.dtype}")
    value = plain(value)
    leaf: list[object] = ["t", len(tensors)]
    if not value.is_contiguous():
        # channels-last and the like come back so: kernels may round differently on another layout
        strides = value.stride()
        order = sorted(range(value.ndim), key=lambda axis: -strides[axis])
        if value.permute(order).is_contiguous():
            value = value.permute(order)
            leaf.append(order)
        value = value.contiguous()
    if any(value.untyped_storage().data_ptr() == t.untyped_storage().data_ptr() for t in tensors):
        value = value.clone()  # safetensors takes no two views of one memory
    tensors.append(value)
    return leaf


# and back


def _grow(tree: Any, tensors: list[torch.Tensor], used: set[int], depth: int) -> Any:
    if depth > DEPTH:
        raise CorruptEntry("nested too deep")
    if not isinstance(tree, list):
        if isinstance(tree, dict):
            raise CorruptEntry("with an untagged dict")
        return tree
    tag, *rest = tree
    if tag == "t":
        return _own(rest, tensors, used)
    if tag == "f":
        (bits,) = rest
        return struct.unpack(">d", bytes.fromhex(bits))[0]
    if tag == "l":
        return [_grow(v, tensors, used, depth + 1) for v in rest]
    if tag == "u":
        return tuple(_grow(v, tensors, used, depth + 1) for v in rest)
    if tag == "d":
        grown = {_name(name): _grow(v, tensors, used, depth + 1) for name, v in rest}
        if len(grown) != len(rest):
            raise CorruptEntry("with a name twice")
        return grown
    raise CorruptEntry("with an unknown tag")


def _own(leaf: list[Any], tensors: list[torch.Tensor], used: set[int]) -> torch.Tensor:
    index, *order = leaf
    if type(index) is not int or index < 0 or index in used:
        raise CorruptEntry("with a tensor twice")
    used.add(index)
    tensor = tensors[index].clone()  # torch's own memory, aligned as torch aligns it, and writable
    if not order:
        return tensor
    (axes,) = order
    if sorted(axes) != list(range(tensor.ndim)):
        raise CorruptEntry("with axes that do not fit")
    return tensor.permute([axes.index(axis) for axis in range(tensor.ndim)])


def _name(name: object) -> str:
    if type(name) is not str:
        raise CorruptEntry("with a name that is no string")
    return name
