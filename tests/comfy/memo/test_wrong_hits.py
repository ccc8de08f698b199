"""A hit must never be a value that something else computed: what was tried against the memo, each attempt with its whole kind."""

from __future__ import annotations

import enum
import functools
import os
import random
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.ldm.modules.attention
import comfy.model_management
import comfy.sd
import comfy.sd1_clip
import comfy.weight_adapter.lora
import folder_paths
import numpy
import pytest
import torch
from comfy_execution import cache_provider
from safetensors.torch import load_file, save_file

import nodes
from skipstone.core.memo.errors import NotCacheable
from skipstone.patch.memo import environment, fingerprint, modifications, snapshot, source_code
from skipstone.patch.memo.cache_provider import Provider
from skipstone.patch.memo.describe import description
from skipstone.patch.memo.device_tags import pack
from skipstone.patch.memo.encoders import memo_clip, memo_vae
from skipstone.tests.comfy.memo.test_nodes import latent, prompt, stock


@pytest.fixture
def provided(memo, shop):
    provider = Provider(lambda prompt_id: shop.prompt)
    cache_provider.register_cache_provider(provider)
    yield shop
    cache_provider.unregister_cache_provider(provider)


# names that come to mean another file while ComfyUI holds the old one (finding 1)


@pytest.fixture
def two_vaes(shop, tmp_path):
    """Two VAE files, old and new, outside of ComfyUI's folders, made before the process began."""
    weights = load_file(shop.models / "vae" / "demo.safetensors")
    files = []
    for name, factor in (("old", 1.0), ("new", 1.5)):
        files.append(tmp_path / f"{name}.safetensors")
        save_file({k: (v * factor).contiguous() for k, v in weights.items()}, files[-1])
    return files


def point_a_link_elsewhere(shop, old, new):
    link = shop.models / "vae" / "mine.safetensors"
    link.symlink_to(old)
    yield
    link.unlink()
    link.symlink_to(new)
    yield


def point_a_link_on_the_way_elsewhere(shop, old, new):
    for path in (old, new):
        (path.parent / path.stem).mkdir()
        os.link(path, path.parent / path.stem / "file.safetensors")
    current = old.parent / "current"
    current.symlink_to(old.parent / "old")
    (shop.models / "vae" / "mine.safetensors").symlink_to(current / "file.safetensors")
    yield
    current.unlink()
    current.symlink_to(old.parent / "new")
    yield


def delete_the_first_of_two(shop, old, new):
    second = old.parent / "more"
    second.mkdir()
    folders, kinds = folder_paths.folder_names_and_paths["vae"]
    shop._patch.setitem(folder_paths.folder_names_and_paths, "vae", ([*folders, str(second)], kinds))
    os.link(old, shop.models / "vae" / "mine.safetensors")
    os.link(new, second / "mine.safetensors")
    yield
    (shop.models / "vae" / "mine.safetensors").unlink()
    yield


def rename_the_folder(shop, old, new):
    folders, kinds = folder_paths.folder_names_and_paths["vae"]
    (old.parent / "first").mkdir()
    (old.parent / "second").mkdir()
    os.link(old, old.parent / "first" / "mine.safetensors")
    os.link(new, old.parent / "second" / "mine.safetensors")
    shop._patch.setitem(folder_paths.folder_names_and_paths, "vae", ([str(old.parent / "first"), *folders], kinds))
    yield
    (old.parent / "first").rename(old.parent / "away")
    (old.parent / "second").rename(old.parent / "first")
    yield


def put_another_file_there(shop, old, new):
    path = shop.models / "vae" / "mine.safetensors"
    os.link(old, path)
    yield
    os.replace(new, path)
    yield


SWAPS = [
    point_a_link_elsewhere,
    point_a_link_on_the_way_elsewhere,
    delete_the_first_of_two,
    rename_the_folder,
    put_another_file_there,
]


@pytest.mark.parametrize("swap", SWAPS)
@pytest.mark.parametrize("seen_before", [True, False])
@pytest.mark.parametrize("by", ["the lazy node", "the provider"])
def test_what_an_old_file_computed_is_never_kept_under_the_new_one(
    memo, shop, same, two_vaes, swap, seen_before, by, request
):
    if by == "the provider":
        request.getfixturevalue("provided")
    steps = swap(shop, *two_vaes)
    next(steps)
    shop.begin()  # the files are older than the process
    loader = ("VAELoader", {"vae_name": "mine.safetensors"})
    graph = latent(vae=loader) if by == "the lazy node" else _stock_of_plain_nodes(loader)
    # ComfyUI loads the old VAE; the memo looks at the name now, or only later
    shop.run(**(graph if seen_before else stock(latent(vae=loader))))
    memo.store.clear()
    next(steps)
    shop.run(**graph)  # ComfyUI may still have the old VAE
    shop.restart()
    again = shop.run(**graph)["it"]
    shop.restart()
    cache_provider_off(shop)
    truth = shop.run(**(stock(graph) if by == "the lazy node" else graph))["it"]
    assert shop.ran == ["VAELoader"]
    assert same(again, truth), shop.error


