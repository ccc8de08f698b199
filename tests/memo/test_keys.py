"""Names of content: equal content one name, different content different names, everywhere and always."""

import math

import pytest
import torch

from skipstone.core.memo.errors import NotCacheable
from skipstone.core.memo.keys import Key, digest, key

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.uint8, torch.int64, torch.bool)

DIFFERENT: list[object] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2**70,
    0.0,
    -0.0,
    1.0,
    math.inf,
    math.nan,
    "",
    "1",
    "a",
    "None",
    b"",
    b"a",
    [],
    (),
    {},
    [[]],
    [None],
    [1, 2],
    [2, 1],
    [12],
    ["ab", "c"],
    ["a", "bc"],
    [["a"], "bc"],
    ["a", ["bc"]],
    {"a": 1},
    {"b": 1},
    {"a": 1, "b": 2},
    {"a": 2, "b": 1},
    torch.zeros(0),
    torch.zeros(0, 3),
    torch.zeros(3, 0),
    torch.zeros(()),
    torch.zeros(1),
    -torch.zeros(1),
    torch.zeros(2),
    torch.zeros(1, 2),
    torch.zeros(2, 1),
    torch.zeros(2, dtype=torch.float16),
    torch.zeros(2, dtype=torch.bfloat16),
    torch.zeros(2, dtype=torch.int32),
    torch.tensor([math.nan, 0.0]),
    [torch.zeros(1), torch.zeros(1)],
]


def test_what_differs_has_different_names():
    names = [digest(part) for part in DIFFERENT] + [digest(), digest(1, 2), digest([1], 2)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("part", DIFFERENT, ids=repr)
def test_a_name_is_the_same_twice(part):
    again = part.clone() if isinstance(part, torch.Tensor) else part
    assert digest(part) == digest(again)


def test_a_name_is_the_same_for_ever():
    """Another process, machine and version finds what this one kept: a new name needs a new FORMAT."""
    parts = ["a prompt", 1.0, {"b": (1, None), "a": [True, b"\0"]}, torch.arange(4, dtype=torch.int16).reshape(2, 2)]
    assert digest(*parts) == "36bc1e0ecfbf465566f836cca6a19b4576280404"


def test_the_order_of_a_dict_does_not_count():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_do_not_count(dtype):
    rows = torch.arange(24).reshape(1, 2, 3, 4).to(dtype)
    wide = torch.zeros(1, 2, 3, 8, dtype=dtype)
    wide[..., ::2] = rows
    for same in (rows.clone(memory_format=torch.channels_last), wide[..., ::2], rows.mT.contiguous().mT):
        assert digest(same) == digest(rows)
    assert digest(rows.mT) != digest(rows)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_bit_counts(dtype):
    tensor = torch.ones(3, 5, dtype=dtype)
    other = tensor.clone()
    other.view(torch.uint8)[1, -1] ^= 1
    assert digest(other) != digest(tensor)


def test_one_bit_of_a_large_picture_counts():
    picture = torch.rand(1, 512, 512, 3)
    name = digest(picture)
    picture.view(torch.int32)[0, 300, 200, 1] ^= 1
    assert digest(picture) != name


def test_parameters_and_inference_tensors_are_named_by_their_elements():
    values = torch.arange(3.0)
    with torch.inference_mode():
        inferred = torch.arange(3.0)
        assert digest(inferred) == digest(values)
    assert digest(torch.nn.Parameter(values)) == digest(values)
    assert digest(torch.arange(3.0, requires_grad=True) * 1) == digest(values)


def deep():
    nested: list[object] = []
    for _ in range(100):
        nested = [nested]
    return nested


@pytest.mark.parametrize(
    "part",
    [
        object(),
        {1, 2},
        {1: 2},
        torch.Size([1]),
        [lambda: None],
        torch.zeros(2, 2).to_sparse(),
        torch.zeros(2, device="meta"),
        deep(),
    ],
    ids=lambda part: type(part).__name__,
)
def test_what_is_not_pure_data_has_no_name(part):
    with pytest.raises(NotCacheable):
        digest({"a": [part]})


def test_kinds_do_not_share_names():
    assert key("vae", 1).digest != key("text", 1).digest
    assert str(key("vae", 1)) == f"vae/{key('vae', 1).digest}"


@pytest.mark.parametrize("kind", ["", "..", "a/b", "VAE", "a\n", "x" * 33, "a*"])
def test_a_key_is_safe_in_a_path(kind):
    with pytest.raises(ValueError, match="make keys with key"):
        key(kind, 1)
    with pytest.raises(ValueError, match="make keys with key"):
        Key("vae", "../" + "0" * 37)
