"""Spectrum: compute steps at growing distances and forecast the others with Chebyshev polynomials."""

from __future__ import annotations

from typing import Any, cast

from ..core.step.clock import Coordinate
from ..core.step.method import Kept, Method
from ..core.step.policies import Interval
from ..core.step.predictors import Spectrum as Forecast
from . import widgets
from .method_node import MethodNode
from .widgets import COORDINATES, Guards, among, choice, count, limit, number

KEEPS = ("auto", "velocity", "denoised")
PREDICT_TIP = "what is forecast. auto: the velocity (or noise, as the model predicts); with samplers that add noise, the denoised latent."

PAPER, SDCPP = "paper", "stable-diffusion.cpp"
PUBLISHED: widgets.Values = {
    "w": 1.0,
    "m": 4,
    "lam": 0.1,
    "window": 2.0,
    "flex": 0.75,
    "warmup": 5,
    "stop": 1.0,
    "predict": "auto",
    "coordinate": "index",
    "max_skips": 0,
}
PRESETS: dict[str, widgets.Values] = {
    "Quality": {**PUBLISHED, "w": 0.25, "flex": 0.0},
    "Balanced": {**PUBLISHED, "w": 0.25, "flex": 0.15},
    "Speed": {**PUBLISHED, "w": 0.25, "flex": 0.5},
    "Turbo": {**PUBLISHED, "w": 0.25, "flex": 1.2},
    PAPER: PUBLISHED,
    SDCPP: {**PUBLISHED, "w": 0.4, "m": 3, "lam": 1.0, "flex": 0.5, "warmup": 4, "stop": 0.9, "predict": "denoised"},
}


@widgets.presets(PRESETS)
def spectrum_of(
    preset: str = "Balanced",
    w: float = 1.0,
    m: int = 4,
    lam: float = 0.1,
    window: float = 2.0,
    flex: float = 0.75,
    warmup: int = 5,
    stop: float = 1.0,
    predict: str = "auto",
    coordinate: str = "index",
    max_skips: int = 0,
    history_device: str = "auto",
    step_mask: object = None,
) -> Method:
    """Spectrum (https://arxiv.org/abs/2603.01623) as data.

    Args:
        preset (str, default "Balanced"): one of PRESETS, or CUSTOM.
        w (float, default 1.0): share of the Chebyshev forecast, 0 to 1; the rest is linear extrapolation.
        m (int, default 4): degree of the Chebyshev polynomial, 1 to 12.
        lam (float, default 0.1): ridge regularisation of its coefficients, above 0; the constant one is free.
        window (float, default 2.0): after warmup, one step of this many is computed; at least 1.
        flex (float, default 0.75): steps that the window grows by with every computed step, 0 or more.
        warmup (int, default 5): first steps, always computed.
        stop (float, default 1.0): share of the steps, 0 to 1, after which all steps are computed.
        predict (str, default "auto"): one of KEEPS, the quantity that is forecast.
        coordinate (str, default "index"): one of COORDINATES, the polynomial's variable.
        max_skips (int, default 0): evaluations skipped in a row at most; 0 for no limit.
        history_device (str, default "auto"): one of DEVICES.
        step_mask (StepMask, optional): steps chosen by hand.

    Raises ValueError for a value out of its range.
    """
    among("predict", predict, KEEPS)
    among("coordinate", coordinate, COORDINATES)
    if not 0 <= stop <= 1:
        raise ValueError(f"stop is a share of the steps, from 0 to 1, not {stop}")
    guards = Guards(warmup=warmup, max_skips=max_skips)
    # stable-diffusion.cpp fits to the last 6 outputs and follows its line half of the way; there are no widgets for it
    keep, half_line = (6, True) if preset == SDCPP else (100, False)
    return Method(
        "Spectrum",
        preset,
        (*guards.policies(step_mask), Interval(warmup, window, flex, stop)),
        Forecast(w, m, lam, keep, half_line, cast(Coordinate, coordinate)),
        history_device=widgets.device(history_device),
        keeps=cast(Kept, predict),
    )


class Spectrum(MethodNode):
    id = "SkipstoneSpectrum"
    name = "Spectrum"
    description = (
        "Computes steps at growing distances and forecasts the others with Chebyshev polynomials fitted to all computed steps. Works with "
        "every model."
    )
    aliases = ("spectrum", "chebyshev", "forecast")
    method = staticmethod(spectrum_of)

    @classmethod
    def inputs(cls) -> list[Any]:
        return [
            widgets.preset(
                PRESETS,
                "How much to skip. paper and stable-diffusion.cpp: values of those; on one of our test models plain sampling with fewer "
                "steps was better than they were.",
            ),
            number(
                "w", 1.0, 0.0, 1.0, "share of the Chebyshev forecast; the rest is linear extrapolation.", label="blend"
            ),
            count("m", 4, 1, 12, "degree of the Chebyshev polynomial.", label="degree"),
            number(
                "lam",
                0.1,
                0.0001,
                100.0,
                "how strongly the polynomial's coefficients are kept small, all but the constant one.",
                0.0001,
                label="regularisation",
            ),
            number("window", 2.0, 1.0, 50.0, "after warmup, one step of this many is computed."),
            number("flex", 0.75, 0.0, 20.0, "how many steps the window grows by with every computed step."),
            count("warmup", 5, 0, 1000, "number of first steps that are always computed."),
            number("stop", 1.0, 0.0, 1.0, "no skips after this share of the steps."),
            choice("predict", KEEPS, "auto", PREDICT_TIP),
            widgets.coordinate("index"),
            limit("max_skips", 0, "skipped in a row"),
            *widgets.common(
                widgets.history_device(" Spectrum keeps one of each computed step, up to 100 for each prompt.")
            ),
        ]


NODES = [Spectrum]
