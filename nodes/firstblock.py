"""First Block Cache: run the first block at every step, and skip the others while its output has hardly changed."""

from __future__ import annotations

from typing import Any

from ..core.step.indicators.blocks import FirstBlockChange
from ..core.step.method import Blocks, Method
from ..core.step.policies import Policy
from . import block_presets, method_node, widgets
from .block_presets import LINE, OWN_GUARDS, RELATIVE, REUSE, TYPICAL
from .method_node import MethodNode
from .widgets import CUSTOM, Guards, number

# factor on a known model's threshold, and the threshold of every other model in typical changes
LEVELS = {"Quality": (0.5, 1.2), "Balanced": (0.67, 1.4), "Speed": (1.0, 2.2), "Turbo": (1.5, 3.2)}
AUTO, WAVESPEED = "auto", "as in WaveSpeed"


def _own(typical: float) -> widgets.Values:
    return {"threshold": typical, "unit": TYPICAL, "predictor": LINE, **OWN_GUARDS.values()}


PRESETS: dict[str, widgets.Values] = {
    **{name: _own(typical) for name, (_, typical) in LEVELS.items()},
    AUTO: _own(LEVELS["Balanced"][1]),
    WAVESPEED: {"threshold": 0.12, "unit": RELATIVE, "predictor": REUSE, **Guards(warmup=0).values()},
}


@widgets.presets(PRESETS)
def firstblock_of(
    preset: str = "Balanced",
    threshold: float = 0.12,
    unit: str = RELATIVE,
    predictor: str = LINE,
    warmup: int = 4,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    max_skips: int = 0,
    cache_device: str = "auto",
    step_mask: object = None,
) -> Method:
    """First Block Cache (ParaAttention, Comfy-WaveSpeed) as data.

    Args:
        preset (str, default "Balanced"): one of PRESETS, or CUSTOM.
        threshold (float, default 0.12): change of what the first block adds, since the last computed step, below which a step is
            skipped. 0 or more.
        unit (str, default "relative change"): one of UNITS, the unit of the threshold.
        predictor (str, default "line"): one of PREDICTORS.
        warmup, start_percent, end_percent, max_skips: see `Guards`; shares of the timestep range.
        cache_device (str, default "auto"): one of DEVICES, where residuals are kept.
        step_mask (StepMask, optional): steps chosen by hand.

    Raises ValueError for a value out of its range.
    """
    rule: Policy = block_presets.threshold_of(threshold, unit)
    guards = Guards(warmup, start_percent, end_percent, max_skips)
    if preset in (*LEVELS, AUTO):
        guards = OWN_GUARDS
    if preset in LEVELS:
        rule = block_presets.by_model(*LEVELS[preset])
    return Method(
        "First Block Cache",
        preset,
        (*guards.policies(step_mask), rule),
        block_presets.predictor_of(predictor),
        history_device=widgets.device(cache_device),
        indicator=FirstBlockChange(),
        blocks=Blocks(1, 0, fit=preset != CUSTOM),
    )


class FirstBlockCache(MethodNode):
    id = "SkipstoneFirstBlockCache"
    name = "First Block Cache"
    category = method_node.INSIDE
    description = (
        "Inside the model: runs the first block at every step, and skips the other blocks while its output has changed less than a "
        f"threshold. {block_presets.NEEDS}"
    )
    aliases = ("first block cache", "fbcache", "wavespeed", "paraattention", "deepcache")
    method = staticmethod(firstblock_of)

    @classmethod
    def inputs(cls) -> list[Any]:
        return [
            widgets.preset(
                PRESETS,
                "How much to skip. Flux, HunyuanVideo, LTX-Video and SD 3.5 large have published thresholds; other models use multiples of "
                "the run's own changes from step to step, and with auto all models do. as in WaveSpeed: threshold 0.12 and plain reuse. "
                f"{block_presets.SHOWN} The warmup shown is for 50 steps.",
            ),
            number(
                "threshold",
                0.12,
                0.0,
                100.0,
                "a step is skipped while what the first block adds has changed by less than this since the last computed step.",
            ),
            block_presets.unit(),
            block_presets.predictor(),
            *widgets.guards(Guards(warmup=4)),
            *block_presets.common(),
        ]


NODES = [FirstBlockCache]
