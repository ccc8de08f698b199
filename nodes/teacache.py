"""TeaCache, MagCache and DiCache: skip the blocks while the change that is foretold for them has not added up to much."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from comfy_api.latest import io

from ..core.step.indicators.blocks import Modulated, Probed
from ..core.step.method import Blocks, Method
from ..core.step.policies import Accumulator, PerModel, Policy, Ratios, Window
from ..core.step.predictors import ProbeAligned
from ..core.step.published.coefficients import AUTO, MAGCACHE, MEASURED, TEACACHE, Network, Row, names, rows
from . import block_presets, widgets
from .block_presets import LINE, OWN_GUARDS, RELATIVE, REUSE, TYPICAL
from .widgets import CUSTOM, Guards, among

PUBLISHED = "as published"
LEARNS = "the first run of such a model is computed in full, to learn from it"


def _recommended(file: str) -> Iterator[Row]:
    return (row for row in rows(file) if row.network and "threshold" in row.data)


# share of what is recommended for twice the speed, and for models that nothing is recommended for the typical changes that may add up
TEA_LEVELS = {"Quality": (0.5, 1.2), "Balanced": (0.75, 2.2), "Speed": (1.0, 3.2), "Turbo": (1.5, 5.2)}


def _tea(typical: float, predictor: str, guards: Guards) -> widgets.Values:
    return {
        "threshold": typical,
        "unit": TYPICAL,
        "polynomial": AUTO,
        "predictor": predictor,
        **guards.values(of_steps=True),
    }


TEA: dict[str, widgets.Values] = {
    **{name: _tea(typical, LINE, OWN_GUARDS) for name, (_, typical) in TEA_LEVELS.items()},
    PUBLISHED: _tea(TEA_LEVELS["Speed"][1], REUSE, Guards(warmup=1, of_steps=True)),
}


def _tea_rule(share: float, otherwise: float) -> Policy:
    cases = tuple((row.network, Accumulator(share * row.data["threshold"])) for row in _recommended(TEACACHE))
    return PerModel(cases, Accumulator(typical=otherwise))


def _tea_window(start: float, end: float) -> Policy:
    """Outside of the shares of the steps that are recommended for the model everything is computed, and before `start` and after `end`."""
    cases = tuple(
        (row.network, Window(max(row.data["start"], start), min(row.data["end"], end), of_steps=True))
        for row in _recommended(TEACACHE)
    )
    return PerModel(cases, Window(start, end, of_steps=True))


@widgets.presets(TEA)
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
    """TeaCache (arXiv 2411.19108) as data. Raises ValueError for a value out of its range, saying which range that is."""
    rule: Policy = block_presets.accumulator_of(threshold, unit)
    if preset != CUSTOM:
        rule = _tea_rule(TEA_LEVELS[preset][0] if preset in TEA_LEVELS else 1.0, threshold)
    guards = Guards(warmup, start_percent, end_percent, max_skips, of_steps=True)
    window = () if preset == CUSTOM else (_tea_window(start_percent, end_percent),)
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


# share of the recommended threshold, most steps in a row, and for models that nothing is recommended for the typical deviation that may
# add up: over n steps of an even drift it is n (n + 1) / 2 times that of one
MAG_LEVELS = {"Quality": (0.25, 1, 2.0), "Balanced": (0.25, 2, 4.5), "Speed": (0.5, 3, 9.0), "Turbo": (1.0, 5, 22.0)}


MAG: dict[str, widgets.Values] = {
    **{
        name: {
            "threshold": typical,
            "unit": TYPICAL,
            "ratios": AUTO,
            "predictor": LINE,
            **Guards(4, start_percent=0.16, max_skips=most, of_steps=True).values(of_steps=True),
        }
        for name, (_, most, typical) in MAG_LEVELS.items()
    },
    PUBLISHED: {
        "threshold": 0.06,
        "unit": RELATIVE,
        "ratios": AUTO,
        "predictor": REUSE,
        **Guards(1, start_percent=0.2, max_skips=2, of_steps=True).values(of_steps=True),
    },
}


def _mag_rule(share: float, retention: float, most: int, otherwise: float) -> Policy:
    cases = tuple(
        (
            row.network,
            Ratios(share * row.data["threshold"], max(row.data["retention"], retention), min(most, row.data["most"])),
        )
        for row in _recommended(MAGCACHE)
    )
    return PerModel(cases, Ratios(0.0, retention, most, typical=otherwise))


def _mag_published(error: float, retention: float, most: int) -> Policy:
    cases = tuple(
        (row.network, Ratios(row.data["threshold"], row.data["retention"], row.data["most"]))
        for row in _recommended(MAGCACHE)
    )
    return PerModel(cases, Ratios(error, retention, most))


@widgets.presets(MAG)
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
    """MagCache (Ma et al., NeurIPS 2025) as data: retention_ratio is start_percent, and K max_skips. Raises ValueError for a value
    out of its range, saying which range that is."""
    among("unit", unit, block_presets.UNITS)
    guards = Guards(warmup)  # of a preset: the rest of them is the rule's, where the model may have its own
    if preset == CUSTOM:
        guards = Guards(warmup, start_percent, end_percent, max_skips, of_steps=True)
        rule: Policy = Ratios(threshold, table=ratios) if unit == RELATIVE else Ratios(table=ratios, typical=threshold)
    elif preset == PUBLISHED:
        rule = _mag_published(threshold, start_percent, max_skips)
    else:
        rule = _mag_rule(MAG_LEVELS[preset][0], start_percent, max_skips, threshold)
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


WAN: Network = {"image_model": "wan2.1"}
ERRORS = {"change": "dy", "change beyond the input's": "dy-dx"}
DI_LEVELS = {"Quality": 1.2, "Balanced": 2.2, "Speed": 3.2, "Turbo": 5.2}  # typical changes that may add up


def _di(threshold: float, unit: str, guards: Guards) -> widgets.Values:
    given = {"threshold": threshold, "unit": unit, "error": "change", "probe": 1, "most_ratio": 1.5}
    return {**given, **guards.values(of_steps=True)}


DI: dict[str, widgets.Values] = {
    **{name: _di(typical, TYPICAL, OWN_GUARDS) for name, typical in DI_LEVELS.items()},
    PUBLISHED: _di(0.1, RELATIVE, Guards(warmup=1, start_percent=0.2, of_steps=True)),
}


@widgets.presets(DI)
def dicache_of(
    preset: str = "Balanced",
    threshold: float = 0.1,
    error: str = "change",
    probe: int = 1,
    most_ratio: float = 1.5,
    warmup: int = 4,
    start_percent: float = 0.2,
    end_percent: float = 1.0,
    max_skips: int = 0,
    cache_device: str = "auto",
    step_mask: object = None,
    unit: str = RELATIVE,
) -> Method:
    """DiCache (ICLR 2026) as data. Raises ValueError for a value out of its range, saying which range that is."""
    among("error", error, ERRORS)
    rule: Policy = block_presets.accumulator_of(threshold, unit)
    known: tuple[tuple[Network, float], ...] = ()
    if preset == PUBLISHED:
        rule = PerModel(((block_presets.FLUX, Accumulator(0.4)), (WAN, Accumulator(0.08))), rule)
        known = ((WAN, 2.0),)
    guards = Guards(warmup, start_percent, end_percent, max_skips, of_steps=True)
    if probe < 1:
        raise ValueError(f"the probe is the first blocks, at least 1 of them, not {probe}")
    if not 1 <= most_ratio <= 4:
        raise ValueError(f"most_ratio is a factor from 1 (reuse) to 4, not {most_ratio}")
    kind: Literal["dy", "dy-dx"] = ERRORS[error]  # type: ignore[assignment]
    return Method(
        "DiCache",
        preset,
        (*guards.policies(step_mask), rule),
        ProbeAligned(),
        history_device=widgets.device(cache_device),
        indicator=Probed(kind, most_ratio, known),
        blocks=Blocks(probe, 0, "states", fit=preset != CUSTOM),
    )


class TeaCache(io.ComfyNode):
    """MODEL -> MODEL. See `teacache_of` for what the widgets mean."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkipstoneTeaCache",
            display_name="TeaCache",
            category=widgets.CATEGORY,
            description=(
                "Makes sampling faster: skips the model's blocks while the change of their output that the modulated input's "
                f"change foretells has not added up to the threshold (TeaCache). For a model without a published polynomial {LEARNS}. "
                f"{block_presets.NEEDS}"
            ),
            search_aliases=[*widgets.ALIASES, "teacache", "timestep embedding aware cache"],
            inputs=[
                widgets.model(),
                widgets.preset(
                    TEA,
                    "Balanced",
                    "How much to skip: 0.5, 0.75, 1 or 1.5 times the threshold that is recommended for the model. 'as published': "
                    "that threshold, plain reuse, and no warmup. Where steps are recommended too, nothing is skipped outside of them. "
                    f"{block_presets.SHOWN}",
                ),
                widgets.number(
                    "threshold",
                    0.4,
                    0.0,
                    10.0,
                    "how much change of the output may add up before a step is computed. What suits depends on the model.",
                ),
                widgets.choice(
                    "polynomial",
                    [AUTO, MEASURED, *names(TEACACHE)],
                    AUTO,
                    "what the input's change foretells. auto: the published one for the model, or else as measured. measured: "
                    f"fitted to a full run of your model; {LEARNS}.",
                ),
                block_presets.predictor(),
                *widgets.guards(Guards(warmup=1, of_steps=True)),
                *block_presets.common(),
                block_presets.unit_too(),
            ],
            outputs=[io.Model.Output()],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,
        )

    @classmethod
    def execute(cls, model: Any, **values: Any) -> io.NodeOutput:
        return widgets.patched(cls, model, teacache_of(**values))


