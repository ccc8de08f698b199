"""First Block Cache, DBCache and Cache-DiT: run the first blocks, and skip the others while what those add has "
"hardly changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from comfy_api.latest import io

from ..core.step.clock import Coordinate
from ..core.step.method import Blocks, Method
from ..core.step.policies import Mask, Policy, StepMask, Threshold, Total
from ..core.step.policies.mask import NAMES
from ..core.step.predictors import Predictor, Taylor
from ..core.step.probes import FromAnchor
from . import blocks, widgets
from .blocks import LINE, OWN_GUARDS, REUSE
from .widgets import CUSTOM, Guards, among

# share of a known model's threshold, and for every other model the number of typical changes
LEVELS = {"Quality": (0.5, 1.2), "Balanced": (0.67, 1.4), "Speed": (1.0, 2.2), "Turbo": (1.5, 3.2)}
AUTO, WAVESPEED = "auto", "as in WaveSpeed"
UNITS = ("relative change", "typical changes")
COORDINATES = get_args(Coordinate)


def _threshold(value: float, unit: str) -> Threshold:
    among("unit", unit, UNITS)
    return Threshold(value) if unit == UNITS[0] else Threshold(typical=value)


def firstblock_of(
    preset: str = "Balanced",
    threshold: float = 0.12,
    unit: str = UNITS[0],
    predictor: str = LINE,
    warmup: int = 4,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    max_skips: int = 0,
    cache_device: str = "auto",
    step_mask: object = None,
) -> Method:
    """First Block Cache (ParaAttention, Comfy-WaveSpeed) as data. Raises ValueError for a value out of its range."""
    among("preset", preset, (*LEVELS, AUTO, WAVESPEED, CUSTOM))
    rule: Policy
    if preset in LEVELS:
        rule, predictor, guards = blocks.by_model(*LEVELS[preset]), LINE, OWN_GUARDS
    elif preset == AUTO:
        rule, predictor, guards = Threshold(typical=LEVELS["Balanced"][1]), LINE, OWN_GUARDS
    elif preset == WAVESPEED:
        rule, predictor, guards = Threshold(0.12), REUSE, Guards(warmup=0)
    else:
        rule, guards = _threshold(threshold, unit), Guards(warmup, start_percent, end_percent, max_skips)
    return Method(
        "First Block Cache",
        preset,
        (*guards.policies(step_mask), rule),
        blocks.predictor_of(predictor),
        history_device=widgets.device(cache_device),
        indicator=FromAnchor(),
        blocks=Blocks(1, 0, fit=preset != CUSTOM),
    )


NONE, TAYLOR = "none", "taylor"
DB_PREDICTORS = (NONE, LINE, TAYLOR)


@dataclass(frozen=True)
class DBValues:
    """share, typical: as in LEVELS; with share 0, `threshold` holds for every model."""

    fn: int = 8
    bn: int = 0
    share: float = 0.0
    typical: float = 0.0
    threshold: float = 0.08
    predictor: str = LINE
    order: int = 1
    coordinate: str = "log-SNR"
    warmup: int = 8
    max_skips: int = 0
    max_cached: int = 0

    @property
    def rule(self) -> Policy:
        return (
            blocks.by_model(self.share, self.typical, ((blocks.FLUX, 0.12),))
            if self.share
            else Threshold(self.threshold)
        )


CACHE_DIT = "as in cache-dit"
DB_PRESETS = {
    "Quality": DBValues(8, 0, 0.67, 1.2),
    "Balanced": DBValues(8, 0, 1.0, 1.4, max_skips=3, warmup=6),
    "Speed": DBValues(4, 0, 1.0, 2.2, max_skips=4, warmup=6),
    "Turbo": DBValues(1, 0, 1.5, 3.2, max_skips=6, warmup=4),
    CACHE_DIT: DBValues(predictor=NONE),
}


def _fitting(fn: int, bn: int, fit: bool) -> Blocks:
    if fn < 1:
        raise ValueError(f"Fn is the number of first blocks that always run, at least 1, not {fn}")
    if bn < 0:
        raise ValueError(f"Bn is the number of last blocks that always run, 0 or more, not {bn}")
    return Blocks(fn, bn, fit=fit)


def _predictor(v: DBValues) -> Predictor:
    among("predictor", v.predictor, DB_PREDICTORS)
    among("coordinate", v.coordinate, COORDINATES)
    if v.predictor == TAYLOR:
        if not 1 <= v.order <= 2:
            raise ValueError(f"the order of the Taylor prediction is 1 or 2, not {v.order}")
        return Taylor(v.order, cast(Coordinate, v.coordinate))
    return blocks.predictor_of(REUSE if v.predictor == NONE else LINE)


def dbcache_of(
    preset: str = "Balanced",
    fn: int = 8,
    bn: int = 0,
    threshold: float = 0.08,
    unit: str = UNITS[0],
    predictor: str = LINE,
    order: int = 1,
    coordinate: str = "log-SNR",
    max_cached: int = 0,
    warmup: int = 8,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    max_skips: int = 0,
    cache_device: str = "auto",
    step_mask: object = None,
) -> Method:
    """DBCache (vipshop/cache-dit) as data. Raises ValueError for a value out of its range."""
    among("preset", preset, (*DB_PRESETS, CUSTOM))
    if preset == CUSTOM:
        v = DBValues(fn, bn, predictor=predictor, order=order, coordinate=coordinate, max_cached=max_cached)
        guards, rule = Guards(warmup, start_percent, end_percent, max_skips), cast(Policy, _threshold(threshold, unit))
    else:
        v = DB_PRESETS[preset]
        guards, rule = Guards(v.warmup, max_skips=v.max_skips), v.rule
    if v.max_cached < 0:
        raise ValueError(f"max_cached is a number of steps, 0 for no limit, not {v.max_cached}")
    return Method(
        "DBCache",
        preset,
        (*_limited(guards, v.max_cached, step_mask), rule),
        _predictor(v),
        history_device=widgets.device(cache_device),
        indicator=FromAnchor(),
        blocks=_fitting(v.fn, v.bn, fit=preset != CUSTOM),
    )


def _limited(guards: Guards, total: int, mask: object) -> tuple[Policy, ...]:
    """The guards, and a limit to all skips of a run: before a mask, which would else skip past it."""
    policies = guards.policies(mask)
    at = next((i for i, p in enumerate(policies) if isinstance(p, Mask)), len(policies))
    return (*policies[:at], Total(total), *policies[at:])


@dataclass(frozen=True)
class CacheDiTValues(DBValues):
    predictor: str = TAYLOR
    skip_interval: int = 1
    mask: str = NONE
    mask_policy: str = "dynamic"


SDCPP = "stable-diffusion.cpp"
# no masks: the named ones put their skips in long rows. Speed on our small NextDiT, 50 steps: 45 dB with 20.5 of them computed, and 42 dB
# with 23 and the mask fast
DIT_PRESETS = {
    "Quality": CacheDiTValues(8, 0, 0.67, 1.2, skip_interval=1),
    "Balanced": CacheDiTValues(8, 0, 1.0, 1.4, skip_interval=2, warmup=7),
    "Speed": CacheDiTValues(4, 0, 1.0, 2.2, skip_interval=3, warmup=6),
    "Turbo": CacheDiTValues(1, 0, 1.5, 4.0, skip_interval=4, warmup=5),
    SDCPP: CacheDiTValues(coordinate="index"),
}
MASKS = (NONE, *NAMES)
MASK_POLICIES = ("dynamic", "static")


def cachedit_of(
    preset: str = "Balanced",
    fn: int = 8,
    bn: int = 0,
    threshold: float = 0.08,
    warmup: int = 8,
    order: int = 1,
    coordinate: str = "log-SNR",
    skip_interval: int = 1,
    max_cached: int = 0,
    mask: str = NONE,
    mask_policy: str = "dynamic",
    cache_device: str = "auto",
    step_mask: object = None,
) -> Method:
    """DBCache, TaylorSeer and a step mask together, with stable-diffusion.cpp's parameters (docs/caching.md, src/cache_dit.hpp), all of
    them in force. Raises ValueError for a value out of its range, saying which range that is."""
    among("preset", preset, (*DIT_PRESETS, CUSTOM))
    among("mask", mask, MASKS)
    among("mask_policy", mask_policy, MASK_POLICIES)
    v = DIT_PRESETS.get(preset) or CacheDiTValues(
        fn,
        bn,
        threshold=threshold,
        order=order,
        coordinate=coordinate,
        warmup=warmup,
        max_cached=max_cached,
        skip_interval=skip_interval,
        mask=mask,
        mask_policy=mask_policy,
    )
    for name, value in (("skip_interval", v.skip_interval), ("max_cached", v.max_cached)):
        if value < 0:
            raise ValueError(f"{name} is a number of steps, 0 for no limit, not {value}")
    if step_mask is None and v.mask != NONE:
        step_mask = StepMask(name=v.mask, policy=cast(Literal["static", "dynamic"], v.mask_policy))
    guards = Guards(v.warmup, max_skips=v.skip_interval)
    return Method(
        "Cache-DiT",
        preset,
        (*_limited(guards, v.max_cached, step_mask), v.rule),
        _predictor(v),
        history_device=widgets.device(cache_device),
        indicator=FromAnchor(),
        blocks=_fitting(v.fn, v.bn, fit=preset != CUSTOM),
    )


FN_TIP = (
    "Fn: the first blocks always run, and the others are skipped while what these add has hardly changed. At least 1."
)
BN_TIP = "Bn: the last blocks always run too. Fn and Bn together are fewer than the model has."
UNIT_TIP = (
    "what the threshold counts. relative change: 0.12 is 12%, and what suits depends on the model. typical changes: "
    "2 is twice as much as the "
    "run's own changes from step to step, whatever the model."
)
THRESHOLD_TIP = (
    "how much what the first blocks add may differ from the last computed step, for the others to be skipped."
)
COORDINATE_TIP = (
    "what the polynomial runs in: sigma, the share of noise (time), the log of noise over signal, or the place among "
    "the run's "
    "own steps (index, as published)."
)


class FirstBlockCache(io.ComfyNode):
    """MODEL -> MODEL. See `firstblock_of` for what the widgets mean."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkipstoneFirstBlockCache",
            display_name="First Block Cache",
            category=widgets.CATEGORY,
            description=(
                "Makes sampling faster: runs the model's first block, and skips all others while what it adds has "
                "hardly changed since "
                f"they ran. Decides for every picture anew (ParaAttention, WaveSpeed). {blocks.NEEDS}"
            ),
            search_aliases=[*widgets.ALIASES, "first block cache", "fbcache", "wavespeed", "paraattention"],
            inputs=[
                widgets.model(),
                widgets.preset(
                    [*LEVELS, AUTO, WAVESPEED],
                    "Balanced",
                    "How much to skip. For Flux, HunyuanVideo, LTX-Video and SD 3.5 large the presets have published "
                    "thresholds; for other "
                    "models they take them from the run's own changes from step to step, and auto does so for all. "
                    "'as in WaveSpeed': threshold "
                    "0.12 and plain reuse. Custom uses the values below.",
                ),
                widgets.number("threshold", 0.12, 0.0, 100.0, THRESHOLD_TIP),
                widgets.choice("unit", UNITS, UNITS[0], UNIT_TIP),
                blocks.predictor(),
                *widgets.guards(Guards(warmup=4)),
                *blocks.common(),
            ],
            outputs=[io.Model.Output()],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model: Any, **values: Any) -> io.NodeOutput:
        return widgets.patched(cls, model, firstblock_of(**values))


