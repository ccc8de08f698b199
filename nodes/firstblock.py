"""First Block Cache, DBCache and Cache-DiT: run the first blocks, and skip the others while what those add has hardly changed."""

from __future__ import annotations

from typing import Any, Literal, cast, get_args

from comfy_api.latest import io

from ..core.step.clock import Coordinate
from ..core.step.indicators.blocks import FirstBlockChange
from ..core.step.method import Blocks, Method
from ..core.step.policies import Mask, Policy, StepMask, Total
from ..core.step.policies.mask import NAMES
from ..core.step.predictors import Predictor, Taylor
from . import block_presets, widgets
from .block_presets import LINE, OWN_GUARDS, RELATIVE, REUSE, TYPICAL
from .widgets import CUSTOM, Guards, among

# share of a known model's threshold, and for every other model the number of typical changes
LEVELS = {"Quality": (0.5, 1.2), "Balanced": (0.67, 1.4), "Speed": (1.0, 2.2), "Turbo": (1.5, 3.2)}
AUTO, WAVESPEED = "auto", "as in WaveSpeed"
COORDINATES = get_args(Coordinate)


def _own(typical: float) -> widgets.Values:
    return {"threshold": typical, "unit": TYPICAL, "predictor": LINE, **OWN_GUARDS.values()}


FIRST: dict[str, widgets.Values] = {
    **{name: _own(typical) for name, (_, typical) in LEVELS.items()},
    AUTO: _own(LEVELS["Balanced"][1]),
    WAVESPEED: {"threshold": 0.12, "unit": RELATIVE, "predictor": REUSE, **Guards(warmup=0).values()},
}


@widgets.presets(FIRST)
def firstblock_of(
    preset: str = "Balanced",
    threshold: float = 0.12,
    unit: str = RELATIVE,
    predictor: str = LINE,
    warmup: int = 4,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    max_skips: int = 0,
    cache_device: str = "auto",
    step_mask: object = None,
) -> Method:
    """First Block Cache (ParaAttention, Comfy-WaveSpeed) as data. Raises ValueError for a value out of its range."""
    rule: Policy = block_presets.threshold_of(threshold, unit)
    guards = Guards(warmup, start_percent, end_percent, max_skips)
    if preset in (*LEVELS, AUTO):
        guards = OWN_GUARDS
    if preset in LEVELS:
        rule = block_presets.by_model(*LEVELS[preset])
    return Method(
        "First Block Cache",
        preset,
        (*guards.policies(step_mask), rule),
        block_presets.predictor_of(predictor),
        history_device=widgets.device(cache_device),
        indicator=FirstBlockChange(),
        blocks=Blocks(1, 0, fit=preset != CUSTOM),
    )


NONE, TAYLOR = "none", "taylor"
DB_PREDICTORS = (NONE, LINE, TAYLOR)


CACHE_DIT = "as in cache-dit"
# share of a known model's threshold; for every other model the table below has the number of typical changes
SHARES = {"Quality": 0.67, "Balanced": 1.0, "Speed": 1.0, "Turbo": 1.5}


def _db(fn: int, threshold: float, unit: str, predictor: str, warmup: int, max_skips: int) -> widgets.Values:
    given = {"fn": fn, "bn": 0, "threshold": threshold, "unit": unit, "predictor": predictor, "max_cached": 0}
    return {**given, **Guards(warmup, max_skips=max_skips).values()}


DB_PRESETS: dict[str, widgets.Values] = {
    "Quality": _db(8, 1.2, TYPICAL, LINE, warmup=8, max_skips=0),
    "Balanced": _db(8, 1.4, TYPICAL, LINE, warmup=6, max_skips=3),
    "Speed": _db(4, 2.2, TYPICAL, LINE, warmup=6, max_skips=4),
    "Turbo": _db(1, 3.2, TYPICAL, LINE, warmup=4, max_skips=6),
    CACHE_DIT: _db(8, 0.08, RELATIVE, NONE, warmup=8, max_skips=0),
}


def _most(preset: str, published: str) -> float:
    """What share of the steps may be warmup: our presets' are for runs of some 20 steps and more, and would leave nothing of 8."""
    return 1.0 if preset in (CUSTOM, published) else 0.5


def _rule(preset: str, threshold: float, unit: str) -> Policy:
    if preset in SHARES:
        return block_presets.by_model(SHARES[preset], threshold, ((block_presets.FLUX, 0.12),))
    return block_presets.threshold_of(threshold, unit)


def _fitting(fn: int, bn: int, fit: bool) -> Blocks:
    if fn < 1:
        raise ValueError(f"Fn is the number of first blocks that always run, at least 1, not {fn}")
    if bn < 0:
        raise ValueError(f"Bn is the number of last blocks that always run, 0 or more, not {bn}")
    return Blocks(fn, bn, fit=fit)


