"""The nodes as ComfyUI loads them, under an unusual folder name, with the ids that workflows contain."""

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
from skipstone.core.step.published import coefficients

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "demo" / "models"

GUARDS = {"warmup": "INT", "start_percent": "FLOAT", "end_percent": "FLOAT", "max_skips": "INT"}
COMMON = {"history_device": "COMBO", "step_mask": "STEP_MASK"}
CACHE = {"cache_device": "COMBO", "step_mask": "STEP_MASK"}  # of the methods at block level
# In the order of the widgets: a saved workflow holds their values by place. Never remove, rename or reorder; append.
INPUTS: dict[str, dict[str, str]] = {
    "SkipstoneAuto": {
        "model": "MODEL",
        "wish": "COMBO",
        "speedup": "FLOAT",
        "decibels": "FLOAT",
        "first_run": "COMBO",
    },
    "SkipstoneMeanCache": {
        "model": "MODEL",
        "preset": "COMBO",
        "budget": "FLOAT",
        "schedule": "COMBO",
        "predictor": "COMBO",
        "gamma": "FLOAT",
        "span": "INT",
        **GUARDS,
        **COMMON,
        "calibration": "COMBO",
        "max_error": "FLOAT",
    },
    "SkipstoneEasyCache": {
        "model": "MODEL",
        "preset": "COMBO",
        "threshold": "FLOAT",
        "reference": "COMBO",
        "predictor": "COMBO",
        **GUARDS,
        **COMMON,
    },
    "SkipstoneUCache": {
        "model": "MODEL",
        "preset": "COMBO",
        "threshold": "FLOAT",
        "decay": "FLOAT",
        "relative": "BOOLEAN",
        "reset": "BOOLEAN",
        "predictor": "COMBO",
        **GUARDS,
        **COMMON,
    },
    "SkipstoneSpectrum": {
        "model": "MODEL",
        "preset": "COMBO",
        "w": "FLOAT",
        "m": "INT",
        "lam": "FLOAT",
        "window": "FLOAT",
        "flex": "FLOAT",
        "warmup": "INT",
        "stop": "FLOAT",
        "predict": "COMBO",
        "coordinate": "COMBO",
        "max_skips": "INT",
        **COMMON,
    },
    "SkipstoneTaylorSeer": {
        "model": "MODEL",
        "preset": "COMBO",
        "order": "INT",
        "interval": "INT",
        "coordinate": "COMBO",
        "published": "BOOLEAN",
        "predict": "COMBO",
        **GUARDS,
        **COMMON,
        "level": "COMBO",
    },
    "SkipstoneFirstBlockCache": {
        "model": "MODEL",
        "preset": "COMBO",
        "threshold": "FLOAT",
        "unit": "COMBO",
        "predictor": "COMBO",
        **GUARDS,
        **CACHE,
    },
    "SkipstoneDBCache": {
        "model": "MODEL",
        "preset": "COMBO",
        "fn": "INT",
        "bn": "INT",
        "threshold": "FLOAT",
        "unit": "COMBO",
        "predictor": "COMBO",
        "order": "INT",
        "coordinate": "COMBO",
        "max_cached": "INT",
        **GUARDS,
        **CACHE,
    },
    "SkipstoneCacheDiT": {
        "model": "MODEL",
        "preset": "COMBO",
        "fn": "INT",
        "bn": "INT",
        "threshold": "FLOAT",
        "warmup": "INT",
        "order": "INT",
        "coordinate": "COMBO",
        "skip_interval": "INT",
        "max_cached": "INT",
        "mask": "COMBO",
        "mask_policy": "COMBO",
        **CACHE,
        "unit": "COMBO",
    },
    "SkipstoneTeaCache": {
        "model": "MODEL",
        "preset": "COMBO",
        "threshold": "FLOAT",
        "polynomial": "COMBO",
        "predictor": "COMBO",
        **GUARDS,
        **CACHE,
        "unit": "COMBO",
    },
    "SkipstoneMagCache": {
        "model": "MODEL",
        "preset": "COMBO",
        "threshold": "FLOAT",
        "ratios": "COMBO",
        "predictor": "COMBO",
        **GUARDS,
        **CACHE,
        "unit": "COMBO",
    },
    "SkipstoneDiCache": {
        "model": "MODEL",
        "preset": "COMBO",
        "threshold": "FLOAT",
        "error": "COMBO",
        "probe": "INT",
        "most_ratio": "FLOAT",
        **GUARDS,
        **CACHE,
        "unit": "COMBO",
    },
    "SkipstoneCompileModel": {
        "model": "MODEL",
        "compile": "COMBO",
        "mode": "COMBO",
        "backend": "COMBO",
        "fullgraph": "BOOLEAN",
        "dynamic": "COMBO",
        "options": "STRING",
        "compiler": "COMBO",
        "disable": "BOOLEAN",
    },
    "SkipstoneStepMask": {
        "source": "COMBO",
        "mask": "STRING",
        "compute_bins": "STRING",
        "cache_bins": "STRING",
        "policy": "COMBO",
    },
    "SkipstoneStepReport": {"latent": "LATENT", "model": "MODEL"},
    "SkipstoneCompareImages": {
        "left": "IMAGE",
        "right": "IMAGE",
        "amplify": "FLOAT",
        "left_name": "STRING",
        "right_name": "STRING",
    },
    "SkipstoneMemoVAE": {"vae": "VAE", "decode": "BOOLEAN"},
    "SkipstoneAllPresets": {"model": "MODEL"},
    "SkipstonePresetTable": {"images": "IMAGE"},
    "SkipstoneMemoCLIP": {"clip": "CLIP"},
    "SkipstoneMemoCLIPVision": {"clip_vision": "CLIP_VISION"},
    "SkipstoneMemoAudioEncoder": {"audio_encoder": "AUDIO_ENCODER"},
    "SkipstoneCachedVAEEncode": {"image": "IMAGE", "vae": "VAE"},
    "SkipstoneCachedTextEncode": {"text": "STRING", "clip": "CLIP"},
    "SkipstoneMemoStats": {"after": "*"},
    "SkipstoneMemoClear": {"tier": "COMBO", "kind": "COMBO", "unused_days": "FLOAT", "after": "*"},
}
OTHERS = {
    "SkipstoneStepMask": ["STEP_MASK"],
    "SkipstoneStepReport": ["LATENT", "IMAGE", "STRING", "STRING"],
    "SkipstoneCompareImages": ["FLOAT", "FLOAT", "IMAGE", "STRING"],
    "SkipstoneAllPresets": ["MODEL"],
    "SkipstonePresetTable": ["STRING"],
    "SkipstoneMemoVAE": ["VAE"],
    "SkipstoneMemoCLIP": ["CLIP"],
    "SkipstoneMemoCLIPVision": ["CLIP_VISION"],
    "SkipstoneMemoAudioEncoder": ["AUDIO_ENCODER"],
    "SkipstoneCachedVAEEncode": ["LATENT"],
    "SkipstoneCachedTextEncode": ["CONDITIONING"],
    "SkipstoneMemoStats": ["STRING", "DICT"],
    "SkipstoneMemoClear": ["STRING", "DICT", "*"],
}
OUTPUTS = {name: OTHERS.get(name, ["MODEL"]) for name in INPUTS}
METHODS = [name for name in INPUTS if name not in (*OTHERS, "SkipstoneAuto", "SkipstoneCompileModel")]
LEARNS = ("SkipstoneTeaCache", "SkipstoneMagCache")
FOUR = ["Quality", "Balanced", "Speed", "Turbo"]
DEVICES = ["auto", "gpu", "cpu"]
# Likewise: what a workflow may have chosen must be there to be chosen.
OPTIONS: dict[str, dict[str, list[str]]] = {
    "SkipstoneAuto": {
        "wish": [*FOUR, "speed-up", "at least this dB"],
        "first_run": ["learn", "skip at once", "calibrate"],
    },
    "SkipstoneMeanCache": {
        "preset": [*FOUR, "Custom"],
        "schedule": [
            "PSSP",
            *(f"Z-Image {n}" for n in (25, 20, 17, 15, 13)),
            *(f"{model} {n}" for model in ("Qwen-Image", "Qwen-Image-2512") for n in (25, 17, 10)),
        ],
        "predictor": ["auto", "linear", "average velocity (paper)", "average velocity (released)", "reuse"],
        "history_device": DEVICES,
        "calibration": ["auto", "record", "default", "off", "calibrate"],
    },
    "SkipstoneEasyCache": {
        "preset": [*FOUR, "as published", "as in ComfyUI", "Custom"],
        "reference": ["previous step", "last computed step"],
        "predictor": ["auto", "residual"],
        "history_device": DEVICES,
    },
    "SkipstoneUCache": {
        "preset": [*FOUR, "as in stable-diffusion.cpp", "Custom"],
        "predictor": ["auto", "residual"],
        "history_device": DEVICES,
    },
    "SkipstoneSpectrum": {
        "preset": [*FOUR, "paper", "stable-diffusion.cpp", "Custom"],
        "predict": ["auto", "velocity", "denoised"],
        "coordinate": ["sigma", "time", "log-SNR", "index"],
        "history_device": DEVICES,
    },
    "SkipstoneTaylorSeer": {
        "preset": [*FOUR, "as published", "Custom"],
        "coordinate": ["sigma", "time", "log-SNR", "index"],
        "predict": ["auto", "velocity", "denoised"],
        "history_device": DEVICES,
        "level": ["output", "blocks"],
    },
    "SkipstoneFirstBlockCache": {
        "preset": [*FOUR, "auto", "as in WaveSpeed", "Custom"],
        "unit": ["relative change", "typical changes"],
        "predictor": ["line", "reuse"],
        "cache_device": DEVICES,
    },
    "SkipstoneDBCache": {
        "preset": [*FOUR, "as in cache-dit", "Custom"],
        "unit": ["relative change", "typical changes"],
        "predictor": ["none", "line", "taylor"],
        "coordinate": ["sigma", "time", "log-SNR", "index"],
        "cache_device": DEVICES,
    },
    "SkipstoneCacheDiT": {
        "preset": [*FOUR, "stable-diffusion.cpp", "Custom"],
        "coordinate": ["sigma", "time", "log-SNR", "index"],
        "mask": ["none", "slow", "medium", "fast", "ultra"],
        "mask_policy": ["dynamic", "static"],
        "unit": ["relative change", "typical changes"],
        "cache_device": DEVICES,
    },
    "SkipstoneTeaCache": {
        "preset": [*FOUR, "as published", "Custom"],
        "polynomial": ["auto", "measured", *coefficients.names(coefficients.TEACACHE)],
        "unit": ["relative change", "typical changes"],
        "predictor": ["line", "reuse"],
        "cache_device": DEVICES,
    },
    "SkipstoneMagCache": {
        "preset": [*FOUR, "as published", "Custom"],
        "ratios": ["auto", "measured", *coefficients.names(coefficients.MAGCACHE)],
        "unit": ["relative change", "typical changes"],
        "predictor": ["line", "reuse"],
        "cache_device": DEVICES,
    },
    "SkipstoneDiCache": {
        "preset": [*FOUR, "as published", "Custom"],
        "error": ["change", "change beyond the input's"],
        "unit": ["relative change", "typical changes"],
        "cache_device": DEVICES,
    },
    "SkipstoneCompileModel": {
        "compile": ["each block", "whole model"],
        "mode": ["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"],
        "backend": ["inductor", "cudagraphs", "eager", "aot_eager"],
        "dynamic": ["auto", "true", "false"],
        "compiler": ["torch.compile"],
    },
    "SkipstoneStepMask": {
        "source": ["slow", "medium", "fast", "ultra", "mask", "bins"],
        "policy": ["static", "dynamic"],
    },
    "SkipstoneMemoClear": {
        "tier": ["all", "memory", "disk", "redis"],
        "kind": ["all", "latents", "prompts", "pictures", "loaders", "other nodes"],
    },
}
# what goes into the demo's workflow; the memo's nodes have workflows of their own (tests/comfy/memo)
ON_MODELS = [*METHODS, "SkipstoneAuto", "SkipstoneStepMask", "SkipstoneCompileModel"]
CHOICES = [(name, widget, value) for name in METHODS for widget, values in OPTIONS[name].items() for value in values]
SOCKETS = ("MODEL", "STEP_MASK")


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    """The nodes' classes by their ids, by ComfyUI's own loader."""
    folder = tmp_path_factory.mktemp("ComfyUI") / "custom_nodes" / "skip-stone.x (copy)"
    folder.parent.mkdir()
    folder.symlink_to(ROOT)
    modules, before = set(sys.modules), set(nodes.NODE_CLASS_MAPPINGS)
    assert not before & set(INPUTS)
    assert asyncio.run(nodes.load_custom_node(str(folder)))
    yield {n: c for n, c in nodes.NODE_CLASS_MAPPINGS.items() if n not in before}
    for mapping in (nodes.NODE_CLASS_MAPPINGS, nodes.NODE_DISPLAY_NAME_MAPPINGS):
        for name in [n for n in mapping if n.startswith("Skipstone")]:
            del mapping[name]
    for name in set(sys.modules) - modules:
        if "skip-stone" in name:
            del sys.modules[name]


