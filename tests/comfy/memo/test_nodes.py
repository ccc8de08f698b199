"""The memo's nodes in ComfyUI's own executor: a hit needs no encoder, and inputs that cannot be identified are not cached."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import nodes
from skipstone.core.memo.codec import Entry
from skipstone.core.memo.store import Found, Store
from skipstone.core.memo.tiers.disk import DiskTier
from skipstone.core.memo.tiers.memory import MemoryTier
from skipstone.nodes import memo as memo_nodes
from skipstone.patch.memo import graph_signature, lazy_encode, node_status, snapshot, source_code
from skipstone.patch.memo import instance as process
from skipstone.patch.memo.lazy_encode import PendingLatent, PendingPrompt
from skipstone.patch.memo.modifications import modified_code


def latent(seed=1, vae=("VAELoader", {"vae_name": "demo.safetensors"}), **between):
    return {
        "picture": ("TestPicture", {"seed": seed}),
        "loader": vae,
        **between,
        "encode": (
            "SkipstoneCachedVAEEncode",
            {"image": ["picture", 0], "vae": [next(reversed(between), "loader"), 0]},
        ),
        "end": ("TestEnd", {"value": ["encode", 0], "name": "it"}),
    }


def prompt(text="a red circle", **between):
    last = next(reversed(between), "loader")
    output = 1 if between and between[last][0] == "LoraLoader" else 0
    return {
        "loader": ("CLIPLoader", {"clip_name": "tiny.pt", "type": "stable_diffusion"}),
        **between,
        "encode": ("SkipstoneCachedTextEncode", {"text": text, "clip": [last, output]}),
        "end": ("TestEnd", {"value": ["encode", 0], "name": "it"}),
    }


def stock(graph):
    """The same graph with ComfyUI's own encode node."""
    kind, inputs = graph["encode"]
    if kind == "SkipstoneCachedTextEncode":
        return {**graph, "encode": ("CLIPTextEncode", inputs)}
    return {**graph, "encode": ("VAEEncode", {"pixels": inputs["image"], "vae": inputs["vae"]})}


@pytest.fixture
def later(monkeypatch):
    """Files of this test count as older than the process."""
    monkeypatch.setattr(source_code, "process_start", lambda: math.inf)


def test_a_known_latent_needs_no_loader(memo, shop, loads, same):
    truth = shop.run(**stock(latent()))["it"]
    shop.restart()
    first = shop.run(**latent())["it"]
    assert shop.ran == ["VAELoader"] and same(first, truth)
    shop.restart()
    loads.clear()
    again = shop.run(**latent())["it"]
    assert shop.ran == [] and not loads and same(again, truth)
    assert memo.counts("vae") == (1, 1)


def test_a_known_prompt_needs_no_loader(memo, shop, loads, same):
    truth = shop.run(**stock(prompt()))["it"]
    shop.restart()
    assert same(shop.run(**prompt())["it"], truth) and shop.ran == ["CLIPLoader"]
    shop.restart()
    loads.clear()
    assert same(shop.run(**prompt())["it"], truth) and shop.ran == [] and not loads
    assert memo.counts("text") == (1, 1)


@pytest.fixture
def shown(monkeypatch):
    """Texts on nodes, as (node, text)."""
    texts: list[tuple[str, str]] = []
    for module in (node_status, memo_nodes):
        monkeypatch.setattr(module, "show_text", lambda text, node: texts.append((node, text)))
    return texts


def test_encode_nodes_show_the_source_of_their_value(memo, shop, shown):
    for graph in (latent(), prompt()):
        shop.run(**graph)
        shop.restart()
        shop.run(**graph)
        first, second, third = (text for node, text in shown if node == "encode")
        assert first == "Encoding: not in the cache"
        assert re.fullmatch(r"Encoded in \d+(\.\d)? s, saved for next time", second)
        assert re.match(r"From memory in \d+\.\d ms", third)
        shown.clear()


