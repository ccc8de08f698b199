"""What stands in for nodes of earlier packs: values carried over, converted where they meant something else, and found in old files."""

import json

import pytest

from skipstone.core.legacy_nodes import NODES

KNOWN = {node.id: node for node in NODES}


def inputs(kind, **old):
    return KNOWN[kind].inputs({"model": ["1", 0], **old})


def test_every_id_is_there_once_and_each_rule_is_json():
    assert len(KNOWN) == len(NODES)
    assert all(json.loads(json.dumps(node.as_dict(), allow_nan=False)) == node.as_dict() for node in NODES)


@pytest.mark.parametrize("node", NODES, ids=lambda n: n.id)
def test_what_a_rule_reads_is_a_widget_or_an_input_of_the_old_node(node):
    known = {name for layout in node.layouts for name in layout} | {"model"}
    assert {rule["old_id"] for rule in node.rules if "old_id" in rule} <= known
    lengths = [len(layout) for layout in node.layouts]
    assert len(set(lengths)) == len(lengths)  # else a file would not tell which


def test_first_block_cache():
    told = inputs(
        "ApplyFBCacheOnModel", object_to_patch="diffusion_model", residual_diff_threshold=0.1, start=0.2, end=0.8,
        max_consecutive_cache_hits=3,
    )  # fmt: skip
    assert told == {
        "model": ["1", 0],
        "preset": "Custom",
        "threshold": 0.1,
        "unit": "relative change",
        "predictor": "reuse",
        "warmup": 0,
        "start_percent": 0.2,
        "end_percent": 0.8,
        "max_skips": 3,
        "cache_device": "auto",
    }


@pytest.mark.parametrize(
    ("hits", "most", "threshold"), [(-1, 0, 0.1), (0, 0, 0.0), (1, 1, 0.1)], ids=["no limit", "off", "one"]
)
@pytest.mark.parametrize("kind", ["ApplyFBCacheOnModel", "ApplyFBCacheOnModelAdvanced"])
def test_what_minus_one_and_zero_meant(kind, hits, most, threshold):
    told = inputs(kind, residual_diff_threshold=0.1, max_consecutive_cache_hits=hits)
    assert (told["max_skips"], told["threshold"]) == (most, threshold)


def test_teacache():
    told = inputs(
        "TeaCache", model_type="wan2.1_t2v_14B_ret_mode", rel_l1_thresh=0.2, start_percent=0.1, end_percent=0.9, cache_device="cuda"
    )  # fmt: skip
    wanted = {"threshold": 0.2, "polynomial": "Wan 2.1 t2v 14B, ret_mode", "start_percent": 0.1, "end_percent": 0.9}
    assert told | wanted == told
    assert (told["cache_device"], told["unit"], told["preset"]) == ("gpu", "relative change", "Custom")
    assert inputs("TeaCache", model_type="what came later")["polynomial"] == "auto"
    assert inputs("TeaCacheForImgGen", enable_teacache=False, rel_l1_thresh=0.4)["threshold"] == 0.0
    assert inputs("TeaCacheForImgGen", enable_teacache=True, rel_l1_thresh=0.3)["threshold"] == 0.3


def test_magcache():
    told = inputs(
        "MagCache",
        model_type="chroma",
        magcache_thresh=0.1,
        retention_ratio=0.25,
        magcache_K=2,
        start_step=3,
        end_step=-1,
    )
    wanted = {"threshold": 0.1, "ratios": "Chroma", "start_percent": 0.25, "max_skips": 2, "warmup": 3}
    assert told | wanted == told
    assert inputs("MagCache", magcache_thresh=0.1, magcache_K=0)["threshold"] == 0.0  # off, where ours has no limit
    assert inputs("MagCacheCalibration", model_type="flux_calibration")["threshold"] == 0.0


@pytest.mark.parametrize(
    ("old", "budget", "warmup", "gamma"),
    [
        ({"preset": "Quality"}, 0.8, 3, 3.0),
        ({"preset": "Turbo", "skip_budget": 0.1, "start_step": 9}, 0.4, 1, 1.0),  # a preset's values hold
        ({"preset": "Custom", "skip_budget": 0.35, "start_step": 5}, 0.65, 5, 2.0),
        ({"preset": "Custom", "skip_budget": 0.0}, 1.0, 2, 2.0),
    ],
)
def test_meancache(old, budget, warmup, gamma):
    told = inputs("MeanCache_ZImage", cache_device="cuda", **old)
    assert (told["budget"], told["warmup"], told["gamma"]) == (budget, warmup, gamma)
    assert (told["preset"], told["history_device"]) == ("Custom", "gpu")


def test_compile():
    told = inputs(
        "EnhancedCompileModel", is_patcher=True, object_to_patch="diffusion_model", compiler="os.system", fullgraph=True, dynamic=True,
        mode="max-autotune", options='{"epilogue_fusion": true}', disable=True, backend="eager",
    )  # fmt: skip
    assert told == {
        "model": ["1", 0],
        "compile": "whole model",
        "mode": "max-autotune",
        "backend": "eager",
        "fullgraph": True,
        "dynamic": "true",
        "options": '{"epilogue_fusion": true}',
        "compiler": "torch.compile",  # nothing that a file names is imported
        "disable": True,
    }
    assert inputs("EnhancedCompileModel", mode="", dynamic=False)["mode"] == "default"
    assert inputs("CompileModel", dynamic=False)["dynamic"] == "false"
    assert "os.system" not in str(told)


def test_precisions_that_comfyuis_loader_has_are_carried_over():
    loader = KNOWN["EnhancedLoadDiffusionModel"]
    assert loader.inputs({"unet_name": "a", "weight_dtype": "fp8_e5m2"}) == {
        "unet_name": "a",
        "weight_dtype": "fp8_e5m2",
    }
    assert loader.inputs({"unet_name": "a", "weight_dtype": "bfloat16"}) == {
        "unet_name": "a",
        "weight_dtype": "default",
    }


def test_what_comes_over_a_link_stays_one_unless_it_would_have_to_be_converted():
    told = inputs("MeanCache_ZImage", preset="Custom", skip_budget=["7", 0], start_step=["8", 0])
    assert (told["budget"], told["warmup"]) == (0.6, ["8", 0])
    assert inputs("TeaCache", model_type=["7", 0])["polynomial"] == "auto"


def test_files_of_older_releases():
    tea = KNOWN["TeaCache"]
    assert tea.named(["flux", 0.4, 0.1, 0.9, "cpu"])["cache_device"] == "cpu"
    assert tea.inputs(tea.named(["flux", 0.25, 3]))["max_skips"] == 3
    assert tea.inputs(tea.named(["flux", 0.25, 3]))["start_percent"] == 0.0
    assert tea.inputs(tea.named(["flux", 0.25, 0.1, 0.8]))["end_percent"] == 0.8
    oldest = KNOWN["TeaCacheForVidGen"]
    assert oldest.inputs(oldest.named([False, "hunyuan_video", 0.15, 25]))["threshold"] == 0.0
    z = KNOWN["MeanCache_ZImage"]
    values = ["Custom", "cuda", 0.3, 0.5, 4, -1, True, 0.15, True, False]
    assert z.inputs(z.named(values)) | {"budget": 0.5, "warmup": 4, "history_device": "gpu"} == z.inputs(
        z.named(values)
    )