def _predictor(name: str, order: int, coordinate: str) -> Predictor:
    among("predictor", name, DB_PREDICTORS)
    among("coordinate", coordinate, COORDINATES)
    if name == TAYLOR:
        if not 1 <= order <= 2:
            raise ValueError(f"the order of the Taylor prediction is 1 or 2, not {order}")
        return Taylor(order, cast(Coordinate, coordinate))
    return block_presets.predictor_of(REUSE if name == NONE else LINE)


@widgets.presets(DB_PRESETS)
def dbcache_of(
    preset: str = "Balanced",
    fn: int = 8,
    bn: int = 0,
    threshold: float = 0.08,
    unit: str = RELATIVE,
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
    guards = Guards(warmup, start_percent, end_percent, max_skips, most=_most(preset, CACHE_DIT))
    if max_cached < 0:
        raise ValueError(f"max_cached is a number of steps, 0 for no limit, not {max_cached}")
    return Method(
        "DBCache",
        preset,
        (*_limited(guards, max_cached, step_mask), _rule(preset, threshold, unit)),
        _predictor(predictor, order, coordinate),
        history_device=widgets.device(cache_device),
        indicator=FirstBlockChange(),
        blocks=_fitting(fn, bn, fit=preset != CUSTOM),
    )


def _limited(guards: Guards, total: int, mask: object) -> tuple[Policy, ...]:
    """The guards, and a limit to all skips of a run: before a mask, which would else skip past it."""
    policies = guards.policies(mask)
    at = next((i for i, p in enumerate(policies) if isinstance(p, Mask)), len(policies))
    return (*policies[:at], Total(total), *policies[at:])


SDCPP = "stable-diffusion.cpp"


# no masks: the named ones put their skips in long rows. Speed on our small NextDiT, 50 steps: 45 dB with 20.5 of them computed, and 42 dB
# with 23 and the mask fast
def _dit(
    fn: int, threshold: float, unit: str, warmup: int, skip_interval: int, coordinate: str = "log-SNR"
) -> widgets.Values:
    given = {"fn": fn, "bn": 0, "threshold": threshold, "unit": unit, "warmup": warmup, "skip_interval": skip_interval}
    return {**given, "order": 1, "coordinate": coordinate, "max_cached": 0, "mask": NONE}


DIT_PRESETS: dict[str, widgets.Values] = {
    "Quality": _dit(8, 1.2, TYPICAL, warmup=8, skip_interval=1),
    "Balanced": _dit(8, 1.4, TYPICAL, warmup=7, skip_interval=2),
    "Speed": _dit(4, 2.2, TYPICAL, warmup=6, skip_interval=3),
    "Turbo": _dit(1, 4.0, TYPICAL, warmup=5, skip_interval=4),
    SDCPP: _dit(8, 0.08, RELATIVE, warmup=8, skip_interval=1, coordinate="index"),
}
MASKS = (NONE, *NAMES)
MASK_POLICIES = ("dynamic", "static")


@widgets.presets(DIT_PRESETS)
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
    unit: str = RELATIVE,
) -> Method:
    """DBCache, TaylorSeer and a step mask together, with stable-diffusion.cpp's parameters (docs/caching.md, src/cache_dit.hpp), all of
    them in force. Raises ValueError for a value out of its range, saying which range that is."""
    among("mask", mask, MASKS)
    among("mask_policy", mask_policy, MASK_POLICIES)
    for name, value in (("skip_interval", skip_interval), ("max_cached", max_cached)):
        if value < 0:
            raise ValueError(f"{name} is a number of steps, 0 for no limit, not {value}")
    if step_mask is None and mask != NONE:
        step_mask = StepMask(name=mask, policy=cast(Literal["static", "dynamic"], mask_policy))
    guards = Guards(warmup, max_skips=skip_interval, most=_most(preset, SDCPP))
    return Method(
        "Cache-DiT",
        preset,
        (*_limited(guards, max_cached, step_mask), _rule(preset, threshold, unit)),
        _predictor(TAYLOR, order, coordinate),
        history_device=widgets.device(cache_device),
        indicator=FirstBlockChange(),
        blocks=_fitting(fn, bn, fit=preset != CUSTOM),
    )


