"""What the nodes of block-level methods have in common: presets that know models, units, predictors, and where residuals are kept."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from comfy_api.latest import io

from ..core.step.policies import Accumulator, PerModel, Policy, Threshold
from ..core.step.predictors import Linear, Predictor, Reuse
from ..core.step.published.coefficients import Network
from . import widgets
from .widgets import DEVICES, Guards, among

NEEDS = (
    "Works inside the model: on the families of models in the README's table. On others it says so; MeanCache, Skipstone EasyCache, "
    "UCache, Spectrum and TaylorSeer work with every model."
)

# on the small Flux, NextDiT and UNet (50 steps, two pairs) 0 to 7 dB better than reuse at as many computed steps; with a slope of 1 the
# last two gain 1 to 5 dB more, and Flux loses 3
LINE, REUSE = "line", "reuse"
PREDICTORS: dict[str, Predictor] = {LINE: Linear(0.65, "log-SNR"), REUSE: Reuse()}
PREDICTOR_TIP = (
    "what a skipped step adds in place of the blocks. line: the line through what they added at the last two computed steps, "
    "followed two thirds of the way; it keeps two residuals of each prompt. reuse: the last one again, as published."
)

# the first steps decide the picture: with 8 of 50 computed the small Flux is 5 to 10 dB better than with 4
OWN_GUARDS = Guards(warmup=4, start_percent=0.16, of_steps=True)

RELATIVE, TYPICAL = UNITS = ("relative change", "typical changes")
UNIT_TIP = (
    "what the threshold counts. relative change: 0.12 is 12%, and what suits depends on the model. typical changes: 2 is twice as much "
    "as the run's own changes from step to step, whatever the model."
)
# presets have thresholds of their own for models that they know
SHOWN = "The threshold shown is the one for all others."

FLUX: Network = {"image_model": "flux", "hidden_size": 3072, "vec_in_dim": 768}
# the thresholds that WaveSpeed's README recommends for 1.5 to 3 times the speed
KNOWN: tuple[tuple[Network, float], ...] = (
    (FLUX, 0.12),
    ({"image_model": "hunyuan_video", "vec_in_dim": 768}, 0.1),
    ({"image_model": "ltxv"}, 0.1),
    ({"in_channels": 16, "depth": 38, "pos_embed_scaling_factor": None}, 0.12),  # Stable Diffusion 3.5 large
)


def predictor_of(name: str) -> Predictor:
    among("predictor", name, PREDICTORS)
    return PREDICTORS[name]


def threshold_of(value: float, unit: str) -> Threshold:
    among("unit", unit, UNITS)
    return Threshold(value) if unit == RELATIVE else Threshold(typical=value)


def accumulator_of(value: float, unit: str) -> Accumulator:
    among("unit", unit, UNITS)
    return Accumulator(value) if unit == RELATIVE else Accumulator(typical=value)


def by_model(share: float, typical: float, known: Iterable[tuple[Network, float]] = KNOWN) -> Policy:
    """`share` of a known model's threshold; for every other model `typical` of the run's own typical changes."""
    return PerModel(tuple((network, Threshold(share * value)) for network, value in known), Threshold(typical=typical))


def predictor() -> Any:
    return widgets.choice("predictor", PREDICTORS, LINE, PREDICTOR_TIP)


def unit_too() -> Any:
    """The unit, on a node that had none at first: files of that time have no value for it."""
    return io.Combo.Input(
        "unit",
        options=[*UNITS],
        default=RELATIVE,
        optional=True,
        advanced=True,
        tooltip=f"Custom: {UNIT_TIP}",
        extra_dict=widgets.custom(),
    )


def common() -> list[Any]:
    """The inputs that every block-level method ends with. They hold with every preset."""
    device = io.Combo.Input(
        "cache_device",
        options=[*DEVICES],
        default="auto",
        advanced=True,
        tooltip=(
            "Where what the blocks added is kept: hundreds of MB for a video. auto keeps it on the GPU while there is room, and "
            "else in main memory; gpu and cpu do as they say."
        ),
    )
    return [device, widgets.common()[-1]]