def cache_provider_off(shop):
    for provider in list(cache_provider._get_cache_providers()):
        cache_provider.unregister_cache_provider(provider)


def _stock_of_plain_nodes(loader):
    return {
        "picture": ("EmptyImage", {"width": 16, "height": 16, "batch_size": 1, "color": 0x336699}),
        "loader": loader,
        "encode": ("VAEEncode", {"pixels": ["picture", 0], "vae": ["loader", 0]}),
        "end": ("TestEnd", {"value": ["encode", 0], "name": "it"}),
    }


def test_a_folder_with_new_files_costs_no_hit_that_was_known(memo, shop):
    """Downloads into a folder stop learning, not looking up."""
    shop.run(**latent())
    (shop.models / "vae" / "downloaded.safetensors").write_bytes(b"")
    shop.restart()
    shop.run(**latent())
    assert shop.ran == []
    shop.restart()
    memo.store.clear()
    shop.run(**latent())
    shop.restart()
    shop.run(**latent())
    assert shop.ran == ["VAELoader"]
    assert any("changed since ComfyUI was started" in reason for reason in memo.not_kept)


def test_the_order_of_embedding_folders_is_in_the_key(memo, shop, same, monkeypatch):
    folders = [shop.models / "e1", shop.models / "e2"]
    for folder, value in zip(folders, (0.1, 0.2), strict=True):
        folder.mkdir()
        torch.save({"emb_params": torch.full((1, 768), value)}, folder / "style.pt")
    shop.begin()
    for order in (folders, folders[::-1]):
        monkeypatch.setitem(folder_paths.folder_names_and_paths, "embeddings", ([str(f) for f in order], {".pt"}))
        shop.restart()
        got = shop.run(**prompt("a embedding:style circle"))["it"]
        shop.restart()
        assert same(got, shop.run(**stock(prompt("a embedding:style circle")))["it"])


# large encoders (finding 2)


def edits(rows: int, columns: int) -> dict[str, Any]:
    def swap(w: torch.Tensor) -> None:
        w[[700, 900]] = w[[900, 700]]

    def swap_neighbours(w: torch.Tensor) -> None:
        w[[700, 701]] = w[[701, 700]]

    def put(place: Any, value: float) -> Any:
        return lambda w: w.__setitem__(place, w[place] + value)

    return {
        "one row": put(733, 0.01),
        "a head": put((slice(None), slice(128, 192)), 0.01),
        "one column": put((slice(None), 500), 0.001),
        "one element": put((733, 431), 0.5),
        "the last element": put((-1, -1), 0.5),
        "the sign of zero": lambda w: w[5].zero_().neg_(),
        "two rows swapped": swap,
        "two neighbours swapped": swap_neighbours,
        "two elements swapped": lambda w: w[10, [300, 301]].copy_(w[10, [301, 300]].clone()),
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.uint8])
def test_every_value_of_a_large_encoder_counts(monkeypatch, dtype):
    monkeypatch.setattr(fingerprint, "WHOLE", 0)
    monkeypatch.setattr(fingerprint, "BLOCK", 61)
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(1000, 640, generator=generator) * 3
    base = base.to(dtype) if dtype != torch.uint8 else base.abs().to(dtype)
    plain = fingerprint._read([("w", base)])
    for what, edit in edits(*base.shape).items():
        wide = base.to(torch.float32).clone()
        if what == "the sign of zero" and dtype == torch.uint8:
            continue
        before = wide.clone()
        edit(wide)
        changed = wide.to(dtype)
        if torch.equal(before.to(dtype).view(torch.uint8), changed.view(torch.uint8)):
            changed.view(torch.uint8)[733, 100] += 1  # too small a change for this type
        assert fingerprint._read([("w", changed)]) != plain, what
    assert fingerprint._read([("w", base.clone())]) == plain
    assert fingerprint._read([("w", base.mT.contiguous().mT)]) == plain, "wherever and however it lies"


def test_the_tail_and_odd_offsets_count(monkeypatch):
    monkeypatch.setattr(fingerprint, "WHOLE", 0)
    monkeypatch.setattr(fingerprint, "BLOCK", 61)
    square = 61 * 61 * 4  # elements
    flat = torch.arange(square * 2 + 61 * 4 * 3 + 777, dtype=torch.int64).to(torch.int16)
    held = torch.cat([flat[:3], flat])[3:]  # not where int64 would lie
    assert fingerprint._read([("w", held)]) == fingerprint._read([("w", flat)])
    seen = {fingerprint._read([("w", flat)])}
    for place in (0, square, square * 2 + 5, len(flat) - 777, len(flat) - 100, len(flat) - 1):
        other = flat.clone()
        other[place] += 1
        seen.add(fingerprint._read([("w", other)]))
    assert len(seen) == 7


