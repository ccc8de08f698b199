"""EasyCache and UCache: skip while the input has moved so little that the output cannot have changed much."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..core.step.indicators.output import InputChange
from ..core.step.method import Kept, Method
from ..core.step.policies import Accumulator
from ..core.step.predictors import BySampler, Linear, Predictor, Reuse
from . import widgets
from .widgets import Guards, among

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


# Where the next computed step is not known beforehand a correction comes too late. Lines in log-SNR were best on the small
# NextDiT and UNet: 5 to 15 dB above plain sampling with as many evaluations, the published residual 2 to 8 dB below it.
LINES = BySampler(euler=Linear(0.5, "log-SNR"), multistep=Linear(0.5, "log-SNR"), ode=Linear(0.5, "log-SNR"))


def _predicted(name: str) -> tuple[Predictor | BySampler, Kept]:
    among("predictor", name, PREDICTORS)
    return (LINES, "auto") if name == "auto" else (Reuse(), "residual")


@widgets.presets(EASY)
def easycache_of(
    preset: str = "Balanced",
    threshold: float = 0.05,
    reference: str = "last computed step",
    predictor: str = "auto",
    warmup: int = 4,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    max_skips: int = 0,
    history_device: str = "auto",
    step_mask: object = None,
) -> Method:
    """EasyCache (arXiv 2507.02860) as data. Raises ValueError for a value out of its range, saying which range that is."""
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
    """UCache (stable-diffusion.cpp, docs/caching.md) as data. Raises ValueError for a value out of its range."""
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
    "what a skipped step returns. auto: the line through the last two computed steps, at half its slope. residual: what the "
    "network last added to its input, as published; with EasyCache, on our small NextDiT and UNet, plain sampling was better."
)


class EasyCache(io.ComfyNode):
    """MODEL -> MODEL. See `easycache_of` for what the widgets mean."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkipstoneEasyCache",
            display_name="Skipstone EasyCache",
            category=widgets.CATEGORY,
            description=(
                "Makes sampling faster: skips steps as long as the latent has moved so little that the output cannot have "
                "changed by more than the threshold. Decides for every picture anew. Works with every model."
            ),
            search_aliases=[*widgets.ALIASES, "easycache", "lazycache"],
            inputs=[
                widgets.model(),
                widgets.preset(
                    EASY,
                    "Balanced",
                    "How much to skip. 'as published': the paper's own values and prediction. 'as in ComfyUI': those of "
                    "ComfyUI's EasyCache node; on our small NextDiT and UNet plain sampling with as many steps is better.",
                ),
                widgets.number(
                    "threshold",
                    0.05,
                    0.0,
                    3.0,
                    "how much change of the output may add up before a step is computed. 0.05 is 5%.",
                    0.005,
                ),
                widgets.choice(
                    "reference",
                    REFERENCES,
                    REFERENCES[1],
                    "what the input's move is measured from; the second is more careful at the same threshold.",
                ),
                widgets.choice("predictor", PREDICTORS, "auto", PREDICTOR_TIP),
                *widgets.guards(OWN_GUARDS),
                *widgets.common(),
            ],
            outputs=[io.Model.Output()],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,
        )

    @classmethod
    def execute(cls, model: Any, **values: Any) -> io.NodeOutput:
        return widgets.patched(cls, model, easycache_of(**values))


class UCache(io.ComfyNode):
    """MODEL -> MODEL. See `ucache_of` for what the widgets mean."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkipstoneUCache",
            display_name="UCache",
            category=widgets.CATEGORY,
            description=(
                "Makes sampling faster: EasyCache with a threshold that follows the size of the output and its changes, made "
                "for UNets (SD 1.5, SDXL). Decides for every picture anew. Works with every model."
            ),
            search_aliases=[*widgets.ALIASES, "ucache"],
            inputs=[
                widgets.model(),
                widgets.preset(
                    U,
                    "Balanced",
                    "How much to skip. 'as in stable-diffusion.cpp': its defaults and prediction.",
                ),
                widgets.number("threshold", 1.0, 0.0, 100.0, "how much change may add up before a step is computed."),
                widgets.number("decay", 1.0, 0.0, 1.0, "what is kept of the added-up change from step to step."),
                io.Boolean.Input(
                    "relative",
                    default=True,
                    advanced=True,
                    tooltip="Custom: measure changes against the output's size and its usual change.",
                    extra_dict=widgets.custom(),
                ),
                io.Boolean.Input(
                    "reset",
                    default=True,
                    advanced=True,
                    tooltip="Custom: begin again at 0 after a computed step. Off is more careful; advised for ancestral samplers.",
                    extra_dict=widgets.custom(),
                ),
                widgets.choice("predictor", PREDICTORS, "auto", PREDICTOR_TIP),
                *widgets.guards(U_GUARDS),
                *widgets.common(),
            ],
            outputs=[io.Model.Output()],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,
        )

    @classmethod
    def execute(cls, model: Any, **values: Any) -> io.NodeOutput:
        return widgets.patched(cls, model, ucache_of(**values))


NODES = [EasyCache, UCache]