class MagCache(io.ComfyNode):
    """MODEL -> MODEL. See `magcache_of` for what the widgets mean."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkipstoneMagCache",
            display_name="MagCache",
            category=widgets.CATEGORY,
            description=(
                "Makes sampling faster: skips the model's blocks where the size of what they add is known to change little. "
                "The steps are known before the run, and nothing is measured in it (MagCache). For a model without published ratios "
                f"{LEARNS}. {block_presets.NEEDS}"
            ),
            search_aliases=[*widgets.ALIASES, "magcache", "magnitude aware cache"],
            inputs=[
                widgets.model(),
                widgets.preset(
                    MAG,
                    "Balanced",
                    "How much to skip. 'as published': the values that its authors recommend for the model, and plain reuse. "
                    f"Models that values are recommended for have their own. {block_presets.SHOWN}",
                ),
                widgets.number(
                    "threshold",
                    0.06,
                    0.0,
                    100.0,
                    "how much error may add up before a step is computed: by what share the size differs from that at the last "
                    "computed step.",
                ),
                widgets.choice(
                    "ratios",
                    [AUTO, MEASURED, *names(MAGCACHE)],
                    AUTO,
                    "how the size changes from step to step. auto: as published for the model, or else as measured. measured: in a "
                    f"full run of your model; {LEARNS}.",
                ),
                block_presets.predictor(),
                *widgets.guards(Guards(warmup=1, start_percent=0.2, max_skips=2, of_steps=True)),
                *block_presets.common(),
                block_presets.unit_too(),
            ],
            outputs=[io.Model.Output()],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,
        )

    @classmethod
    def execute(cls, model: Any, **values: Any) -> io.NodeOutput:
        return widgets.patched(cls, model, magcache_of(**values))


class DiCache(io.ComfyNode):
    """MODEL -> MODEL. See `dicache_of` for what the widgets mean."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkipstoneDiCache",
            display_name="DiCache",
            category=widgets.CATEGORY,
            description=(
                "Makes sampling faster: runs the model's first blocks as a probe, skips the others until the probe's changes "
                f"have added up, and predicts them as far along as the probe has moved (DiCache). {block_presets.NEEDS}"
            ),
            search_aliases=[*widgets.ALIASES, "dicache", "probe"],
            inputs=[
                widgets.model(),
                widgets.preset(
                    DI,
                    "Balanced",
                    "How much to skip, in multiples of the run's own changes from step to step. 'as published': the authors' "
                    "thresholds; the one shown is not that for Flux and Wan 2.1.",
                ),
                widgets.number(
                    "threshold",
                    0.1,
                    0.0,
                    100.0,
                    "how much change of the probe may add up before a step is computed. 0.1 is 10%.",
                ),
                widgets.choice(
                    "error",
                    ERRORS,
                    "change",
                    "what adds up: how the state after the probe changes, or only by how much more or less than the state before it.",
                ),
                widgets.count("probe", 1, 1, 1000, "how many first blocks always run."),
                widgets.number(
                    "most_ratio",
                    1.5,
                    1.0,
                    4.0,
                    "how far beyond the last computed step is predicted at most. 1 is plain reuse.",
                ),
                *widgets.guards(Guards(warmup=4, start_percent=0.2, of_steps=True)),
                *block_presets.common(),
                block_presets.unit_too(),
            ],
            outputs=[io.Model.Output()],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,
        )

    @classmethod
    def execute(cls, model: Any, **values: Any) -> io.NodeOutput:
        return widgets.patched(cls, model, dicache_of(**values))


NODES = [TeaCache, MagCache, DiCache]