class DBCache(io.ComfyNode):
    """MODEL -> MODEL. See `dbcache_of` for what the widgets mean."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkipstoneDBCache",
            display_name="DBCache",
            category=widgets.CATEGORY,
            description=(
                "Makes sampling faster: runs the model's first Fn and last Bn blocks, and skips those between while "
                "what the first ones add "
                f"has hardly changed since they ran (cache-dit). {blocks.NEEDS}"
            ),
            search_aliases=[*widgets.ALIASES, "dbcache", "dual block cache", "cache-dit"],
            inputs=[
                widgets.model(),
                widgets.preset(
                    DB_PRESETS,
                    "Balanced",
                    "How much to skip. The presets take fewer blocks where the model has not so many. 'as in "
                    "cache-dit': its defaults. Custom "
                    "uses the values below.",
                ),
                widgets.count("fn", 8, 1, 1000, FN_TIP),
                widgets.count("bn", 0, 0, 1000, BN_TIP),
                widgets.number("threshold", 0.08, 0.0, 100.0, THRESHOLD_TIP),
                widgets.choice("unit", UNITS, UNITS[0], UNIT_TIP),
                widgets.choice(
                    "predictor",
                    DB_PREDICTORS,
                    LINE,
                    "what a skipped step adds in place of the blocks. none: what they added last. line: the line "
                    "through the last two, followed "
                    "two thirds of the way. taylor: the polynomial below.",
                ),
                widgets.count("order", 1, 1, 2, "the degree of the Taylor polynomial."),
                widgets.choice("coordinate", COORDINATES, "log-SNR", COORDINATE_TIP),
                widgets.count(
                    "max_cached", 0, 0, 1000, "at most so many steps of the whole run are skipped. 0: no limit."
                ),
                *widgets.guards(Guards(warmup=8)),
                *blocks.common(),
            ],
            outputs=[io.Model.Output()],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model: Any, **values: Any) -> io.NodeOutput:
        return widgets.patched(cls, model, dbcache_of(**values))


class CacheDiT(io.ComfyNode):
    """MODEL -> MODEL. See `cachedit_of` for what the widgets mean."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkipstoneCacheDiT",
            display_name="Cache-DiT",
            category=widgets.CATEGORY,
            description=(
                "Makes sampling faster: DBCache, whose skipped blocks are forecast by a Taylor polynomial "
                "(TaylorSeer), where a step mask allows "
                f"it, with the parameters of stable-diffusion.cpp's cache-dit. {blocks.NEEDS}"
            ),
            search_aliases=[*widgets.ALIASES, "cache-dit", "cachedit", "taylorseer", "scm", "stable-diffusion.cpp"],
            inputs=[
                widgets.model(),
                widgets.preset(
                    DIT_PRESETS,
                    "Balanced",
                    "How much to skip. The presets take fewer blocks where the model has not so many. "
                    "'stable-diffusion.cpp': its "
                    "documented defaults, of which that program itself heeds few. Custom uses the values below.",
                ),
                widgets.count("fn", 8, 1, 1000, FN_TIP),
                widgets.count("bn", 0, 0, 1000, BN_TIP),
                widgets.number("threshold", 0.08, 0.0, 100.0, THRESHOLD_TIP),
                widgets.count("warmup", 8, 0, 1000, "the first steps, always computed."),
                widgets.count("order", 1, 1, 2, "the degree of the Taylor polynomial (n_derivatives)."),
                widgets.choice("coordinate", COORDINATES, "log-SNR", COORDINATE_TIP),
                widgets.count("skip_interval", 1, 0, 1000, "at most so many steps in a row are forecast. 0: no limit."),
                widgets.count(
                    "max_cached", 0, 0, 1000, "at most so many steps of the whole run are skipped. 0: no limit."
                ),
                widgets.choice(
                    "mask",
                    MASKS,
                    NONE,
                    "cache-dit's step masks: which steps may be skipped at all. A Step Mask node in step_mask goes "
                    "before it.",
                ),
                widgets.choice(
                    "mask_policy",
                    MASK_POLICIES,
                    "dynamic",
                    "dynamic: where the mask allows a skip the threshold decides. static: there it is always skipped.",
                ),
                *blocks.common(),
            ],
            outputs=[io.Model.Output()],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model: Any, **values: Any) -> io.NodeOutput:
        return widgets.patched(cls, model, cachedit_of(**values))


NODES = [FirstBlockCache, DBCache, CacheDiT]
