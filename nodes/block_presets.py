"""Shared parts of block-level nodes: thresholds by model, units, predictors, and the residuals' device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..core.step.policies import Accumulator, PerModel, Policy, Threshold
from ..core.step.predictors import Linear, Predictor, Reuse
from ..core.step.published.coefficients import Network
from . import widgets
from .widgets import DEVICES, Guards, among

NEEDS = (
    "Works with the model families that its help page lists; with any other model use Step Cache (Auto), MeanCache, Skipstone EasyCache, "
    "UCache, Spectrum or TaylorSeer."
)

# on the small Flux, NextDiT and UNet (50 steps, two pairs) 0 to 7 dB better than reuse at as many computed steps; with a slope of 1 the
# last two gain 1 to 5 dB more, and Flux loses 3
LINE, REUSE = "line", "reuse"
PREDICTORS: dict[str, Predictor] = {LINE: Linear(0.65, "log-SNR"), REUSE: Reuse()}

# the first steps decide the image: with 8 of 50 computed the small Flux is 5 to 10 dB better than with 4
OWN_GUARDS = Guards(warmup=4, start_percent=0.16, of_steps=True)

RELATIVE, TYPICAL = UNITS = ("relative change", "typical changes")
UNIT_TIP = (
    "unit of the threshold. relative change: 0.12 is 12 %; good values depend on the model. typical changes: 2 is twice the run's own "
    "change from step to step, with any model."
)
SHOWN = "The threshold shown is for models without values of their own."

FLUX: Network = {"image_model": "flux", "hidden_size": 3072, "vec_in_dim": 768}
# the thresholds that WaveSpeed's README recommends for 1.5 to 3 times the speed
KNOWN: tuple[tuple[Network, float], ...] = (
    (FLUX, 0.12),
    ({"image_model": "hunyuan_video", "vec_in_dim": 768}, 0.1),
    ({"image_model": "ltxv"}, 0.1),
    ({"in_channels": 16, "depth": 38, "pos_embed_scaling_factor": None}, 0.12),  # Stable Diffusion 3.5 large
)


def predictor_of(name: str) -> Predictor:
    """The predictor of this name. Raises ValueError for one that is not in PREDICTORS."""
    among("predictor", name, PREDICTORS)
    return PREDICTORS[name]


def threshold_of(value: float, unit: str) -> Threshold:
    """value: 0 or more, in `unit`, one of UNITS. Raises ValueError for another unit or a negative value."""
    among("unit", unit, UNITS)
    return Threshold(value) if unit == RELATIVE else Threshold(typical=value)


def accumulator_of(value: float, unit: str) -> Accumulator:
    """value: 0 or more, in `unit`, one of UNITS. Raises ValueError for another unit or a negative value."""
    among("unit", unit, UNITS)
    return Accumulator(value) if unit == RELATIVE else Accumulator(typical=value)


def by_model(share: float, typical: float, known: Iterable[tuple[Network, float]] = KNOWN) -> Policy:
    """A threshold by model.

    Args:
        share (float): factor on the threshold of a known model.
        typical (float): threshold for every other model, in typical changes.
        known (pairs, default KNOWN): how to recognise a model, and its threshold as a relative change.
    """
    return PerModel(tuple((network, Threshold(share * value)) for network, value in known), Threshold(typical=typical))


# inputs


def predictor() -> Any:
    tooltip = (
        "what a skipped step adds in place of the blocks. line: extrapolation of what they added at the last two computed steps, at two "
        "thirds of the slope; it keeps two residuals for each prompt. reuse: what they added last, as published."
    )
    return widgets.choice("predictor", PREDICTORS, LINE, tooltip)


def unit() -> Any:
    return widgets.choice("unit", UNITS, RELATIVE, UNIT_TIP)


def common() -> list[Any]:
    """The last inputs of every block-level method."""
    tooltip = (
        "Where residuals are kept: hundreds of MB for a video. auto: on the GPU while there is room, otherwise in main memory. gpu, cpu: "
        "always there."
    )
    return widgets.common(widgets.option("cache_device", DEVICES, "auto", tooltip))
