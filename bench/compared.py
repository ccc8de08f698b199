"""The rows of the comparison: every method of the pack at several levels, plain sampling, ComfyUI's caches, the released schedules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from judge import Cell

Patch = Callable[[Any], Any]  # MODEL -> MODEL

# how many of so many steps are computed; between and beyond, in proportion to the nearest
BUDGETS: dict[int, tuple[int, ...]] = {
    8: (7, 6, 5, 4),
    20: (15, 12, 10, 8, 6),
    28: (20, 16, 14, 11, 8, 6),
    50: (40, 30, 25, 20, 15, 13, 10, 8),
}
FEW_BUDGETS: dict[int, tuple[int, ...]] = {8: (7, 6, 5), 20: (12, 10, 8), 28: (14, 11, 8), 50: (25, 15, 10)}
FEW_PLAIN: dict[int, tuple[int, ...]] = {8: (7, 6, 5), 20: (14, 10, 7), 28: (20, 14, 9), 50: (30, 20, 14, 10)}
# The released schedules nearest in budget; where there is none of that size, the next smaller
RELEASED = {25: "Z-Image 25", 20: "Z-Image 20", 15: "Z-Image 15", 13: "Z-Image 13", 10: "Qwen-Image 10"}

EASY, FEW_EASY = (0.015, 0.025, 0.05, 0.08, 0.12, 0.2, 0.3), (0.05, 0.12)
RESIDUAL, FEW_RESIDUAL = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5), (0.05, 0.15)  # EasyCache as others have it
UCACHE, FEW_UCACHE = (0.15, 0.3, 0.5, 1.0, 2.0, 4.0), (0.5, 2.0)
FLEX, FEW_FLEX = (0.0, 0.15, 0.3, 0.5, 1.2, 3.0), (0.0, 0.5)
INTERVALS, FEW_INTERVALS = (2, 3, 4, 5, 6), (2, 4)


@dataclass(frozen=True)
class Entry:
    """One line of the table. steps: of the run, where that is not the cell's. calibrated: needs costs measured beforehand. same:
    entries of a cell that have the same here do the same, as a preset and the values that it stands for."""

    method: str
    variant: str
    level: str
    patch: Patch
    steps: int | None = None
    calibrated: bool = False
    same: Any = None


# The variant of each method that the plot draws as a line; all others are in the table
DRAWN = {
    "plain": "", "released MeanCache": "", "core EasyCache": "", "core LazyCache": "", "MeanCache": "calibrated",
    "Skipstone EasyCache": "auto", "UCache": "auto", "Spectrum": "w 0.25", "TaylorSeer": "order 1",
}  # fmt: skip


def budgets(cell: Cell, table: dict[int, tuple[int, ...]]) -> list[int]:
    nearest = min(table, key=lambda n: abs(n - cell.steps))
    return sorted({max(round(b * cell.steps / nearest), 2) for b in table[nearest]}, reverse=True)


def entries(cell: Cell, every: bool) -> list[Entry]:
    """All levels and variants, or a few. The shown names are asked of the nodes, so that the table says what people see."""
    sets = (_plain, _meancache, _released, _core, _easycache, _ucache, _spectrum, _taylorseer)
    return [entry for make in sets for entry in make(cell, every)]


def _shown(node: Any) -> str:
    return str(node.define_schema().display_name)


def _ours(node: Any, variant: str, level: str, method: Any) -> Entry:
    from skipstone.patch.step.attach import attach

    same = replace(method, variant="")
    return Entry(
        _shown(node), variant, level, partial(attach, method=method), calibrated=method.calibration == "auto", same=same
    )


def _plain(cell: Cell, every: bool) -> Iterator[Entry]:
    # more of them than of the methods: the others are held against what lies between
    wanted = {*budgets(cell, BUDGETS), 35, 18, 11, 6} if every else budgets(cell, FEW_PLAIN)
    for steps in sorted(wanted, reverse=True):
        if steps < cell.steps:
            yield Entry("plain", "", f"{steps} steps", lambda model: model, steps=steps)


def _meancache(cell: Cell, every: bool) -> Iterator[Entry]:
    from skipstone.nodes.meancache import PRESETS, MeanCache, method_of
    from skipstone.nodes.widgets import CUSTOM

    custom: dict[str, dict[str, Any]] = {"calibrated": {"calibration": "auto"}}
    if every:
        custom |= {
            "default costs": {"calibration": "default"},
            "calibrated, linear": {"calibration": "auto", "predictor": "linear"},
            "calibrated, average velocity": {"calibration": "auto", "predictor": "average velocity (paper)"},
            "evenly spaced": {"calibration": "off"},
        }
    for variant, values in custom.items():
        for b in budgets(cell, BUDGETS if every and variant == "calibrated" else FEW_BUDGETS):
            yield _ours(MeanCache, variant, f"B={b}", method_of(CUSTOM, budget=b / cell.steps, **values))
    for preset in PRESETS if every or cell.steps == 8 else ():
        yield _ours(MeanCache, "preset", preset, method_of(preset, calibration="auto"))


def _released(cell: Cell, every: bool) -> Iterator[Entry]:
    from skipstone.nodes.meancache import MeanCache, method_of
    from skipstone.nodes.widgets import CUSTOM

    if cell.steps < 50:  # what they were made for
        return
    wanted = RELEASED if every else {b: RELEASED[b] for b in (25, 15, 10)}
    for schedule in wanted.values():
        method = method_of(CUSTOM, schedule=schedule, predictor="average velocity (released)", warmup=0)
        yield replace(_ours(MeanCache, "", schedule, method), method="released MeanCache")


def _core(cell: Cell, every: bool) -> Iterator[Entry]:
    """ComfyUI's own nodes. EasyCache adds what it kept to the network's input in place. Where that input is the latent itself
    (a flow model that computes in float32, as the demo's) the latent is lost with it, and so is the picture. Most people's
    models compute in half precision, where it is a copy; so it is given one here, and "as it is" shows the other."""
    from comfy.patcher_extension import WrappersMP
    from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode

    def copied(executor: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        return executor(x.clone(), *args, **kwargs)

    def put(node: Any, threshold: float, copies: bool, model: Any) -> Any:
        if copies:
            model = model.clone()
            model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "skipstone-bench", copied)
        return node.execute(model, threshold, 0.15, 0.95, False).result[0]

    variants = [(EasyCacheNode, "", True), (LazyCacheNode, "", False)]
    if every:
        variants.append((EasyCacheNode, "as it is", False))
    for node, variant, copies in variants:
        for threshold in RESIDUAL if every and variant != "as it is" else FEW_RESIDUAL:
            yield Entry(f"core {_shown(node)}", variant, f"{threshold:g}", partial(put, node, threshold, copies))


def _easycache(cell: Cell, every: bool) -> Iterator[Entry]:
    from skipstone.nodes.easycache import CORE, EASY_PRESETS, PUBLISHED, EasyCache, easycache_of
    from skipstone.nodes.widgets import CUSTOM

    for threshold in EASY if every else FEW_EASY:
        yield _ours(EasyCache, "auto", f"{threshold:g}", easycache_of(CUSTOM, threshold))
    for threshold in FEW_EASY if every else ():
        method = easycache_of(CUSTOM, threshold, "previous step")
        yield _ours(EasyCache, "auto, previous step", f"{threshold:g}", method)
    for threshold in FEW_RESIDUAL if every else ():
        published = easycache_of(CUSTOM, threshold, "previous step", "residual", 10)
        yield _ours(EasyCache, PUBLISHED, f"{threshold:g}", published)
        as_core = easycache_of(CUSTOM, threshold, "last computed step", "residual", 0, 0.15, 0.95)
        yield _ours(EasyCache, CORE, f"{threshold:g}", as_core)
    for preset in EASY_PRESETS if every else ():
        yield _ours(EasyCache, "preset", preset, easycache_of(preset))


def _ucache(cell: Cell, every: bool) -> Iterator[Entry]:
    from skipstone.nodes.easycache import U_PRESETS, U_PUBLISHED, UCache, ucache_of
    from skipstone.nodes.widgets import CUSTOM

    for threshold in UCACHE if every else FEW_UCACHE:
        method = ucache_of(CUSTOM, threshold, warmup=4, start_percent=0.0, end_percent=1.0)
        yield _ours(UCache, "auto", f"{threshold:g}", method)
    for threshold in FEW_UCACHE if every else ():
        residual = ucache_of(CUSTOM, threshold, predictor="residual")
        yield _ours(UCache, U_PUBLISHED, f"{threshold:g}", residual)
    for preset in U_PRESETS if every else ():
        yield _ours(UCache, "preset", preset, ucache_of(preset))


def _spectrum(cell: Cell, every: bool) -> Iterator[Entry]:
    from skipstone.nodes.spectrum import PAPER, PRESETS, Spectrum, spectrum_of
    from skipstone.nodes.widgets import CUSTOM

    for flex in FLEX if every else FEW_FLEX:
        yield _ours(Spectrum, "w 0.25", f"flex {flex:g}", spectrum_of(CUSTOM, w=0.25, flex=flex))
    for w in (0.5, 1.0) if every else ():
        for flex in FEW_FLEX:
            yield _ours(Spectrum, f"w {w:g}", f"flex {flex:g}", spectrum_of(CUSTOM, w=w, flex=flex))
    for preset in PRESETS if every else (PAPER,):
        yield _ours(Spectrum, "preset", preset, spectrum_of(preset))


def _taylorseer(cell: Cell, every: bool) -> Iterator[Entry]:
    from skipstone.nodes.taylorseer import INTERVALS as TAYLOR_PRESETS
    from skipstone.nodes.taylorseer import PUBLISHED, TaylorSeer, taylorseer_of
    from skipstone.nodes.widgets import CUSTOM

    variants: dict[str, dict[str, Any]] = {"order 1": {"order": 1, "predict": "velocity"}}
    if every:
        variants |= {f"order {n}": {"order": n, "predict": "velocity"} for n in (0, 2)}
        variants["order 1, sigma"] = {"order": 1, "coordinate": "sigma", "predict": "velocity"}
        variants["order 2, as published"] = {"order": 2, "coordinate": "index", "published": True}
    for variant, values in variants.items():
        for interval in INTERVALS if every and variant == "order 1" else FEW_INTERVALS:
            method = taylorseer_of(CUSTOM, interval=interval, **values)
            yield _ours(TaylorSeer, variant, f"interval {interval}", method)
    for preset in (*TAYLOR_PRESETS, PUBLISHED) if every else (PUBLISHED,):
        yield _ours(TaylorSeer, "preset", preset, taylorseer_of(preset))
