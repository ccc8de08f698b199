"""TaylorSeer: compute every n-th step and extrapolate the others with a Taylor polynomial."""

from __future__ import annotations

from typing import Any, cast

from ..core.step.clock import Coordinate
from ..core.step.method import Blocks, Kept, Method
from ..core.step.policies import Interval
from ..core.step.predictors import Taylor
from . import widgets
from .method_node import MethodNode
from .spectrum import KEEPS, PREDICT_TIP
from .widgets import COORDINATES, Guards, among, choice, count, flag, option

LEVELS = ("output", "blocks")
PUBLISHED = "as published"
INTERVALS = {"Quality": 2, "Balanced": 3, "Speed": 4, "Turbo": 5}
OWN = {"order": 1, "coordinate": "log-SNR", "published": False, "predict": "velocity", **Guards(warmup=4).values()}
PRESETS: dict[str, widgets.Values] = {
    **{name: {"interval": interval, **OWN} for name, interval in INTERVALS.items()},
    PUBLISHED: {
        "order": 1,
        "interval": 6,
        "coordinate": "index",
        "published": True,
        "predict": "velocity",
        **Guards(warmup=3).values(),
    },
}


@widgets.presets(PRESETS)
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
    """TaylorSeer (https://arxiv.org/abs/2503.06923) as data.

    Args:
        preset (str, default "Balanced"): one of PRESETS, or CUSTOM.
        order (int, default 1): degree of the polynomial, 0 to 3. 0 is plain reuse.
        interval (int, default 3): one step of this many is computed, at least 1.
        coordinate (str, default "log-SNR"): one of COORDINATES, the polynomial's variable.
        published (bool, default False): the recursion of the reference code instead of divided differences.
        predict (str, default "auto"): one of KEEPS, the quantity that is extrapolated at level "output".
        warmup, start_percent, end_percent, max_skips: see `Guards`; shares of the timestep range.
        history_device (str, default "auto"): one of DEVICES.
        step_mask (StepMask, optional): steps chosen by hand.
        level (str, default "output"): one of LEVELS: the model's output, or the sum of what its blocks add.

    Raises ValueError for a value out of its range.
    """
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


class TaylorSeer(MethodNode):
    id = "SkipstoneTaylorSeer"
    name = "TaylorSeer"
    description = (
        "Computes every n-th step and extrapolates the others with a Taylor polynomial. Works with every model; at level blocks, inside "
        "the model, with the families that its help page lists."
    )
    aliases = ("taylorseer", "taylor")
    method = staticmethod(taylorseer_of)

    @classmethod
    def inputs(cls) -> list[Any]:
        return [
            widgets.preset(
                PRESETS,
                "How much to skip: one step of 2, 3, 4 or 5 is computed. as published: values and formula of the paper; on one of our test "
                "models plain sampling with fewer steps was better.",
            ),
            count("order", 1, 0, 3, "degree of the polynomial. 0 is plain reuse."),
            count("interval", 3, 1, 100, "one step of this many is computed."),
            widgets.coordinate("log-SNR"),
            flag(
                "published",
                False,
                "the recursion of the reference code instead of divided differences. They differ from order 2 on.",
                {"order": [2, 3]},
            ),
            choice("predict", KEEPS, "auto", PREDICT_TIP, {"level": [LEVELS[0]]}),
            *widgets.guards(Guards(warmup=4)),
            *widgets.common(
                widgets.history_device(
                    " At level blocks each takes up to hundreds of MB for a video; auto keeps them on the GPU where it has room."
                )
            ),
            option(
                "level",
                LEVELS,
                "output",
                "What is extrapolated. output: the model's output, with every model. blocks: what its blocks add, with known families; the "
                "first and last layers run at every step, and more memory is needed. Counts with every preset.",
            ),
        ]


NODES = [TaylorSeer]
