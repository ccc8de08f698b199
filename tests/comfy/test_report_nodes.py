"""Step Report and Compare Images in graphs, by ComfyUI's own executor."""

from __future__ import annotations

import copy
import itertools
import json
import re
import sys
from types import SimpleNamespace
from typing import Any

import execution
import folder_paths
import pytest
import torch

import nodes
from skipstone.nodes import presets_table, report_nodes, reporting
from skipstone.nodes.meancache import PRESETS, MeanCache

STEPS = 8
prompts = itertools.count(1)


class Graphs:
    """ComfyUI's executor, whose cache lives as long as this does: `run` gives what reached a node's outputs, and what it showed."""

    def __init__(self) -> None:
        self.shown: dict[str, Any] = {}
        self.ran: list[str] = []
        there = SimpleNamespace(client_id="me", last_node_id=None, send_sync=self._sent)
        self.executor = execution.PromptExecutor(
            there, cache_type=execution.CacheType.CLASSIC, cache_args={"ram": 0, "ram_inactive": 0, "lru": 0}
        )

    def _sent(self, event, data, _=None):
        if event == "executing" and data["node"]:
            self.ran.append(data["node"])
        if event == "executed":
            self.shown[data["node"]] = data["output"]

    def run(self, **graph):
        """`name=("ClassType", {inputs})`; the outputs of the node called "report"."""
        self.shown.clear()
        self.ran.clear()
        prompt = {n: {"class_type": kind, "inputs": inputs} for n, (kind, inputs) in graph.items()}
        ends = [n for n, (kind, _) in graph.items() if getattr(nodes.NODE_CLASS_MAPPINGS[kind], "OUTPUT_NODE", False)]
        got.clear()
        self.executor.execute(copy.deepcopy(prompt), f"prompt-{next(prompts)}", {"client_id": "me"}, ends)
        assert self.executor.success, self.executor.status_messages[-1]
        return dict(got)


got: dict[str, Any] = {}


def made(name, types, function, inputs=None, end=False):
    """A node of the test's own."""

    class Made:
        RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = types, "make", "", end

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": inputs or {}}

        def make(self, **values):
            return function(**values)

    Made.__name__ = name
    return Made


def end(**values):
    got.update({values.pop("name"): values})
    return ()


@pytest.fixture
def graphs(monkeypatch, studio, tmp_path):
    kinds = {
        **{k.GET_SCHEMA().node_id: k for k in list[Any]([*report_nodes.NODES, *presets_table.NODES, MeanCache])},
        "TestModel": made("TestModel", ("MODEL",), lambda: (studio.model,)),
        "TestPrompt": made(
            "TestPrompt", ("CONDITIONING",), lambda text: (studio.prompt(text),), {"text": ("STRING", {})}
        ),
        "TestLatent": made("TestLatent", ("LATENT",), lambda: ({"samples": torch.zeros(1, 16, 16, 16)},)),
        "TestImage": made(
            "TestImage",
            ("IMAGE",),
            lambda seed: (torch.rand(1, 16, 24, 3, generator=torch.Generator().manual_seed(seed)),),
            {"seed": ("INT", {})},
        ),
        "TestReport": made(
            "TestReport",
            (),
            end,
            {
                "latent": ("LATENT", {}),
                "picture": ("IMAGE", {}),
                "text": ("STRING", {}),
                "told": ("STRING", {}),
                "name": ("STRING", {}),
            },
            end=True,
        ),
    }
    for name, kind in kinds.items():
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, name, kind)
    monkeypatch.setattr(reporting.JOURNAL, "_entries", type(reporting.JOURNAL._entries)(maxlen=64))
    before = folder_paths.get_temp_directory()
    folder_paths.set_temp_directory(str(tmp_path))
    yield Graphs()
    folder_paths.set_temp_directory(before)


