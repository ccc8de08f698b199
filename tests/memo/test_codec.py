"""Values as bytes: bit-equal when they come back, and nothing but a miss when they are not what they should be."""

import json
import math
import pickle
import struct

import pytest
import torch
from blake3 import blake3
from safetensors.torch import load, save

from skipstone.core.memo import codec
from skipstone.core.memo.codec import DTYPES, MAGIC, PREFIX, Entry, decode, encode, plausible
from skipstone.core.memo.errors import CorruptEntry, NotCacheable
from skipstone.core.memo.keys import key

KEY = key("test", "a value")


def there_and_back(value, **options):
    return decode(KEY, encode(KEY, Entry(value, 1.5, 1e9)), **options).value


def same(a, b):
    """Equal to the bit: types, names in their order, dtypes, shapes, layouts, NaNs."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        alike = a.dtype == b.dtype and a.shape == b.shape
        return alike and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b)
    return a == b


VALUES = [
    True,
    False,
    0,
    -(2**65),
    0.1,
    -0.0,
    5e-324,
    math.inf,
    -math.inf,
    math.nan,
    struct.unpack(">d", bytes.fromhex("fff8000000000123"))[0],
    "",
    "zß水🍌\0\n\ud800",
    [],
    (),
    {},
    [None, [None], (None,), {"": None}],
    {"b": 1, "a": 2, "__metadata__": 3, "0": "t"},
    ["t", 0],
    ["d", ["a", 1]],
    torch.zeros(0, 16, 3),
    torch.tensor(7),
    torch.tensor([math.nan, math.inf, -0.0]),
    [[torch.rand(1, 77, 32), {"pooled_output": torch.rand(1, 32), "attention_mask": None, "guidance": 3.5}]],
    {"samples": torch.rand(1, 4, 8, 8), "noise_mask": torch.rand(1, 1, 8, 8), "batch_index": [0, 1], "type": "audio"},
]


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("value", VALUES, ids=[f"{i}: {type(v).__name__}" for i, v in enumerate(VALUES)])
def test_values_come_back_to_the_bit(value, verify):
    assert same(there_and_back(value, verify=verify), value)


@pytest.mark.parametrize("dtype", sorted(DTYPES, key=str), ids=str)
def test_every_dtype_comes_back_to_the_bit(dtype):
    size = torch.empty(0, dtype=dtype).element_size()
    bits = torch.randint(0, 2 if dtype == torch.bool else 256, (3, 4 * size), dtype=torch.uint8).view(dtype)
    assert same(there_and_back([bits, bits[0, 0]]), [bits, bits[0, 0]])


def test_layouts_come_back():
    rows = torch.rand(2, 3, 4, 5)
    last = rows.clone(memory_format=torch.channels_last)
    back = there_and_back([rows, last, rows.mT, rows.permute(3, 1, 0, 2), rows[:, ::2], rows[:1].expand(7, 3, 4, 5)])
    assert [t.stride() for t in back[:4]] == [t.stride() for t in (rows, last, rows.mT, rows.permute(3, 1, 0, 2))]
    assert same(back, [rows, last, rows.mT, rows.permute(3, 1, 0, 2), rows[:, ::2], rows[:1].expand(7, 3, 4, 5)])


def test_views_of_one_memory_come_back_as_values_of_their_own():
    one = torch.rand(4, 4)
    back = there_and_back([one, one, one[1:], one.view(torch.int32)])
    assert same(back, [one, one, one[1:], one.view(torch.int32)])
    back[0].zero_()
    assert same(back[1:], [one, one[1:], one.view(torch.int32)])


def test_what_is_kept_is_nobodys_alias():
    value = torch.ones(64)
    data = encode(KEY, Entry(value, 0.0, 0.0))
    value.zero_()
    decode(KEY, data).value.zero_()
    assert decode(KEY, data).value.sum() == 64


@pytest.mark.parametrize("name", ["", "a", "abc", "abcdefg"])
def test_what_comes_back_lies_in_memory_as_torch_lays_it(name):
    """Kernels may round differently where memory is aligned differently."""
    back = there_and_back({name: [torch.rand(n, dtype=torch.float16) for n in (1, 3, 5, 100)]})[name]
    assert [t.data_ptr() % 64 for t in back] == [0] * 4


def test_inference_and_gradient_tensors_are_kept_as_their_elements():
    with torch.inference_mode():
        inferred = torch.ones(3)
        assert same(there_and_back(inferred), torch.ones(3))
    back = there_and_back(torch.ones(3, requires_grad=True) * 1)
    assert not back.requires_grad
    assert same(back, torch.ones(3))


def test_times_come_back():
    entry = decode(KEY, encode(KEY, Entry("x", 12.25, 1.7e9)))
    assert (entry.cost, entry.created) == (12.25, 1.7e9)


def test_anyone_can_read_the_rest_as_safetensors():
    data = encode(KEY, Entry({"samples": torch.arange(3.0)}, 0.0, 0.0))
    assert torch.equal(load(data[PREFIX:])["0"], torch.arange(3.0))


class Odd(torch.Tensor):
    pass


def deep():
    nested: list[object] = []
    for _ in range(100):
        nested = [nested]
    return nested


@pytest.mark.parametrize(
    "value",
    [
        object(),
        {1, 2},
        {1: 2},
        b"bytes",
        torch.Size([1]),
        print,
        10**5000,
        "x" * (9 << 20),
        torch.zeros(2).as_subclass(Odd),
        torch.nn.Parameter(torch.zeros(2)),
        torch.zeros(2, 2).to_sparse(),
        torch.zeros(2, device="meta"),
        torch.zeros(2, dtype=torch.complex128),
        deep(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_pure_data_is_refused_with_a_reason(value):
    with pytest.raises(NotCacheable, match=r"\w"):
        encode(KEY, Entry({"a": [1, value]}, 0.0, 0.0))


def test_what_is_larger_than_an_entry_may_be_is_refused(monkeypatch):
    monkeypatch.setattr(codec, "LARGEST", 8)
    encode(KEY, Entry([torch.zeros(1), torch.zeros(1)], 0.0, 0.0))
    with pytest.raises(NotCacheable, match="GB"):
        encode(KEY, Entry([torch.zeros(1), torch.zeros(2)], 0.0, 0.0))


# what is not an entry, or not ours


def good():
    return encode(KEY, Entry({"samples": torch.arange(6.0).reshape(2, 3), "more": [1, None]}, 1.0, 1e9))


def sealed(body):
    """A body with the digest that belongs to it: what a hostile writer would make."""
    return MAGIC + blake3(body).digest() + body


def forged(tree, tensors=None, **changes):
    about = {"format": 1, "key": str(KEY), "cost": 1.0, "created": 1.0, "value": tree} | changes
    return sealed(save(tensors or {}, {"skipstone": json.dumps(about)}))


def safetensors(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return sealed(struct.pack("<Q", len(text) if length is None else length) + text + data)


def about(tree):
    return {"skipstone": json.dumps({"format": 1, "key": str(KEY), "cost": 1, "created": 1, "value": tree})}


def tensor(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


ONE = {"0": torch.zeros(1)}
HOSTILE = {
    "nothing": b"",
    "a byte": b"S",
    "zeros": bytes(4096),
    "text": b"<html>404</html>" * 99,
    "pickle": pickle.dumps({"samples": [1]}),
    "pickle in disguise": sealed(pickle.dumps({"samples": [1]})),
    "a torch file": MAGIC + b"PK\x03\x04" * 64,
    "plain safetensors": save(ONE, {"skipstone": "{}"}),
    "a header of 2^63 bytes": safetensors(b"{}", length=2**63),
    "a header longer than the file": safetensors(b"{}", length=100),
    "a header that is longer than we read": safetensors(b" " * (17 << 20)),
    "no header": sealed(b""),
    "a header that is no JSON": safetensors(b"{" * 50),
    "a header that is a list": safetensors([1]),
    "a header nested deep": safetensors(b"[" * 100_000),
    "no metadata": sealed(save(ONE)),
    "another's metadata": sealed(save(ONE, {"format": "pt"})),
    "metadata nested deep": sealed(save({}, {"skipstone": "[" * 100_000})),
    "a tensor past the end": safetensors({"__metadata__": about(["t", 0]), "0": tensor()}),
    "a hole between tensors": safetensors({"__metadata__": about(["t", 0]), "0": tensor(offsets=(4, 8))}, bytes(8)),
    "a shape that overflows": safetensors(
        {"__metadata__": about(["t", 0]), "0": tensor(shape=(2**62, 2**62, 16))}, bytes(4)
    ),
    "an empty shape that overflows": safetensors(
        {"__metadata__": about(["t", 0]), "0": tensor(shape=(0, 2**62, 2**62), offsets=(0, 0))}
    ),
    "a shape that its bytes do not fill": safetensors(
        {"__metadata__": about(["t", 0]), "0": tensor(shape=(2,))}, bytes(4)
    ),
    "bytes after the last tensor": safetensors({"__metadata__": about(["t", 0]), "0": tensor()}, bytes(8)),
    "a negative shape": safetensors({"__metadata__": about(["t", 0]), "0": tensor(shape=(-1,))}, bytes(4)),
    "an unknown dtype": safetensors({"__metadata__": about(["t", 0]), "0": tensor(dtype="PICKLE")}, bytes(4)),
    "more after the end": good() + b"\0",
    "an unknown tag": forged(["eval", "1"]),
    "no tag": forged([]),
    "a dict": forged({"a": 1}),
    "a tag that is a list": forged([["l"]]),
    "a tensor that is not there": forged(["t", 0]),
    "a tensor before the first": forged(["t", -1], ONE),
    "a tensor's name": forged(["t", "0"], ONE),
    "a tensor twice": forged(["l", ["t", 0], ["t", 0]], ONE),
    "a tensor too many": forged(None, ONE),
    "tensors of other names": forged(["t", 0], {"../../x": torch.zeros(1)}),
    "axes that do not fit": forged(["t", 0, [1, 0]], ONE),
    "axes twice": forged(["t", 0, [0, 0]], {"0": torch.zeros(1, 1)}),
    "a float of 3 bytes": forged(["f", "000000"]),
    "a float that is no hex": forged(["f", "zz" * 8]),
    "a name that is no string": forged(["d", [1, 2]]),
    "a name twice": forged(["d", ["a", 1], ["a", 2]]),
    "a pair of three": forged(["d", ["a", 1, 2]]),
    "nested deep": forged(deep()),
    "an older format": forged(1, format=0),
    "a newer format": forged(1, format=99),
    "another key": forged(1, key=str(key("test", "another value"))),
    "a path for a key": forged(1, key="../../etc/passwd"),
    "a cost below zero": forged(1, cost=-1),
    "an endless cost": sealed(save({}, {"skipstone": about(1)["skipstone"].replace('"cost": 1', '"cost": 1e999')})),
    "a cost that is a string": forged(1, cost="1"),
    "a NaN": forged(math.nan),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("verify", [True, False])
def test_what_is_not_an_entry_is_broken_and_nothing_worse(data, verify):
    with pytest.raises(CorruptEntry):
        decode(KEY, data, verify=verify)


def test_forgeries_differ_from_entries_in_what_they_forge_alone():
    assert decode(KEY, forged(["l", ["t", 0], ["f", "7ff8000000000000"]], ONE)).value[0].item() == 0
    assert decode(KEY, safetensors({"__metadata__": about(["t", 0]), "0": tensor()}, bytes(4))).value.item() == 0


def test_every_truncation_is_broken():
    data = good()
    for length in range(len(data)):
        with pytest.raises(CorruptEntry):
            decode(KEY, data[:length])


def test_every_damaged_byte_is_noticed():
    data = good()
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 0x10
        with pytest.raises(CorruptEntry):
            decode(KEY, damaged)


def test_what_cannot_be_an_entry_is_told_by_its_beginning():
    data = good()
    assert plausible(data[:48], len(data))
    assert not plausible(bytes(48), len(data))
    assert not plausible(data[:47], len(data))
    assert not plausible(data[:48], 60)
