"""MeanCache: a plan of the steps to compute, solved by PSSP before the run, and extrapolation of the velocities in between."""

from __future__ import annotations

from typing import Any

from ..core.step.method import Method
from ..core.step.planning.published_schedules import PUBLISHED_SCHEDULES
from ..core.step.policies import Budget, Schedule
from ..core.step.policies.schedule import EVEN
from ..core.step.predictors import JVP, BySampler, Linear, Predictor, RecursiveJVP, Reuse
from . import widgets
from .method_node import MethodNode
from .widgets import CUSTOM, Guards, among, choice, count, number, option

# Largest share of computed steps, by the number of steps. The shares for short runs are what the demo's Flux needs for about the
# quality that the preset has at 50 steps (`make bench-presets`).
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
CALIBRATIONS = ("auto", "record", "default", "off", "calibrate")


def predictor_of(name: str, span: int) -> Predictor | BySampler:
    """name: as in the widget; span: steps, at least 1. Raises ValueError for an unknown name."""
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
    """MeanCache (https://arxiv.org/abs/2601.19961) as data.

    Args:
        preset (str, default "Balanced"): one of PRESETS, or CUSTOM. A preset replaces every value in its row; its budget depends on the
            number of steps (CURVES).
        budget (float, default 0.45): share of the steps to compute, above 0 and at most 1.
        schedule (str, default SOLVED): SOLVED for a plan solved by PSSP, or one of PUBLISHED_SCHEDULES.
        predictor (str, default "auto"): what a skipped step returns: "auto", "linear", one of AVERAGES, or "reuse".
        gamma (float, default 2.0): PSSP's exponent on edge costs, 1 to 16.
        span (int, default 3): K, steps that the average velocity looks back, at least 1.
        warmup, start_percent, end_percent, max_skips: see `Guards`; shares of the timestep range.
        history_device (str, default "auto"): one of DEVICES.
        calibration (str, default "default"): one of CALIBRATIONS. "auto" uses the best costs at hand and records each run; "calibrate"
            also computes the first run of a model in full; "record" computes every run in full and adds to the recorded costs; "default"
            uses the built-in costs; "off" uses none and spaces the steps evenly.
        max_error (float, default 0.0): above 0, the plan with the fewest steps whose predicted error is at most this share of the
            total displacement; it replaces the budget. At most 1.
        step_mask (StepMask, optional): steps chosen by hand.

    Raises ValueError for a value out of its range.
    """
    among("calibration", calibration, CALIBRATIONS)
    budgets = CURVES.get(preset) or Budget.of(budget)
    guards = Guards(warmup, start_percent, end_percent, max_skips)
    if span < 1:
        raise ValueError(f"span is a number of steps, at least 1, not {span}")
    name = schedule if schedule != SOLVED else EVEN if calibration == "off" else ""
    plan = Schedule(budgets, gamma, name, max_error)
    needs_no_costs = name or widgets.decides_alone(step_mask)
    variant = preset if preset != CUSTOM or schedule == SOLVED else schedule
    return Method(
        "MeanCache",
        variant,
        (*guards.policies(step_mask), plan),
        predictor_of(predictor, span),
        history_device=widgets.device(history_device),
        calibration="default" if needs_no_costs else calibration,
    )


class MeanCache(MethodNode):
    id = "SkipstoneMeanCache"
    name = "MeanCache"
    description = (
        "Plans before the run which steps to compute, by errors measured on your own model, and predicts the others from the computed "
        "steps' velocities. Works with every model. Put it last before the sampler."
    )
    aliases = ("meancache", "pssp", "jvp")
    method = staticmethod(method_of)

    @classmethod
    def inputs(cls) -> list[Any]:
        return [
            widgets.preset(
                PRESETS,
                "How much to skip. At 50 steps Quality computes 60 % of the steps, Balanced 45 %, Speed 33 %, Turbo 26 %. Shorter runs "
                "skip less, and below 5 steps nothing is skipped. The budget shown is the one for 50 steps.",
            ),
            number(
                "budget",
                0.45,
                0.01,
                1.0,
                "share of the steps to compute. 0.45 of 50 steps is 22.",
                where={"schedule": [SOLVED], "max_error": [0]},
            ),
            choice(
                "schedule",
                [SOLVED, *PUBLISHED_SCHEDULES],
                SOLVED,
                "which steps to compute. PSSP: solved for your number of steps, shift and budget. The others: published with MeanCache for "
                "50 steps, mapped by sigma to other runs.",
            ),
            choice(
                "predictor",
                ["auto", "linear", *AVERAGES, "reuse"],
                "auto",
                "what a skipped step returns. auto: extrapolation of the last two computed steps with a correction at the next one, each "
                "as far as the plan is best with; plain linear extrapolation with samplers that evaluate twice a step or add noise.",
            ),
            number(
                "gamma",
                2.0,
                1.0,
                16.0,
                "exponent on the errors that PSSP adds up. Higher values avoid single large errors; 1 minimises the sum.",
                0.1,
                where={"schedule": [SOLVED]},
            ),
            count(
                "span",
                3,
                1,
                8,
                "K, how many steps back the average velocity looks. 1 is plain reuse.",
                where={"predictor": AVERAGES},
            ),
            *widgets.guards(Guards()),
            *widgets.common(),
            option(
                "calibration",
                CALIBRATIONS,
                "auto",
                "Where errors of skips come from. auto: your model's earlier runs, at first built-in values; every run adds to them. "
                "calibrate: as auto, but the first run with a model is computed in full. record: every run is computed in full and "
                "recorded. default: built-in values. off: none, evenly spaced steps.",
                {"schedule": [SOLVED]},
            ),
            number(
                "max_error",
                0.0,
                0.0,
                1.0,
                "above 0, compute as few steps as keep the predicted error below this share of the total displacement, instead of a "
                "budget. 0.01 is careful.",
                0.001,
                where={"schedule": [SOLVED]},
            ),
        ]


NODES = [MeanCache]