@pytest.mark.parametrize("kind", ["SkipstoneMemoVAE", "SkipstoneMemoCLIP"])
def test_patching_nodes_show_the_source_of_what_is_encoded_behind_them(memo, shop, shown, kind):
    between: dict[str, Any] = {"cached": (kind, {kind[len("SkipstoneMemo") :].lower(): ["loader", 0]})}
    graph = stock((latent if kind == "SkipstoneMemoVAE" else prompt)(**between))
    other = "picture" if kind == "SkipstoneMemoVAE" else "encode"
    shop.run(**graph)
    assert [node for node, _ in shown] == ["cached"] * 2
    assert re.fullmatch(r"Encoded in \d+(\.\d)? s, saved for next time", shown[-1][1])
    shop.restart()
    shop.run(**graph)
    assert re.match(r"From memory in \d+\.\d ms", shown[-1][1])
    # one prompt with two results, of which one is new
    shop.restart()
    told, inputs = graph[other]
    new = (told, {**inputs, **({"seed": 7} if other == "picture" else {"text": "another"})})
    graph["other"] = new if other == "encode" else ("VAEEncode", {"pixels": ["new", 0], "vae": ["cached", 0]})
    if other == "picture":
        graph["new"] = new
    shop.run(**graph, last=("TestEnd", {"value": ["other", 0], "name": "other"}))
    assert shown[-1][0] == "cached" and shown[-1][1].startswith("1 of 2 from the cache")


def test_a_result_that_is_not_kept_is_shown_with_the_reason(memo, shown, monkeypatch):
    status = node_status.NodeStatus("7")
    status.computed(12.34, "a VAE given something of class dict")
    assert shown == [("7", "Encoded in 12 s, not cached: a VAE given something of class dict")]


def test_the_time_that_was_saved_is_shown(shown, monkeypatch):
    current = ["one"]
    monkeypatch.setattr(node_status, "prompt_id", lambda: current[0])
    status = node_status.NodeStatus("7")
    entry = Entry(None, cost=7.0, created=0.0)
    for seconds in (0.0004, 0.0002):
        status.found(Found("disk", entry, seconds))
    assert shown[-1][1] == "2 from disk in 0.6 ms, 14 s saved"
    current[0] = "two"
    status.found(Found("memory", entry, 0.0001))
    assert shown[-1][1] == "From memory in 0.1 ms, 7.0 s saved"


def test_another_picture_of_the_same_loader_runs_it(memo, shop, same):
    shop.run(**latent(1))
    shop.restart()
    other = shop.run(**latent(2))["it"]
    assert shop.ran == ["VAELoader"]
    assert same(other, shop.run(**stock(latent(2)))["it"])


def test_the_memo_nodes_and_the_cached_ones_share_what_they_know(memo, shop, same):
    """Memo VAE before VAE Encode fills it, and Cached VAE Encode with a Memo VAE before it is still lazy."""
    memoed = {"memo": ("SkipstoneMemoVAE", {"vae": ["loader", 0], "decode": False})}
    shop.run(**stock(latent(1, **memoed)))
    shop.run(**latent(2))
    shop.restart()
    told = shop.run(**latent(1, **memoed))
    assert shop.ran == []  # the loader was learned with the other picture
    assert same(told["it"], shop.run(**stock(latent(1)))["it"])