def test_one_edited_token_of_a_large_clip_is_another(memo, make_clip, same, monkeypatch):
    monkeypatch.setattr(fingerprint, "WHOLE", 0)
    plain, edited = make_clip(), make_clip()
    edited.cond_stage_model.clip_l.transformer.text_model.embeddings.token_embedding.weight[1000] += 0.1
    assert fingerprint.of_clip(plain).digest != fingerprint.of_clip(edited).digest


# ComfyUI's code and what computes for it (finding 3)


@pytest.mark.parametrize("file", ["comfy/weight_adapter/lora.py", "comfy/quant_ops.py", "comfy/float.py", "comfy/clip_config_bigg.json",
                                  "comfy/text_encoders/llama.py", "comfy_extras/nodes_flux.py", "nodes.py"])  # fmt: skip
def test_all_of_comfyuis_source_is_part_of_it(tmp_path, monkeypatch, file):
    root = Path(source_code.comfyui_folder())
    for path in ("comfy/weight_adapter/lora.py", "comfy/ops.py", file):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes((root / path).read_bytes())
    monkeypatch.setattr(source_code, "process_start", lambda: float("inf"))
    before = source_code._digest_of(str(tmp_path), source_code.PARTS)
    (tmp_path / file).write_bytes((root / file).read_bytes() + b"\n")
    assert source_code._digest_of(str(tmp_path), source_code.PARTS) != before


def test_a_new_file_in_comfyui_is_part_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(source_code, "process_start", lambda: float("inf"))
    (tmp_path / "comfy").mkdir()
    before = source_code._digest_of(str(tmp_path), source_code.PARTS)
    (tmp_path / "comfy" / "new.py").write_text("")
    assert source_code._digest_of(str(tmp_path), source_code.PARTS) != before


def test_versions_of_kernels_are_part_of_it(monkeypatch):
    told = source_code.versions()
    assert any(line.startswith("comfy-kitchen ") for line in told) and any(line.startswith("triton ") for line in told)
    before = environment.environment_digest(torch.device("cpu"))
    monkeypatch.setattr(source_code, "versions", lambda: [*told, "sageattention 9"])
    assert environment.environment_digest(torch.device("cpu")) != before


# code that other packs put in the place of ComfyUI's (findings 4 and 5)


def patched_methods() -> list[Any]:
    sd1 = comfy.sd1_clip
    return [
        (
            sd1.SDTokenizer,
            "tokenize_with_weights",
            lambda old: lambda self, text, *a, **k: old(self, text + " !", *a, **k),
        ),
        (sd1, "token_weights", lambda old: lambda text, weight: [(t, 0.5 * w) for t, w in old(text, weight)]),
        (
            sd1.ClipTokenWeightEncoder,
            "encode_token_weights",
            lambda old: lambda self, t: (old(self, t)[0] * 2, *old(self, t)[1:]),
        ),
        (sd1.SDClipModel, "encode", lambda old: lambda self, tokens: old(self, tokens)),
    ]


@pytest.mark.parametrize("number", range(4))
def test_a_pack_that_patches_comfyui_between_two_starts(memo, shop, same, monkeypatch, number):
    """The Cached nodes compute again, as Memo CLIP does; without the pack the old value is there again."""
    graph = prompt("a (red:1.3) circle")
    plain = shop.run(**graph)["it"]
    where, name, change = patched_methods()[number]
    with monkeypatch.context() as pack:
        pack.setattr(where, name, change(getattr(where, name)))
        shop.restart()
        got = shop.run(**graph)["it"]
        assert shop.ran == ["CLIPLoader"]
        shop.restart()
        assert same(got, shop.run(**stock(graph))["it"])
    shop.restart()
    assert same(shop.run(**graph)["it"], plain) and shop.ran == []


@pytest.mark.parametrize("kind", ["VAE", "CLIP"])
def test_a_pack_that_patches_comfyui_and_the_provider(memo, provided, same, monkeypatch, kind):
    graph = _stock_of_plain_nodes(("VAELoader", {"vae_name": "demo.safetensors"})) if kind == "VAE" else stock(prompt())
    provided.run(**graph)
    provided.restart()
    provided.run(**graph)
    assert provided.ran == []
    if kind == "VAE":
        old = comfy.sd.VAE.encode
        monkeypatch.setattr(comfy.sd.VAE, "encode", lambda self, pixels: old(self, pixels) * 2)
    else:
        old = comfy.sd1_clip.SDTokenizer.tokenize_with_weights
        monkeypatch.setattr(
            comfy.sd1_clip.SDTokenizer, "tokenize_with_weights", lambda self, t, *a, **k: old(self, t + "!", *a, **k)
        )
    provided.restart()
    got = provided.run(**graph)["it"]
    assert provided.ran
    cache_provider_off(provided)
    provided.restart()
    assert same(got, provided.run(**graph)["it"])


def test_a_comfyui_as_it_comes_has_no_modified_code():
    assert modifications.modified_code() == []


