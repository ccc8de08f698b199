"""What ComfyUI's own nodes return survives a restart, where that is switched on, it is pure data, and its making is understood."""

from __future__ import annotations

import asyncio
import math

import folder_paths
import pytest
import torch
from comfy_execution import cache_provider
from safetensors.torch import load_file, save_file

import nodes
from skipstone.nodes import provider as registration
from skipstone.patch.memo import source_code
from skipstone.patch.memo.cache_provider import Provider
from skipstone.patch.memo.device_tags import pack


@pytest.fixture
def provided(memo, shop, monkeypatch):
    """Our provider in ComfyUI's executor."""
    provider = Provider(lambda prompt_id: shop.prompt)
    cache_provider.register_cache_provider(provider)
    yield shop
    cache_provider.unregister_cache_provider(provider)


def latent(color=0x336699, vae="demo.safetensors", **changed):
    return {
        "picture": ("EmptyImage", {"width": 16, "height": 16, "batch_size": 1, "color": color}),
        "loader": ("VAELoader", {"vae_name": vae}),
        "encode": ("VAEEncode", {"pixels": ["picture", 0], "vae": ["loader", 0]}),
        "end": ("TestEnd", {"value": ["encode", 0], "name": "it"}),
        **changed,
    }


def prompt(text="a red circle", **changed):
    return {
        "loader": ("CLIPLoader", {"clip_name": "tiny.pt", "type": "stable_diffusion"}),
        "encode": ("CLIPTextEncode", {"text": text, "clip": ["loader", 0]}),
        "end": ("TestEnd", {"value": ["encode", 0], "name": "it"}),
        **changed,
    }


def test_a_generated_text_survives_a_restart(memo, provided, monkeypatch):
    import comfy.sd
    from comfy_extras.nodes_textgen import TextGenerate

    from skipstone.tests.comfy.memo.test_more_encoders import SAMPLED, language_model

    TextGenerate.GET_SCHEMA()
    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "TextGenerate", TextGenerate)
    monkeypatch.setattr(TextGenerate, "RELATIVE_PYTHON_MODULE", "comfy_extras.nodes_textgen", raising=False)
    monkeypatch.setattr(comfy.sd, "load_clip", lambda *args, **kwargs: language_model())

    def graph(seed):
        how = {f"sampling_mode.{name}": value for name, value in SAMPLED.items() if name != "sampling_mode"}
        inputs = {"clip": ["loader", 0], "prompt": "a dog", "max_length": 6, "sampling_mode": "on", **how}
        return prompt(encode=("TextGenerate", {**inputs, "sampling_mode.seed": seed}))

    truth = provided.run(**graph(1))
    assert provided.error is None and isinstance(truth["it"], str)
    assert provided.ran == ["CLIPLoader"]
    provided.restart()
    assert provided.run(**graph(1)) == truth and provided.ran == []
    assert provided.run(**graph(2))["it"] != "" and provided.ran == ["CLIPLoader"]
    assert memo.counts("node") == (1, 2)


@pytest.mark.parametrize(("graph", "loader"), [(latent, "VAELoader"), (prompt, "CLIPLoader")])
def test_it_survives_a_restart_with_no_change_to_the_graph(memo, provided, loads, same, graph, loader):
    truth = provided.run(**graph())["it"]
    assert provided.ran == [loader]
    provided.restart()
    loads.clear()
    assert same(provided.run(**graph())["it"], truth)
    assert provided.ran == [] and not loads
    assert memo.counts("node") == (1, 1)
    assert memo.store.report()["saved_seconds"] > 0


def test_the_graph_may_write_to_it(provided, same, monkeypatch):
    """Also the nodes that run before ComfyUI comes to hand the value over."""
    truth = provided.run(**latent())["it"]["samples"].clone()
    for _ in range(2):
        provided.restart()
        provided.run(**latent())["it"]["samples"].zero_()
    provided.restart()
    assert same(provided.run(**latent())["it"]["samples"], truth)


def test_other_constants_are_other_results(provided, same):
    for graph in (latent(1), latent(2), prompt("a"), prompt("b")):
        provided.restart()
        provided.run(**graph)
        assert provided.ran


def test_what_is_no_pure_data_is_not_kept(memo, provided, monkeypatch):
    encode = nodes.CLIPTextEncode.encode

    def with_hooks(self, clip, text):
        ((cond, rest),) = encode(self, clip, text)[0]
        return ([[cond, {**rest, "hooks": object()}]],)

    monkeypatch.setattr(nodes.CLIPTextEncode, "encode", with_hooks)
    for _ in range(2):
        provided.restart()
        assert "hooks" in provided.run(**prompt())["it"][0][1]
        assert provided.ran == ["CLIPLoader"]
    assert memo.not_kept == {"node: something else than the node's outputs, or with unknown keys": 2}