def test_what_is_done_to_the_clip_on_the_way(memo, shop, later, same):
    """Clip skip and LoRAs are part of what a loader makes; each is right the first time and lazy the second."""
    generator = torch.Generator().manual_seed(0)
    name, lora = "lora_te_text_model_encoder_layers_1_mlp_fc", {}
    for part, rows, columns in (("1", 64, 32), ("2", 32, 64)):
        lora[f"{name}{part}.lora_up.weight"] = torch.randn(rows, 2, generator=generator)
        lora[f"{name}{part}.lora_down.weight"] = torch.randn(2, columns, generator=generator)
    save_file(lora, shop.models / "loras" / "one.safetensors")
    save_file({k: v * 2 for k, v in lora.items()}, shop.models / "loras" / "two.safetensors")

    def with_lora(name, strength, after="loader"):
        how = {
            "model": ["unet", 0],
            "clip": [after, 0],
            "lora_name": name,
            "strength_model": 1.0,
            "strength_clip": strength,
        }
        return {"lora": ("LoraLoader", how)}

    skip = {"skip": ("CLIPSetLastLayer", {"clip": ["loader", 0], "stop_at_clip_layer": -2})}
    unet = {"unet": ("TestPicture", {"seed": 0})}  # never asked for what it is
    graphs = [
        prompt(),
        prompt(**skip),
        prompt(skip=("CLIPSetLastLayer", {"clip": ["loader", 0], "stop_at_clip_layer": -3})),
        prompt(**with_lora("one.safetensors", 1.0)),
        prompt(**with_lora("one.safetensors", 0.5)),
        prompt(**with_lora("two.safetensors", 1.0)),
        prompt(**skip, **with_lora("one.safetensors", 1.0, "skip")),
    ]
    # a LoRA loader wants a model; one that is none is enough for its text encoder
    shop._patch.setattr(nodes.comfy.sd, "load_lora_for_models", _only_clip(nodes.comfy.sd.load_lora_for_models))
    truths = []
    for graph in graphs:
        shop.restart()
        truths.append(shop.run(**stock({**unet, **graph}))["it"])
    loras = [
        truths[i] for i in (0, 3, 4, 5)
    ]  # the demo's layers do next to nothing: skipping one is seen in the counts
    assert not any(same(a, b) for i, a in enumerate(loras) for b in loras[:i])
    for cached in (False, True):
        for graph, truth in zip(graphs, truths, strict=True):
            shop.restart()
            assert same(shop.run(**{**unet, **graph})["it"], truth), shop.error
            assert (shop.ran == []) == cached
    assert memo.counts("text") == (len(graphs), len(graphs))


def _only_clip(function):
    return lambda model, clip, lora, a, b, **more: (model, function(None, clip, lora, 0, b, **more)[1])


def test_a_file_with_another_content_under_the_same_name(memo, shop, later, same):
    path = shop.models / "vae" / "mine.safetensors"
    weights = load_file(shop.models / "vae" / "demo.safetensors")
    graph = latent(vae=("VAELoader", {"vae_name": "mine.safetensors"}))
    results = []
    for factor in (1.0, 1.01):
        save_file({k: (v * factor).contiguous() for k, v in weights.items()}, path)
        for expected in (["VAELoader"], []):
            shop.restart()
            results.append(shop.run(**graph)["it"])
            assert shop.ran == expected
        shop.restart()
        assert same(shop.run(**stock(graph))["it"], results[-1])
    assert same(results[0], results[1]) and same(results[2], results[3]) and not same(results[0], results[2])


def test_a_file_replaced_while_comfyui_holds_the_old_one(memo, shop, same, monkeypatch):
    """ComfyUI does not look again at a file that it has loaded: what it holds must not be learned under the new file's name."""
    path = shop.models / "vae" / "mine.safetensors"
    weights = load_file(shop.models / "vae" / "demo.safetensors")
    graph = latent(vae=("VAELoader", {"vae_name": "mine.safetensors"}))
    save_file(weights, path)
    shop.run(**stock(graph))
    path.unlink()
    save_file({k: (v * 1.5).contiguous() for k, v in weights.items()}, path)
    shop.run(**graph)  # with the VAE that was loaded before
    monkeypatch.setattr(source_code, "process_start", lambda: math.inf)
    shop.restart()
    new = shop.run(**graph)["it"]
    assert shop.ran == ["VAELoader"]
    shop.restart()
    assert same(new, shop.run(**stock(graph))["it"])


@pytest.mark.parametrize(
    "what", ["another pack's node", "a linked file name", "another pack's loader", "an odd output"]
)
def test_what_is_not_understood_runs(memo, shop, monkeypatch, what):
    graph = latent()
    if what == "another pack's node":
        graph = latent(other=("TestPass", {"value": ["loader", 0]}))
    elif what == "a linked file name":
        graph = {
            "name": ("TestPass", {"value": "demo.safetensors"}),
            **latent(vae=("VAELoader", {"vae_name": ["name", 0]})),
        }
    elif what == "another pack's loader":

        class VAELoader(nodes.VAELoader):
            pass

        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "VAELoader", VAELoader)
    else:
        graph["encode"][1]["vae"] = ["loader", 0]
        monkeypatch.setitem(
            graph_signature.PLAIN, "VAELoader", graph_signature.Plain({"vae_name": "vae"}, outputs=frozenset({2}))
        )
    for _ in range(2):
        shop.restart()
        shop.run(**graph)
        assert shop.ran[-1:] == ["VAELoader"], shop.error
    assert memo.counts("vae") == (1, 1), "its weights are known all the same"