def test_every_id_is_ours_and_here(pack):
    assert set(pack) == set(INPUTS)
    assert all(n.startswith("Skipstone") and "skip-stone" in c.__module__ for n, c in pack.items())


def test_what_people_read_on_them(pack):
    shown = {name: nodes.NODE_DISPLAY_NAME_MAPPINGS[name] for name in pack}
    assert shown == {
        "SkipstoneAuto": "Step Cache (Auto)",
        "SkipstoneMeanCache": "MeanCache",
        "SkipstoneEasyCache": "Skipstone EasyCache",  # ComfyUI has an EasyCache of its own
        "SkipstoneUCache": "UCache",
        "SkipstoneSpectrum": "Spectrum",
        "SkipstoneTaylorSeer": "TaylorSeer",
        "SkipstoneFirstBlockCache": "First Block Cache",
        "SkipstoneDBCache": "DBCache",
        "SkipstoneCacheDiT": "Cache-DiT",
        "SkipstoneTeaCache": "TeaCache",
        "SkipstoneMagCache": "MagCache",
        "SkipstoneDiCache": "DiCache",
        "SkipstoneCompileModel": "Compile Model+",
        "SkipstoneStepMask": "Step Mask",
        "SkipstoneStepReport": "Step Report",
        "SkipstoneCompareImages": "Compare Images (PSNR)",
        "SkipstoneAllPresets": "All Presets",
        "SkipstonePresetTable": "Preset Table",
        "SkipstoneMemoVAE": "Cached VAE",
        "SkipstoneMemoCLIP": "Cached CLIP",
        "SkipstoneMemoCLIPVision": "Cached CLIP Vision",
        "SkipstoneMemoAudioEncoder": "Cached Audio Encoder",
        "SkipstoneCachedVAEEncode": "Cached VAE Encode",
        "SkipstoneCachedTextEncode": "Cached Text Encode",
        "SkipstoneMemoStats": "Encode Cache Stats",
        "SkipstoneMemoClear": "Encode Cache Clear",
    }
    others = {n: shown for n, shown in nodes.NODE_DISPLAY_NAME_MAPPINGS.items() if n not in pack}
    assert not set(shown.values()) & set(others.values())


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_never_change(pack, name):
    schema = pack[name].GET_SCHEMA()
    assert [(i.id, i.io_type) for i in schema.inputs] == list(INPUTS[name].items())
    assert [o.io_type for o in schema.outputs] == OUTPUTS[name]
    combos = {i.id: i.options for i in schema.inputs if i.io_type == "COMBO"}
    offered = OPTIONS.get(name, {})
    assert combos.keys() == offered.keys()
    for widget, options in offered.items():
        assert combos[widget][: len(options)] == options


