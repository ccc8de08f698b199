"""Which steps to compute: PSSP on edge costs, in bounded time and memory for any number of steps.

Up to LARGEST steps PSSP's plan is the exact optimum of its objective, and is moved to a plan near it with which the simulated run is better
(refinement.py). Longer runs are planned on a grid of LARGEST steps, and the plan's density of anchors is carried over to the run's own
grid. A question that was answered before is not solved again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np

from ..calibration.gram import Gram
from ..clock import Grid
from ..predictors import Predictor
from .edge_costs import displacement, edge_costs, edge_weights
from .pssp import Paths
from .refinement import Simulation

LARGEST = 64  # steps; PSSP takes O(budget N^3) time and O(N^3) memory
# factor on the cost of an edge that ends where older anchors are dropped: its error is not corrected afterwards (bench/choices.md)
UNCORRECTED = 1.5


@dataclass(frozen=True)
class Question:
    """The inputs of a plan.

    Parameters
    ----------
    predictor: the run's; its `candidates` are all solved for, and the cheapest is taken.
    sigmas, flow: the run's grid, N steps.
    costs: Gram matrix that the edge costs are computed from.
    budget: evaluations computed at most; not looked at with `max_error`.
    gamma: PSSP's exponent.
    forced: for each step, whether it is computed in any case.
    max_skipped_steps: steps skipped in a row at most; inf for no limit.
    max_error: above 0, the budget is the smallest whose predicted error is at most this share of the run's displacement.
    limit: above 0, the budget is raised until the predicted error is at most this share.
    ends: the run ends a trajectory, so its last step is computed.
    breaks: steps at which older anchors are dropped.
    simulated: PSSP's plan is improved by simulating the run.
    """

    predictor: Predictor
    sigmas: tuple[float, ...]
    flow: bool
    costs: Gram
    budget: int
    gamma: float
    forced: tuple[bool, ...]
    max_skipped_steps: float = math.inf
    max_error: float = 0.0
    limit: float = 0.0
    ends: bool = True
    breaks: frozenset[int] = frozenset()
    simulated: bool = True


@dataclass(frozen=True)
class Solution:
    """anchors: the steps to compute, ascending. price: PSSP's objective, or the simulated run's error. error: predicted by edge costs, as a
    share of the run's displacement. predictor: the candidate that it was solved for."""

    anchors: tuple[int, ...]
    price: float
    error: float
    predictor: Predictor


@lru_cache(maxsize=64)
def solve(question: Question) -> Solution:
    """The best plan over all candidates of the predictor: the fewest anchors, then the lowest price."""
    candidates = [_solve(replace(question, predictor=p)) for p in question.predictor.candidates]
    return min(candidates, key=lambda s: (len(s.anchors), s.price))


def _solve(question: Question) -> Solution:
    return _exact(question) if len(question.forced) <= LARGEST else _coarse(question)


def _exact(question: Question) -> Solution:
    grid, steps = Grid(question.sigmas, question.flow), len(question.forced)
    cost, budget, forced = edge_costs(question.predictor, grid, question.costs), question.budget, question.forced
    for at in question.breaks:
        cost[:, at] = cost[at, at]  # as of an anchor without a predecessor
        cost[:, :, at] *= UNCORRECTED
    weights = edge_weights(grid)
    if question.ends:
        cost = cost[:, :, :steps]
    else:
        # the end of the run is one more node that every path leads to, and that costs nothing to compute
        cost = np.concatenate((cost, np.zeros((1, steps, steps + 1))))
        cost = np.concatenate((cost, np.zeros((steps + 1, 1, steps + 1))), 1)
        weights, forced, budget, steps = np.append(weights, 1.0), (*forced, True), budget + 1, steps + 1
    if math.isfinite(question.max_skipped_steps):
        b, c = np.indices(cost.shape[1:])
        cost = np.where(c - b - 1 > question.max_skipped_steps, np.inf, cost)
        budget = max(budget, _least(forced, question.max_skipped_steps))
    most = question.max_error or question.limit
    paths = Paths(cost, steps if most else budget, question.gamma, np.array(forced), weights)
    whole = displacement(grid, question.costs)
    path = paths.best()
    if most:
        counts = range(paths.least if question.max_error else budget, steps)
        path = next((p for p in map(paths.best, counts) if len(p) > 1 and paths.error(p) <= most * whole), path)
    anchors, error = tuple(i for i in path if i < len(question.forced)), paths.error(path) / whole
    line, gain = question.predictor.line, question.predictor.gain(error)
    if line is None or gain == 0 or not question.simulated:
        return Solution(anchors, paths.price(path), error, question.predictor)
    run = Simulation(line, grid, question.costs, gain, question.ends, question.breaks)
    anchors = run.improved(anchors, question.forced, question.max_skipped_steps + 1)
    return Solution(anchors, run.score(anchors), error, question.predictor)


def _coarse(question: Question) -> Solution:
    steps = len(question.forced)
    edges = np.linspace(0, steps, LARGEST + 1).round().astype(int)
    inside = [question.forced[a:b] for a, b in pairwise(edges)]
    coarse = _exact(
        replace(
            question,
            sigmas=tuple(question.sigmas[i] for i in edges),
            forced=tuple(all(part) for part in inside),
            budget=max(round(question.budget * LARGEST / steps), 2),
            max_skipped_steps=math.inf,
            breaks=frozenset(),
        )
    )
    budget = question.budget
    if question.max_error or question.limit:
        budget = max(math.ceil(len(coarse.anchors) * steps / LARGEST), 0 if question.max_error else budget)
    places = [int(edges[i]) for i in coarse.anchors]
    if question.ends:
        places[-1] = steps - 1
    anchors = _spread(places, budget, question.forced)
    end = () if question.ends else (steps,)
    capped = _capped((*anchors, *end), question.max_skipped_steps)
    return replace(coarse, anchors=tuple(i for i in capped if i < steps))


def _spread(places: Sequence[int], budget: int, forced: Sequence[bool]) -> list[int]:
    """About `budget` anchors with the density of `places`, and all forced ones; where these alone are more, only they."""
    must = {0, *(i for i, f in enumerate(forced) if f)}
    low, high = 0, budget
    while low < high:  # how many to spread, so that they and the forced ones keep to the budget
        count = (low + high + 1) // 2
        low, high = (count, high) if len(must | _quantiles(places, count)) <= budget else (low, count - 1)
    return sorted(must | _quantiles(places, low))


def _quantiles(places: Sequence[int], count: int) -> set[int]:
    at = np.linspace(0, len(places) - 1, count)
    return {int(i) for i in np.interp(at, np.arange(len(places)), places).round()}


def _capped(anchors: Sequence[int], longest: float) -> tuple[int, ...]:
    """The anchors, and more where over `longest` steps in a row would be skipped."""
    if not math.isfinite(longest):
        return tuple(anchors)
    pace = int(longest) + 1
    more = {i for a, b in pairwise(anchors) for i in range(a + pace, b, pace)}
    return tuple(sorted({*anchors, *more}))


def _least(forced: Sequence[bool], longest: float) -> int:
    """Anchors that are needed so that at most `longest` steps in a row are skipped."""
    ends = [i for i, f in enumerate(forced) if f or i in (0, len(forced) - 1)]
    return 1 + sum(math.ceil((b - a) / (longest + 1)) for a, b in pairwise(ends))
