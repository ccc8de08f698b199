"""Step Cache (Auto): the node to begin with. It chooses the method when the sampler is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..core.step.auto.method import NAME, AutoMethod
from ..core.step.method import Calibration, Method
from . import method_node, widgets
from .easycache import ucache_of
from .meancache import PRESETS, method_of
from .method_node import MethodNode
from .widgets import CUSTOM, among

SPEEDUP, DECIBELS = "speed-up", "at least this dB"
WISHES = (*PRESETS, SPEEDUP, DECIBELS)
# "learn" has been the default since before runs that skip could teach: saved workflows hold it
LEARN, AT_ONCE, CALIBRATE = FIRST_RUNS = ("learn", "skip at once", "calibrate")
CALIBRATIONS: dict[str, Calibration] = {LEARN: "auto", AT_ONCE: "known", CALIBRATE: "calibrate"}
# UCache's preset for a speed-up of at least this factor, where steps cannot be planned
FREE = ((1.0, "Quality"), (1.3, "Balanced"), (1.6, "Speed"), (2.0, "Turbo"))


def auto_of(wish: str = "Balanced", speedup: float = 2.0, decibels: float = 40.0, first_run: str = LEARN) -> AutoMethod:
    """Step Cache (Auto) as data.

    Args:
        wish (str, default "Balanced"): one of WISHES: a preset, SPEEDUP or DECIBELS.
        speedup (float, default 2.0): target speed-up, a factor from 1 to 8. It counts with SPEEDUP.
        decibels (float, default 40.0): target PSNR against the run without skipping, 20 to 80 dB. It counts with DECIBELS.
        first_run (str, default "learn"): one of FIRST_RUNS. All of them plan with the best costs at hand. "learn" records each run;
            "skip at once" records nothing; "calibrate" computes the first run of a model in full and records it.

    Raises ValueError for a value out of its range.
    """
    among("wish", wish, WISHES)
    among("first_run", first_run, FIRST_RUNS)
    if wish == SPEEDUP:
        if not 1 <= speedup <= 8:
            raise ValueError(f"speedup is a factor from 1 to 8, not {speedup}")
        preset = next(name for least, name in reversed(FREE) if speedup >= least)
        planned = planned_by(first_run, CUSTOM, budget=1 / speedup)
        return AutoMethod(f"{speedup:g}x", planned, ucache_of(preset), speedup=speedup)
    if wish == DECIBELS:
        if not 20 <= decibels <= 80:
            raise ValueError(f"decibels are from 20 to 80 (40 is hard to see), not {decibels}")
        return AutoMethod(f"{decibels:g} dB", planned_by(first_run, CUSTOM), decibels=decibels)
    return AutoMethod(wish, planned_by(first_run, wish), ucache_of(wish))


def planned_by(first_run: str, preset: str, **values: Any) -> Method:
    """MeanCache with a preset or with values of its own."""
    return replace(method_of(preset, calibration="auto", **values), calibration=CALIBRATIONS[first_run])


class StepCacheAuto(MethodNode):
    id = "SkipstoneAuto"
    name = NAME
    category = method_node.AUTO
    description = (
        "Recommended. Makes sampling faster with any model: choose how much, and the node chooses the method and the steps to skip for "
        "your sampler and number of steps. It skips from the first run on and adapts to your model in the next ones. Put it last before "
        "the sampler."
    )
    aliases = (
        *("cache", "speed", "speed up", "faster", "faster sampling", "accelerate", "turbo", "auto", "加速"),
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
                    "What it learns from your model. learn: every run skips, and the first 8 of a setup improve the choice of steps. "
                    "skip at once: as learn, but nothing is recorded, so the steps stay the same. calibrate: the first run with a model "
                    "is computed in full and measures what skipping costs; worth it for a target quality."
                ),
            ),
        ]


NODES = [StepCacheAuto]