@pytest.mark.parametrize("name", INPUTS)
def test_what_comfyui_tells_the_browser_has_the_widgets_in_the_same_order(pack, name):
    """ComfyUI sends the required inputs before the optional ones: that order is the one of the values in a saved file."""
    told = pack[name].INPUT_TYPES()
    sent = [*told["required"], *told.get("optional", {})]
    widgets = [i for i, kind in INPUTS[name].items() if kind not in SOCKETS]
    assert [i for i in sent if i in widgets] == widgets


@pytest.mark.parametrize("name", INPUTS)
def test_everything_is_explained(pack, name):
    schema = pack[name].GET_SCHEMA()
    assert schema.description and schema.description.endswith(".")
    assert schema.category.startswith("Skipstone/")
    assert "skipstone" in schema.search_aliases
    for i in schema.inputs:
        assert i.tooltip, i.id
        assert i.tooltip.endswith("."), i.id


@pytest.mark.parametrize("name", METHODS)
def test_what_a_beginner_sees(pack, name):
    """The model, the preset and the socket for a mask; all else is folded, and every widget has a default."""
    inputs = pack[name].GET_SCHEMA().inputs
    assert [i.id for i in inputs if not getattr(i, "advanced", None)] == ["model", "preset", "step_mask"]
    assert {i.id: i.optional for i in inputs if i.id in ("model", "step_mask")} == {"model": False, "step_mask": True}
    for i in inputs:
        if i.io_type not in SOCKETS:
            assert i.default is not None, i.id
            assert i.io_type != "COMBO" or i.default in i.options, i.id