def test_other_settings_make_other_encoders(memo, shop, monkeypatch):
    shop.run(**latent())
    shop.restart()
    monkeypatch.setattr(nodes.comfy.cli_args.args, "fp32_vae", True)
    shop.run(**latent())
    assert shop.ran == ["VAELoader"]


def test_changed_code_makes_another_encoder(memo, shop, monkeypatch):
    shop.run(**latent())
    monkeypatch.setattr(source_code, "comfyui_digest", lambda: "newer")
    shop.restart()
    shop.run(**latent())
    assert shop.ran == ["VAELoader"]


def test_embeddings_are_files_that_a_prompt_names(memo, shop, later, same):
    text, path = "a embedding:style circle", shop.models / "embeddings" / "style.pt"
    for value in (0.1, 0.2):
        torch.save({"emb_params": torch.full((1, 32), value)}, path)
        for expected in (["CLIPLoader"], []):
            shop.restart()
            got = shop.run(**prompt(text))["it"]
            assert shop.ran == expected
        shop.restart()
        assert same(got, shop.run(**stock(prompt(text)))["it"])


def test_a_value_dropped_between_question_and_execution(memo, shop, same):
    """Memory may run short in that moment: what was found is held."""
    shop.run(**latent())
    shop.restart()
    pending = PendingLatent
    known = pending.known

    def dropped(self):
        answer = known(self)
        memo.store.clear()
        return answer

    shop._patch.setattr(pending, "known", dropped)
    got = shop.run(**latent())["it"]
    assert shop.ran == [] and same(got, shop.run(**stock(latent()))["it"])


def test_what_is_held_for_a_node_is_bounded(memo, shop, monkeypatch):
    """Prompts that are interrupted never fetch what was held for them."""
    pictures = [torch.rand(1, 16, 16, 3) for _ in range(8)]
    shop.run(**latent())

    def pending(picture):
        return PendingLatent(shop.prompt.get, ["loader", 0], picture)

    vae = nodes.VAELoader().load_vae("demo.safetensors")[0]
    size = pending(pictures[0]).encode(vae).nbytes
    for picture in pictures:
        pending(picture).encode(vae)
    monkeypatch.setattr(lazy_encode, "LARGEST", 3 * size)
    hand = lazy_encode._Held()
    monkeypatch.setattr(lazy_encode, "_held", hand)
    assert all(pending(p).known() for p in pictures)
    assert hand.bytes() == 3 * size
    assert all(pending(p).get() is not None for p in pictures), "found once more where it was let go"
    assert hand.bytes() == 0
    assert pending(pictures[0]).known()
    monkeypatch.setattr(lazy_encode, "WAITING", 0.0)
    assert pending(pictures[1]).known()
    assert hand.bytes() == size


@pytest.mark.parametrize("kind", ["vae", "text", "loader"])
@pytest.mark.parametrize("graph", [latent, prompt])
def test_a_garbled_entry_runs_the_loader(memo, shop, same, graph, kind):
    truth = shop.run(**stock(graph()))["it"]
    shop.run(**graph())
    there = [name for name in memo.store._near[0]._held if name.kind == kind]
    wrongs = [
        3,
        [],
        {},
        {"value": 3, "places": []},
        {"value": {"cond": 1}, "places": []},
        {"value": None, "places": []},
    ]
    wrongs += [{"sources": {}}, {"sources": {"a": 1}, "identity": 3, "key": "../x"}, {"sources": [], "key": "0" * 40}]
    for name in there:
        for wrong in wrongs:
            memo.store.put(name, wrong, 0.0)
            for loaded in (1, 0):  # and is replaced
                shop.restart()
                assert same(shop.run(**graph())["it"], truth) and len(shop.ran) == loaded