def ksampler(model, latent="latent", **more):
    inputs = {
        "model": [model, 0],
        "positive": ["positive", 0],
        "negative": ["negative", 0],
        "latent_image": [latent, 0],
    }
    settings = {"seed": 1, "steps": STEPS, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    return ("KSampler", {**inputs, **settings, **more})


def cache(model="model", preset="Speed"):
    values = {i.id: i.default for i in MeanCache.GET_SCHEMA().inputs if i.io_type not in ("MODEL", "STEP_MASK")}
    return ("SkipstoneMeanCache", {**values, "model": [model, 0], "preset": preset, "calibration": "default"})


START: dict[str, Any] = {
    "model": ("TestModel", {}),
    "positive": ("TestPrompt", {"text": "a red apple on a blue background"}),
    "negative": ("TestPrompt", {"text": ""}),
    "latent": ("TestLatent", {}),
}


def report(name="report", **wires):
    """The node, and one that takes its outputs."""
    ends = {k: [name, i] for i, k in enumerate(("latent", "picture", "text", "told"))}
    wired = {k: [node, 0] for k, node in wires.items()}
    return {name: ("SkipstoneStepReport", wired), f"{name} end": ("TestReport", {**ends, "name": name})}


def runs(found, name="report"):
    return json.loads(found[name]["told"])["runs"]


def test_the_latent_goes_through_it_on_its_way_and_the_run_is_told(graphs, studio, meancache):
    found = graphs.run(**START, cache=cache(), sampler=ksampler("cache"), **report(latent="sampler"))
    (run,) = runs(found)
    assert (run["node"], run["sampler"]) == ("cache", "sampler")
    assert run["report"]["method"] == "MeanCache"
    assert 0 < run["report"]["skipped"] < STEPS
    assert found["report"]["text"].startswith("MeanCache Speed: 8 steps")
    assert found["report"]["picture"].shape[0] == 1
    sampled = studio.sample(meancache(preset="Speed")[0], steps=STEPS, cfg=1.0)
    assert torch.equal(found["report"]["latent"]["samples"], sampled)


def test_it_shows_the_picture_and_the_text_on_itself(graphs, tmp_path):
    graphs.run(**START, cache=cache(), sampler=ksampler("cache"), **report(latent="sampler"))
    shown = graphs.shown["report"]
    assert "MeanCache Speed" in shown["text"][0]
    assert (tmp_path / shown["images"][0]["filename"]).exists()


def test_a_new_run_is_a_new_report_and_an_old_one_is_not_made_twice(graphs):
    graph = {**START, "cache": cache(), **report(latent="sampler")}
    first = runs(graphs.run(**graph, sampler=ksampler("cache")))
    graphs.run(**graph, sampler=ksampler("cache"))
    assert "report" not in graphs.ran
    second = runs(graphs.run(**graph, sampler=ksampler("cache", seed=2)))
    assert [r["run"] for r in first] != [r["run"] for r in second]
    assert len(second) == 1


def test_of_several_samplers_those_that_the_latent_comes_from(graphs):
    found = graphs.run(
        **START,
        cache=cache(),
        fast=cache(preset="Turbo"),
        first=ksampler("cache"),
        second=ksampler("fast", "first", denoise=0.9),
        aside=ksampler("cache", seed=5),
        **report("one", latent="first"),
        **report("two", latent="second"),
        **report("three", latent="aside"),
    )
    told = {name: [(r["sampler"], r["node"]) for r in runs(found, name)] for name in ("one", "two", "three")}
    assert told == {
        "one": [("first", "cache")],
        "two": [("first", "cache"), ("second", "fast")],
        "three": [("aside", "cache")],
    }
    assert found["two"]["text"].count("MeanCache") == 2
    assert found["two"]["picture"].shape[1] > 1.8 * found["one"]["picture"].shape[1] - 60


def test_with_a_model_only_its_runs_are_told(graphs):
    found = graphs.run(
        **START,
        cache=cache(),
        fast=cache(preset="Turbo"),
        first=ksampler("cache"),
        second=ksampler("fast", "first", denoise=0.9),
        **report(latent="second", model="fast"),
    )
    assert [r["sampler"] for r in runs(found)] == ["second"]


def test_a_model_alone_is_looked_at_in_every_prompt(graphs):
    graph = {**START, "cache": cache(), **report(model="cache"), "other": cache(preset="Turbo")}
    assert runs(graphs.run(**graph)) == []
    graphs.run(**graph, sampler=ksampler("cache"), save=("SkipstoneStepReport", {"latent": ["sampler", 0]}))
    assert len(runs(graphs.run(**graph))) == 1


def test_a_model_that_was_patched_further_is_the_same_one(graphs, monkeypatch):
    clone = made("TestClone", ("MODEL",), lambda model: (model.clone(),), {"model": ("MODEL", {})})
    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "TestClone", clone)
    found = graphs.run(
        **START, cache=cache(), clone=("TestClone", {"model": ["cache", 0]}), sampler=ksampler("clone"),
        **report(latent="sampler", model="clone"),
    )  # fmt: skip
    assert len(runs(found)) == 1