def test_a_workflow_of_before_there_were_masks_and_calibration_still_runs(pack, studio, meancache):
    """It has no value for what was appended: then MeanCache does what it did."""
    (model,) = execute(pack["SkipstoneMeanCache"], model=studio.model, **OLD)
    assert torch.equal(studio.sample(model), studio.sample(meancache(preset="Turbo")[0]))


@pytest.mark.parametrize("name", [*METHODS, "SkipstoneAuto"])
def test_callers_of_the_api_send_the_preset_alone(pack, workflow, name):
    """What they leave out has the widgets' defaults, apart from what old files leave out: see the test before."""
    node = pack[name]
    first = INPUTS[name].keys() - {"model"}
    required = [i.id for i in node.GET_SCHEMA().inputs if not i.optional]
    assert required == [*INPUTS[name]][:2] and required[1] in first
    defaults = {i.id: i.default for i in node.GET_SCHEMA().inputs if i.io_type not in SOCKETS}
    defaults.pop("calibration", None)
    for preset in OPTIONS[name][required[1]]:
        chosen = {required[1]: preset}
        assert refusal(pack, workflow, name, only=("model",), **chosen) is None
        assert node.method(**chosen) == node.method(**{**defaults, **chosen})


OLD: dict[str, Any] = {
    "preset": "Turbo",
    "budget": 0.45,
    "schedule": "PSSP",
    "predictor": "auto",
    "gamma": 2.0,
    "span": 3,
    "warmup": 2,
    "start_percent": 0.0,
    "end_percent": 1.0,
    "max_skips": 0,
    "history_device": "auto",
}


