"""DiCache: run the first blocks as a probe, skip the others while the probe's changes add up to less than a threshold."""

from __future__ import annotations

from typing import Any, Literal

from ..core.step.indicators.blocks import Probed
from ..core.step.method import Blocks, Method
from ..core.step.policies import Accumulator, PerModel, Policy
from ..core.step.predictors import ProbeAligned
from ..core.step.published.coefficients import Network
from . import block_presets, method_node, widgets
from .block_presets import OWN_GUARDS, RELATIVE, TYPICAL
from .method_node import MethodNode
from .widgets import CUSTOM, Guards, among, choice, count, number

PUBLISHED = "as published"
WAN: Network = {"image_model": "wan2.1"}
ERRORS = {"change": "dy", "change beyond the input's": "dy-dx"}
LEVELS = {"Quality": 1.2, "Balanced": 2.2, "Speed": 3.2, "Turbo": 5.2}  # thresholds, in typical changes


def _values(threshold: float, unit: str, guards: Guards) -> widgets.Values:
    given = {"threshold": threshold, "unit": unit, "error": "change", "probe": 1, "most_ratio": 1.5}
    return {**given, **guards.values(of_steps=True)}


PRESETS: dict[str, widgets.Values] = {
    **{name: _values(typical, TYPICAL, OWN_GUARDS) for name, typical in LEVELS.items()},
    PUBLISHED: _values(0.1, RELATIVE, Guards(warmup=1, start_percent=0.2, of_steps=True)),
}


@widgets.presets(PRESETS)
def dicache_of(
    preset: str = "Balanced",
    threshold: float = 0.1,
    error: str = "change",
    probe: int = 1,
    most_ratio: float = 1.5,
    warmup: int = 4,
    start_percent: float = 0.2,
    end_percent: float = 1.0,
    max_skips: int = 0,
    cache_device: str = "auto",
    step_mask: object = None,
    unit: str = RELATIVE,
) -> Method:
    """DiCache (https://arxiv.org/abs/2508.17356) as data.

    Args:
        preset (str, default "Balanced"): one of PRESETS, or CUSTOM.
        threshold (float, default 0.1): accumulated change of the probe at which a step is computed, 0 or more.
        error (str, default "change"): one of ERRORS, the change that adds up.
        probe (int, default 1): first blocks that always run, at least 1.
        most_ratio (float, default 1.5): how far beyond the last computed step to extrapolate at most, a factor from 1 (reuse) to 4.
        warmup, start_percent, end_percent, max_skips: see `Guards`; shares of the steps.
        cache_device (str, default "auto"): one of DEVICES, where residuals are kept.
        step_mask (StepMask, optional): steps chosen by hand.
        unit (str, default "relative change"): one of UNITS, the unit of the threshold.

    Raises ValueError for a value out of its range.
    """
    among("error", error, ERRORS)
    rule: Policy = block_presets.accumulator_of(threshold, unit)
    known: tuple[tuple[Network, float], ...] = ()
    if preset == PUBLISHED:
        rule = PerModel(((block_presets.FLUX, Accumulator(0.4)), (WAN, Accumulator(0.08))), rule)
        known = ((WAN, 2.0),)
    guards = Guards(warmup, start_percent, end_percent, max_skips, of_steps=True)
    if probe < 1:
        raise ValueError(f"the probe is the first blocks, at least 1 of them, not {probe}")
    if not 1 <= most_ratio <= 4:
        raise ValueError(f"most_ratio is a factor from 1 (reuse) to 4, not {most_ratio}")
    kind: Literal["dy", "dy-dx"] = ERRORS[error]  # type: ignore[assignment]
    return Method(
        "DiCache",
        preset,
        (*guards.policies(step_mask), rule),
        ProbeAligned(),
        history_device=widgets.device(cache_device),
        indicator=Probed(kind, most_ratio, known),
        blocks=Blocks(probe, 0, "states", fit=preset != CUSTOM),
    )


class DiCache(MethodNode):
    id = "SkipstoneDiCache"
    name = "DiCache"
    category = method_node.INSIDE
    description = (
        "Inside the model: runs the first blocks as a probe, skips the others until the probe's changes add up to a threshold, and "
        f"extrapolates them as far as the probe has moved. {block_presets.NEEDS}"
    )
    aliases = ("dicache", "probe")
    method = staticmethod(dicache_of)

    @classmethod
    def inputs(cls) -> list[Any]:
        return [
            widgets.preset(
                PRESETS,
                "How much to skip, in multiples of the run's own changes from step to step. as published: the authors' thresholds; Flux "
                "and Wan 2.1 have others than the one shown.",
            ),
            number(
                "threshold",
                0.1,
                0.0,
                100.0,
                "a step is computed when the probe's changes since the last computed step add up to this. 0.1 is 10 %.",
            ),
            choice(
                "error",
                ERRORS,
                "change",
                "the change that adds up: that of the state after the probe, or the difference between that and the change of the state "
                "before it.",
            ),
            count("probe", 1, 1, 1000, "number of first blocks that always run."),
            number(
                "most_ratio",
                1.5,
                1.0,
                4.0,
                "how far beyond the last computed step to extrapolate at most. 1 is plain reuse.",
            ),
            *widgets.guards(Guards(warmup=4, start_percent=0.2, of_steps=True)),
            *block_presets.common(),
            block_presets.unit(),
        ]


NODES = [DiCache]