@pytest.mark.parametrize(
    ("wires", "said"),
    [
        ({}, "wire the sampler's LATENT"),
        ({"model": "model"}, "no Skipstone step cache"),
        ({"model": "cache"}, "not sampled yet"),
        ({"latent": "latent"}, "wire the sampler's LATENT"),
        ({"latent": "plain"}, "wire the sampler's LATENT"),
    ],
)
def test_where_there_is_nothing_to_report_it_says_why(graphs, wires, said):
    found = graphs.run(**START, cache=cache(), plain=ksampler("model"), **report(**wires))
    assert runs(found) == []
    assert said in found["report"]["text"]
    assert found["report"]["picture"].shape[0] == 1
    assert said in graphs.shown["report"]["text"][0]


def test_a_sampler_that_need_not_run_again_is_told_by_its_last_run(graphs, monkeypatch):
    """The workflow is the same, and only what comes after the sampler is new."""
    info: dict[str, Any] = {"workflow": {"id": "mine"}}
    queue = SimpleNamespace(get_current_queue_volatile=lambda: ([(0, name(), {}, {"extra_pnginfo": info})], []))
    there = SimpleNamespace(instance=SimpleNamespace(prompt_queue=queue, send_sync=lambda *_: None))
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=there))

    def name():
        from comfy_execution.utils import get_executing_context

        return get_executing_context().prompt_id

    graph = {**START, "cache": cache(), "sampler": ksampler("cache")}
    graphs.run(**graph, **report("first", latent="sampler"))
    found = graphs.run(**graph, **report("second", latent="sampler"))
    assert "sampler" not in graphs.ran
    assert len(runs(found, "second")) == 1


def compare(left=1, right=2, **more):
    values = {"amplify": 0.0, "left_name": "without", "right_name": "Speed", **more}
    return {
        "a": ("TestImage", {"seed": left}),
        "b": ("TestImage", {"seed": right}),
        "compare": ("SkipstoneCompareImages", {"left": ["a", 0], "right": ["b", 0], **values}),
    }


def test_two_pictures_are_compared_on_the_node_itself(graphs, tmp_path):
    graphs.run(**compare())
    shown = graphs.shown["compare"]
    assert "PSNR" in shown["text"][0] and "SSIM" in shown["text"][0]
    assert (tmp_path / shown["images"][0]["filename"]).exists()


def test_its_numbers_go_where_numbers_go(graphs, monkeypatch):
    take = made(
        "TestNumbers", (), end,
        {"psnr": ("FLOAT", {}), "ssim": ("FLOAT", {}), "picture": ("IMAGE", {}), "text": ("STRING", {}), "name": ("STRING", {})},
        end=True,
    )  # fmt: skip
    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "TestNumbers", take)
    wires = {k: ["compare", i] for i, k in enumerate(("psnr", "ssim", "picture", "text"))}
    for right in (1, 2):
        found = graphs.run(**compare(right=right), end=("TestNumbers", {**wires, "name": "it"}))["it"]
        json.dumps([found["psnr"], found["ssim"]], allow_nan=False)
        assert found["picture"].shape[0] == 1
        assert (found["psnr"] == 150 and found["ssim"] == 1) == (right == 1)