def test_an_encoding_of_nothing(memo, shop, same):
    vae = nodes.VAELoader().load_vae("demo.safetensors")[0]
    nothing = torch.zeros(0, 16, 16, 3)
    asked = PendingLatent(
        {"a": {"class_type": "VAELoader", "inputs": {"vae_name": "demo.safetensors"}}}.get, ["a", 0], nothing
    )
    assert asked.encode(vae) is None and not asked.known()


def test_a_vae_that_another_node_bent_in_place_says_nothing_of_its_loader(memo, shop):
    """ComfyUI keeps the loader's VAE, and a node beside ours may have written to it."""
    vae = nodes.VAELoader().load_vae("demo.safetensors")[0]
    graph = {"a": {"class_type": "VAELoader", "inputs": {"vae_name": "demo.safetensors"}}}
    picture = torch.rand(1, 16, 16, 3)

    def asked():
        return PendingLatent(graph.get, ["a", 0], picture)

    conv: Any = next(part for part in vae.first_stage_model.modules() if isinstance(part, torch.nn.Conv2d))
    plain = type(conv)._conv_forward
    conv._conv_forward = (lambda self, x, w, b: plain(self, x, w * 2, b)).__get__(conv)
    bent = asked().encode(vae)
    assert not asked().known()
    del conv._conv_forward
    straight = asked().encode(vae)
    assert asked().known() and torch.equal(asked().get(), straight) and not torch.equal(straight, bent)


@pytest.mark.parametrize("ours_first", [True, False])
def test_a_plain_value_changed_in_place_says_nothing_of_its_loader(memo, shop, monkeypatch, ours_first):
    """Only the encoder's earlier state reveals it."""
    monkeypatch.setattr(nodes.VAELoader, "load_vae", snapshot.noting(nodes.VAELoader.load_vae))
    vae = nodes.VAELoader().load_vae("demo.safetensors")[0]
    graph = {"a": {"class_type": "VAELoader", "inputs": {"vae_name": "demo.safetensors"}}}
    picture = torch.rand(1, 16, 16, 3)

    def asked():
        return PendingLatent(graph.get, ["a", 0], picture)

    straight = asked().encode(vae) if ours_first else None
    assert asked().known() is ours_first
    block: Any = next(p for p in vae.first_stage_model.modules() if hasattr(p, "swish") or hasattr(p, "in_channels"))
    for change in (
        lambda: setattr(vae, "pad_channel_value", 0.5),
        lambda: setattr(block, "a_packs_flag", True),
        lambda: setattr(vae.first_stage_model, "a_packs_number", 3),
    ):
        change()
        memo.store.clear()
        asked().encode(vae)
        assert not asked().known()
    assert "loader: an encoder that another node changed in place" in memo.not_kept
    del block.a_packs_flag, vae.first_stage_model.a_packs_number
    vae.pad_channel_value = None
    again = asked().encode(vae)
    assert asked().known() and (straight is None or torch.equal(again, straight))


@pytest.mark.parametrize("part", ["model", "tokenizer"])
def test_a_plain_value_of_a_clip_changed_in_place_says_nothing_of_its_loader(memo, shop, monkeypatch, part):
    monkeypatch.setattr(nodes.CLIPLoader, "load_clip", snapshot.noting(nodes.CLIPLoader.load_clip))
    clip = nodes.CLIPLoader().load_clip("tiny.pt", "stable_diffusion")[0]
    graph = {"a": {"class_type": "CLIPLoader", "inputs": {"clip_name": "tiny.pt", "type": "stable_diffusion"}}}

    def asked():
        return PendingPrompt(graph.get, ["a", 0], "a red circle")

    holder = clip.cond_stage_model.clip_l if part == "model" else clip.tokenizer.clip_l
    name = "layer_norm_hidden_state" if part == "model" else "disable_weights"
    before = getattr(holder, name)
    setattr(holder, name, not before)
    asked().encode(clip)
    assert not asked().known()
    setattr(holder, name, before)
    asked().encode(clip)
    asked().encode(nodes.CLIPSetLastLayer().set_last_layer(clip, -2)[0])  # a clone with a setting of its own
    assert asked().known()


