"""MagCache: skip the blocks where the magnitude of what they add is known to change little."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..core.step.method import Blocks, Method
from ..core.step.policies import PerModel, Policy, Ratios
from ..core.step.published.coefficients import AUTO, MAGCACHE, MEASURED, Row, names, rows
from . import block_presets, method_node, widgets
from .block_presets import LINE, RELATIVE, REUSE, TYPICAL
from .method_node import MethodNode
from .widgets import CUSTOM, Guards, among, choice, number

PUBLISHED = "as published"


def _recommended() -> Iterator[Row]:
    """Rows of models that a threshold is recommended for."""
    return (row for row in rows(MAGCACHE) if row.network and "threshold" in row.data)


# factor on the threshold that is recommended for the model, skips in a row at most, and the threshold of models without a recommended one,
# in typical changes of the magnitude: over n steps of an even drift they add up to n (n + 1) / 2 times that of one
LEVELS = {"Quality": (0.25, 1, 2.0), "Balanced": (0.25, 2, 4.5), "Speed": (0.5, 3, 9.0), "Turbo": (1.0, 5, 22.0)}
PRESETS: dict[str, widgets.Values] = {
    **{
        name: {
            "threshold": typical,
            "unit": TYPICAL,
            "ratios": AUTO,
            "predictor": LINE,
            **Guards(4, start_percent=0.16, max_skips=most, of_steps=True).values(of_steps=True),
        }
        for name, (_, most, typical) in LEVELS.items()
    },
    PUBLISHED: {
        "threshold": 0.06,
        "unit": RELATIVE,
        "ratios": AUTO,
        "predictor": REUSE,
        **Guards(1, start_percent=0.2, max_skips=2, of_steps=True).values(of_steps=True),
    },
}


def _rule(share: float, retention: float, most: int, otherwise: float) -> Policy:
    cases = tuple(
        (
            row.network,
            Ratios(share * row.data["threshold"], max(row.data["retention"], retention), min(most, row.data["most"])),
        )
        for row in _recommended()
    )
    return PerModel(cases, Ratios(0.0, retention, most, typical=otherwise))


def _published(error: float, retention: float, most: int) -> Policy:
    cases = tuple(
        (row.network, Ratios(row.data["threshold"], row.data["retention"], row.data["most"])) for row in _recommended()
    )
    return PerModel(cases, Ratios(error, retention, most))


@widgets.presets(PRESETS)
def magcache_of(
    preset: str = "Balanced",
    threshold: float = 0.06,
    ratios: str = AUTO,
    predictor: str = LINE,
    warmup: int = 1,
    start_percent: float = 0.2,
    end_percent: float = 1.0,
    max_skips: int = 2,
    cache_device: str = "auto",
    step_mask: object = None,
    unit: str = RELATIVE,
) -> Method:
    """MagCache (https://arxiv.org/abs/2506.09045) as data. Its retention_ratio is `start_percent`, its K `max_skips`.

    Args:
        preset (str, default "Balanced"): one of PRESETS, or CUSTOM. A preset uses a share of the threshold that is recommended for the
            model.
        threshold (float, default 0.06): accumulated error of the magnitude at which a step is computed, 0 or more.
        ratios (str, default AUTO): name of a row of MAGCACHE; AUTO for that of the model, or MEASURED where there is none; MEASURED for
            ratios of a run of the user's model.
        predictor (str, default "line"): one of PREDICTORS.
        warmup, start_percent, end_percent, max_skips: see `Guards`; shares of the steps.
        cache_device (str, default "auto"): one of DEVICES, where residuals are kept.
        step_mask (StepMask, optional): steps chosen by hand.
        unit (str, default "relative change"): one of UNITS, the unit of the threshold.

    Raises ValueError for a value out of its range.
    """
    among("unit", unit, block_presets.UNITS)
    guards = Guards(warmup)  # the other guards of a preset are in its rule, because models have their own
    if preset == CUSTOM:
        guards = Guards(warmup, start_percent, end_percent, max_skips, of_steps=True)
        rule: Policy = Ratios(threshold, table=ratios) if unit == RELATIVE else Ratios(table=ratios, typical=threshold)
    elif preset == PUBLISHED:
        rule = _published(threshold, start_percent, max_skips)
    else:
        rule = _rule(LEVELS[preset][0], start_percent, max_skips, threshold)
    alone = widgets.decides_alone(step_mask)
    return Method(
        "MagCache",
        preset,
        (*guards.policies(step_mask), *(() if alone else (rule,))),
        block_presets.predictor_of(predictor),
        history_device=widgets.device(cache_device),
        blocks=Blocks(0, 0, "none"),
        calibration="off" if alone else "auto",
    )


class MagCache(MethodNode):
    id = "SkipstoneMagCache"
    name = "MagCache"
    category = method_node.INSIDE
    description = (
        "Inside the model: skips the blocks where the magnitude of what they add is known to change little. The steps are known before the "
        "run. For models without published ratios the first run is a calibration run without skips. "
        f"{block_presets.NEEDS}"
    )
    aliases = ("magcache", "magnitude aware cache")
    method = staticmethod(magcache_of)

    @classmethod
    def inputs(cls) -> list[Any]:
        return [
            widgets.preset(
                PRESETS,
                "How much to skip. as published: the values that its authors recommend for the model, and plain reuse. Models with "
                f"recommended values have their own. {block_presets.SHOWN}",
            ),
            number(
                "threshold",
                0.06,
                0.0,
                100.0,
                "a step is computed when the relative differences of the magnitude from that of the last computed step add up to this.",
            ),
            choice(
                "ratios",
                [AUTO, MEASURED, *names(MAGCACHE)],
                AUTO,
                "how the magnitude changes from step to step. auto: published for the model, otherwise measured. measured: in a "
                "calibration run of your model, which skips nothing.",
            ),
            block_presets.predictor(),
            *widgets.guards(Guards(warmup=1, start_percent=0.2, max_skips=2, of_steps=True)),
            *block_presets.common(),
            block_presets.unit(),
        ]


NODES = [MagCache]
