"""Step Cache (Auto): the node to begin with. It chooses the method when the sampler is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..core.step.auto.method import NAME, AutoMethod
from . import method_node, widgets
from .easycache import ucache_of
from .meancache import PRESETS, method_of
from .method_node import MethodNode
from .widgets import CUSTOM, among

SPEEDUP, DECIBELS = "speed-up", "at least this dB"
WISHES = (*PRESETS, SPEEDUP, DECIBELS)
LEARN, AT_ONCE = FIRST_RUNS = ("learn", "skip at once")
# UCache's preset for a speed-up of at least this factor, where steps cannot be planned
FREE = ((1.0, "Quality"), (1.3, "Balanced"), (1.6, "Speed"), (2.0, "Turbo"))


def auto_of(wish: str = "Balanced", speedup: float = 2.0, decibels: float = 40.0, first_run: str = LEARN) -> AutoMethod:
    """Step Cache (Auto) as data.

    Args:
        wish (str, default "Balanced"): one of WISHES: a preset, SPEEDUP or DECIBELS.
        speedup (float, default 2.0): target speed-up, a factor from 1 to 8. It counts with SPEEDUP.
        decibels (float, default 40.0): target PSNR against the run without skipping, 20 to 80 dB. It counts with DECIBELS.
        first_run (str, default "learn"): one of FIRST_RUNS. "learn" computes the first run of a setup in full and records its costs;
            "skip at once" uses recorded costs, or the built-in ones.

    Raises ValueError for a value out of its range.
    """
    among("wish", wish, WISHES)
    among("first_run", first_run, FIRST_RUNS)
    if wish == SPEEDUP:
        if not 1 <= speedup <= 8:
            raise ValueError(f"speedup is a factor from 1 to 8, not {speedup}")
        preset = next(name for least, name in reversed(FREE) if speedup >= least)
        planned = method_of(CUSTOM, budget=1 / speedup, calibration="auto")
        made = AutoMethod(f"{speedup:g}x", planned, ucache_of(preset), speedup=speedup)
    elif wish == DECIBELS:
        if not 20 <= decibels <= 80:
            raise ValueError(f"decibels are from 20 to 80 (40 is hard to see), not {decibels}")
        # built-in costs predict no decibels of other models: it always learns
        return AutoMethod(f"{decibels:g} dB", method_of(CUSTOM, calibration="auto"), decibels=decibels)
    else:
        made = AutoMethod(wish, method_of(wish, calibration="auto"), ucache_of(wish))
    return made if first_run == LEARN else replace(made, planned=replace(made.planned, calibration="known"))


class StepCacheAuto(MethodNode):
    id = "SkipstoneAuto"
    name = NAME
    category = method_node.AUTO
    description = (
        "Recommended. Makes sampling faster with any model: choose how much, and the node chooses the method and the steps to skip for "
        "your sampler and number of steps. The first run of each setup is a learning run without skips; later runs are faster. Put it "
        "last before the sampler."
    )
    aliases = (
        *("speed", "speed up", "faster", "faster sampling", "accelerate", "turbo", "auto", "加速"),
        *("fbcache", "wavespeed", "teacache", "easycache", "deepcache", "cache-dit"),
    )
    method = staticmethod(auto_of)

    @classmethod
    def inputs(cls) -> list[Any]:
        return [
            io.Combo.Input(
                "wish",
                display_name="mode",
                options=[*WISHES],
                default="Balanced",
                tooltip=(
                    "How much to skip. Quality is safest, Turbo fastest. At 50 steps they compute 60 / 45 / 33 / 26 % of the steps; short "
                    "runs skip less. speed-up: reach the target speed-up. at least this dB: skip as much as possible while keeping "
                    "the target similarity."
                ),
            ),
            io.Float.Input(
                "speedup",
                display_name="target speed-up",
                optional=True,
                default=2.0,
                min=1.0,
                max=8.0,
                step=0.1,
                tooltip="How many times faster than without the node. 2.0 is twice as fast.",
                extra_dict=widgets.shown({"wish": [SPEEDUP]}),
            ),
            io.Float.Input(
                "decibels",
                display_name="target quality (dB)",
                optional=True,
                default=40.0,
                min=20.0,
                max=80.0,
                step=1.0,
                tooltip=(
                    "Skips as much as it can while keeping at least this similarity (PSNR) to the image without skipping. 30 = visible, "
                    "40 = hard to see, 50 = invisible. An estimate; on our test models it held for 9 of 10 images."
                ),
                extra_dict=widgets.shown({"wish": [DECIBELS]}),
            ),
            io.Combo.Input(
                "first_run",
                display_name="first run",
                optional=True,
                options=[*FIRST_RUNS],
                default=LEARN,
                advanced=True,
                tooltip=(
                    "The first run of a setup (model, LoRA, sampler, steps, CFG, size). learn: it is computed in full at its usual speed "
                    "and measures what skipping costs on your model; the result is kept. skip at once: no learning run; uses built-in "
                    "costs, slightly less accurate. A target quality always learns."
                ),
            ),
        ]


NODES = [StepCacheAuto]
