"""Serialization of cached values: a safetensors file after a digest. Everything but tensors is JSON in the file's header.

    8 bytes    SKIPMEMO
    32 bytes   BLAKE3 of all that follows
    the rest   safetensors: tensors "0", "1", ...; its metadata has one entry, `skipstone`, the JSON below

    {"format": 1, "key": "vae/0123...", "cost": 1.5, "created": 1.7e9, "value": ["d", ["samples", ["t", 0]]]}

None, bool, int, finite floats and str are encoded as themselves. Everything else is a list that begins with a tag: "t" tensor (its number,
and the order of its axes in memory where that is not row-major), "l" list, "u" tuple, "d" dict (pairs in order), "f" a float that JSON does
not have (its 64 bits). The format cannot name Python objects, so decoding cannot create any.

The digest detects damage, not forgery: anyone who can write to a store can write a wrong entry (signature.py prevents that). Decoding a
hostile entry yields at worst a wrong value or a miss, needs at most twice its size in memory, and takes no longer than reading it.
"""

from __future__ import annotations

import json
import math
import struct
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from blake3 import blake3

from . import reasons
from .errors import CorruptEntry, NotCacheable
from .keys import DEPTH, FORMAT, Key
from .tensors import plain, raw

MAGIC = b"SKIPMEMO"
PREFIX = len(MAGIC) + 32
HEADER = 256 << 10  # bytes of safetensors header that are read: those of real entries have some hundreds
LARGEST = 2 << 30  # bytes of an entry's tensors

_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "C64": "complex64", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip
_DTYPES = {name: getattr(torch, dtype) for name, dtype in _NAMES.items() if hasattr(torch, dtype)}
DTYPES = set(_DTYPES.values())
"""Data types of tensors that can be kept, as far as this torch has them."""


@dataclass(frozen=True)
class Entry:
    """A cached value. cost: seconds that computing it took. created: time of computing, in seconds since 1970."""

    value: Any
    cost: float
    created: float


def encode(key: Key, entry: Entry) -> bytes:
    """Serialize an entry. The bytes share no memory with the value. Raises NotCacheable with the reason."""
    try:
        return _encode(key, entry)
    except NotCacheable:
        raise
    except (
        Exception
    ) as error:  # an integer without end, no memory for a copy, a dtype that this safetensors does not know
        raise NotCacheable(reasons.NO_BYTES.of(error=type(error).__name__)) from error


def decode(key: Key, data: bytes | bytearray, verify: bool = True) -> Entry:
    """Deserialize an entry. Its tensors are on the CPU and share no memory with `data`. Raises CorruptEntry and nothing else.

    verify: check the digest, which is not needed for bytes that never left this process.
    """
    try:
        return _decode(key, data, verify)
    except CorruptEntry:
        raise
    except Exception as error:  # parsers raise anything on hostile bytes
        raise CorruptEntry(f"{type(error).__name__} on reading") from error


def plausible(head: bytes | bytearray | memoryview, size: int) -> bool:
    """Whether an entry of `size` bytes can begin with `head`, of 48 bytes or more. If `head` includes the whole header, the size that
    follows from it must be `size`. Used to avoid reading bytes that are no entry."""
    if len(head) < PREFIX + 8 or bytes(head[: len(MAGIC)]) != MAGIC:
        return False
    (header,) = struct.unpack_from("<Q", head, PREFIX)
    start = PREFIX + 8 + header
    if header > min(HEADER, size - PREFIX - 8):
        return False
    if len(head) < start:
        return True
    try:
        ends = [info["data_offsets"][1] for name, info in _header(head).items() if name != "__metadata__"]
        return bool(start + max(ends, default=0) == size)
    except Exception:  # whatever a parser raises for hostile bytes
        return False


def header_size(head: bytes | bytearray) -> int:
    """Bytes of an entry up to the end of its header, by its first 48 bytes."""
    return PREFIX + 8 + int(struct.unpack_from("<Q", head, PREFIX)[0])


def _encode(key: Key, entry: Entry) -> bytes:
    tensors: list[torch.Tensor] = []
    tree = _to_json(entry.value, tensors, 0)
    if sum(t.nbytes for t in tensors) > LARGEST:
        raise NotCacheable(reasons.TOO_LARGE.of(gb=LARGEST >> 30))
    about = {"format": FORMAT, "key": str(key), "cost": entry.cost, "created": entry.created, "value": tree}
    text = json.dumps(about, allow_nan=False, separators=(",", ":"))
    header: dict[str, Any] = {"__metadata__": {"skipstone": text}}
    names, at = {dtype: name for name, dtype in _DTYPES.items()}, 0
    order = sorted(range(len(tensors)), key=lambda i: -tensors[i].element_size())  # so that each lies aligned
    for i in order:
        header[str(i)] = {
            "dtype": names[tensors[i].dtype],
            "shape": list(tensors[i].shape),
            "data_offsets": [at, at + tensors[i].nbytes],
        }
        at += tensors[i].nbytes
    written = json.dumps(header, separators=(",", ":")).encode()
    written += b" " * (-len(written) % 8)
    if len(written) > HEADER:
        raise NotCacheable(reasons.TOO_MUCH_JSON)
    parts: list[Any] = [struct.pack("<Q", len(written)), written, *(raw(tensors[i]) for i in order)]
    hasher = blake3(max_threads=blake3.AUTO)
    for part in parts:
        hasher.update(part)
    return b"".join((MAGIC, hasher.digest(), *parts))