FN_TIP = (
    "Fn: the first blocks always run, and the others are skipped while what these add has hardly changed. At least 1."
)
BN_TIP = "Bn: the last blocks always run too. Fn and Bn together are fewer than the model has."
THRESHOLD_TIP = (
    "how much what the first blocks add may differ from the last computed step, for the others to be skipped."
)
COORDINATE_TIP = (
    "what the polynomial runs in: sigma, the share of noise (time), the log of noise over signal, or the place among the run's "
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
                "Makes sampling faster: runs the model's first block, and skips all others while what it adds has hardly "
                f"changed since they ran. Decides for every picture anew (ParaAttention, WaveSpeed). {block_presets.NEEDS}"
            ),
            search_aliases=[*widgets.ALIASES, "first block cache", "fbcache", "wavespeed", "paraattention"],
            inputs=[
                widgets.model(),
                widgets.preset(
                    FIRST,
                    "Balanced",
                    "How much to skip. For Flux, HunyuanVideo, LTX-Video and SD 3.5 large the presets have published thresholds; for "
                    "other models they take them from the run's own changes from step to step, and auto does so for all. "
                    f"'as in WaveSpeed': threshold 0.12 and plain reuse. {block_presets.SHOWN} The warmup shown is the one for 50 steps.",
                ),
                widgets.number("threshold", 0.12, 0.0, 100.0, THRESHOLD_TIP),
                widgets.choice("unit", block_presets.UNITS, RELATIVE, block_presets.UNIT_TIP),
                block_presets.predictor(),
                *widgets.guards(Guards(warmup=4)),
                *block_presets.common(),
            ],
            outputs=[io.Model.Output()],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,
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
                "Makes sampling faster: runs the model's first Fn and last Bn blocks, and skips those between while what the "
                f"first ones add has hardly changed since they ran (cache-dit). {block_presets.NEEDS}"
            ),
            search_aliases=[*widgets.ALIASES, "dbcache", "dual block cache", "cache-dit"],
            inputs=[
                widgets.model(),
                widgets.preset(
                    DB_PRESETS,
                    "Balanced",
                    "How much to skip. The presets take fewer blocks where the model has not so many, no more than half of the steps for "
                    f"warmup, and know Flux. 'as in cache-dit': its defaults. {block_presets.SHOWN}",
                ),
                widgets.count("fn", 8, 1, 1000, FN_TIP),
                widgets.count("bn", 0, 0, 1000, BN_TIP),
                widgets.number("threshold", 0.08, 0.0, 100.0, THRESHOLD_TIP),
                widgets.choice("unit", block_presets.UNITS, RELATIVE, block_presets.UNIT_TIP),
                widgets.choice(
                    "predictor",
                    DB_PREDICTORS,
                    LINE,
                    "what a skipped step adds in place of the blocks. none: what they added last. line: the line through the last "
                    "two, followed two thirds of the way. taylor: the polynomial below.",
                ),
                widgets.count("order", 1, 1, 2, "the degree of the Taylor polynomial.", where={"predictor": [TAYLOR]}),
                widgets.choice("coordinate", COORDINATES, "log-SNR", COORDINATE_TIP, where={"predictor": [TAYLOR]}),
                widgets.limit("max_cached", 0, "of the whole run are skipped"),
                *widgets.guards(Guards(warmup=8)),
                *block_presets.common(),
            ],
            outputs=[io.Model.Output()],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,
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
                "Makes sampling faster: DBCache, whose skipped blocks are forecast by a Taylor polynomial (TaylorSeer), where "
                f"a step mask allows it, with the parameters of stable-diffusion.cpp's cache-dit. {block_presets.NEEDS}"
            ),
            search_aliases=[*widgets.ALIASES, "cache-dit", "cachedit", "taylorseer", "scm", "stable-diffusion.cpp"],
            inputs=[
                widgets.model(),
                widgets.preset(
                    DIT_PRESETS,
                    "Balanced",
                    "How much to skip. The presets take fewer blocks where the model has not so many, no more than half of the steps for "
                    "warmup, and know Flux. "
                    "'stable-diffusion.cpp': its documented defaults, of which that program itself heeds few. "
                    f"{block_presets.SHOWN}",
                ),
                widgets.count("fn", 8, 1, 1000, FN_TIP),
                widgets.count("bn", 0, 0, 1000, BN_TIP),
                widgets.number("threshold", 0.08, 0.0, 100.0, THRESHOLD_TIP),
                widgets.count("warmup", 8, 0, 1000, "the first steps, always computed."),
                widgets.count("order", 1, 1, 2, "the degree of the Taylor polynomial (n_derivatives)."),
                widgets.choice("coordinate", COORDINATES, "log-SNR", COORDINATE_TIP),
                widgets.limit("skip_interval", 1, "in a row are forecast"),
                widgets.limit("max_cached", 0, "of the whole run are skipped"),
                widgets.choice(
                    "mask",
                    MASKS,
                    NONE,
                    "cache-dit's step masks: which steps may be skipped at all. A Step Mask node in step_mask goes before it.",
                ),
                widgets.choice(
                    "mask_policy",
                    MASK_POLICIES,
                    "dynamic",
                    "dynamic: where the mask allows a skip the threshold decides. static: there it is always skipped.",
                    where={"mask": NAMES},
                ),
                *block_presets.common(),
                block_presets.unit_too(),
            ],
            outputs=[io.Model.Output()],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,
        )

    @classmethod
    def execute(cls, model: Any, **values: Any) -> io.NodeOutput:
        return widgets.patched(cls, model, cachedit_of(**values))


NODES = [FirstBlockCache, DBCache, CacheDiT]
