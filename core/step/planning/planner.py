"""Which steps to compute: PSSP on edge costs, in bounded time and memory for any number of steps.

Up to LARGEST steps PSSP's plan is the exact optimum of its objective, and is moved to a plan near it with which the simulated run is better
(simulation.py). Longer runs are planned on a grid of LARGEST steps, and the plan's density of anchors is carried over to the run's own
grid. A question that was answered before is not solved again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np

from ..calibration.gram import Array, Gram
from ..clock import Grid
from ..predictors import Line, Predictor
from .edge_costs import displacement, edge_costs, edge_weights
from .local_search import improved
from .pssp import Paths
from .response import Response
from .simulation import Plans, Simulation

LARGEST = 64  # steps; PSSP takes O(budget N^3) time and O(N^3) memory
EDGES = 0.5  # share of the edges' own errors in the error that plans are chosen by
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
    cfg, response: guidance, and the sampler's response; None: as Euler's method. They count in the simulation.
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
    cfg: float = 1.0
    response: Response | None = None


@dataclass(frozen=True)
class Solution:
    """anchors: the steps to compute, ascending. error: predicted, as a share of the run's displacement. predictor: the candidate that it is
    best with."""

    anchors: tuple[int, ...]
    error: float
    predictor: Predictor


@lru_cache(maxsize=64)
def solve(question: Question) -> Solution:
    """The plan with the smallest predicted error over all candidates of the predictor."""
    return _exact(question) if len(question.forced) <= LARGEST else _coarse(question)


def _exact(question: Question) -> Solution:
    search = _Search(question)
    most = question.max_error or question.limit
    if not most:
        return search.improved(search.best(question.budget))
    # the fewest steps whose predicted error is small enough
    low, high = (0 if question.max_error else question.budget), len(question.forced)
    while low < high:
        count = (low + high) // 2
        low, high = (low, count) if search.best(count).error <= most else (count + 1, high)
    every = (search.improved(search.best(count)) for count in range(high, len(question.forced) + 1))
    found = next(
        solution for solution in every if solution.error <= most or len(solution.anchors) == len(question.forced)
    )
    while question.max_error or len(found.anchors) > question.budget:
        fewer = search.improved(search.best(len(found.anchors) - 1))
        if fewer.error > most or len(fewer.anchors) >= len(found.anchors):
            break
        found = fewer
    return found


class _Search:
    """Plans for one question and any budget: PSSP's for each line that the predictor may extrapolate, improved by simulating the run.

    A plan's error has two parts: those of its edges by themselves, and what they come to in the simulated run. Plans are chosen by the
    second and a share of the first: by the first alone runs with much guidance overshoot. The second is too small for the plan that was
    chosen by it, so the predicted error has both in full (bench/choices.md).
    """

    def __init__(self, question: Question) -> None:
        grid = Grid(question.sigmas, question.flow)
        self.question, self.steps, self.whole = question, grid.steps, displacement(grid, question.costs)
        self.paths: dict[Line | None, tuple[Paths, list[Predictor]]] = {}
        for predictor in question.predictor.candidates:
            if predictor.line not in self.paths:
                self.paths[predictor.line] = self._solved(grid, predictor), []
            self.paths[predictor.line][1].append(predictor)
        line, self.run = question.predictor.line, None
        # with noise or two evaluations a step D is kept: how it changes with the latent was not measured
        if line is not None and question.simulated and question.costs.kept == "velocity":
            self.run = Simulation(
                line.at, grid, question.costs, question.cfg, question.ends, question.breaks, question.response
            )

    def _solved(self, grid: Grid, predictor: Predictor) -> Paths:
        question, steps = self.question, grid.steps
        cost, forced = edge_costs(predictor, grid, question.costs), question.forced
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
            weights, forced, steps = np.append(weights, 1.0), (*forced, True), steps + 1
        if math.isfinite(question.max_skipped_steps):
            b, c = np.indices(cost.shape[1:])
            cost = np.where(c - b - 1 > question.max_skipped_steps, np.inf, cost)
        any_budget = question.max_error or question.limit
        budget = steps if any_budget else self._counted(question.budget)
        return Paths(cost, budget, question.gamma, np.array(forced), weights)

    def _counted(self, budget: int) -> int:
        """The budget of a path: with the node of the run's end, and at least what the longest skip asks for."""
        question, end = self.question, 0 if self.question.ends else 1
        if math.isfinite(question.max_skipped_steps):
            budget = max(budget, _least((*question.forced, *[True] * end), question.max_skipped_steps) - end)
        return budget + end

    def best(self, budget: int) -> Solution:
        """The best of PSSP's plans with so many computed steps."""
        every = [(paths, paths.best(self._counted(budget)), predictors) for paths, predictors in self.paths.values()]
        if self.run is None:
            paths, path, predictors = min(every, key=lambda plan: plan[0].price(plan[1]))
            return Solution(self._anchors(path), paths.error(path) / self.whole, predictors[0])
        found = []
        for _, path, predictors in every:
            anchors, gains = self._anchors(path), np.array([p.correction for p in predictors])
            errors = self._errors(predictors[0].line, np.array([anchors] * len(gains)), gains)
            found += [(e, anchors, p) for e, p in zip(errors, predictors, strict=True)]
        _, anchors, predictor = min(found, key=lambda plan: plan[0])
        return self._solution(anchors, predictor)

    def _anchors(self, path: tuple[int, ...]) -> tuple[int, ...]:
        """The path without the node of the run's end."""
        return tuple(i for i in path if i < self.steps)

    def improved(self, solution: Solution) -> Solution:
        """The solution with better anchors, if there are any near by."""
        predictor, question = solution.predictor, self.question
        if self.run is None:
            return solution

        def errors(plans: Plans) -> Array:
            return self._errors(predictor.line, plans, predictor.correction)

        longest = question.max_skipped_steps + 1
        return self._solution(improved(solution.anchors, errors, question.forced, longest, question.ends), predictor)

    def _solution(self, anchors: tuple[int, ...], predictor: Predictor) -> Solution:
        error = self._errors(predictor.line, np.array([anchors]), predictor.correction, edges=1.0)
        return Solution(anchors, float(error[0]), predictor)

    def _errors(self, line: Line | None, plans: Plans, gain: Array | float, edges: float = EDGES) -> Array:
        """Of each plan, as shares of the run's displacement; edges: share of the edges' own errors."""
        assert self.run is not None and line is not None
        simulated = self.run.errors(plans, line.slope, gain)
        if not self.question.ends:
            plans = np.c_[plans, np.full(len(plans), self.steps)]
        return np.asarray(np.sqrt(simulated + edges**2 * self.paths[line][0].squares(plans)) / self.whole)


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
            response=None,
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