def execute(node, unique_id="7", **values):
    """As ComfyUI's executor calls it: every value by its name, and only what the node has."""
    hidden = {io.Hidden.unique_id: unique_id} if node.GET_SCHEMA().hidden else {}
    prepared = node.PREPARE_CLASS_CLONE({"hidden_inputs": hidden})
    return prepared.EXECUTE_NORMALIZED(**values)


def run(pack, name, model, unique_id="7", **widgets):
    """The MODEL that a method node makes of `model`, with its own defaults where `widgets` says nothing. MeanCache's first run
    on a model is computed in full by default, to learn from it: here it takes the costs that are shipped."""
    values = {i.id: i.default for i in pack[name].GET_SCHEMA().inputs if i.io_type not in SOCKETS}
    if "calibration" in values:
        values["calibration"] = "default"
    if "fn" in values:  # of the two blocks that the tiny model has
        values["fn"] = 1
    return execute(pack[name], unique_id, model=model, **{**values, **widgets})[0]


def learned(pack, studio, name, model, steps):
    """The run that teaches TeaCache and MagCache what is published for no model like this one."""
    if name in LEARNS:
        studio.sample(run(pack, name, model, unique_id="0"), steps=steps, cfg=1.0)


def mask(pack, **widgets):
    values = {i.id: i.default for i in pack["SkipstoneStepMask"].GET_SCHEMA().inputs}
    return execute(pack["SkipstoneStepMask"], **{**values, **widgets})[0]


