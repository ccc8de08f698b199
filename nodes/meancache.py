"""MeanCache: average-velocity prediction on a schedule solved by PSSP."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..core.step.method import Method
from ..core.step.planning.published_schedules import PUBLISHED_SCHEDULES
from ..core.step.policies import Budget, Schedule
from ..core.step.policies.schedule import EVEN
from ..core.step.predictors import JVP, BySampler, Linear, Predictor, RecursiveJVP, Reuse
from . import widgets
from .widgets import CUSTOM, Guards, among

# Share of the steps that is computed at most, by the number of steps. A run of few steps has fewer to spare: there the
# shares are what the demo's Flux needs for about the quality that the preset has at 50 steps (`make bench-presets`).
CURVES = {
    "Quality": Budget(((4, 1.0), (8, 0.88), (12, 0.76), (20, 0.66), (50, 0.60))),
    "Balanced": Budget(((4, 1.0), (8, 0.76), (12, 0.67), (20, 0.56), (50, 0.45))),
    "Speed": Budget(((4, 1.0), (8, 0.76), (12, 0.59), (20, 0.46), (50, 0.33))),
    "Turbo": Budget(((4, 1.0), (8, 0.63), (12, 0.51), (20, 0.41), (50, 0.26))),
}
SOLVED = "PSSP"
PRESETS: dict[str, widgets.Values] = {
    name: {
        "budget": curve.share(widgets.TYPICAL_STEPS),
        "schedule": SOLVED,
        "predictor": "auto",
        "gamma": 2.0,
        "max_error": 0.0,
        **Guards().values(),
    }
    for name, curve in CURVES.items()
}
AVERAGES = ("average velocity (paper)", "average velocity (released)")
CALIBRATIONS = ("auto", "record", "default", "off")


def predictor_of(name: str, span: int) -> Predictor | BySampler:
    known: dict[str, Predictor | BySampler] = {
        "auto": BySampler(),
        "linear": Linear(),
        AVERAGES[0]: JVP(span),
        AVERAGES[1]: RecursiveJVP(span),
        "reuse": Reuse(),
    }
    among("predictor", name, known)
    return known[name]


@widgets.presets(PRESETS)
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
    history_device: str = "auto",
    calibration: Any = "default",
    max_error: float = 0.0,
    step_mask: object = None,
) -> Method:
    """MeanCache as data. A preset stands for all values but span, calibration, mask and the history's device, and its budget
    depends on the number of steps.

    calibration: "auto" uses costs recorded of the user's own model, and records them where there are none; "record" computes in
    full and adds to them; "default" takes those shipped; "off" looks at no costs and spaces the steps evenly. Raises
    ValueError for a value out of its range, saying which range that is.
    """
    among("calibration", calibration, CALIBRATIONS)
    budgets = CURVES.get(preset) or Budget.of(budget)
    guards = Guards(warmup, start_percent, end_percent, max_skips)
    if span < 1:
        raise ValueError(f"span is a number of steps, at least 1, not {span}")
    name = schedule if schedule != SOLVED else EVEN if calibration == "off" else ""
    plan = Schedule(budgets, gamma, name, max_error)
    # no costs are looked at where a schedule is given
    given = name or widgets.decides_alone(step_mask)
    variant = preset if preset != CUSTOM or schedule == SOLVED else schedule
    return Method(
        "MeanCache",
        variant,
        (*guards.policies(step_mask), plan),
        predictor_of(predictor, span),
        history_device=widgets.device(history_device),
        calibration="default" if given else calibration,
    )


class MeanCache(io.ComfyNode):
    """MODEL -> MODEL. See `method_of` for what the widgets mean."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkipstoneMeanCache",
            display_name="MeanCache",
            category=widgets.CATEGORY,
            description=(
                "Makes sampling faster: computes only the steps of a schedule chosen for the least error and predicts the "
                "others from the velocities of those computed. Works with every model. Put it last before the sampler."
            ),
            search_aliases=[*widgets.ALIASES, "meancache", "pssp", "jvp"],
            inputs=[
                widgets.model(),
                widgets.preset(
                    PRESETS,
                    "Balanced",
                    "How much to skip. At 50 steps Quality computes 60% of them, Balanced 45%, Speed 33%, Turbo 26%; with "
                    "fewer steps, more, and below 5 all. The budget shown is the one for 50 steps.",
                ),
                widgets.number(
                    "budget",
                    0.45,
                    0.01,
                    1.0,
                    "the share of the steps that is computed. 0.45 of 50 steps is 22.",
                    where={"schedule": [SOLVED], "max_error": [0]},
                ),
                widgets.choice(
                    "schedule",
                    [SOLVED, *PUBLISHED_SCHEDULES],
                    SOLVED,
                    "PSSP chooses the steps from edge costs, for your steps, shift and budget. The others are the schedules "
                    "published with MeanCache for 50 steps, mapped by sigma to other runs.",
                ),
                widgets.choice(
                    "predictor",
                    ["auto", "linear", *AVERAGES, "reuse"],
                    "auto",
                    "what a skipped step returns. auto suits the sampler: for euler, extrapolation from the last two computed "
                    "steps whose error is corrected at the next; for others, plain linear extrapolation.",
                ),
                widgets.number(
                    "gamma",
                    2.0,
                    1.0,
                    16.0,
                    "PSSP's exponent on edge costs. Higher avoids single large errors, 1 minimises their sum.",
                    0.1,
                    where={"schedule": [SOLVED]},
                ),
                widgets.count(
                    "span",
                    3,
                    1,
                    8,
                    "K, how many steps back the average velocity looks. 1 is plain reuse.",
                    where={"predictor": AVERAGES},
                ),
                *widgets.guards(Guards()),
                *widgets.common(),
                io.Combo.Input(
                    "calibration",
                    options=[*CALIBRATIONS],
                    default="auto",
                    optional=True,  # files saved before there was calibration do not have it
                    advanced=True,
                    tooltip=(
                        "Where the costs come from. auto: measured on your own model; the first run of a kind (model, LoRA, "
                        "sampler, steps, CFG, size) is computed in full to learn them. record: always in full, adds to what is "
                        "kept. default: the ones shipped, skips at once. off: none, steps are evenly spaced."
                    ),
                    extra_dict=widgets.shown({"schedule": [SOLVED]}),
                ),
                io.Float.Input(
                    "max_error",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "Custom: above 0, compute as few steps as keep the predicted error below this share of the picture's "
                        "whole way, instead of a budget. 0.01 is careful."
                    ),
                    extra_dict=widgets.custom({"schedule": [SOLVED]}),
                ),
            ],
            outputs=[io.Model.Output()],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,
        )

    @classmethod
    def execute(cls, model: Any, **values: Any) -> io.NodeOutput:
        return widgets.patched(cls, model, method_of(**values))


NODES = [MeanCache]
