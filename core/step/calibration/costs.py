"""The costs that a run is planned with: recordings of the same model, of its architecture, and shipped ones, read onto the run's grid.

Each recording is read on the grid by itself, and the Gram matrices are averaged. A run that skips records the steps that it computed; the
steps between them are read with the shipped costs (regression.py), which are also averaged with such runs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..clock import Grid
from .gram import Gram, Value
from .recipe import Recipe, both_guided_or_neither, similarity
from .regression import mean_at, read, relative

SHIPPED = Path(__file__).with_name("shipped_costs.json")
USUAL_CFG = 1.0  # where the guider has no scale
MOST = 8  # recordings that are averaged
MOST_RUNS = 8  # of one recording that count
LONGEST = 128  # times that costs are read at: plans are solved on fewer steps
BUILT_IN_RUNS = 2.0  # the built-in costs weigh as much as so many runs that skipped: one prompt alone can mislead
COVERED = 0.75  # share of a run's times that a recording has to cover


class Origin(Enum):
    """Where costs come from, by how far a plan's predicted error can be trusted. The value is for people."""

    MEASURED = "measured on this model"
    LEARNED = "learned from this model's earlier runs"
    RELATED = "from other models of this architecture"
    SHIPPED = "built-in"


@dataclass(frozen=True)
class Recording:
    """A Gram matrix, the recipe of its runs, and whether all of their steps were computed."""

    gram: Gram
    recipe: Recipe
    full: bool


@dataclass(frozen=True)
class Costs:
    """What a plan is solved with.

    gram: on the run's grid, or on LONGEST of its steps, of one pass. origin: of the recordings that it is averaged of. runs: how many of
    these were of this model.
    """

    gram: Gram
    origin: Origin
    runs: int = 0


def costs_for(
    wanted: Recipe | None, cfg: float | None, grid: Grid, kept: Value, recordings: Sequence[Recording] = ()
) -> Costs:
    """The best costs at hand for a run.

    wanted: the run's recipe; None: shipped costs. cfg: its guidance scale; None where it has none. kept: the value that its predictor
    predicts. recordings: all that could be found; those that do not fit are left out.
    """
    scale = USUAL_CFG if cfg is None else cfg
    grid = _bounded(grid)
    fitting = _fitting(wanted, grid, recordings) if wanted else []
    own = [(w, r) for w, r in fitting if wanted and r.recipe.shares_weights(wanted)]
    exact = [(w, r) for w, r in own if r.full and wanted and r.recipe.key == wanted.key]
    if exact:
        gram = exact[0][1].gram
        return Costs(_scaled(grid, gram.guided(scale).on(grid), gram.recipe, gram.kept), Origin.MEASURED, gram.runs)
    chosen = own or fitting
    # recordings of D and of the velocity cannot be averaged: those that the run predicts, or else the others
    same = [(w, r) for w, r in chosen if r.gram.kept == kept] or chosen
    kinds = {r.gram.kept for _, r in same}
    kind = kept if kept in kinds or not kinds else kinds.pop()
    weighted = [(w * min(r.gram.runs, MOST_RUNS), r) for w, r in same if r.gram.kept == kind][:MOST]
    telling = [r for _, r in own if wanted and _tells(r, wanted)]
    measured = any(r.full for r in telling)
    origin = Origin.MEASURED if measured else Origin.LEARNED if own else Origin.RELATED if chosen else Origin.SHIPPED
    built_in = [gram.guided(scale) for gram in shipped(grid.flow, kind)]
    total = np.zeros((grid.steps, grid.steps))
    if not measured:
        total += (BUILT_IN_RUNS if telling else 1.0) * mean_at(built_in, grid.times[:-1])
    for weight, recording in weighted:
        products = read(recording.gram.guided(scale), grid.times[:-1], built_in, recording.full)
        total += weight * relative(products)
    runs = sum(r.gram.runs for _, r in own)
    text = own[0][1].recipe.text if own else chosen[0][1].recipe.text if chosen else built_in[0].recipe
    return Costs(_scaled(grid, total, text, kind), origin, runs)


def _fitting(wanted: Recipe, grid: Grid, recordings: Sequence[Recording]) -> list[tuple[float, Recording]]:
    """The recordings that tell something about the run, with their weights, the most similar first."""
    times = grid.times[:-1]
    found = []
    for recording in recordings:
        gram = recording.gram
        whole = max(float(times[0] - times[-1]), 1e-6)
        covered = (min(gram.times[0], times[0]) - max(gram.times[-1], times[-1])) / whole
        weight = similarity(recording.recipe, wanted, gram.passes)
        if weight > 0 and covered >= COVERED:
            found.append((float(weight * covered), recording))
    return sorted(found, key=lambda pair: (-pair[0], not pair[1].full))


def _tells(recording: Recording, wanted: Recipe) -> bool:
    """Whether a recording has the passes that the run's outputs are made of: one pass at CFG 1 tells little of guided outputs."""
    return recording.gram.passes > 1 or both_guided_or_neither(recording.recipe.guidance, wanted.guidance)


def _bounded(grid: Grid) -> Grid:
    if grid.steps <= LONGEST:
        return grid
    chosen = np.linspace(0, grid.steps - 1, LONGEST).round().astype(int)
    return Grid((*(grid.sigmas[i] for i in chosen), grid.sigmas[-1]), grid.flow, ended=grid.ends)


def _scaled(grid: Grid, products: np.ndarray, recipe: str, kept: Value) -> Gram:
    return Gram(grid.times[:-1], products / max(float(products.diagonal().max()), 1e-30), recipe, kept)


@lru_cache(maxsize=1)
def _shipped() -> tuple[tuple[bool, Gram], ...]:
    data = json.loads(SHIPPED.read_text("utf-8"))
    return tuple((bool(entry["flow"]), Gram.from_data(entry)) for entry in data["recordings"])


def shipped(flow: bool, kept: Value = "velocity") -> tuple[Gram, ...]:
    """The costs that come with the pack, measured on the demo's models: of flow models, or of models that predict noise."""
    return tuple(gram for of_flow, gram in _shipped() if of_flow == flow and gram.kept == kept)


def default(grid: Grid, cfg: float | None = None, kept: Value = "velocity") -> Gram:
    """The shipped costs on a grid."""
    return costs_for(None, cfg, grid, kept).gram
