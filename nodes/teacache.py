"""TeaCache: skip the blocks while the change of their output, predicted from the modulated input, adds up to less than a threshold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..core.step.indicators.blocks import Modulated
from ..core.step.method import Blocks, Method
from ..core.step.policies import Accumulator, PerModel, Policy, Window
from ..core.step.published.coefficients import AUTO, MEASURED, TEACACHE, Row, names, rows
from . import block_presets, method_node, widgets
from .block_presets import LINE, OWN_GUARDS, RELATIVE, REUSE, TYPICAL
from .method_node import MethodNode
from .widgets import CUSTOM, Guards, choice, number

PUBLISHED = "as published"


def _recommended() -> Iterator[Row]:
    """Rows of models that a threshold is recommended for."""
    return (row for row in rows(TEACACHE) if row.network and "threshold" in row.data)


# factor on the threshold that is recommended for twice the speed, and the threshold of models without one, in typical changes
LEVELS = {"Quality": (0.5, 1.2), "Balanced": (0.75, 2.2), "Speed": (1.0, 3.2), "Turbo": (1.5, 5.2)}


def _values(typical: float, predictor: str, guards: Guards) -> widgets.Values:
    return {
        "threshold": typical,
        "unit": TYPICAL,
        "polynomial": AUTO,
        "predictor": predictor,
        **guards.values(of_steps=True),
    }


PRESETS: dict[str, widgets.Values] = {
    **{name: _values(typical, LINE, OWN_GUARDS) for name, (_, typical) in LEVELS.items()},
    PUBLISHED: _values(LEVELS["Speed"][1], REUSE, Guards(warmup=1, of_steps=True)),
}


def _rule(share: float, otherwise: float) -> Policy:
    cases = tuple((row.network, Accumulator(share * row.data["threshold"])) for row in _recommended())
    return PerModel(cases, Accumulator(typical=otherwise))


def _window(start: float, end: float) -> Policy:
    """Skips only within the shares of the steps that are recommended for the model, and between `start` and `end`."""
    cases = tuple(
        (row.network, Window(max(row.data["start"], start), min(row.data["end"], end), of_steps=True))
        for row in _recommended()
    )
    return PerModel(cases, Window(start, end, of_steps=True))


@widgets.presets(PRESETS)
def teacache_of(
    preset: str = "Balanced",
    threshold: float = 0.4,
    polynomial: str = AUTO,
    predictor: str = LINE,
    warmup: int = 1,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    max_skips: int = 0,
    cache_device: str = "auto",
    step_mask: object = None,
    unit: str = RELATIVE,
) -> Method:
    """TeaCache (https://arxiv.org/abs/2411.19108) as data.

    Args:
        preset (str, default "Balanced"): one of PRESETS, or CUSTOM. A preset uses a share of the threshold that is recommended for the
            model.
        threshold (float, default 0.4): accumulated change of the blocks' output at which a step is computed, 0 or more.
        polynomial (str, default AUTO): name of a row of TEACACHE; AUTO for that of the model, or MEASURED where there is none; MEASURED
            for one fitted to a run of the user's model.
        predictor (str, default "line"): one of PREDICTORS.
        warmup, start_percent, end_percent, max_skips: see `Guards`; shares of the steps.
        cache_device (str, default "auto"): one of DEVICES, where residuals are kept.
        step_mask (StepMask, optional): steps chosen by hand.
        unit (str, default "relative change"): one of UNITS, the unit of the threshold.

    Raises ValueError for a value out of its range.
    """
    rule: Policy = block_presets.accumulator_of(threshold, unit)
    if preset != CUSTOM:
        rule = _rule(LEVELS[preset][0] if preset in LEVELS else 1.0, threshold)
    guards = Guards(warmup, start_percent, end_percent, max_skips, of_steps=True)
    window = () if preset == CUSTOM else (_window(start_percent, end_percent),)
    alone = widgets.decides_alone(step_mask)
    return Method(
        "TeaCache",
        preset,
        (*window, *guards.policies(step_mask), *(() if alone else (rule,))),
        block_presets.predictor_of(predictor),
        history_device=widgets.device(cache_device),
        indicator=None if alone else Modulated(polynomial),
        blocks=Blocks(0, 0, "modulated"),
        calibration="off" if alone else "auto",
    )


class TeaCache(MethodNode):
    id = "SkipstoneTeaCache"
    name = "TeaCache"
    category = method_node.INSIDE
    description = (
        "Inside the model: skips the blocks until the change of their output, predicted from the first block's modulated input, adds up to "
        "a threshold. For models without a published polynomial the first run is a calibration run without skips. "
        f"{block_presets.NEEDS}"
    )
    aliases = ("teacache", "timestep embedding aware cache")
    method = staticmethod(teacache_of)

    @classmethod
    def inputs(cls) -> list[Any]:
        return [
            widgets.preset(
                PRESETS,
                "How much to skip: 0.5, 0.75, 1 or 1.5 times the threshold recommended for the model. as published: that threshold, plain "
                f"reuse and no warmup. Where a range of steps is recommended too, there are no skips outside it. {block_presets.SHOWN}",
            ),
            number(
                "threshold",
                0.4,
                0.0,
                10.0,
                "a step is computed when the predicted changes since the last computed step add up to this. Good values depend on the "
                "model.",
            ),
            choice(
                "polynomial",
                [AUTO, MEASURED, *names(TEACACHE)],
                AUTO,
                "predicts the output's change from the input's. auto: the published one for the model, otherwise measured. measured: "
                "fitted to a calibration run of your model, which skips nothing.",
            ),
            block_presets.predictor(),
            *widgets.guards(Guards(warmup=1, of_steps=True)),
            *block_presets.common(),
            block_presets.unit(),
        ]


NODES = [TeaCache]
