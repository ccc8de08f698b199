"""The node as people meet it: loaded by ComfyUI itself under an odd folder name, with ids that are saved in workflows."""

from __future__ import annotations

import asyncio
import copy
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import execution
import folder_paths
import pytest
import server
import torch
from comfy_api.latest import io

import nodes

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "demo" / "models"

# In the order of the widgets: a saved workflow holds their values by place. Never remove, rename or reorder; append.
INPUTS = {
    "model": "MODEL",
    "preset": "COMBO",
    "budget": "FLOAT",
    "schedule": "COMBO",
    "predictor": "COMBO",
    "gamma": "FLOAT",
    "span": "INT",
    "warmup": "INT",
    "start_percent": "FLOAT",
    "end_percent": "FLOAT",
    "max_skips": "INT",
    "history_device": "COMBO",
}
# Likewise: what a workflow may have chosen must be there to be chosen.
OPTIONS = {
    "preset": ["Quality", "Balanced", "Speed", "Turbo", "Custom"],
    "schedule": [
        "PSSP",
        *(f"Z-Image {n}" for n in (25, 20, 17, 15, 13)),
        *(f"{model} {n}" for model in ("Qwen-Image", "Qwen-Image-2512") for n in (25, 17, 10)),
    ],
    "predictor": ["auto", "linear", "average velocity (paper)", "average velocity (released)", "reuse"],
    "history_device": ["auto", "gpu", "cpu"],
}


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """The node's class, by ComfyUI's own loader."""
    folder = tmp_path_factory.mktemp("ComfyUI") / "custom_nodes" / "skip-stone.x (copy)"
    folder.parent.mkdir()
    folder.symlink_to(ROOT)
    modules = set(sys.modules)
    assert "SkipstoneMeanCache" not in nodes.NODE_CLASS_MAPPINGS
    assert asyncio.run(nodes.load_custom_node(str(folder)))
    yield nodes.NODE_CLASS_MAPPINGS["SkipstoneMeanCache"]
    for mapping in (nodes.NODE_CLASS_MAPPINGS, nodes.NODE_DISPLAY_NAME_MAPPINGS):
        for name in [n for n in mapping if n.startswith("Skipstone")]:
            del mapping[name]
    for name in set(sys.modules) - modules:
        if "skip-stone" in name:
            del sys.modules[name]


def test_every_id_is_ours(node):
    ours = [n for n, c in nodes.NODE_CLASS_MAPPINGS.items() if "skip-stone" in c.__module__]
    assert "SkipstoneMeanCache" in ours
    assert all(n.startswith("Skipstone") for n in ours)
    assert nodes.NODE_DISPLAY_NAME_MAPPINGS["SkipstoneMeanCache"] == "MeanCache"


def test_inputs_never_change(node):
    schema = node.GET_SCHEMA()
    assert {i.id: i.io_type for i in schema.inputs} == INPUTS
    assert [i.id for i in schema.inputs] == list(INPUTS)
    assert [o.io_type for o in schema.outputs] == ["MODEL"]
    for i in schema.inputs:
        if i.id in OPTIONS:
            assert i.options[: len(OPTIONS[i.id])] == OPTIONS[i.id]


def test_everything_is_explained(node):
    schema = node.GET_SCHEMA()
    assert schema.description
    assert schema.search_aliases
    for i in schema.inputs:
        assert i.tooltip, i.id
        assert i.tooltip.endswith("."), i.id


def test_what_a_beginner_sees(node):
    """The model and the preset; all else is folded, and has a default."""
    inputs = node.GET_SCHEMA().inputs
    assert [i.id for i in inputs if not getattr(i, "advanced", None)] == ["model", "preset"]
    assert all(i.default is not None for i in inputs if i.id != "model")


def run(node, model, unique_id="7", **widgets):
    prepared = node.PREPARE_CLASS_CLONE({"hidden_inputs": {io.Hidden.unique_id: unique_id}})
    defaults = {i.id: i.default for i in node.GET_SCHEMA().inputs if i.id != "model"}
    return prepared.EXECUTE_NORMALIZED(model=model, **{**defaults, **widgets})[0]


def test_it_runs(node, studio, meancache, monkeypatch):
    sent: list[Any] = []
    browser = SimpleNamespace(send_sync=lambda event, data: sent.append((event, data)))
    monkeypatch.setattr(server.PromptServer, "instance", browser, raising=False)
    out = studio.sample(run(node, studio.model, preset="Turbo"))
    assert torch.equal(out, studio.sample(meancache(preset="Turbo")[0]))
    ((event, data),) = sent
    assert event == "skipstone.report"
    assert data["node"] == "7"
    assert data["report"]["computed"] == 5
    json.dumps(data)


def test_it_runs_without_a_server(node, studio, monkeypatch):
    monkeypatch.delattr(server.PromptServer, "instance", raising=False)
    assert torch.isfinite(studio.sample(run(node, studio.model))).all()


@pytest.mark.parametrize("predictor", OPTIONS["predictor"])
def test_every_predictor_can_be_chosen(node, studio, predictor):
    assert torch.isfinite(studio.sample(run(node, studio.model, preset="Custom", predictor=predictor))).all()


@pytest.mark.parametrize("schedule", OPTIONS["schedule"])
def test_every_schedule_can_be_chosen(node, studio, schedule):
    assert torch.isfinite(studio.sample(run(node, studio.model, preset="Custom", schedule=schedule), cfg=1.0)).all()


@pytest.fixture
def workflow(node, monkeypatch):
    """The shared workflow in API format, with the demo's models where ComfyUI looks for models."""
    extras = Path(nodes.__file__).parent / "comfy_extras" / "nodes_sd3.py"  # has the empty latent
    assert asyncio.run(nodes.load_custom_node(str(extras), module_parent="comfy_extras"))
    for kind in ("diffusion_models", "text_encoders", "vae"):
        paths, extensions = folder_paths.folder_names_and_paths[kind]
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, ([*paths, str(MODELS)], extensions))
    folder_paths.filename_list_cache.clear()
    yield json.loads((ROOT / "workflows" / "api" / "meancache.json").read_text("utf-8"))
    folder_paths.filename_list_cache.clear()


def refusal(workflow, **values):
    """What ComfyUI says of the workflow with other values in our node: None if it would run it."""
    asked = copy.deepcopy(workflow)
    (ours,) = (n for n in asked.values() if n["class_type"] == "SkipstoneMeanCache")
    ours["inputs"].update(values)
    valid, error, _, node_errors = asyncio.run(execution.validate_prompt("1", asked, None))
    return None if valid else json.dumps([error, node_errors], default=str)


def test_the_shared_workflow_would_run(workflow):
    assert refusal(workflow) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("budget", 0.0),
        ("budget", 1.5),
        ("gamma", 0.0),
        ("span", 0),
        ("warmup", -1),
        ("start_percent", -0.1),
        ("end_percent", 1.1),
        ("max_skips", -1),
        ("preset", "Ludicrous"),
        ("schedule", "Z-Image 99"),
        ("predictor", "crystal ball"),
        ("history_device", "/dev/null"),
    ],
)
def test_a_value_out_of_range_is_refused_before_anything_runs(workflow, name, value):
    assert name in (refusal(workflow, **{name: value}) or "it would be run")
