"""DBCache and Cache-DiT: First Block Cache with more blocks that always run, caps on skips, and Taylor prediction."""

from __future__ import annotations

from typing import Any, Literal, cast

from ..core.step.clock import Coordinate
from ..core.step.indicators.blocks import FirstBlockChange
from ..core.step.method import Blocks, Method
from ..core.step.policies import Mask, Policy, StepMask, Total
from ..core.step.policies.mask import NAMES
from ..core.step.predictors import Predictor, Taylor
from . import block_presets, method_node, widgets
from .block_presets import LINE, RELATIVE, REUSE, TYPICAL
from .method_node import MethodNode
from .widgets import COORDINATES, CUSTOM, Guards, among, choice, count, limit, number

NONE, TAYLOR = "none", "taylor"
DB_PREDICTORS = (NONE, LINE, TAYLOR)
CACHE_DIT = "as in cache-dit"
# factor on a known model's threshold; the tables below have the threshold of every other model, in typical changes
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
    """Share of the steps that warmup takes at most. Our presets' warmups are for runs of 20 steps and more; 8 steps would be all warmup."""
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
    """DBCache (https://github.com/vipshop/cache-dit) as data.

    Args:
        preset (str, default "Balanced"): one of DB_PRESETS, or CUSTOM. A preset takes fewer blocks where the model has fewer.
        fn (int, default 8): Fn, first blocks that always run, at least 1.
        bn (int, default 0): Bn, last blocks that always run, 0 or more.
        threshold (float, default 0.08): change of what the first blocks add, since the last computed step, below which a step is
            skipped. 0 or more.
        unit (str, default "relative change"): one of UNITS, the unit of the threshold.
        predictor (str, default "line"): one of DB_PREDICTORS.
        order (int, default 1): degree of the Taylor polynomial, 1 or 2. It counts with "taylor".
        coordinate (str, default "log-SNR"): one of COORDINATES, the polynomial's variable.
        max_cached (int, default 0): evaluations of the run that are skipped at most; 0 for no limit.
        warmup, start_percent, end_percent, max_skips: see `Guards`; shares of the timestep range.
        cache_device (str, default "auto"): one of DEVICES, where residuals are kept.
        step_mask (StepMask, optional): steps chosen by hand.

    Raises ValueError for a value out of its range.
    """
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
    """The guards and a limit on all skips of a run. The limit comes before the mask, which could otherwise skip past it."""
    policies = guards.policies(mask)
    at = next((i for i, p in enumerate(policies) if isinstance(p, Mask)), len(policies))
    return (*policies[:at], Total(total), *policies[at:])


SDCPP = "stable-diffusion.cpp"


# no masks: the named ones skip many steps in a row. Speed on the small NextDiT, 50 steps: 45 dB with 20.5 of them computed, and 42 dB
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
    """DBCache, TaylorSeer and a step mask together, with the parameters of stable-diffusion.cpp (docs/caching.md,
    src/cache_dit.hpp), all of them in force.

    Args:
        preset (str, default "Balanced"): one of DIT_PRESETS, or CUSTOM. A preset takes fewer blocks where the model has fewer.
        fn (int, default 8): Fn, first blocks that always run, at least 1.
        bn (int, default 0): Bn, last blocks that always run, 0 or more.
        threshold (float, default 0.08): change of what the first blocks add, since the last computed step, below which a step is
            skipped. 0 or more.
        warmup (int, default 8): first steps, always computed.
        order (int, default 1): degree of the Taylor polynomial, 1 or 2.
        coordinate (str, default "log-SNR"): one of COORDINATES, the polynomial's variable.
        skip_interval (int, default 1): evaluations skipped in a row at most; 0 for no limit.
        max_cached (int, default 0): evaluations of the run that are skipped at most; 0 for no limit.
        mask (str, default "none"): one of MASKS, cache-dit's step masks. It does not count beside a `step_mask`.
        mask_policy (str, default "dynamic"): one of MASK_POLICIES: where `mask` allows a skip, "dynamic" asks the threshold and
            "static" always skips.
        cache_device (str, default "auto"): one of DEVICES, where residuals are kept.
        step_mask (StepMask, optional): steps chosen by hand.
        unit (str, default "relative change"): one of UNITS, the unit of the threshold.

    Raises ValueError for a value out of its range.
    """
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