def test_functions_of_comfyuis_modules_that_were_replaced(monkeypatch):
    seen = [environment.environment_digest(torch.device("cpu"))]
    attention = comfy.ldm.modules.attention
    for factor in (1.0, 2.0):
        with monkeypatch.context() as pack:
            pack.setattr(attention, "optimized_attention_for_device", lambda *a, f=factor, **k: f)
            seen.append(environment.environment_digest(torch.device("cpu")))
        with monkeypatch.context() as pack:
            pack.setattr(comfy.sd1_clip, "gen_empty_tokens", functools.partial(comfy.sd1_clip.gen_empty_tokens, factor))
            seen.append(environment.environment_digest(torch.device("cpu")))
    assert len(set(seen[:2] + seen[3:4])) == 3
    assert environment.environment_digest(torch.device("cpu")) == seen[0]


def test_modes_of_one_attention_wrapper(monkeypatch):
    def sage(mode):
        def attention(q, k, v, heads, **_):
            return (q, mode)

        return attention

    seen = []
    for mode in ("fp8", "int8"):
        monkeypatch.setattr(comfy.ldm.modules.attention, "optimized_attention", sage(mode))
        seen.append(environment.environment_digest(torch.device("cpu")))
    assert seen[0] != seen[1]


def test_the_code_of_a_function_exchanged_in_place(monkeypatch):
    def other(text, current_weight):
        return [(text, 2.0)]

    before = environment.environment_digest(torch.device("cpu"))
    monkeypatch.setattr(comfy.sd1_clip.token_weights, "__code__", other.__code__)
    assert environment.environment_digest(torch.device("cpu")) != before


# descriptions of callables and objects (finding 5)


class Mode(enum.Enum):
    A = 1
    B = 2


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value

    def __call__(self, x):
        return x * self.value


class Private:
    def __init__(self, value):
        self._value = value

    def method(self, x):
        return x * self._value

    def __call__(self, x):
        return x * self._value


class Static:
    FACTOR = 1.0

    @staticmethod
    def apply(x):
        return x


SCALE = 1.0
HELPERS: dict[str, Any] = {"scale": lambda x: x}


def scaled(x):
    return x * SCALE


def helped(x):
    return HELPERS["scale"](x)


def calls_scaled(x):
    return scaled(x)


def with_default(value):
    def function(x, *, factor=value):
        return x * factor

    return function


def with_positional(value):
    def function(x, factor=value):
        return x * factor

    return function


def closure_over(value):
    def function(x):
        return x, value

    return function


def attribute(value):
    def function(x):
        return x * function.factor  # type: ignore[attr-defined]

    function.factor = value  # type: ignore[attr-defined]
    return function


def pad_reflect(x):
    return torch.nn.functional.pad(x, (1, 1), mode="reflect")


def pad_circular(x):
    return torch.nn.functional.pad(x, (1, 1), mode="circular")


def with_global(name, value, function):
    """A copy of a function that reads another global."""
    return types.FunctionType(function.__code__, {**function.__globals__, name: value}, function.__name__)


def a_list_of(module_weight):
    conv = torch.nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        conv.weight.fill_(module_weight)
    return closure_over([conv])


def lazily(value):
    return lambda x: x if value else -x


DIFFERENT = {
    "what a method is bound to": (Private(1.0).method, Private(2.0).method),
    "string constants": (pad_reflect, pad_circular),
    "keyword defaults": (with_default(1.0), with_default(2.0)),
    "defaults": (with_positional(1.0), with_positional(2.0)),
    "globals": (with_global("SCALE", 1.0, scaled), with_global("SCALE", 2.0, scaled)),
    "helpers": (with_global("scaled", pad_reflect, calls_scaled), with_global("scaled", pad_circular, calls_scaled)),
    "helpers in a dict": (
        with_global("HELPERS", {"scale": pad_reflect}, helped),
        with_global("HELPERS", {"scale": pad_circular}, helped),
    ),
    "private attributes": (Private(1.0), Private(2.0)),
    "slots": (Slotted(1.0), Slotted(2.0)),
    "attributes of a function": (attribute(1.0), attribute(2.0)),
    "numpy numbers": (closure_over(numpy.float32(1)), closure_over(numpy.float32(2))),
    "numpy arrays": (closure_over(numpy.arange(3)), closure_over(numpy.arange(1, 4))),
    "dtypes of numpy": (closure_over(numpy.float32(1)), closure_over(numpy.float64(1))),
    "enums": (closure_over(Mode.A), closure_over(Mode.B)),
    "modules in lists": (a_list_of(1.0), a_list_of(2.0)),
    "tensors": (closure_over(torch.zeros(3)), closure_over(torch.ones(3))),
    "the end of a large tensor": (
        closure_over(torch.zeros(10_000)),
        closure_over(torch.cat([torch.zeros(9_000), torch.ones(1_000)])),
    ),
    "partials": (functools.partial(scaled, 1), functools.partial(scaled, 2)),
    "partials of methods": (functools.partial(Private(1).method, 1), functools.partial(Private(2).method, 1)),
    "inner functions": (lazily(True), lazily(False)),
    "dicts by value": (closure_over({"a": 1}), closure_over({"a": 2})),
    "dicts by order": (closure_over({"a": 1, "b": 2}), closure_over({"b": 2, "a": 1})),
    "sets": (closure_over({1, 2}), closure_over({1, 3})),
    "lists and tuples": (closure_over([1]), closure_over((1,))),
    "numbers and truth": (closure_over(1), closure_over(True)),
    "objects in objects": (Private(Private(1)), Private(Private(2))),
    "SimpleNamespace": (closure_over(SimpleNamespace(a=1)), closure_over(SimpleNamespace(a=2))),
    "built-in methods": ([1].append, [2].append),
    "dtypes": (closure_over(torch.float16), closure_over(torch.bfloat16)),
    "classes": (closure_over(Private), closure_over(Slotted)),
    "parts of an encoder": (closure_over(torch.nn.Linear(1, 1)), closure_over(torch.nn.Linear(1, 1))),
    "other functions of torch": (closure_over(torch.nn.functional.silu), closure_over(torch.nn.functional.gelu)),
}