def test_loaders_are_watched_once_and_are_as_before(shop, monkeypatch):
    for name in ("VAELoader", "CLIPLoader", "CheckpointLoaderSimple"):
        kind = nodes.NODE_CLASS_MAPPINGS[name]
        monkeypatch.setattr(kind, kind.FUNCTION, getattr(kind, kind.FUNCTION))  # put back at the end
    before = modified_code()
    snapshot.watch_loaders()
    load = nodes.VAELoader.load_vae
    snapshot.watch_loaders()
    assert nodes.VAELoader.load_vae is load and modified_code() == before
    vae = nodes.VAELoader().load_vae("demo.safetensors")[0]
    assert not snapshot.is_changed(vae)
    vae.encode(torch.rand(1, 16, 16, 3))
    vae.decode(torch.rand(1, 16, 2, 2))
    assert not snapshot.is_changed(vae), "running changes nothing"
    vae.pad_channel_value = 0.5
    assert snapshot.is_changed(vae)


def test_what_was_not_foreseen_runs_the_loader(memo, shop, same, monkeypatch):
    def fails(*_):
        raise KeyError("another version")

    shop.run(**latent())
    for name in ("signature", "unpack", "_places"):
        with monkeypatch.context() as changed:
            changed.setattr(lazy_encode, name, fails)
            shop.restart()
            shop.run(**latent())
            assert shop.error is None and shop.ran == ["VAELoader"]


def test_no_encoder_and_nothing_known_is_said(memo, shop):
    with pytest.raises(RuntimeError, match="there is no VAE"):
        memo_nodes.CachedVAEEncode.PREPARE_CLASS_CLONE({"hidden_inputs": {}}).execute(image=torch.zeros(1, 8, 8, 3))
    with pytest.raises(RuntimeError, match="there is no CLIP"):
        memo_nodes.CachedTextEncode.PREPARE_CLASS_CLONE({"hidden_inputs": {}}).execute(text="a circle")


def test_lists_are_encoded_one_by_one(memo, shop, same):
    """Prompts as a list, as prompt-batch nodes give them: the loader runs if one of them is not known."""

    class Lines:
        RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_IS_LIST = ("STRING",), "split", "", (True,)

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {"text": ("STRING", {})}}

        def split(self, text):
            return (text.split("|"),)

    shop._patch.setitem(nodes.NODE_CLASS_MAPPINGS, "TestLines", Lines)
    ends: list[Any] = []

    def take(self, value, name):
        ends.append(value)
        return ()

    shop._patch.setattr(nodes.NODE_CLASS_MAPPINGS["TestEnd"], "take", take)

    def graph(text):
        made = prompt()
        made["encode"][1]["text"] = ["lines", 0]
        return {"lines": ("TestLines", {"text": text}), **made}

    shop.run(**graph("a|b"))
    assert shop.ran == ["CLIPLoader"] and len(ends) == 2
    shop.restart()
    shop.run(**graph("b|a|b"))
    assert shop.ran == [] and len(ends) == 5, shop.error
    assert same(ends[2], ends[1]) and same(ends[3], ends[0]) and same(ends[4], ends[1])
    shop.restart()
    shop.run(**graph("a|c|b"))
    assert shop.ran == ["CLIPLoader"] and len(ends) == 8


def test_after_a_restart_the_disk_knows(shop, tmp_path, same):
    def opened():
        store = Store([MemoryTier(1 << 28, reserve=0), DiskTier(tmp_path / "kept", spare=0)])
        assert store.ready(10)
        process.set_store(store)
        return store

    first = opened()
    truth = shop.run(**latent(), p=("SkipstoneCachedTextEncode", {"text": "x", "clip": ["c", 0]}),
                     c=("CLIPLoader", {"clip_name": "tiny.pt", "type": "stable_diffusion"}),
                     q=("TestEnd", {"value": ["p", 0], "name": "text"}))  # fmt: skip
    assert first.flush(10)
    first.close()
    shop.restart()
    second = opened()
    again = shop.run(**latent(), p=("SkipstoneCachedTextEncode", {"text": "x", "clip": ["c", 0]}),
                     c=("CLIPLoader", {"clip_name": "tiny.pt", "type": "stable_diffusion"}),
                     q=("TestEnd", {"value": ["p", 0], "name": "text"}))  # fmt: skip
    assert shop.ran == [] and same(again, truth)
    process.set_store(None)
    second.close()


