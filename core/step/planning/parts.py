"""The budget of a run that is a part of a trajectory: as many anchors as a plan of the whole trajectory has in it.

Early steps need more of the budget than late ones: two samplers of 10 steps each that computed 5 and 6 lost 12 dB against one of 20 that
computed 11.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..calibration.costs import default
from ..calibration.gram import Value
from ..clock import Grid
from .planner import Question, solve

LEADING = 2  # steps computed at the start of the trajectory, as by presets


def whole_grid(grid: Grid) -> tuple[Grid, int]:
    """The trajectory that the grid is a part of, and the index of the grid's first step in it.

    The steps before and after are evenly spaced in ComfyUI's timestep range, as those of the scheduler "simple" are.
    """
    first, total = (round(n) for n in grid.whole)
    after = max(total - first - grid.steps, 0)
    start = grid.percent_of(grid.sigmas[0])
    end = grid.percent_of(grid.sigmas[-1])
    before = [grid.sigma_at(p) for p in np.linspace(0, start, first + 1)[1:-1]]
    highest = [grid.highest] if first and grid.highest is not None else []
    rest = [grid.sigma_at(p) for p in np.linspace(end, 1, after + 1)[1:-1]]
    zero = [] if grid.ends else [0.0]
    sigmas = [*highest, *before, *grid.sigmas, *rest, *zero]
    return replace(grid, sigmas=tuple(float(s) for s in sigmas), ended=True), len(highest) + len(before)


def part_budget(grid: Grid, share: float, question: Question, kept: Value) -> int:
    """Steps to compute on the grid, of a budget of `share` of the whole trajectory's steps; at least 1.

    question: the part's own, whose predictor and settings are used.
    """
    whole, first = whole_grid(grid)
    if not whole.falling:
        return max(int(share * grid.steps), 1)
    last = first + grid.steps
    forced = [i < LEADING or i == whole.steps - 1 for i in range(whole.steps)]
    forced[first:last] = question.forced
    predictor = question.predictor
    plan = solve(
        replace(
            question,
            # of two plans that are nearly as good, both parts have to take the same: one line, and no simulation
            predictor=next((p for p in predictor.candidates if p.line == predictor.line), predictor),
            sigmas=whole.sigmas,
            costs=default(whole, kept=kept),
            budget=max(int(share * whole.steps + 1e-6), 1),
            forced=tuple(forced),
            max_error=0.0,
            limit=0.0,
            ends=True,
            breaks=frozenset(first + i for i in question.breaks),
            simulated=False,
        )
    )
    return max(sum(first <= i < last for i in plan.anchors), 1)