@pytest.fixture
def messages(monkeypatch):
    """What a browser would get of us: (event, data) pairs."""
    sent: list[Any] = []
    there = SimpleNamespace(send_sync=lambda event, data: sent.append((event, json.loads(json.dumps(data)))))
    monkeypatch.setattr(server.PromptServer, "instance", there, raising=False)
    return sent


class Ended(list[Any]):
    """Of all messages those that end a run."""

    def __init__(self, messages):
        self.messages = messages

    def __iter__(self):
        return (m for m in self.messages if not m[1]["running"])

    def __getitem__(self, i):
        return [*self][i]

    def clear(self):
        self.messages.clear()


@pytest.fixture
def browser(messages):
    return Ended(messages)


@pytest.mark.parametrize("name", METHODS)
def test_it_runs_and_tells_the_browser(pack, studio, tiny_flux, browser, name):
    learned(pack, studio, name, tiny_flux, 32)
    browser.clear()
    model = run(pack, name, tiny_flux, preset="Turbo")
    out = studio.sample(model, steps=32, cfg=1.0)
    assert torch.isfinite(out).all()
    assert not torch.equal(out, studio.sample(tiny_flux, steps=32, cfg=1.0))
    ((event, data),) = browser
    assert event == "skipstone.report"
    assert data["node"] == "7"
    report = json.loads(json.dumps(data["report"], allow_nan=False))
    assert report["method"].replace(" ", "").replace("-", "") == name.removeprefix("Skipstone")
    assert report["variant"] == "Turbo"
    assert report["skipped"] > 0
    assert report["computed"] + report["skipped"] == 32


