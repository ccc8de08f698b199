"""EasyCache and UCache: skip while the change of the output, estimated from that of the input, stays below a threshold."""

from __future__ import annotations

from typing import Any

from ..core.step.indicators.output import InputChange
from ..core.step.method import Kept, Method
from ..core.step.policies import Accumulator
from ..core.step.predictors import BySampler, Linear, Predictor, Reuse
from . import widgets
from .method_node import MethodNode
from .widgets import Guards, among, choice, flag, number

# thresholds; measured on the small NextDiT and UNet, 50 steps, euler (`make bench-quality`)
EASY_PRESETS = {"Quality": 0.025, "Balanced": 0.05, "Speed": 0.12, "Turbo": 0.2}
PUBLISHED, CORE = "as published", "as in ComfyUI"
REFERENCES = ("previous step", "last computed step")
PREDICTORS = ("auto", "residual")
OWN_GUARDS = Guards(warmup=4)
PUBLISHED_GUARDS = Guards(warmup=10)
CORE_GUARDS = Guards(warmup=0, start_percent=0.15, end_percent=0.95)

EASY: dict[str, widgets.Values] = {
    **{
        name: {"threshold": value, "reference": REFERENCES[1], "predictor": "auto", **OWN_GUARDS.values()}
        for name, value in EASY_PRESETS.items()
    },
    PUBLISHED: {
        "threshold": 0.05,
        "reference": REFERENCES[0],
        "predictor": "residual",
        **PUBLISHED_GUARDS.values(),
    },
    CORE: {"threshold": 0.2, "reference": REFERENCES[1], "predictor": "residual", **CORE_GUARDS.values()},
}

U_PRESETS = {"Quality": 0.3, "Balanced": 0.5, "Speed": 1.0, "Turbo": 2.0}
U_OWN_GUARDS = Guards(warmup=4, of_steps=True)
U_GUARDS = Guards(warmup=0, start_percent=0.15, end_percent=0.95, of_steps=True)
U_PUBLISHED = "as in stable-diffusion.cpp"
U_SCALE = {"decay": 1.0, "relative": True, "reset": True}
U: dict[str, widgets.Values] = {
    **{
        name: {"threshold": value, **U_SCALE, "predictor": "auto", **U_OWN_GUARDS.values(of_steps=True)}
        for name, value in U_PRESETS.items()
    },
    U_PUBLISHED: {"threshold": 1.0, **U_SCALE, "predictor": "residual", **U_GUARDS.values(of_steps=True)},
}


# A correction needs to know the next computed step, so there is none here. Lines in log-SNR were best on the small NextDiT and UNet:
# 5 to 15 dB above plain sampling with as many evaluations; the published residual was 2 to 8 dB below it.
LINES = BySampler(euler=Linear(0.5, "log-SNR"), multistep=Linear(0.5, "log-SNR"), ode=Linear(0.5, "log-SNR"))


def _predicted(name: str) -> tuple[Predictor | BySampler, Kept]:
    """The predictor of this name, and what it keeps."""
    among("predictor", name, PREDICTORS)
    return (LINES, "auto") if name == "auto" else (Reuse(), "residual")


@widgets.presets(EASY)
def easycache_of(
    preset: str = "Balanced",
    threshold: float = 0.05,
    reference: str = REFERENCES[1],
    predictor: str = "auto",
    warmup: int = 4,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    max_skips: int = 0,
    history_device: str = "auto",
    step_mask: object = None,
) -> Method:
    """EasyCache (https://arxiv.org/abs/2507.02860) as data.

    Args:
        preset (str, default "Balanced"): one of EASY, or CUSTOM.
        threshold (float, default 0.05): accumulated relative change of the output at which a step is computed, 0 or more.
        reference (str, default "last computed step"): one of REFERENCES, the step that the input's change is measured from.
        predictor (str, default "auto"): one of PREDICTORS.
        warmup, start_percent, end_percent, max_skips: see `Guards`; shares of the timestep range.
        history_device (str, default "auto"): one of DEVICES.
        step_mask (StepMask, optional): steps chosen by hand.

    Raises ValueError for a value out of its range.
    """
    among("reference", reference, REFERENCES)
    guards = Guards(warmup, start_percent, end_percent, max_skips)
    predicted, keeps = _predicted(predictor)
    return Method(
        "EasyCache",
        preset,
        (*guards.policies(step_mask), Accumulator(threshold)),
        predicted,
        history_device=widgets.device(history_device),
        keeps=keeps,
        indicator=InputChange("previous" if reference == REFERENCES[0] else "anchor"),
    )


