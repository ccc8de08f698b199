"""TeaCache, MagCache and DiCache: skip the blocks while the change that is foretold for them has not added up to "
"much."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from comfy_api.latest import io

from ..core.step.method import Blocks, Method
from ..core.step.policies import Accumulator, ByModel, Policy, Ratios
from ..core.step.predictors import ProbeAligned
from ..core.step.probes import Modulated, Probed
from ..core.step.tables import AUTO, MAGCACHE, MEASURED, TEACACHE, Row, names, rows
from . import blocks, widgets
from .blocks import LINE, OWN_GUARDS, REUSE
from .widgets import CUSTOM, Guards, among

PUBLISHED = "as published"
LEARNS = "the first run of such a model is computed in full, to learn from it"


def _recommended(file: str) -> Iterator[Row]:
    return (row for row in rows(file) if row.network and "threshold" in row.data)


# share of what is recommended for twice the speed, and for models that nothing is recommended for the typical changes that may add up
TEA_LEVELS = {"Quality": (0.5, 1.2), "Balanced": (0.75, 2.2), "Speed": (1.0, 3.2), "Turbo": (1.5, 5.2)}


def _tea_rule(share: float, otherwise: float) -> Policy:
    cases = tuple((row.network, Accumulator(share * row.data["threshold"])) for row in _recommended(TEACACHE))
    return ByModel(cases, Accumulator(typical=otherwise))


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
) -> Method:
    """TeaCache (arXiv 2411.19108) as data. Raises ValueError for a value out of its range, saying which range that "
    "is."""
    among("preset", preset, (*TEA_LEVELS, PUBLISHED, CUSTOM))
    rule: Policy
    if preset in TEA_LEVELS:
        rule, polynomial, predictor, guards = _tea_rule(*TEA_LEVELS[preset]), AUTO, LINE, OWN_GUARDS
    elif preset == PUBLISHED:
        rule, polynomial, predictor = _tea_rule(1.0, TEA_LEVELS["Speed"][1]), AUTO, REUSE
        guards = Guards(warmup=1, of_steps=True)
    else:
        rule, guards = Accumulator(threshold), Guards(warmup, start_percent, end_percent, max_skips, of_steps=True)
    return Method(
        "TeaCache",
        preset,
        (*guards.policies(step_mask), rule),
        blocks.predictor_of(predictor),
        history_device=widgets.device(cache_device),
        indicator=Modulated(polynomial),
        blocks=Blocks(0, 0, "modulated"),
        calibration="auto",
    )


# share of the recommended threshold, most steps in a row, and for models that nothing is recommended for the typical deviation that may
# add up: over n steps of an even drift it is n (n + 1) / 2 times that of one
MAG_LEVELS = {"Quality": (0.25, 1, 2.0), "Balanced": (0.25, 2, 4.5), "Speed": (0.5, 3, 9.0), "Turbo": (1.0, 5, 22.0)}


def _mag_rule(share: float, most: int, otherwise: float) -> Policy:
    cases = tuple(
        (
            row.network,
            Ratios(share * row.data["threshold"], max(row.data["retention"], 0.16), min(most, row.data["most"])),
        )
        for row in _recommended(MAGCACHE)
    )
    return ByModel(cases, Ratios(0.0, 0.16, most, typical=otherwise))


def _mag_published() -> Policy:
    cases = tuple(
        (row.network, Ratios(row.data["threshold"], row.data["retention"], row.data["most"]))
        for row in _recommended(MAGCACHE)
    )
    return ByModel(cases, Ratios(0.06, 0.2, 2))


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
) -> Method:
    """MagCache (Ma et al., NeurIPS 2025) as data: retention_ratio is start_percent, and K max_skips. Raises ValueError for a value
    out of its range, saying which range that is."""
    among("preset", preset, (*MAG_LEVELS, PUBLISHED, CUSTOM))
    guards, rule = Guards(warmup=4), _mag_rule(*MAG_LEVELS.get(preset, MAG_LEVELS["Balanced"]))
    if preset == PUBLISHED:
        guards, rule, predictor = Guards(warmup=1), _mag_published(), REUSE
    elif preset == CUSTOM:
        guards = Guards(warmup, start_percent, end_percent, max_skips, of_steps=True)
        rule = Ratios(threshold, table=ratios)
    else:
        predictor = LINE
    return Method(
        "MagCache",
        preset,
        (*guards.policies(step_mask), rule),
        blocks.predictor_of(predictor),
        history_device=widgets.device(cache_device),
        blocks=Blocks(0, 0, "none"),
        calibration="auto",
    )