def test_it_tells_while_it_runs(pack, studio, messages, monkeypatch):
    monkeypatch.setattr(
        sys.modules[f"{pack['SkipstoneMeanCache'].__module__.rpartition('.')[0]}.reporting"], "PAUSE", 0
    )
    model = run(pack, "SkipstoneMeanCache", studio.model, preset="Speed")
    for _ in range(2):
        studio.sample(model, steps=8)
    first, second = (messages[: len(messages) // 2], messages[len(messages) // 2 :])
    for part in (first, second):
        assert [len(data["report"]["timeline"]) for _, data in part] == [*range(1, 9), 8]
        assert [data["running"] for _, data in part] == [True] * 8 + [False]
        assert len({data["run"] for _, data in part}) == 1
    assert first[0][1]["run"] != second[0][1]["run"]


def test_a_run_that_fails_is_told_to_have_ended(pack, studio, messages):
    def stop(step, *_):
        if step == 2:
            raise KeyboardInterrupt

    model = run(pack, "SkipstoneMeanCache", studio.model, preset="Speed")
    with pytest.raises(KeyboardInterrupt):
        studio.sample(model, steps=8, callback=stop)
    last = messages[-1][1]
    assert not last["running"]
    assert not last["report"]["finished"]


def test_it_does_what_the_pack_does_elsewhere(pack, studio, meancache, browser):
    out = studio.sample(run(pack, "SkipstoneMeanCache", studio.model, preset="Turbo"))
    assert torch.equal(out, studio.sample(meancache(preset="Turbo")[0]))
    assert browser[0][1]["report"]["computed"] == 5


@pytest.mark.parametrize(("calibration", "skips"), [("auto", [True, True]), ("calibrate", [False, True])])
def test_meancache_skips_at_once_unless_it_is_to_calibrate(pack, studio, tiny_flux, browser, calibration, skips):
    model = run(pack, "SkipstoneMeanCache", tiny_flux, calibration=calibration)
    first, second = (studio.sample(model, steps=10, cfg=1.0) for _ in range(2))
    full = studio.sample(tiny_flux, steps=10, cfg=1.0)
    assert torch.equal(first, full) is not skips[0]
    assert not torch.equal(second, full)
    assert [data["report"]["skipped"] > 0 for _, data in browser] == skips


@pytest.mark.parametrize("name", METHODS)
def test_a_step_mask_goes_into_every_method(pack, studio, tiny_flux, browser, name):
    """Two steps in the middle may be skipped, and no other."""
    learned(pack, studio, name, tiny_flux, 12)
    browser.clear()
    static = mask(pack, source="mask", mask="1,1,1,1,1,1,1,1,0,1,0,1")
    model = run(pack, name, tiny_flux, step_mask=static)
    studio.sample(model, steps=12, cfg=1.0)
    (timeline,) = (data["report"]["timeline"] for _, data in browser)
    assert [e["step"] for e in timeline if not e["computed"]] == [8, 10]


@pytest.mark.parametrize("name", METHODS)
def test_it_runs_without_a_server(pack, studio, tiny_flux, monkeypatch, name):
    monkeypatch.delattr(server.PromptServer, "instance", raising=False)
    assert torch.isfinite(studio.sample(run(pack, name, tiny_flux), cfg=1.0)).all()


@pytest.mark.parametrize(("name", "widget", "value"), CHOICES)
def test_everything_that_can_be_chosen_makes_a_model(pack, studio, tiny_flux, name, widget, value):
    """With the preset Custom, so that no choice is passed over."""
    widgets = {"preset": "Custom", widget: value}
    model = run(pack, name, tiny_flux, **widgets)
    assert model is not tiny_flux
    assert model.wrappers != tiny_flux.wrappers


@pytest.mark.parametrize("predictor", OPTIONS["SkipstoneMeanCache"]["predictor"])
def test_every_predictor_can_be_chosen(pack, studio, tiny_flux, predictor):
    model = run(pack, "SkipstoneMeanCache", tiny_flux, preset="Custom", predictor=predictor)
    assert torch.isfinite(studio.sample(model, cfg=1.0)).all()


@pytest.mark.parametrize("schedule", OPTIONS["SkipstoneMeanCache"]["schedule"])
def test_every_schedule_can_be_chosen(pack, studio, tiny_flux, schedule):
    model = run(pack, "SkipstoneMeanCache", tiny_flux, preset="Custom", schedule=schedule)
    assert torch.isfinite(studio.sample(model, cfg=1.0)).all()


@pytest.fixture
def workflow(pack, monkeypatch):
    """The shared workflow in API format, with the demo's models where ComfyUI looks for models."""
    extras = Path(nodes.__file__).parent / "comfy_extras" / "nodes_sd3.py"  # has the empty latent
    assert asyncio.run(nodes.load_custom_node(str(extras), module_parent="comfy_extras"))
    for kind in ("diffusion_models", "text_encoders", "vae"):
        paths, extensions = folder_paths.folder_names_and_paths[kind]
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, ([*paths, str(MODELS)], extensions))
    folder_paths.filename_list_cache.clear()
    yield json.loads((ROOT / "demo" / "graphs" / "api" / "meancache.json").read_text("utf-8"))
    folder_paths.filename_list_cache.clear()


def refusal(pack, workflow, name="SkipstoneMeanCache", only=None, **values):
    """What ComfyUI says of the workflow with this node of ours in the place of MeanCache: None if it would run it. A Step Mask
    goes into MeanCache. only: the inputs that are kept, where not all are."""
    asked = copy.deepcopy(workflow)
    (ours,) = (n for n in asked.values() if n["class_type"] == "SkipstoneMeanCache")
    changed = ours
    if name == "SkipstoneStepMask":
        ours["inputs"]["step_mask"] = ["mask", 0]
        changed = asked["mask"] = {"inputs": {}}
    if name != "SkipstoneMeanCache":
        changed["class_type"] = name
        defaults = {i.id: i.default for i in pack[name].GET_SCHEMA().inputs if i.io_type not in SOCKETS}
        changed["inputs"] = {**{k: v for k, v in changed["inputs"].items() if k == "model"}, **defaults}
    if only:
        changed["inputs"] = {k: v for k, v in changed["inputs"].items() if k in only}
    changed["inputs"].update(values)
    valid, error, _, node_errors = asyncio.run(execution.validate_prompt("1", asked, None))
    return None if valid else json.dumps([error, node_errors], default=str)


@pytest.mark.parametrize("name", ON_MODELS)
def test_a_workflow_with_it_would_run(pack, workflow, name):
    assert refusal(pack, workflow, name) is None


@pytest.mark.parametrize(
    ("name", "widget", "value"),
    [
        *(("SkipstoneMeanCache", *bad) for bad in (
            ("budget", 0.0),
            ("budget", 1.5),
            ("gamma", 0.0),
            ("span", 0),
            ("warmup", -1),
            ("start_percent", -0.1),
            ("end_percent", 1.1),
            ("max_skips", -1),
            ("max_error", -0.1),
            ("max_error", 1.1),
        )),
        ("SkipstoneAuto", "speedup", 0.9),
        ("SkipstoneAuto", "speedup", 8.1),
        ("SkipstoneAuto", "decibels", 19.0),
        ("SkipstoneAuto", "decibels", 81.0),
        ("SkipstoneEasyCache", "threshold", -0.1),
        ("SkipstoneEasyCache", "end_percent", 1.1),
        ("SkipstoneUCache", "threshold", -0.1),
        ("SkipstoneUCache", "decay", 1.1),
        ("SkipstoneUCache", "warmup", -1),
        ("SkipstoneSpectrum", "w", 1.1),
        ("SkipstoneSpectrum", "m", 0),
        ("SkipstoneSpectrum", "m", 13),
        ("SkipstoneSpectrum", "lam", 0.0),
        ("SkipstoneSpectrum", "window", 0.5),
        ("SkipstoneSpectrum", "flex", -0.1),
        ("SkipstoneSpectrum", "stop", 1.1),
        ("SkipstoneTaylorSeer", "order", 4),
        ("SkipstoneTaylorSeer", "interval", 0),
        *((name, widget, "/dev/null") for name in ON_MODELS for widget in OPTIONS[name]),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_before_anything_runs(pack, workflow, name, widget, value):
    assert widget in (refusal(pack, workflow, name, **{widget: value}) or "it would be run")


@pytest.mark.parametrize("name", METHODS)
def test_only_a_mask_goes_into_the_socket_for_masks(pack, workflow, name):
    assert "step_mask" in (
        refusal(pack, workflow, name, step_mask=["1", 0]) or "it would be run"
    )  # ["1", 0] is a MODEL


@pytest.mark.parametrize(
    ("widgets", "said"),
    [
        ({"source": "mask", "mask": "1,2,1"}, "a step mask is a list of 1"),
        ({"source": "bins", "compute_bins": "4,x"}, "compute_bins is a list of step counts"),
        ({"source": "bins", "compute_bins": "4", "cache_bins": "1,1,1"}, "take turns"),
    ],
)
def test_a_mask_that_is_none_is_refused_before_anything_runs(pack, workflow, widgets, said):
    assert said in (refusal(pack, workflow, "SkipstoneStepMask", **widgets) or "it would be run")
