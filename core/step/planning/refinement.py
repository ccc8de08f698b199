"""Improves a plan by simulating the run.

PSSP adds up the errors of single edges, without the correction of an edge's error on the next one. Here a plan's score is the error of the
latent at each computed step, after all edges and corrections before it. It correlates better with the picture's error (bench/choices.md),
and it is no sum over edges, so it is minimised by a local search that starts from PSSP's plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..calibration.gram import Array, Gram
from ..clock import Grid
from ..predictors import Line
from ..predictors.linear import spread
from .edge_costs import moves, scale

REACH = 3  # steps by which one anchor is moved, at most
ROUNDS = 12  # anchors moved one after the other, at most

Plans = NDArray[np.intp]  # (B, K): anchors of B plans, ascending


@dataclass
class Simulation:
    """Runs on a grid of N steps, as linear combinations of the recorded outputs.

    Parameters
    ----------
    line: of a predictor that adds the error of an edge on the next one, as Corrected does.
    grid: the run's.
    costs: Gram matrix of recorded runs.
    gain: share of the correction that is made.
    ends: the last anchor is the trajectory's last step; otherwise the run goes on to the grid's end.
    breaks: steps at which older anchors are dropped, with what they were to correct.
    """

    line: Line
    grid: Grid
    costs: Gram
    gain: float
    ends: bool = True
    breaks: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        self.gram = self.costs.on(self.grid)
        self.moves = moves(self.grid, self.costs)
        self.place = np.array([*map(self.grid.along(self.line.at), self.grid.sigmas[:-1])])
        # sums of the moves below a step, and of their first moments
        self.reach = np.concatenate(([0.0], np.cumsum(self.moves)))
        self.moment = np.concatenate(([0.0], np.cumsum(self.moves * self.place)))
        divisor = scale(self.grid)
        self.scale = np.append(divisor, divisor[-1:])
        self.spread = np.array([spread(s, self.grid.flow) for s in self.grid.sigmas])

    def scores(self, plans: Plans) -> Array:
        """For each plan, the sum over its anchors of the latent's mean square error there, shape (B,)."""
        steps = self.grid.steps
        if not self.ends:
            plans = np.concatenate((plans, np.full((len(plans), 1), steps)), 1)
        rows = np.arange(len(plans))
        error = np.zeros((len(plans), steps))  # of the latent, by recorded output
        owed = np.zeros_like(error)  # the correction that is due
        inside = np.arange(steps)
        total = np.zeros(len(plans))
        for k in range(plans.shape[1] - 1):
            a, b, c = plans[:, max(k - 1, 0)], plans[:, k], plans[:, k + 1]
            skips, fresh = c > b + 1, np.isin(b, list(self.breaks))
            owed[fresh] = 0
            length = self.reach[c] - self.reach[b + 1]
            first = self.moment[c] - self.moment[b + 1] - self.place[b] * length
            gap = self.place[b] - self.place[a]
            pull = np.divide(self.line.slope * first, gap, out=np.zeros_like(gap), where=(gap != 0) & ~fresh)
            made = np.zeros_like(error)
            made[rows, b] += np.where(skips, length + pull, 0)
            made[rows, a] -= np.where(skips, pull, 0)
            true = np.where((inside > b[:, None]) & (inside < c[:, None]), self.moves, 0)
            kept = self.gain * self.spread[c] / self.spread[b]
            error += made - true + np.where(skips, kept, 0)[:, None] * owed
            # the displacement on the line from b to c, less the one that was made
            to = np.minimum(c, steps - 1)
            width = self.place[to] - self.place[b]
            mean = np.divide(first, width, out=np.zeros_like(width), where=width != 0)
            due = -made
            due[rows, b] += np.where(skips, length - mean, 0)
            due[rows, to] += np.where(skips, mean, 0)
            owed = np.where(skips[:, None], due, owed)
            total += np.einsum("bi,ij,bj->b", error, self.gram, error) / self.scale[c] ** 2
        return total

    def score(self, plan: Sequence[int]) -> float:
        """Of one plan."""
        return float(self.scores(np.array([plan], np.intp))[0])

    def improved(self, plan: Sequence[int], forced: Sequence[bool], longest: float) -> tuple[int, ...]:
        """The plan that a local search finds: the best move of one anchor at a time, while it lowers the score.

        forced: steps that are computed in any case. longest: the largest distance of two anchors.
        """
        best = np.array([plan], np.intp)
        score = self.scores(best)[0]
        for _ in range(ROUNDS):
            near = self._neighbours(best[0], forced, longest)
            if not len(near):
                break
            scores = self.scores(near)
            at = int(scores.argmin())
            if scores[at] >= score * (1 - 1e-6):
                break
            best, score = near[at : at + 1], scores[at]
        return tuple(int(i) for i in best[0])

    def _neighbours(self, plan: NDArray[np.intp], forced: Sequence[bool], longest: float) -> Plans:
        ends = {0, self.grid.steps - 1} if self.ends else {0}
        held, found = set(plan.tolist()), set()
        for anchor in held - ends:
            if forced[anchor]:
                continue
            for to in range(max(anchor - REACH, 1), min(anchor + REACH + 1, self.grid.steps)):
                if to not in held:
                    found.add(tuple(sorted(held - {anchor} | {to})))
        plans = np.array(sorted(found), np.intp).reshape(-1, len(plan))
        steps = np.diff(plans if self.ends else np.c_[plans, np.full(len(plans), self.grid.steps)])
        return plans[(steps <= longest).all(1)]
