"""Spectrum and TaylorSeer: compute steps at set distances and forecast those between by polynomials."""

from __future__ import annotations

from typing import Any, cast, get_args

from comfy_api.latest import io

from ..core.step.clock import Coordinate
from ..core.step.method import Blocks, Kept, Method
from ..core.step.policies import Interval
from ..core.step.predictors import Spectrum as Forecast
from ..core.step.predictors import Taylor
from . import widgets
from .widgets import Guards, among

KEEPS = ("auto", "velocity", "denoised")
COORDINATES = get_args(Coordinate)


PAPER, SDCPP = "paper", "stable-diffusion.cpp"
PAPERS: widgets.Values = {
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
SPECTRUM_PRESETS: dict[str, widgets.Values] = {
    "Quality": {**PAPERS, "w": 0.25, "flex": 0.0},
    "Balanced": {**PAPERS, "w": 0.25, "flex": 0.15},
    "Speed": {**PAPERS, "w": 0.25, "flex": 0.5},
    "Turbo": {**PAPERS, "w": 0.25, "flex": 1.2},
    PAPER: PAPERS,
    SDCPP: {
        **PAPERS,
        "w": 0.4,
        "m": 3,
        "lam": 1.0,
        "flex": 0.5,
        "warmup": 4,
        "stop": 0.9,
        "predict": "denoised",
    },
}
TAYLOR_PRESETS = {"Quality": (2, 1), "Balanced": (3, 1), "Speed": (4, 1), "Turbo": (5, 1)}
TAYLOR_PUBLISHED = "as published"
TAYLOR: dict[str, widgets.Values] = {
    **{
        name: {
            "order": order,
            "interval": interval,
            "coordinate": "log-SNR",
            "published": False,
            "predict": "velocity",
            **Guards(warmup=4).values(),
        }
        for name, (interval, order) in TAYLOR_PRESETS.items()
    },
    TAYLOR_PUBLISHED: {
        "order": 1,
        "interval": 6,
        "coordinate": "index",
        "published": True,
        "predict": "velocity",
        **Guards(warmup=3).values(),
    },
}
LEVELS = ("output", "blocks")


@widgets.presets(SPECTRUM_PRESETS)
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
    """Spectrum (arXiv 2603.01623) as data. Raises ValueError for a value out of its range, saying which range that is."""
    among("predict", predict, KEEPS)
    among("coordinate", coordinate, COORDINATES)
    if not 0 <= stop <= 1:
        raise ValueError(f"stop is a share of the steps, from 0 to 1, not {stop}")
    guards = Guards(warmup=warmup, max_skips=max_skips)
    # what no widget says of stable-diffusion.cpp: it fits to the last 6 outputs, and follows its line half the way
    keep, half_line = (6, True) if preset == SDCPP else (100, False)
    return Method(
        "Spectrum",
        preset,
        (*guards.policies(step_mask), Interval(warmup, window, flex, stop)),
        Forecast(w, m, lam, keep, half_line, cast(Coordinate, coordinate)),
        history_device=widgets.device(history_device),
        keeps=cast(Kept, predict),
    )


@widgets.presets(TAYLOR)
def taylorseer_of(
    preset: str = "Balanced",
    order: int = 1,
    interval: int = 3,
    coordinate: str = "log-SNR",
    published: bool = False,
    predict: str = "auto",
    warmup: int = 4,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    max_skips: int = 0,
    history_device: str = "auto",
    step_mask: object = None,
    level: str = "output",
) -> Method:
    """TaylorSeer (arXiv 2503.06923) on the whole model's output, or on what its blocks add, as data. Raises ValueError for a value out
    of its range."""
    among("coordinate", coordinate, COORDINATES)
    among("predict", predict, KEEPS)
    among("level", level, LEVELS)
    guards = Guards(warmup, start_percent, end_percent, max_skips)
    return Method(
        "TaylorSeer",
        preset,
        (*guards.policies(step_mask), Interval(guards.warmup, interval)),
        Taylor(order, cast(Coordinate, coordinate), published),
        history_device=widgets.device(history_device),
        keeps=cast(Kept, predict),
        blocks=Blocks(0, 0, "none") if level == "blocks" else None,
    )


LEVEL_TIP = (
    "What is forecast. output: the whole model's, of every model. blocks: what its blocks add, where Skipstone knows its family; its first "
    "and last layers run at every step, and what is kept is larger. Holds with every preset."
)

PREDICT_TIP = "what is forecast. auto: the velocity (of other models the noise), and with samplers that add noise the denoised latent."


COORDINATE_TIP = (
    "what the polynomial runs in: sigma, the share of noise (time), the log of noise over signal, or the place among the run's "
    "own steps (index)."
)


class Spectrum(io.ComfyNode):
    """MODEL -> MODEL. See `spectrum_of` for what the widgets mean."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkipstoneSpectrum",
            display_name="Spectrum",
            category=widgets.CATEGORY,
            description=(
                "Makes sampling faster: computes steps at growing distances and forecasts the others by Chebyshev polynomials "
                "fitted to all outputs so far. Works with every model."
            ),
            search_aliases=[*widgets.ALIASES, "spectrum", "chebyshev", "forecast"],
            inputs=[
                widgets.model(),
                widgets.preset(
                    SPECTRUM_PRESETS,
                    "Balanced",
                    "How much to skip. 'paper' and 'stable-diffusion.cpp' have the values of those; on our small NextDiT plain "
                    "sampling with as many steps is better than they are.",
                ),
                widgets.number(
                    "w",
                    1.0,
                    0.0,
                    1.0,
                    "the share of the Chebyshev forecast; the rest is a line through the last two computed steps.",
                ),
                widgets.count("m", 4, 1, 12, "the degree of the Chebyshev polynomial."),
                widgets.number(
                    "lam",
                    0.1,
                    0.0001,
                    100.0,
                    "how strongly its coefficients are held small, all but the constant one.",
                    0.0001,
                ),
                widgets.number("window", 2.0, 1.0, 50.0, "after warmup every how many steps one is computed."),
                widgets.number("flex", 0.75, 0.0, 20.0, "by how much the window grows with every computed step."),
                widgets.count("warmup", 5, 0, 1000, "the first steps, always computed."),
                widgets.number("stop", 1.0, 0.0, 1.0, "from this share of the steps on all are computed."),
                widgets.choice("predict", KEEPS, "auto", PREDICT_TIP),
                widgets.choice("coordinate", COORDINATES, "index", COORDINATE_TIP),
                widgets.limit("max_skips", 0, "in a row are skipped"),
                *widgets.common(),
            ],
            outputs=[io.Model.Output()],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,
        )

    @classmethod
    def execute(cls, model: Any, **values: Any) -> io.NodeOutput:
        return widgets.patched(cls, model, spectrum_of(**values))


class TaylorSeer(io.ComfyNode):
    """MODEL -> MODEL. See `taylorseer_of` for what the widgets mean."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkipstoneTaylorSeer",
            display_name="TaylorSeer",
            category=widgets.CATEGORY,
            description=(
                "Makes sampling faster: computes every n-th step and extrapolates the others by a Taylor polynomial. Works with "
                "every model, at level blocks with the families in the README's table."
            ),
            search_aliases=[*widgets.ALIASES, "taylorseer", "taylor"],
            inputs=[
                widgets.model(),
                widgets.preset(
                    TAYLOR,
                    "Balanced",
                    "How much to skip: one step of 2, 3, 4 or 5 is computed. 'as published' has the paper's values and formula; on our "
                    "small NextDiT plain sampling with as many steps is better than it is.",
                ),
                widgets.count("order", 1, 0, 3, "the degree of the polynomial. 0 is plain reuse."),
                widgets.count("interval", 3, 1, 100, "one step of so many is computed."),
                widgets.choice("coordinate", COORDINATES, "log-SNR", COORDINATE_TIP),
                io.Boolean.Input(
                    "published",
                    default=False,
                    advanced=True,
                    tooltip="Custom: the recursion of the reference code instead of divided differences; they differ from order 2 on.",
                    extra_dict=widgets.custom({"order": [2, 3]}),
                ),
                widgets.choice("predict", KEEPS, "auto", PREDICT_TIP, where={"level": [LEVELS[0]]}),
                *widgets.guards(Guards(warmup=4)),
                *widgets.common(f"{widgets.SMALL} At level blocks they are large, hundreds of MB for a video."),
                io.Combo.Input(
                    "level",
                    options=[*LEVELS],
                    default="output",
                    optional=True,  # workflows that were saved before it was here have no value for it
                    advanced=True,
                    tooltip=LEVEL_TIP,
                ),
            ],
            outputs=[io.Model.Output()],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,
        )

    @classmethod
    def execute(cls, model: Any, **values: Any) -> io.NodeOutput:
        return widgets.patched(cls, model, taylorseer_of(**values))


NODES = [Spectrum, TaylorSeer]
