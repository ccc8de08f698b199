"""Step Cache (Auto): the node to begin with. It is told a wish, and chooses the method when the sampler is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..core.step.auto.method import NAME, AutoMethod
from . import widgets
from .easycache import ucache_of
from .meancache import PRESETS, method_of
from .widgets import CUSTOM, among

SPEEDUP, DECIBELS = "speed-up", "at least this dB"
WISHES = (*PRESETS, SPEEDUP, DECIBELS)
LEARN, AT_ONCE = FIRST_RUNS = ("learn", "skip at once")
# where steps cannot be planned: UCache's preset for a speed-up of at least so many times
FREE = ((1.0, "Quality"), (1.3, "Balanced"), (1.6, "Speed"), (2.0, "Turbo"))


def auto_of(
    wish: str = "Balanced", speedup: float = 2.0, decibels: float = 40.0, first_run: str = "learn"
) -> AutoMethod:
    """The node as data. wish: one of WISHES; speedup: times, 1 to 8; decibels: of the picture against the full run, 20 to 80: both count
    only where they are wished for. Raises ValueError for a value out of its range, saying which range that is."""
    among("wish", wish, WISHES)
    among("first_run", first_run, FIRST_RUNS)
    if wish == SPEEDUP:
        if not 1 <= speedup <= 8:
            raise ValueError(f"speedup is how many times as fast, from 1 to 8, not {speedup}")
        preset = next(name for least, name in reversed(FREE) if speedup >= least)
        planned = method_of(CUSTOM, budget=1 / speedup, calibration="auto")
        made = AutoMethod(f"{speedup:g}x", planned, ucache_of(preset), speedup=speedup)
    elif wish == DECIBELS:
        if not 20 <= decibels <= 80:
            raise ValueError(f"decibels are from 20 to 80 (40 is hard to tell by eye), not {decibels}")
        # without costs of the model itself nothing can be said of its pictures
        return AutoMethod(f"{decibels:g} dB", method_of(CUSTOM, calibration="auto"), decibels=decibels)
    else:
        made = AutoMethod(wish, method_of(wish, calibration="auto"), ucache_of(wish))
    return made if first_run == LEARN else replace(made, planned=replace(made.planned, calibration="known"))


class StepCacheAuto(io.ComfyNode):
    """MODEL -> MODEL. See `auto_of` for what the widgets mean."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkipstoneAuto",
            display_name=NAME,
            category=widgets.CATEGORY,
            description=(
                "Makes sampling faster, with any model: say how much, and it chooses the method and the steps to skip by your "
                "sampler and number of steps. The first run of a kind is computed in full to learn your model; the next ones are "
                "fast. Put it last before the sampler."
            ),
            search_aliases=[
                *widgets.ALIASES,
                *(
                    "speed up",
                    "faster sampling",
                    "accelerate",
                    "fbcache",
                    "wavespeed",
                    "teacache",
                    "easycache",
                    "cache-dit",
                    "turbo",
                    "auto",
                    "加速",
                ),
            ],
            inputs=[
                widgets.model(),
                io.Combo.Input(
                    "wish",
                    options=[*WISHES],
                    default="Balanced",
                    tooltip=(
                        "What you want. At 50 steps Quality computes 60% of them, Balanced 45%, Speed 33%, Turbo 26%; with fewer "
                        "steps, more. speed-up: as many times as fast as below says. at least this dB: as fast as keeps the picture "
                        "that near to the one without skipping."
                    ),
                ),
                io.Float.Input(
                    "speedup",
                    default=2.0,
                    min=1.0,
                    max=8.0,
                    step=0.1,
                    tooltip="Wish 'speed-up': how many times as fast as without the node. 2.0 is twice as fast.",
                    extra_dict=widgets.shown({"wish": [SPEEDUP]}),
                ),
                io.Float.Input(
                    "decibels",
                    default=40.0,
                    min=20.0,
                    max=80.0,
                    step=1.0,
                    tooltip=(
                        "Wish 'at least this dB': how near the picture stays to the one without skipping (PSNR). 30 shows, 40 is hard to "
                        "see, 50 invisible. Higher is nearer and slower. It is foretold: nine in ten pictures of our small models kept it."
                    ),
                    extra_dict=widgets.shown({"wish": [DECIBELS]}),
                ),
                io.Combo.Input(
                    "first_run",
                    options=[*FIRST_RUNS],
                    default="learn",
                    advanced=True,
                    tooltip=(
                        "The first run of a kind (model, LoRA, sampler, steps, CFG, size). learn: computed in full once, at its usual "
                        "speed; what it teaches is kept, also over a restart, and makes the next runs nearer to the full ones. skip at "
                        "once: by what was learned before, else by what our demo model taught; less exact. Decibels are always learned."
                    ),
                ),
            ],
            outputs=[io.Model.Output()],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,
        )

    @classmethod
    def execute(cls, model: Any, **values: Any) -> io.NodeOutput:
        return widgets.patched(cls, model, auto_of(**values))


NODES = [StepCacheAuto]