@pytest.mark.parametrize("pair", DIFFERENT.values(), ids=DIFFERENT.keys())
def test_what_differs_is_described_differently(pair):
    one, other = pair
    assert description(one) != description(other)
    assert description(one) == description(one)


def test_equal_things_are_described_equally():
    for make in (
        lambda: Private(1.0).method,
        lambda: closure_over([Mode.A, numpy.arange(3)]),
        lambda: with_default(2.0),
        lambda: a_list_of(1.0),
    ):
        assert description(make()) == description(make())


def cyclic(n):
    made: Any = Private(n)
    made.itself = [made]
    return made


def test_cycles_are_described():
    assert description(cyclic(1)) == description(cyclic(1)) != description(cyclic(2))


def test_the_parts_of_an_encoder_stand_for_themselves():
    one, other = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    parts = {id(one): "a", id(other): "b"}
    assert description([one], parts) != description([other], parts)
    assert description([one], parts) == description([other], {id(other): "a"})


def reads_the_environment(x):
    return x * float(os.environ["SCALE"])


def reads_a_file(x):
    return x * float(open("scale").read())


def reads_any_global(x):
    return x * globals()["SCA" + "LE"]


def evaluates(x):
    return eval("x * SCALE")  # noqa: S307


def imports_as_it_runs(x):
    from skipstone.tests.comfy.memo import test_wrong_hits

    return x * test_wrong_hits.SCALE


class Opaque(numpy.ndarray):
    pass


REFUSED = {
    "the environment": reads_the_environment,
    "a file": reads_a_file,
    "globals by name": reads_any_global,
    "eval": evaluates,
    "imports": imports_as_it_runs,
    "an extension's object": closure_over(__import__("blake3").blake3(b"")),
    "an iterator": closure_over(iter([1, 2])),
    "a generator": closure_over(x for x in [1]),
    "a subclass of an array": closure_over(numpy.zeros(1).view(Opaque)),
    "an array of objects": closure_over(numpy.array([object()])),
    "too much": closure_over([[i, [i]] for i in range(60_000)]),
    "a random generator": closure_over(numpy.random.default_rng()),
    "an open file": closure_over(sys.stdout),
}


