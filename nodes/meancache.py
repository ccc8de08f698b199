"""MeanCache: average-velocity prediction on a schedule solved by PSSP."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from comfy_api.latest import io

from ..core.step.method import Method
from ..core.step.named import NAMED
from ..core.step.policies import Budget, Cap, Schedule, Warmup, Window
from ..core.step.predictors import JVP, Auto, Linear, Predictor, RecursiveJVP, Reuse
from ..patch.attach import attach
from .reporting import to_browser

# Share of the steps that is computed at most, by the number of steps. A run of few steps has fewer to spare: there the
# shares are what the demo's Flux needs for about the quality that the preset has at 50 steps (`make bench-presets`).
PRESETS = {
    "Quality": Budget(((4, 1.0), (8, 0.88), (12, 0.76), (20, 0.66), (50, 0.60))),
    "Balanced": Budget(((4, 1.0), (8, 0.76), (12, 0.67), (20, 0.56), (50, 0.45))),
    "Speed": Budget(((4, 1.0), (8, 0.76), (12, 0.59), (20, 0.46), (50, 0.33))),
    "Turbo": Budget(((4, 1.0), (8, 0.63), (12, 0.51), (20, 0.41), (50, 0.26))),
}
CUSTOM = "Custom"
SOLVED = "PSSP"
DEVICES = ("auto", "gpu", "cpu")


def predictor_of(name: str, span: int) -> Predictor | Auto:
    known: dict[str, Predictor | Auto] = {
        "auto": Auto(),
        "linear": Linear(),
        "average velocity (paper)": JVP(span),
        "average velocity (released)": RecursiveJVP(span),
        "reuse": Reuse(),
    }
    _among("predictor", name, known)
    return known[name]


def _among(name: str, value: str, choices: Iterable[str]) -> None:
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"{name} is one of {', '.join(choices)}, not {value!r}")


def method_of(
    preset: str = "Balanced",
    budget: float = 0.45,
    schedule: str = SOLVED,
    predictor: str = "auto",
    gamma: float = 2.0,
    span: int = 3,
    warmup: int = 2,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    max_skips: int = 0,
    history_device: Any = "auto",
) -> Method:
    """MeanCache as data. A preset sets everything but the history's device; Custom takes the other values.

    Raises ValueError for a value out of its range, saying which range that is.
    """
    _among("preset", preset, (*PRESETS, CUSTOM))
    _among("history_device", history_device, DEVICES)
    if preset != CUSTOM:
        budgets, schedule, predictor, gamma, warmup = PRESETS[preset], SOLVED, "auto", 2.0, 2
        start_percent, end_percent, max_skips = 0.0, 1.0, 0
    else:
        budgets = Budget.of(budget)
    for name, percent in (("start_percent", start_percent), ("end_percent", end_percent)):
        if not 0 <= percent <= 1:
            raise ValueError(f"{name} is a share of the timestep range, from 0 to 1, not {percent}")
    if span < 1:
        raise ValueError(f"span is a number of steps, at least 1, not {span}")
    plan = Schedule(budgets, gamma, "" if schedule == SOLVED else schedule)
    guards = (Warmup(warmup), Window(start_percent, end_percent), Cap(max_skips))
    variant = preset if preset != CUSTOM or schedule == SOLVED else schedule
    return Method("MeanCache", variant, (*guards, plan), predictor_of(predictor, span), history_device=history_device)


class MeanCache(io.ComfyNode):
    """MODEL -> MODEL. See `method_of` for what the widgets mean."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkipstoneMeanCache",
            display_name="MeanCache",
            category="Skipstone/step cache",
            description=(
                "Makes sampling faster: computes only the steps of a schedule chosen for the least error and predicts the "
                "others from the velocities of those computed. Works with every model. Put it last before the sampler."
            ),
            search_aliases=[
                "skipstone",
                "step cache",
                "speed up",
                "faster sampling",
                "meancache",
                "pssp",
                "jvp",
                "cache",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model to sample faster."),
                io.Combo.Input(
                    "preset",
                    options=[*PRESETS, CUSTOM],
                    default="Balanced",
                    tooltip=(
                        "How much to skip. At 50 steps Quality computes 60% of them, Balanced 45%, Speed 33%, Turbo 26%; with "
                        "fewer steps, more, and below 5 all. Custom uses the values below."
                    ),
                ),
                io.Float.Input(
                    "budget",
                    default=0.45,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Custom: the share of the steps that is computed. 0.45 of 50 steps is 22.",
                ),
                io.Combo.Input(
                    "schedule",
                    options=[SOLVED, *NAMED],
                    default=SOLVED,
                    advanced=True,
                    tooltip=(
                        "Custom: PSSP chooses the steps from edge costs, for your steps, shift and budget. The others are "
                        "the schedules published with MeanCache for 50 steps, mapped by sigma to other runs."
                    ),
                ),
                io.Combo.Input(
                    "predictor",
                    options=["auto", "linear", "average velocity (paper)", "average velocity (released)", "reuse"],
                    default="auto",
                    advanced=True,
                    tooltip=(
                        "Custom: what a skipped step returns. auto suits the sampler: for euler, extrapolation from the last two "
                        "computed steps whose error is corrected at the next; for others, plain linear extrapolation."
                    ),
                ),
                io.Float.Input(
                    "gamma",
                    default=2.0,
                    min=1.0,
                    max=16.0,
                    step=0.1,
                    advanced=True,
                    tooltip="Custom: PSSP's exponent on edge costs. Higher avoids single large errors, 1 minimises their sum.",
                ),
                io.Int.Input(
                    "span",
                    default=3,
                    min=1,
                    max=8,
                    advanced=True,
                    tooltip="Custom: K, how many steps back the average velocity looks. 1 is plain reuse.",
                ),
                io.Int.Input(
                    "warmup",
                    default=2,
                    min=0,
                    max=1000,
                    advanced=True,
                    tooltip="Custom: the first steps, always computed.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Custom: nothing is skipped before this share of the timestep range (as in ControlNet nodes).",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Custom: nothing is skipped after this share of the timestep range.",
                ),
                io.Int.Input(
                    "max_skips",
                    default=0,
                    min=0,
                    max=1000,
                    advanced=True,
                    tooltip="Custom: at most so many steps in a row are skipped. 0: no limit.",
                ),
                io.Combo.Input(
                    "history_device",
                    options=[*DEVICES],
                    default="auto",
                    advanced=True,
                    tooltip="Where past outputs are kept. They are as small as the latent; cpu only helps when memory is very tight.",
                ),
            ],
            outputs=[io.Model.Output()],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model: Any, **widgets: Any) -> io.NodeOutput:
        return io.NodeOutput(attach(model, method_of(**widgets), (to_browser(cls.hidden.unique_id),)))


NODES = [MeanCache]
