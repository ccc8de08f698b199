"""Plans are scored by what the run itself would do, corrections included, and moved to the best plan near them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from skipstone.core.step.calibration.costs import shipped
from skipstone.core.step.calibration.gram import Gram
from skipstone.core.step.clock import Clock, Grid
from skipstone.core.step.plan import Plan
from skipstone.core.step.planning.edge_costs import moves, scale
from skipstone.core.step.planning.refinement import Simulation
from skipstone.core.step.predictors import Corrected
from skipstone.core.step.trajectory import Trajectory

from .grids import flow, karras

STEPS = 20
GRIDS = {"flow": flow(STEPS), "shifted": flow(STEPS, 3.0), "karras": karras(STEPS)}
PLANS = [
    (0, 1, 2, 5, 8, 11, 13, 15, 17, 18, 19),
    (0, 1, 3, 5, 8, 11, 14, 17, 19),
    (0, 1, 2, 3, 4, 9, 10, 11, 16, 19),
    (0, 4, 5, 6, 12, 18, 19),
]


def outputs(grid: Grid):
    """A model's outputs at every step, shape (N, elements)."""
    t, phase = grid.times[:-1, None], np.linspace(0, 3, 30)
    return np.sin(2.5 * t + phase) + 0.3 * t**2 * np.cos(4 * phase)


def sampled(grid: Grid, values, plan, slope: float, error: float | None, breaks=()) -> float:
    """The sum of the mean square errors of the latent at the plan's steps, with the predictor as a run uses it."""
    predictor = Corrected(slope)
    prediction = predictor.start(Plan(grid, plan, slope=slope, error=error))
    trajectory, clock = Trajectory(predictor.depth), Clock(grid)
    h = moves(grid, Gram.of(grid.times[:-1], values))
    latent, total = np.zeros(values.shape[1]), 0.0
    for i, sigma in enumerate(grid.sigmas[:-1]):
        clock.tick(sigma)
        if i in breaks:
            trajectory.clear()
        if i in plan:
            total += float((latent**2).mean()) / scale(grid)[i] ** 2
            trajectory.computed(i, sigma)
            prediction.computed(trajectory)
        else:
            weights = prediction.weights(clock, trajectory)
            trajectory.predicted(i, sigma, weights)
            latent = latent + h[i] * (sum(w * values[k] for k, w in weights.items()) - values[i])
    if plan[-1] != grid.steps - 1:
        total += float((latent**2).mean()) / scale(grid)[-1] ** 2
    return total


@pytest.mark.parametrize("grid", GRIDS.values(), ids=list(GRIDS))
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(("slope", "error"), [(0.5, None), (0.8, None), (0.65, 0.0375)])
def test_the_score_is_the_error_of_the_run(grid, plan, slope, error):
    values = outputs(grid)
    products = values @ values.T / values.shape[1]
    line, gain = Corrected(slope).line, Corrected(slope).gain(error)
    run = Simulation(line, grid, Gram(grid.times[:-1], products), gain)
    assert run.score(plan) == pytest.approx(sampled(grid, values, plan, slope, error), rel=1e-6)


@pytest.mark.parametrize("plan", [(0, 1, 3, 6, 9), (0, 1, 4, 5, 8)])
def test_a_part_of_a_trajectory_goes_on_to_its_end(plan):
    grid = Grid.of(flow(STEPS).sigmas[:13], True, None, 1.0)
    values = outputs(grid)
    run = Simulation(Corrected(0.65).line, grid, Gram(grid.times[:-1], values @ values.T / 30), 1.0, ends=False)
    assert run.score(plan) == pytest.approx(sampled(grid, values, plan, 0.65, None), rel=1e-6)


def test_nothing_is_corrected_where_older_anchors_are_dropped():
    grid, plan, breaks = flow(STEPS), (0, 1, 3, 6, 9, 12, 15, 19), frozenset((6,))
    values = outputs(grid)
    run = Simulation(Corrected(0.65).line, grid, Gram(grid.times[:-1], values @ values.T / 30), 1.0, breaks=breaks)
    assert run.score(plan) == pytest.approx(sampled(grid, values, plan, 0.65, None, breaks), rel=1e-6)


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("plan", [(0, 1, 2, 9, 16, 19), (0, 1, 6, 12, 13, 14, 19), tuple(range(STEPS))])
def test_a_plan_near_by_is_better_and_keeps_what_is_asked(plan, ends):
    costs, forced = shipped(flow=True)[0].guided(3.0), [i in (0, 1, 12, STEPS - 1) for i in range(STEPS)]
    run = Simulation(Corrected(0.65).line, flow(STEPS), costs, 1.0, ends)
    kept = tuple(sorted({*plan, 12}))
    longest = max(b - a for a, b in pairwise(kept))
    better = run.improved(kept, forced, longest)
    assert run.score(better) <= run.score(kept)
    assert len(better) == len(set(better)) == len(kept) and list(better) == sorted(better)
    assert {0, 1, 12, STEPS - 1} <= set(better)
    assert max(b - a for a, b in pairwise(better)) <= longest
    assert run.improved(better, forced, longest) == better
    if len(kept) < STEPS:
        assert run.score(better) < run.score(kept)