def _first_inputs() -> list[Any]:
    """Fn, Bn and the threshold."""
    return [
        count(
            "fn",
            8,
            1,
            1000,
            "Fn, first blocks that always run; the others are skipped while what these add has hardly changed. At least 1.",
        ),
        count(
            "bn", 0, 0, 1000, "Bn, last blocks that always run too. Fn and Bn together are fewer than the model has."
        ),
        number(
            "threshold",
            0.08,
            0.0,
            100.0,
            "a step is skipped while what the first blocks add has changed by less than this since the last computed step.",
        ),
    ]


FEWER = "Presets use fewer blocks where the model has fewer, at most half of the steps as warmup, and values of their own for Flux."


class DBCache(MethodNode):
    id = "SkipstoneDBCache"
    name = "DBCache"
    category = method_node.INSIDE
    description = (
        "Inside the model: First Block Cache with several first blocks (Fn) that decide, and last blocks (Bn) that always run, as in "
        f"cache-dit. {block_presets.NEEDS}"
    )
    aliases = ("dbcache", "dual block cache", "cache-dit")
    method = staticmethod(dbcache_of)

    @classmethod
    def inputs(cls) -> list[Any]:
        return [
            widgets.preset(
                DB_PRESETS, f"How much to skip. {FEWER} as in cache-dit: its default values. {block_presets.SHOWN}"
            ),
            *_first_inputs(),
            block_presets.unit(),
            choice(
                "predictor",
                DB_PREDICTORS,
                LINE,
                "what a skipped step adds in place of the blocks. none: what they added last. line: extrapolation of the last two, at two "
                "thirds of the slope. taylor: the polynomial below.",
            ),
            count("order", 1, 1, 2, "degree of the Taylor polynomial.", {"predictor": [TAYLOR]}),
            widgets.coordinate("log-SNR", {"predictor": [TAYLOR]}),
            limit("max_cached", 0, "skipped in the whole run"),
            *widgets.guards(Guards(warmup=8)),
            *block_presets.common(),
        ]


class CacheDiT(MethodNode):
    id = "SkipstoneCacheDiT"
    name = "Cache-DiT"
    category = method_node.INSIDE
    description = (
        "Inside the model: DBCache that extrapolates skipped blocks with a Taylor polynomial (TaylorSeer), where a step mask allows skips; "
        f"the parameters are those of stable-diffusion.cpp's cache-dit. {block_presets.NEEDS}"
    )
    aliases = ("cache-dit", "cachedit", "taylorseer", "scm", "stable-diffusion.cpp")
    method = staticmethod(cachedit_of)

    @classmethod
    def inputs(cls) -> list[Any]:
        return [
            widgets.preset(
                DIT_PRESETS,
                f"How much to skip. {FEWER} stable-diffusion.cpp: the default values that it documents; that program ignores most of them. "
                f"{block_presets.SHOWN}",
            ),
            *_first_inputs(),
            count("warmup", 8, 0, 1000, "number of first steps that are always computed."),
            count("order", 1, 1, 2, "degree of the Taylor polynomial (n_derivatives)."),
            widgets.coordinate("log-SNR"),
            limit("skip_interval", 1, "skipped in a row"),
            limit("max_cached", 0, "skipped in the whole run"),
            choice(
                "mask",
                MASKS,
                NONE,
                "cache-dit's step masks: which steps may be skipped. A Step Mask node in step_mask replaces it.",
            ),
            choice(
                "mask_policy",
                MASK_POLICIES,
                "dynamic",
                "where the mask allows a skip. dynamic: the threshold decides. static: always skip.",
                {"mask": NAMES},
            ),
            *block_presets.common(),
            block_presets.unit(),
        ]


NODES = [DBCache, CacheDiT]