def test_models_and_all_other_nodes_are_let_alone(memo, provided):
    provided.run(**latent())
    assert sum(u.entries for u in memo.store.usage()["memory"].values()) == 1


@pytest.mark.parametrize(
    "what", ["another pack's node above", "another pack's loader", "a source of which nothing is known"]
)
def test_what_is_not_understood_is_not_kept(memo, provided, monkeypatch, what):
    graph = latent()
    if what == "another pack's node above":
        graph = latent(
            other=("TestPass", {"value": ["loader", 0]}),
            encode=("VAEEncode", {"pixels": ["picture", 0], "vae": ["other", 0]}),
        )
    elif what == "another pack's loader":

        class VAELoader(nodes.VAELoader):
            pass

        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "VAELoader", VAELoader)
    else:

        class EmptyImage(nodes.EmptyImage):
            pass

        EmptyImage.__module__ = "nodes"
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "FolderImage", EmptyImage)
        graph = latent(picture=("FolderImage", graph["picture"][1]))
    for _ in range(2):
        provided.restart()
        provided.run(**graph)
        assert provided.ran == ["VAELoader"], provided.error
    assert memo.store.usage()["memory"] == {}


def test_a_file_with_another_content_under_the_same_name(provided, same, monkeypatch):
    """Which ComfyUI's own key does not see."""
    monkeypatch.setattr(source_code, "process_start", lambda: math.inf)
    path = provided.models / "vae" / "mine.safetensors"
    weights = load_file(provided.models / "vae" / "demo.safetensors")
    results = []
    for factor in (1.0, 1.5):
        save_file({k: (v * factor).contiguous() for k, v in weights.items()}, path)
        for expected in (["VAELoader"], []):
            provided.restart()
            results.append(provided.run(**latent(vae="mine.safetensors"))["it"])
            assert provided.ran == expected
    assert same(results[0], results[1]) and same(results[2], results[3]) and not same(results[0], results[2])


def test_a_file_younger_than_the_process_is_not_trusted(memo, provided):
    path = provided.models / "vae" / "mine.safetensors"
    save_file(load_file(provided.models / "vae" / "demo.safetensors"), path)
    for _ in range(2):
        provided.restart()
        provided.run(**latent(vae="mine.safetensors"))
        assert provided.ran == ["VAELoader"]
    assert memo.store.usage()["memory"] == {}


def test_a_garbled_entry_is_a_miss(memo, provided, same):
    truth = provided.run(**latent())["it"]
    (name,) = memo.store._near[0]._held
    garbled = [3, [], [truth], [[truth], [truth]], [3], [{}], [[3]], [[{"samples": 3}]], [["x"]]]
    for wrong in (
        *(pack(v, {"intermediate": torch.device("cpu")}) for v in garbled),
        [1, 2],
        {"value": [torch.zeros(1)], "places": ["moon"]},
    ):
        memo.store.put(name, wrong, 0.0)
        for loaded in (["VAELoader"], []):  # and is replaced
            provided.restart()
            got = provided.run(**latent())
            assert provided.error is None and same(got["it"], truth) and provided.ran == loaded


# whether it is wanted


@pytest.mark.parametrize(
    ("said", "settings", "wanted"),
    [
        (None, None, False),
        ("1", None, True),
        ("0", {"Skipstone.Provider": True}, False),
        (None, {"Skipstone.Provider": True}, True),
        (None, {"Skipstone.Provider": "perhaps"}, False),
        (None, "{ no JSON", False),
        (None, ["a list"], False),
    ],
)
def test_it_is_off_unless_switched_on(monkeypatch, tmp_path, said, settings, wanted):
    import json

    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))
    monkeypatch.delenv("SKIPSTONE_PROVIDER", raising=False)
    if said is not None:
        monkeypatch.setenv("SKIPSTONE_PROVIDER", said)
    if settings is not None:
        (tmp_path / "default").mkdir()
        text = settings if isinstance(settings, str) else json.dumps(settings)
        (tmp_path / "default" / "comfy.settings.json").write_text(text)
    before = cache_provider._get_cache_providers()
    assert asyncio.run(registration.register()) is wanted
    added = [p for p in cache_provider._get_cache_providers() if p not in before]
    assert len(added) == wanted
    for provider in added:
        cache_provider.unregister_cache_provider(provider)