ERRORS = {"change": "dy", "change beyond the input's": "dy-dx"}
DI_LEVELS = {"Quality": 1.2, "Balanced": 2.2, "Speed": 3.2, "Turbo": 5.2}  # typical changes that may add up


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
) -> Method:
    """DiCache (ICLR 2026) as data. Raises ValueError for a value out of its range, saying which range that is."""
    among("preset", preset, (*DI_LEVELS, PUBLISHED, CUSTOM))
    among("error", error, ERRORS)
    rule: Policy
    if preset in DI_LEVELS:
        rule, error, probe, most_ratio = Accumulator(typical=DI_LEVELS[preset]), "change", 1, 1.5
        guards = OWN_GUARDS
    elif preset == PUBLISHED:
        rule = ByModel(
            ((blocks.FLUX, Accumulator(0.4)), ({"image_model": "wan2.1"}, Accumulator(0.08))), Accumulator(0.1)
        )
        error, probe, most_ratio, guards = "change", 1, 1.5, Guards(warmup=1, start_percent=0.2, of_steps=True)
    else:
        rule = Accumulator(threshold)
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
        indicator=Probed(kind, most_ratio),
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
                "Makes sampling faster: skips the model's blocks while the change of their output that the modulated "
                "input's change foretells "
                f"has not added up to the threshold (TeaCache). For a model without a published polynomial {LEARNS}. "
                f"{blocks.NEEDS}"
            ),
            search_aliases=[*widgets.ALIASES, "teacache", "timestep embedding aware cache"],
            inputs=[
                widgets.model(),
                widgets.preset(
                    [*TEA_LEVELS, PUBLISHED],
                    "Balanced",
                    "How much to skip: 0.5, 0.75, 1 or 1.5 times the threshold that is recommended for the model. "
                    "'as published': that threshold, "
                    "plain reuse, and no warmup. Custom uses the values below.",
                ),
                widgets.number(
                    "threshold",
                    0.4,
                    0.0,
                    10.0,
                    "how much change of the output may add up before a step is computed. What suits depends on the "
                    "model.",
                ),
                widgets.choice(
                    "polynomial",
                    [AUTO, MEASURED, *names(TEACACHE)],
                    AUTO,
                    "what the input's change foretells. auto: the published one for the model, or else as measured. "
                    "measured: fitted to a full run "
                    f"of your model; {LEARNS}.",
                ),
                blocks.predictor(),
                *widgets.guards(Guards(warmup=1, of_steps=True)),
                *blocks.common(),
            ],
            outputs=[io.Model.Output()],
            hidden=[io.Hidden.unique_id],
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
                "Makes sampling faster: skips the model's blocks where the size of what they add is known to change "
                "little. The steps are known "
                "before the run, and nothing is measured in it (MagCache). For a model without published ratios "
                f"{LEARNS}. {blocks.NEEDS}"
            ),
            search_aliases=[*widgets.ALIASES, "magcache", "magnitude aware cache"],
            inputs=[
                widgets.model(),
                widgets.preset(
                    [*MAG_LEVELS, PUBLISHED],
                    "Balanced",
                    "How much to skip. 'as published': the values that its authors recommend for the model, and "
                    "plain reuse. Custom uses the "
                    "values below.",
                ),
                widgets.number(
                    "threshold",
                    0.06,
                    0.0,
                    10.0,
                    "how much error may add up before a step is computed: |1 - size over that at the last computed "
                    "step|.",
                ),
                widgets.choice(
                    "ratios",
                    [AUTO, MEASURED, *names(MAGCACHE)],
                    AUTO,
                    "how the size changes from step to step. auto: as published for the model, or else as measured. "
                    "measured: in a full run of your "
                    f"model; {LEARNS}.",
                ),
                blocks.predictor(),
                *widgets.guards(Guards(warmup=1, start_percent=0.2, max_skips=2, of_steps=True)),
                *blocks.common(),
            ],
            outputs=[io.Model.Output()],
            hidden=[io.Hidden.unique_id],
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
                "Makes sampling faster: runs the model's first blocks as a probe, skips the others until the probe's "
                "changes have added up, and "
                f"predicts them as far along as the probe has moved (DiCache). {blocks.NEEDS}"
            ),
            search_aliases=[*widgets.ALIASES, "dicache", "probe"],
            inputs=[
                widgets.model(),
                widgets.preset(
                    [*DI_LEVELS, PUBLISHED],
                    "Balanced",
                    "How much to skip, in multiples of the run's own changes from step to step. 'as published': the "
                    "authors' thresholds. Custom "
                    "uses the values below.",
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
                    "what adds up: how the state after the probe changes, or only by how much more or less than the "
                    "state before it.",
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
                *blocks.common(),
            ],
            outputs=[io.Model.Output()],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model: Any, **values: Any) -> io.NodeOutput:
        return widgets.patched(cls, model, dicache_of(**values))


NODES = [TeaCache, MagCache, DiCache]