def _decode(key: Key, data: bytes | bytearray, verify: bool) -> Entry:
    if not plausible(data, len(data)):
        raise CorruptEntry("not an entry")
    body = memoryview(data)[PREFIX:]
    if verify and blake3(body, max_threads=blake3.AUTO).digest() != data[len(MAGIC) : PREFIX]:
        raise CorruptEntry("damaged")
    header = _header(data)
    about = json.loads(header["__metadata__"]["skipstone"], parse_constant=_no_constant)
    if about["format"] != FORMAT:
        raise CorruptEntry("of another format")
    if about["key"] != str(key):
        raise CorruptEntry("of another key")
    cost, created = about["cost"], about["created"]
    if not all(type(n) in (int, float) and math.isfinite(n) and n >= 0 for n in (cost, created)):
        raise CorruptEntry("with impossible times")
    tensors = _tensors(header, memoryview(data)[header_size(data) :])
    used: set[int] = set()
    value = _from_json(about["value"], tensors, used, 0)
    if len(used) != len(tensors):
        raise CorruptEntry("with tensors that are not in its value")
    return Entry(value, float(cost), float(created))


def _header(data: bytes | bytearray | memoryview) -> dict[str, Any]:
    (size,) = struct.unpack_from("<Q", data, PREFIX)
    header = json.loads(bytes(data[PREFIX + 8 : PREFIX + 8 + size]))
    if type(header) is not dict:
        raise CorruptEntry("with a header that is no object")
    return header


def _tensors(header: dict[str, Any], buffer: memoryview) -> list[torch.Tensor]:
    """The tensors "0", "1", ... in torch's own memory. They have to cover the buffer without gaps, as safetensors demands."""
    infos = [header[str(i)] for i in range(len(header) - 1)]
    at = 0
    for info in sorted(infos, key=lambda info: tuple(info["data_offsets"])):
        (begin, end), shape = info["data_offsets"], info["shape"]
        if (
            begin != at
            or not all(type(n) is int and 0 <= n < 1 << 48 for n in (begin, end, *shape))
            or type(shape) is not list
        ):
            raise CorruptEntry("with tensors that do not fit")
        size = _DTYPES[info["dtype"]].itemsize
        for n in shape:
            size *= n
        if size != end - begin or len(shape) > 64:
            raise CorruptEntry("with tensors that do not fit")
        at = end
    if at != len(buffer):
        raise CorruptEntry("with more than its tensors")
    return [_tensor_of(info, buffer) for info in infos]


def _tensor_of(info: dict[str, Any], buffer: memoryview) -> torch.Tensor:
    (begin, end), dtype = info["data_offsets"], _DTYPES[info["dtype"]]
    made = torch.empty(info["shape"], dtype=dtype)  # aligned as torch aligns it, and writable
    if end > begin:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a buffer that is not writable: it is only read
            source = torch.frombuffer(buffer[begin:end], dtype=torch.uint8)
        made.view(-1).view(torch.uint8).copy_(source)
    return made


def _no_constant(name: str) -> float:
    raise CorruptEntry(f"with {name} in its JSON")


# from values to JSON


def _to_json(value: Any, tensors: list[torch.Tensor], depth: int) -> object:
    if depth > DEPTH:
        raise NotCacheable(reasons.NESTED)
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if math.isfinite(value) else ["f", struct.pack(">d", value).hex()]
    if isinstance(value, torch.Tensor):
        return _tensor(value, tensors)
    if kind in (list, tuple):
        return ["l" if kind is list else "u", *(_to_json(v, tensors, depth + 1) for v in value)]
    if kind is dict:
        if not all(type(name) is str for name in value):
            raise NotCacheable(reasons.KEYS)
        return ["d", *([name, _to_json(v, tensors, depth + 1)] for name, v in value.items())]
    raise NotCacheable(reasons.CLASS.of(name=kind.__name__))


def _tensor(value: torch.Tensor, tensors: list[torch.Tensor]) -> list[object]:
    if type(value) is not torch.Tensor:
        raise NotCacheable(reasons.TENSOR_CLASS.of(name=type(value).__name__))
    if value.dtype not in DTYPES:
        raise NotCacheable(reasons.TENSOR_DTYPE.of(dtype=str(value.dtype)))
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
    tensors.append(value)
    return leaf


# and back


def _from_json(tree: Any, tensors: list[torch.Tensor], used: set[int], depth: int) -> Any:
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
        return [_from_json(v, tensors, used, depth + 1) for v in rest]
    if tag == "u":
        return tuple(_from_json(v, tensors, used, depth + 1) for v in rest)
    if tag == "d":
        made = {_name(name): _from_json(v, tensors, used, depth + 1) for name, v in rest}
        if len(made) != len(rest):
            raise CorruptEntry("with a name twice")
        return made
    raise CorruptEntry("with an unknown tag")


def _own(leaf: list[Any], tensors: list[torch.Tensor], used: set[int]) -> torch.Tensor:
    index, *order = leaf
    if type(index) is not int or index < 0 or index in used:
        raise CorruptEntry("with a tensor twice")
    used.add(index)
    tensor = tensors[index]
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
