"""Nodes of earlier packs and our replacements for them, as data, with the functions that apply it.

The server (nodes/replacements.py) and, as JSON, the front end (web/js/replacements.js) apply the same rules. Ids, the order of widgets and
defaults are those of the packs' releases. A release with another order of widgets has its own layout, recognised by the number of saved
values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Rule = Mapping[str, Any]
"""The source of one of our inputs' values, JSON-ready; of two rules for one input the later one applies.

{"new_id", "set_value"}: a constant. {"new_id", "old_id"}: the old node's value. With "values", a list of [old, new]: the new value beside
the old one, else "otherwise", else none. With "less": that number minus the old value.
"""


def put(**values: Any) -> list[Rule]:
    return [{"new_id": new, "set_value": value} for new, value in values.items()]


def carry(**old: str) -> list[Rule]:
    """Take over values by name: `carry(threshold="rel_l1_thresh")`."""
    return [{"new_id": new, "old_id": name} for new, name in old.items()]


def choose(new: str, old: str, values: Iterable[Sequence[Any]], **otherwise: Any) -> Rule:
    return {"new_id": new, "old_id": old, "values": [list(pair) for pair in values], **otherwise}


def less(new: str, number: float, old: str) -> Rule:
    return {"new_id": new, "old_id": old, "less": number}


@dataclass(frozen=True)
class Earlier:
    """A node of an earlier pack. Both nodes have one output.

    new: id of our node. layouts: the old widgets in the order of saved files, newest release first.
    """

    id: str
    new: str
    layouts: tuple[tuple[str, ...], ...]
    rules: tuple[Rule, ...]

    def inputs(self, old: Mapping[str, Any]) -> dict[str, Any]:
        """Our node's inputs from the old node's, by name: values, and links as `[node, output]`."""
        new: dict[str, Any] = {}
        for rule in self.rules:
            if "set_value" in rule:
                new[rule["new_id"]] = rule["set_value"]
            elif rule["old_id"] in old:
                _apply(rule, old[rule["old_id"]], new)
        return new

    def named(self, values: Sequence[Any]) -> dict[str, Any]:
        """The old node's saved widget values by name. A list of unknown length is read as the newest release's."""
        layout = next((one for one in self.layouts if len(one) == len(values)), self.layouts[0])
        return dict(zip(layout, values, strict=False))

    def as_dict(self) -> dict[str, Any]:
        return {"layouts": [list(one) for one in self.layouts], "rules": [dict(rule) for rule in self.rules]}


def _apply(rule: Rule, value: Any, new: dict[str, Any]) -> None:
    name = rule["new_id"]
    converted = "values" in rule or "less" in rule
    if not converted:
        new[name] = value
    elif isinstance(value, list):
        return  # linked: its value is unknown here
    elif "less" in rule:
        if isinstance(value, (int, float)):
            new[name] = round(rule["less"] - value, 6)
    else:
        found = [to for one, to in rule["values"] if one == value and isinstance(one, bool) == isinstance(value, bool)]
        if found or "otherwise" in rule:
            new[name] = found[0] if found else rule["otherwise"]


CUSTOM, REUSE, RELATIVE = "Custom", "reuse", "relative change"
DEVICES = (("cuda", "gpu"), ("cpu", "cpu"))

# Comfy-WaveSpeed. object_to_patch has no equivalent: ours is always the diffusion model. Both count start and end in shares of the
# timestep range, and hold the first block's residual against that of the last computed step.
FIRST_BLOCK = (
    *put(preset=CUSTOM, threshold=0.0, unit=RELATIVE, predictor=REUSE, warmup=0, start_percent=0.0, end_percent=1.0),
    *put(max_skips=0, cache_device="auto"),
    *carry(model="model", threshold="residual_diff_threshold"),
)
HITS = (
    *carry(max_skips="max_consecutive_cache_hits"),
    choose("max_skips", "max_consecutive_cache_hits", [(-1, 0)]),  # no limit
    choose("threshold", "max_consecutive_cache_hits", [(0, 0.0)]),  # off
)
# object_to_patch, is_patcher and compiler name what is compiled and by what: nothing of a stranger's file is imported, it is the
# diffusion model, by torch.compile.
COMPILE = (
    *put(compile="whole model", mode="default", backend="inductor", fullgraph=False, dynamic="auto", options=""),
    *put(compiler="torch.compile", disable=False),
    *carry(model="model", backend="backend", fullgraph="fullgraph", mode="mode"),
    choose("mode", "mode", [("", "default")]),
    choose("dynamic", "dynamic", [(True, "true"), (False, "false")]),
)

# ComfyUI-TeaCache. Both count start and end in shares of the steps.
POLYNOMIALS = (
    ("flux", "Flux"),
    ("flux-kontext", "Flux Kontext"),
    ("ltxv", "LTX-Video"),
    ("lumina_2", "Lumina 2"),
    ("hunyuan_video", "HunyuanVideo"),
    *((f"hidream_i1_{kind}", f"HiDream {kind}") for kind in ("full", "dev", "fast")),
    *(
        (f"wan2.1_{old}{mode}", f"Wan 2.1 {new}{', ret_mode' if mode else ''}")
        for old, new in (
            ("t2v_1.3B", "t2v 1.3B"),
            ("t2v_14B", "t2v 14B"),
            ("i2v_480p_14B", "i2v 480p"),
            ("i2v_720p_14B", "i2v 720p"),
        )
        for mode in ("", "_ret_mode")
    ),
)
TEACACHE = (
    *put(preset=CUSTOM, threshold=0.4, polynomial="auto", predictor=REUSE, warmup=1, start_percent=0.0),
    *put(end_percent=1.0, max_skips=0, cache_device="auto", unit=RELATIVE),
    *carry(model="model", threshold="rel_l1_thresh"),
    choose("polynomial", "model_type", POLYNOMIALS, otherwise="auto"),
)

# ComfyUI-MagCache. retention_ratio is a share of the steps, as ours. end_step is a number of steps, or how many before the last, and ours
# is a share: it is not carried over; the last step is always computed.
RATIOS = (
    ("flux", "Flux"),
    ("flux_kontext", "Flux Kontext"),
    ("chroma", "Chroma"),
    ("qwen_image", "Qwen-Image"),
    ("hunyuan_video", "HunyuanVideo"),
    ("hunyuan_video1.5", "HunyuanVideo 1.5, 20 steps"),
    ("wan2.1_t2v_1.3B", "Wan 2.1 t2v 1.3B"),
    ("wan2.1_t2v_14B", "Wan 2.1 t2v 14B"),
    ("wan2.1_i2v_480p_14B", "Wan 2.1 i2v 480p"),
    ("wan2.1_i2v_720p_14B", "Wan 2.1 i2v 720p"),
    ("wan2.1_vace_1.3B", "Wan 2.1 VACE 1.3B"),
    ("wan2.1_vace_14B", "Wan 2.1 VACE 14B"),
)
MAGCACHE = (
    *put(preset=CUSTOM, threshold=0.06, ratios="auto", predictor=REUSE, warmup=0, start_percent=0.2, end_percent=1.0),
    *put(max_skips=2, cache_device="auto", unit=RELATIVE),
    *carry(model="model"),
)
MAG_WIDGETS = ("model_type", "magcache_thresh", "retention_ratio", "magcache_K")

# comfyui-meancache-z. Its presets skip less than ours of the same names: a preset, too, is carried over as what it stands for. Without an
# equivalent: rel_l1_thresh and enable_pssp (it never solved a schedule, we always do), peak_threshold (gamma does that), adaptive_k (the
# predictor chooses), end_step (the last step is always computed), debug. The shipped costs skip at once, as it did.
Z_PRESETS = {"Quality": (0.80, 3, 3.0), "Balanced": (0.60, 2, 2.0), "Speed": (0.45, 1, 1.5), "Turbo": (0.40, 1, 1.0)}
MEANCACHE = (
    *put(preset=CUSTOM, budget=0.60, schedule="PSSP", predictor="auto", gamma=2.0, span=3, warmup=2, start_percent=0.0),
    *put(end_percent=1.0, max_skips=0, history_device="auto", calibration="default", max_error=0.0),
    *carry(model="model", warmup="start_step"),
    less("budget", 1.0, "skip_budget"),
    choose("budget", "preset", ((name, budget) for name, (budget, _, _) in Z_PRESETS.items())),
    choose("warmup", "preset", ((name, warmup) for name, (_, warmup, _) in Z_PRESETS.items())),
    choose("gamma", "preset", ((name, gamma) for name, (_, _, gamma) in Z_PRESETS.items())),
    choose("history_device", "cache_device", DEVICES),
)

COMPILE_WIDGETS = ("mode", "backend", "fullgraph", "dynamic")
NODES = (
    Earlier(
        "ApplyFBCacheOnModel",
        "SkipstoneFirstBlockCache",
        (
            ("object_to_patch", "residual_diff_threshold", "start", "end", "max_consecutive_cache_hits"),
            ("object_to_patch", "residual_diff_threshold"),
        ),
        (*FIRST_BLOCK, *carry(start_percent="start", end_percent="end"), *HITS),
    ),
    Earlier(
        "ApplyFBCacheOnModelAdvanced",
        "SkipstoneFirstBlockCache",
        (("object_to_patch", "residual_diff_threshold", "start_percent", "end_percent", "max_consecutive_cache_hits"),),
        (*FIRST_BLOCK, *carry(start_percent="start_percent", end_percent="end_percent"), *HITS),
    ),
    Earlier(
        "EnhancedCompileModel",
        "SkipstoneCompileModel",
        (
            (
                "is_patcher",
                "object_to_patch",
                "compiler",
                "fullgraph",
                "dynamic",
                "mode",
                "options",
                "disable",
                "backend",
            ),
        ),
        (*COMPILE, *carry(options="options", disable="disable")),
    ),
    Earlier(
        "EnhancedLoadDiffusionModel",
        "UNETLoader",
        (("unet_name", "weight_dtype"),),
        (
            *put(weight_dtype="default"),
            *carry(unet_name="unet_name"),
            # the others are full precisions, which ComfyUI chooses by itself
            choose("weight_dtype", "weight_dtype", ((d, d) for d in ("fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"))),
        ),
    ),
    Earlier(
        "TeaCache",
        "SkipstoneTeaCache",
        (
            ("model_type", "rel_l1_thresh", "start_percent", "end_percent", "cache_device"),
            ("model_type", "rel_l1_thresh", "start_percent", "end_percent"),
            ("model_type", "rel_l1_thresh", "max_skip_steps"),
        ),
        (
            *TEACACHE,
            *carry(start_percent="start_percent", end_percent="end_percent", max_skips="max_skip_steps"),
            choose("cache_device", "cache_device", DEVICES),
        ),
    ),
    *(
        Earlier(
            name,
            "SkipstoneTeaCache",
            (
                ("model_type", "rel_l1_thresh"),
                ("enable_teacache", "model_type", "rel_l1_thresh"),
                ("enable_teacache", "model_type", "rel_l1_thresh", "steps"),
            ),
            (*TEACACHE, choose("threshold", "enable_teacache", [(False, 0.0)])),
        )
        for name in ("TeaCacheForImgGen", "TeaCacheForVidGen")
    ),
    Earlier(
        "MagCache",
        "SkipstoneMagCache",
        ((*MAG_WIDGETS, "start_step", "end_step"), MAG_WIDGETS),
        (
            *MAGCACHE,
            *carry(threshold="magcache_thresh", start_percent="retention_ratio", max_skips="magcache_K"),
            *carry(warmup="start_step"),
            choose("threshold", "magcache_K", [(0, 0.0)]),  # off; no limit with us
            choose("ratios", "model_type", RATIOS, otherwise="auto"),
        ),
    ),
    # computed every step and wrote the ratios into the console; ours keeps them, and uses them from the next run on
    Earlier(
        "MagCacheCalibration",
        "SkipstoneMagCache",
        (("model_type",),),
        (*MAGCACHE, *put(threshold=0.0, ratios="measured")),
    ),
    # both packs' at first, and of other packs as well
    *(
        Earlier(name, "SkipstoneCompileModel", (COMPILE_WIDGETS,), COMPILE)
        for name in ("CompileModel", "MagCacheCompileModel")
    ),
    Earlier(
        "MeanCache_ZImage",
        "SkipstoneMeanCache",
        (
            (
                "preset",
                "cache_device",
                "rel_l1_thresh",
                "skip_budget",
                "start_step",
                "end_step",
                "enable_pssp",
                "peak_threshold",
                "adaptive_k",
                "debug",
            ),
        ),
        MEANCACHE,
    ),
)