@pytest.mark.parametrize("value", REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_described_completely_is_refused(value):
    with pytest.raises(NotCacheable):
        description(value)


def replaced_methods(values):
    """Ways in which other packs change an encoder in place, with two settings each."""

    def bound(conv, value):
        conv._conv_forward = Private(value).method

    def private_attribute(conv, value):
        def forward(self, x):
            return torch.nn.functional.conv2d(x, self.weight, self.bias, self.stride, self.padding) * self._factor

        conv._factor = value
        conv.forward = types.MethodType(forward, conv)

    def comfys_prefix(conv, value):
        def forward(self, x):
            return torch.nn.functional.conv2d(x, self.weight, self.bias, self.stride, self.padding) * self.comfy_factor

        conv.comfy_factor = value
        conv.forward = types.MethodType(forward, conv)

    def other_class(conv, value):
        conv.__class__ = type("Scaled", (type(conv),), {"forward": with_positional(value)})

    def an_object_inside(conv, value):
        conv.config = SimpleNamespace(scale=SimpleNamespace(value=value))

    return {
        "bound": bound,
        "private": private_attribute,
        "prefix": comfys_prefix,
        "class": other_class,
        "object": an_object_inside,
    }


@pytest.mark.parametrize("way", ["bound", "private", "prefix", "class", "object"])
def test_an_encoder_changed_in_place_with_other_settings_is_another(make_vae, way):
    prints = []
    for value in (1.0, 2.0):
        vae = make_vae()
        replaced_methods(None)[way](vae.first_stage_model.encoder.conv_in, value)
        try:
            prints.append(fingerprint.of_vae(vae).digest)
        except NotCacheable as reason:
            prints.append(f"{reason} {value}")
    assert prints[0] != prints[1]


def test_settings_changed_on_one_and_the_same_object_are_noticed(make_vae):
    vae = make_vae()
    conv = vae.first_stage_model.encoder.conv_in
    conv.config = SimpleNamespace(scale={"values": [1.0]})
    seen = [fingerprint.of_vae(vae).digest]
    conv.config.scale["values"][0] = 2.0
    seen.append(fingerprint.of_vae(vae).digest)
    engine = Private(1.0)
    conv._conv_forward = engine.method
    seen.append(fingerprint.of_vae(vae).digest)
    engine._value = 2.0
    seen.append(fingerprint.of_vae(vae).digest)
    assert len(set(seen)) == 4


def _written(weight):
    weight.add_(0.001)


def _data_written(weight):
    weight.data.add_(0.001)


def _exchanged(weight):
    weight.data = weight + 0.001


def _narrowed(weight):
    weight.data = weight.to(torch.float16)


@pytest.mark.parametrize("write", [_written, _data_written, _exchanged, _narrowed], ids=lambda write: write.__name__)
@pytest.mark.parametrize("which", ["encoder.conv_in.weight", "encoder.mid.block_1.norm1.bias", "post_quant_conv.bias"])
def test_weights_written_to_after_they_were_read_are_others(make_vae, write, which):
    vae = make_vae()
    weight = vae.first_stage_model.get_parameter(which)
    before, held = fingerprint.of_vae(vae).digest, weight.data.clone()
    write(weight)
    assert fingerprint.of_vae(vae).digest != before
    weight.data = held
    assert fingerprint.of_vae(vae).digest == before


def test_a_parameter_in_the_place_of_another_and_transposed_ones_count(make_clip):
    clip = make_clip()
    layer = clip.cond_stage_model.clip_l.transformer.text_model.encoder.layers[1].mlp.fc1
    told = [fingerprint.of_clip(clip).digest]
    layer.weight = torch.nn.Parameter(layer.weight * 1.5, requires_grad=False)
    told.append(fingerprint.of_clip(clip).digest)
    layer.weight = torch.nn.Parameter(layer.weight.t().contiguous().t(), requires_grad=False)
    assert fingerprint.of_clip(clip).digest == told[1], "the same values"
    layer.weight.mul_(2)
    assert fingerprint.of_clip(clip).digest not in told


@pytest.mark.parametrize("inplace", [False, True])
def test_loading_patching_and_unloading_make_no_other_encoder(make_clip, monkeypatch, inplace):
    clip = make_clip()
    clip.patcher.weight_inplace_update = inplace
    clip.patcher.detach()
    patched = clip.clone()
    name = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    assert patched.add_patches({name: (torch.ones(64, 32),)}, 0.5) == [name]
    own, lora = fingerprint.of_clip(clip).digest, fingerprint.of_clip(patched).digest
    snapshot.note(clip)

    def never(*_):
        raise AssertionError("read again")

    monkeypatch.setattr(fingerprint, "_base", never)
    for one in (patched, clip, patched):
        comfy.model_management.load_models_gpu([one.patcher])
        assert [fingerprint.of_clip(c).digest for c in (clip, patched)] == [own, lora]
        assert not snapshot.is_changed(clip) and not snapshot.is_changed(patched)
    patched.patcher.detach()
    assert [fingerprint.of_clip(c).digest for c in (clip, patched)] == [own, lora]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("kind", ["clip", "vae"])
def test_loading_in_part_makes_no_other_encoder(make_clip, make_vae, monkeypatch, kind, share):
    """As where the device has too little memory: the other weights, patched or not, are cast when they are used."""
    encoder = make_clip() if kind == "clip" else make_vae()
    known = fingerprint.of_clip if kind == "clip" else fingerprint.of_vae
    patcher = encoder.patcher
    patcher.detach()
    before = known(encoder).digest
    snapshot.note(encoder)

    def never(*_):
        raise AssertionError("read again")

    monkeypatch.setattr(fingerprint, "_base", never)
    clone = patcher.clone()
    name = next(n for n, w in patcher.model.named_parameters() if n.endswith("weight") and w.dim() > 1)
    clone.add_patches({name: (torch.ones_like(patcher.model.get_parameter(name)),)}, 0.5)
    for one in (patcher, clone):
        one.patch_model(device_to=torch.device("cpu"), lowvram_model_memory=int(share * patcher.model_size()))
        cast = [m for m in patcher.model.modules() if getattr(m, "comfy_cast_weights", False)]
        assert cast or not share
        assert known(encoder).digest == before and not snapshot.is_changed(encoder)
        one.detach()
        assert known(encoder).digest == before and not snapshot.is_changed(encoder)


class Engine:
    """A pack's own weighting of words, put in the place of ComfyUI's for the time of one encoding (smZNodes)."""

    def __init__(self, inner, mean_norm):
        self.inner, self.mean_norm = inner, mean_norm

    def encode_token_weights(self, pairs):
        tokens = [[(t[0], 1.0) for t in chunk] for chunk in pairs]
        z, pooled = type(self.inner).encode_token_weights(self.inner, tokens)[:2]
        return (z * 0.5 if self.mean_norm else z), pooled


def test_a_prompt_engine_with_other_settings_never_gets_the_others_embedding(memo, make_clip, same):
    def encoded(clip, mean_norm):
        inner = clip.cond_stage_model.clip_l
        inner.encode_token_weights = Engine(inner, mean_norm).encode_token_weights
        try:
            return clip.encode_from_tokens(clip.tokenize("a (red:1.8) circle"), return_pooled=True, return_dict=True)[
                "cond"
            ]
        finally:
            del inner.encode_token_weights

    plain = make_clip()
    truths = {n: encoded(plain, n).clone() for n in (True, False)}
    assert not same(truths[True], truths[False])
    clip = memo_clip(plain)
    for _ in range(2):
        for n in (True, False):
            assert same(encoded(clip, n), truths[n])


def test_a_tokenizer_that_another_pack_changed_says_nothing_of_its_loader(memo, shop, same):
    from skipstone.patch.memo.lazy_encode import PendingPrompt

    clip = nodes.CLIPLoader().load_clip("tiny.pt", "stable_diffusion")[0]
    graph = {"a": {"class_type": "CLIPLoader", "inputs": {"clip_name": "tiny.pt", "type": "stable_diffusion"}}}
    tokenizer = clip.tokenizer.clip_l
    plain = tokenizer.tokenize_with_weights
    tokenizer.tokenize_with_weights = lambda text, *a, **k: plain(text + " !", *a, **k)
    PendingPrompt(graph.get, ["a", 0], "a red circle").encode(clip)
    assert not PendingPrompt(graph.get, ["a", 0], "a red circle").known()
    del tokenizer.tokenize_with_weights
    PendingPrompt(graph.get, ["a", 0], "a red circle").encode(clip)
    assert PendingPrompt(graph.get, ["a", 0], "a red circle").known()


# values that are not what they should be (findings 6, 7, 10)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_of_a_passing_fault_is_not_kept(memo, plain_vae, pixels, same, monkeypatch, bad):
    vae = memo_vae(plain_vae)
    truth = plain_vae.encode(pixels())
    with monkeypatch.context() as fault:
        whole = vae.first_stage_model.encode
        fault.setattr(vae.first_stage_model, "encode", lambda x: whole(x).index_fill_(1, torch.tensor([0]), bad))
        assert not vae.encode(pixels()).isfinite().all()
    assert memo.store.usage()["memory"] == {}
    assert same(vae.encode(pixels()), truth)
    assert any("NaN" in reason for reason in memo.not_kept)


def test_nan_and_the_provider(memo, provided, monkeypatch):
    graph = _stock_of_plain_nodes(("VAELoader", {"vae_name": "demo.safetensors"}))
    encode = nodes.VAEEncode.encode
    with monkeypatch.context() as fault:
        fault.setattr(
            nodes.VAEEncode,
            "encode",
            lambda self, pixels, vae: ({"samples": encode(self, pixels, vae)[0]["samples"] * float("nan")},),
        )
        provided.run(**graph)
    assert memo.store.usage()["memory"] == {}


def test_random_numbers_and_the_provider(memo, provided, monkeypatch):
    graph = _stock_of_plain_nodes(("VAELoader", {"vae_name": "demo.safetensors"}))
    encode = comfy.sd.VAE.encode
    for draw in (lambda x: torch.rand(1), lambda x: numpy.random.rand(), lambda x: random.random()):
        with monkeypatch.context() as changed:
            changed.setattr(
                comfy.sd.VAE, "vae_encode_crop_pixels", lambda self, pixels, draw=draw: (draw(1), pixels)[1]
            )
            provided.restart()
            provided.run(**graph)
    assert memo.store.usage()["memory"] == {}
    assert memo.not_kept.get("node: computed with random numbers") == 3, memo.not_kept
    assert encode is comfy.sd.VAE.encode


def test_tiles_for_want_of_memory_and_the_provider(memo, provided, monkeypatch):
    graph = _stock_of_plain_nodes(("VAELoader", {"vae_name": "demo.safetensors"}))
    calls = []

    def short_of_memory(*_, **__):
        calls.append(1)
        raise comfy.model_management.OOM_EXCEPTION("out of memory")

    with monkeypatch.context() as changed:
        changed.setattr(comfy.model_management, "load_models_gpu", short_of_memory)
        changed.setattr(comfy.sd.VAE, "encode_tiled_", _tiled_without_loading(comfy.sd.VAE.encode_tiled_))
        provided.run(**graph)
    assert calls
    assert memo.store.usage()["memory"] == {}


def _tiled_without_loading(function):
    def tiled(self, *args, **kwargs):
        return function(self, *args, **kwargs)

    return tiled


def test_tiles_that_were_asked_for_are_kept_by_the_provider(memo, provided):
    graph = _stock_of_plain_nodes(("VAELoader", {"vae_name": "demo.safetensors"}))
    graph["picture"][1].update(width=96, height=96)
    graph["encode"] = ("VAEEncodeTiled", {"pixels": ["picture", 0], "vae": ["loader", 0], "tile_size": 64, "overlap": 0,
                                          "temporal_size": 64, "temporal_overlap": 8})  # fmt: skip
    provided.run(**graph)
    assert provided.error is None and memo.counts("node") == (0, 1)
    provided.restart()
    provided.run(**graph)
    assert memo.counts("node") == (1, 1) and provided.ran == []


def _other_code(vae):
    vae.process_input = lambda image: image * 3.0


def _other_weights(vae):
    next(vae.first_stage_model.parameters()).mul_(3.0)


@pytest.mark.parametrize("bend", [_other_code, _other_weights])
def test_an_encoder_changed_in_place_and_the_provider(memo, provided, monkeypatch, bend):
    """Another pack's node that is not above ours may have written to the VAE that ComfyUI holds."""
    graph = _stock_of_plain_nodes(("VAELoader", {"vae_name": "demo.safetensors"}))
    load = nodes.VAELoader.load_vae

    def bent(self, *args, **kwargs):
        (vae,) = load(self, *args, **kwargs)
        snapshot.note(vae)
        bend(vae)
        return (vae,)

    with monkeypatch.context() as changed:
        changed.setattr(nodes.VAELoader, "load_vae", modifications.observer(load, bent))
        provided.run(**graph)
    assert "node: an encoder that another node changed in place" in memo.not_kept
    assert memo.store.usage()["memory"] == {}


LIES = {
    "whole numbers": lambda x: x.to(torch.int64),
    "another precision": lambda x: x.to(torch.float16),
    "more channels": lambda x: torch.cat([x, x], 1),
    "more dimensions": lambda x: x[:, :, None],
    "fewer dimensions": lambda x: x[0],
    "a batch of another size": lambda x: torch.cat([x, x]),
    "nothing": lambda x: x[:0],
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_hit_has_the_form_that_was_asked_for(memo, plain_vae, pixels, same, lie):
    vae = memo_vae(plain_vae)
    truth = vae.encode(pixels())
    (name,) = memo.store._near[0]._held
    memo.store.put(name, pack(lie(truth), {"cpu": torch.device("cpu")}), 1.0)
    assert same(vae.encode(pixels()), truth)


@pytest.mark.parametrize(
    "lie", [lie for name, lie in LIES.items() if name not in ("a batch of another size", "nothing")]
)
def test_a_lazy_hit_has_the_form_that_was_learned(memo, shop, same, lie):
    truth = shop.run(**latent())["it"]["samples"]
    (name,) = [n for n in memo.store._near[0]._held if n.kind == "vae"]
    memo.store.put(name, pack(lie(truth), {"output": torch.device("cpu")}), 1.0)
    shop.restart()
    assert same(shop.run(**latent())["it"]["samples"], truth) and shop.ran == ["VAELoader"]


@pytest.mark.parametrize("extra", [{"hooks": "x"}, {"area": [1, 2]}, {"strength": 2.0}, {"start_percent": 0.5}])
def test_a_hit_has_no_keys_that_no_text_encoder_gives(memo, make_clip, same, extra):
    clip = memo_clip(make_clip())
    tokens = clip.tokenize("a red circle")
    truth = clip.encode_from_tokens_scheduled(tokens)
    (name,) = memo.store._near[0]._held
    told = {"cond": truth[0][0], "pooled_output": truth[0][1]["pooled_output"], **extra}
    memo.store.put(name, pack(told, {"cpu": torch.device("cpu")}), 1.0)
    assert same(clip.encode_from_tokens_scheduled(tokens), truth)


@pytest.mark.parametrize(
    "lie",
    [
        lambda told: {**told, "cond": told["cond"].to(torch.int32)},
        lambda told: {**told, "pooled_output": "x"},
        lambda told: {**told, "cond": told["cond"][0, 0]},
    ],
)
def test_an_embedding_has_the_form_that_was_asked_for(memo, make_clip, same, lie):
    clip = memo_clip(make_clip())
    tokens = clip.tokenize("a red circle")
    truth = clip.encode_from_tokens_scheduled(tokens)
    (name,) = memo.store._near[0]._held
    told = {"cond": truth[0][0], "pooled_output": truth[0][1]["pooled_output"]}
    memo.store.put(name, pack(lie(told), {"cpu": torch.device("cpu")}), 1.0)
    assert same(clip.encode_from_tokens_scheduled(tokens), truth)