@widgets.presets(U)
def ucache_of(
    preset: str = "Balanced",
    threshold: float = 1.0,
    decay: float = 1.0,
    relative: bool = True,
    reset: bool = True,
    predictor: str = "auto",
    warmup: int = 0,
    start_percent: float = 0.15,
    end_percent: float = 0.95,
    max_skips: int = 0,
    history_device: str = "auto",
    step_mask: object = None,
) -> Method:
    """UCache (stable-diffusion.cpp, docs/caching.md) as data.

    Args:
        preset (str, default "Balanced"): one of U, or CUSTOM.
        threshold (float, default 1.0): accumulated change at which a step is computed, 0 or more; half of it for the first fifth of the
            computed steps, 1.5 times it for the last.
        decay (float, default 1.0): factor on the accumulated change from step to step, 0 to 1.
        relative (bool, default True): changes are relative to the output's size and its usual change.
        reset (bool, default True): the accumulated change starts again at 0 after a computed step.
        predictor (str, default "auto"): one of PREDICTORS.
        warmup, start_percent, end_percent, max_skips: see `Guards`; shares of the steps.
        history_device (str, default "auto"): one of DEVICES.
        step_mask (StepMask, optional): steps chosen by hand.

    Raises ValueError for a value out of its range.
    """
    guards = Guards(warmup, start_percent, end_percent, max_skips, of_steps=True)
    if not 0 <= decay <= 1:
        raise ValueError(f"decay is a factor from 0 to 1, not {decay}")
    predicted, keeps = _predicted(predictor)
    return Method(
        "UCache",
        preset,
        (*guards.policies(step_mask), Accumulator(threshold, decay, reset, penalty=0.5, early=0.5, late=1.5)),
        predicted,
        history_device=widgets.device(history_device),
        keeps=keeps,
        indicator=InputChange("anchor", relative),
    )


PREDICTOR_TIP = (
    "what a skipped step returns. auto: extrapolation of the last two computed steps, at half the slope. residual: the last output minus "
    "input of the network, as published; in our tests plain sampling with fewer steps was better than EasyCache with it."
)


class EasyCache(MethodNode):
    id = "SkipstoneEasyCache"
    name = "Skipstone EasyCache"
    description = (
        "Decides at every step and for every image anew: skips while the estimated change of the output stays below a threshold. Works "
        "with every model."
    )
    aliases = ("easycache", "lazycache")
    method = staticmethod(easycache_of)

    @classmethod
    def inputs(cls) -> list[Any]:
        return [
            widgets.preset(
                EASY,
                "How much to skip. as published: values and prediction of the paper. as in ComfyUI: values of ComfyUI's EasyCache node; in "
                "our tests plain sampling with fewer steps was better.",
            ),
            number(
                "threshold",
                0.05,
                0.0,
                3.0,
                "a step is computed when the changes of the output since the last computed step add up to this. 0.05 is 5 %.",
                0.005,
            ),
            choice(
                "reference",
                REFERENCES,
                REFERENCES[1],
                "the step that the input's change is measured from. The last computed step is more careful at the same threshold.",
            ),
            choice("predictor", PREDICTORS, "auto", PREDICTOR_TIP),
            *widgets.guards(OWN_GUARDS),
            *widgets.common(),
        ]


class UCache(MethodNode):
    id = "SkipstoneUCache"
    name = "UCache"
    description = (
        "For UNets (SD 1.5, SDXL) and for heun: EasyCache with changes relative to the output's size and its usual change. Decides at "
        "every step and for every image anew. Works with every model."
    )
    aliases = ("ucache",)
    method = staticmethod(ucache_of)

    @classmethod
    def inputs(cls) -> list[Any]:
        return [
            widgets.preset(U, "How much to skip. as in stable-diffusion.cpp: its default values and prediction."),
            number(
                "threshold",
                1.0,
                0.0,
                100.0,
                "a step is computed when the changes since the last computed step add up to this.",
            ),
            number("decay", 1.0, 0.0, 1.0, "factor on the accumulated change from step to step."),
            flag("relative", True, "measure changes against the output's size and its usual change."),
            flag(
                "reset",
                True,
                "start again at 0 after a computed step. Off is more careful; advised for ancestral samplers.",
            ),
            choice("predictor", PREDICTORS, "auto", PREDICTOR_TIP),
            *widgets.guards(U_GUARDS),
            *widgets.common(),
        ]


NODES = [EasyCache, UCache]