def test_the_same_seed_with_and_without_a_step_cache_in_one_graph(graphs, monkeypatch, studio):
    """What the nodes are for: the pictures are made by the demo's own latents here, three of whose channels are looked at."""
    view = made(
        "TestView", ("IMAGE",), lambda latent: ((latent["samples"][:, :3].movedim(1, -1) / 8 + 0.5).clamp(0, 1),),
        {"latent": ("LATENT", {})},
    )  # fmt: skip
    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "TestView", view)
    text = {}
    for preset in ("Quality", "Turbo"):
        graphs.run(
            **START, cache=cache(preset=preset), plain=ksampler("model"), fast=ksampler("cache"),
            **report(latent="fast"),
            a=("TestView", {"latent": ["plain", 0]}), b=("TestView", {"latent": ["report", 0]}),
            compare=("SkipstoneCompareImages",
                     {"left": ["a", 0], "right": ["b", 0], "amplify": 0.0, "left_name": "", "right_name": ""}),
        )  # fmt: skip
        text[preset] = graphs.shown["compare"]["text"][0]
    quality, turbo = (float(text[p].split()[1]) for p in ("Quality", "Turbo"))
    assert quality > turbo > 10


def test_all_presets_in_one_graph_and_a_table_of_them(graphs, monkeypatch):
    """The model without a cache first, then each preset: sampled one after the other, and each compared with the first."""
    seen = []

    def decoded(latent):
        seen.append(latent["samples"])
        return (latent["samples"][:, :3].movedim(1, -1).sigmoid(),)

    monkeypatch.setitem(
        nodes.NODE_CLASS_MAPPINGS, "TestDecode", made("TestDecode", ("IMAGE",), decoded, {"latent": ("LATENT", {})})
    )
    monkeypatch.setitem(
        nodes.NODE_CLASS_MAPPINGS,
        "TestText",
        made("TestText", (), end, {"text": ("STRING", {}), "name": ("STRING", {})}, end=True),
    )
    graph: dict[str, Any] = {
        "all": ("SkipstoneAllPresets", {"model": ["model", 0]}),
        "sampler": ksampler("all", steps=20),
        "decode": ("TestDecode", {"latent": ["sampler", 0]}),
        "table": ("SkipstonePresetTable", {"images": ["decode", 0]}),
        "end": ("TestText", {"text": ["table", 0], "name": "it"}),
    }
    text = graphs.run(**START, **graph)["it"]["text"]
    assert len(seen) == 5
    assert not any(seen[0].equal(other) for other in seen[1:])
    lines = text.split("\n")
    counts = [
        re.match(rf"{name}: (\d+) of 20 computed, \d\.\dx, PSNR \d", line)
        for name, line in zip(PRESETS, lines, strict=False)
    ]
    computed = [int(count[1]) for count in counts if count]
    assert len(computed) == 4 and all(2 < count < 20 for count in computed)
    assert lines[5].startswith("| your model | Quality | Balanced | Speed | Turbo |")
    assert re.fullmatch(r"\| \.\.\. (\| \d+\.\dx, \d+ dB ){4}\|", lines[7])
    shown = graphs.shown["table"]
    assert [row["computed"] for row in shown["skipstone_presets"]] == computed
    assert shown["skipstone_row"] == ["\n".join(lines[5:])]
    files = [shown["skipstone_reference"][0], *(row["image"] for row in shown["skipstone_presets"])]
    assert len({file["filename"] for file in files}) == 5 and {file["type"] for file in files} == {"temp"}

    graph["sampler"] = ksampler("model", steps=20)
    assert graphs.run(**START, **graph)["it"]["text"] == presets_table.NO_RUNS