# statistics and clearing


def test_statistics_as_text_and_as_a_dict(memo, shop):
    ends = {
        "stats": ("SkipstoneMemoStats", {"after": ["encode", 0]}),
        "text": ("TestEnd", {"value": ["stats", 0], "name": "text"}),
        "dict": ("TestEnd", {"value": ["stats", 1], "name": "dict"}),
    }
    for hits, misses in ((0, 1), (1, 1)):
        shop.restart()
        told = shop.run(**latent(), **ends)
        assert (told["dict"]["hits"], told["dict"]["misses"]) == (hits, misses)
        assert f"{hits} of {hits + misses} reused" in told["text"]
        json.dumps(told["dict"])
    assert told["dict"]["saved_seconds"] > 0
    assert told["dict"]["tiers"]["memory"]["entries"] == 2  # the latent, and what the loader makes
    shop.run(**latent(), **ends)
    assert "stats" in "".join(shop.got) or shop.got["dict"]["hits"] == 1  # it runs every time


def test_clearing_says_what_it_removed(memo, shop):
    shop.run(**latent(), p=("SkipstoneCachedTextEncode", {"text": "x", "clip": ["c", 0]}),
             c=("CLIPLoader", {"clip_name": "tiny.pt", "type": "stable_diffusion"}),
             q=("TestEnd", {"value": ["p", 0], "name": "text"}))  # fmt: skip

    def clear(**how):
        inputs = {"tier": "all", "kind": "all", "unused_days": 0.0, **how}
        told = shop.run(
            clear=("SkipstoneMemoClear", inputs),
            text=("TestEnd", {"value": ["clear", 0], "name": "text"}),
            removed=("TestEnd", {"value": ["clear", 1], "name": "removed"}),
        )
        return told["text"], told["removed"]

    assert clear(unused_days=1.0)[1] == {"memory": {"entries": 0, "bytes": 0}}
    assert clear(kind="prompts")[1]["memory"]["entries"] == 1
    text, removed = clear(kind="latents", tier="memory")
    assert removed["memory"]["entries"] == 1 and text.startswith("memory: 1 entries removed, ")
    assert clear(tier="redis")[0] == "The settings have no redis."
    assert clear()[1]["memory"]["entries"] == 2
    shop.restart()
    shop.run(**latent())
    assert shop.ran == ["VAELoader"]


def test_statistics_and_what_was_cleared_are_shown_on_the_node(memo, shop, shown):
    """In the language of the page; the outputs are in English."""
    ends = {
        "stats": ("SkipstoneMemoStats", {"after": ["encode", 0]}),
        "clear": ("SkipstoneMemoClear", {"after": ["stats", 0], "tier": "all", "kind": "all", "unused_days": 0.0}),
    }
    shop.run(**latent(), **ends)
    told = dict(shown)
    assert (told["stats"], told["stats"].key) == ("0 of 1 reused (0%), 0.0 s saved", "stats_reused")
    assert re.fullmatch(r"memory: 2 entries removed, [\d.]+ (bytes|kB)", told["clear"])
    assert told["clear"].values["parts"][0].key == "entries_removed"
    process.set_store(None)
    shop.restart()
    shop.run(**latent(), **ends)
    assert dict(shown)["stats"] == dict(shown)["clear"] == memo_nodes.OFF


def test_what_a_clear_node_is_wired_to_goes_through(memo, shop):
    got = shop.run(
        picture=("TestPicture", {"seed": 3}),
        clear=("SkipstoneMemoClear", {"tier": "all", "kind": "all", "unused_days": 0.0, "after": ["picture", 0]}),
        end=("TestEnd", {"value": ["clear", 2], "name": "it"}),
    )
    assert got["it"].shape == (1, 16, 16, 3)


def test_switched_off(shop, same):
    process.set_store(None)
    got = shop.run(
        **latent(), stats=("SkipstoneMemoStats", {}), end2=("TestEnd", {"value": ["stats", 0], "name": "text"})
    )
    assert shop.ran == ["VAELoader"] and "switched off" in got["text"]
    assert same(got["it"], shop.run(**stock(latent()))["it"])
