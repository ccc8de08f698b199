"""The simulated run has the error of the run itself, corrections and the network's feedback included, and plans are improved by it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from skipstone.core.step.calibration.costs import default, shipped
from skipstone.core.step.calibration.gram import Gram
from skipstone.core.step.clock import Clock, Grid
from skipstone.core.step.plan import Plan
from skipstone.core.step.planning.edge_costs import moves, scale
from skipstone.core.step.planning.local_search import improved
from skipstone.core.step.planning.planner import Question, Solution, solve
from skipstone.core.step.planning.response import Response
from skipstone.core.step.planning.simulation import DIRECTIONS, Simulation, feedback
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


def sampled(
    grid: Grid, values, plan, slope: float, gain: float, cfg: float = 1.0, response: Response | None = None, breaks=()
) -> float:
    """The mean square error of the latent at the run's end, with the predictor as a run uses it; mean over the directions of errors."""
    h = moves(grid, Gram.of(grid.times[:-1], values))
    total, at_once = (response.total, response.at_once) if response else (h, h)
    found = []
    for deviation in DIRECTIONS:
        predictor = Corrected(slope, gain)
        prediction = predictor.start(Plan(grid, plan))
        trajectory, clock = Trajectory(predictor.depth), Clock(grid)
        outputs, latent, settled = [], np.zeros(values.shape[1]), np.zeros(values.shape[1])
        for i, sigma in enumerate(grid.sigmas[:-1]):
            clock.tick(sigma)
            if i in breaks:
                trajectory.clear()
            if i in plan:
                outputs.append(values[i] + feedback(grid, cfg, deviation)[i] * latent)
                trajectory.computed(i, sigma)
                prediction.computed(trajectory)
            else:
                weights = prediction.weights(clock, trajectory)
                trajectory.predicted(i, sigma, weights)
                outputs.append(sum(w * outputs[k] for k, w in weights.items()))
            wrong = outputs[i] - values[i]
            settled, latent = settled + total[i] * wrong, settled + at_once[i] * wrong
        found.append(float((settled**2).mean()) / scale(grid)[-1] ** 2)
    return float(np.average(found, weights=[*DIRECTIONS.values()]))


def simulation(grid: Grid, values, **more) -> Simulation:
    return Simulation("auto", grid, Gram(grid.times[:-1], values @ values.T / values.shape[1]), **more)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=list(GRIDS))
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(
    ("slope", "gain", "cfg"), [(0.5, 1.0, 1.0), (1.0, 1.4, 1.0), (0.8, 1.0, 4.0), (0.65, 0.5, 7.0), (0.0, 0.0, 7.0)]
)
def test_the_error_is_that_of_the_run(grid, plan, slope, gain, cfg):
    values = outputs(grid)
    found = simulation(grid, values, cfg=cfg).errors(np.array([plan]), slope, gain)
    assert found == pytest.approx(sampled(grid, values, plan, slope, gain, cfg), rel=1e-6)


def test_several_plans_are_simulated_at_once():
    grid, values = flow(STEPS), outputs(flow(STEPS))
    plans = np.array([PLANS[1], (0, 1, 4, 6, 9, 12, 15, 17, 19)])
    slopes, gains = np.array([0.5, 0.8]), np.array([1.0, 0.0])
    expected = [sampled(grid, values, tuple(p), s, g, 3.0) for p, s, g in zip(plans, slopes, gains, strict=True)]
    assert simulation(grid, values, cfg=3.0).errors(plans, slopes, gains) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("gain", [0.0, 1.0])
@pytest.mark.parametrize("plan", PLANS)
def test_a_sampler_that_extrapolates_counts_an_output_for_more_at_first(plan, gain):
    grid, values = flow(STEPS), outputs(flow(STEPS))
    h = np.diff(grid.sigmas)
    response = Response(tuple(h * np.linspace(0.8, 1, STEPS)), tuple(h * np.linspace(1.5, 1, STEPS)))
    found = simulation(grid, values, cfg=5.0, response=response).errors(np.array([plan]), 0.65, gain)
    assert found == pytest.approx(sampled(grid, values, plan, 0.65, gain, 5.0, response), rel=1e-6)


@pytest.mark.parametrize("plan", [(0, 1, 3, 6, 9), (0, 1, 4, 5, 8)])
def test_a_part_of_a_trajectory_goes_on_to_its_end(plan):
    grid = Grid.of(flow(STEPS).sigmas[:13], True, None, 1.0)
    values = outputs(grid)
    found = simulation(grid, values, ends=False).errors(np.array([plan]), 0.65, 1.0)
    assert found == pytest.approx(sampled(grid, values, plan, 0.65, 1.0), rel=1e-6)


def test_nothing_is_corrected_where_older_anchors_are_dropped():
    grid, plan, breaks = flow(STEPS), (0, 1, 3, 6, 9, 12, 15, 19), frozenset((6,))
    values = outputs(grid)
    found = simulation(grid, values, breaks=breaks).errors(np.array([plan]), 0.65, 1.0)
    assert found == pytest.approx(sampled(grid, values, plan, 0.65, 1.0, breaks=breaks), rel=1e-6)


def planned(cfg: float, **more) -> Solution:
    """With the built-in costs of guided outputs."""
    grid = flow(STEPS)
    forced = tuple(i in (0, 1, STEPS - 1) for i in range(STEPS))
    return solve(Question(Corrected(), grid.sigmas, True, default(grid, 8.0), 8, 2.0, forced, cfg=cfg, **more))


def test_the_more_guidance_the_less_is_extrapolated_and_corrected():
    low, high = planned(1.0).predictor, planned(8.0).predictor
    assert low.line is not None and high.line is not None
    assert low.line.slope >= high.line.slope and low.correction >= high.correction and low != high


def test_with_much_guidance_the_predicted_error_is_larger():
    assert planned(4.0).error < planned(6.0).error < planned(8.0).error


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("plan", [(0, 1, 2, 9, 16, 19), (0, 1, 6, 12, 13, 14, 19), tuple(range(STEPS))])
def test_a_plan_near_by_is_better_and_keeps_what_is_asked(plan, ends):
    costs, forced = shipped(flow=True)[0].guided(3.0), [i in (0, 1, 12, STEPS - 1) for i in range(STEPS)]
    run = Simulation("auto", flow(STEPS), costs, 3.0, ends)

    def errors(plans):
        return run.errors(plans, 0.65, 1.0)

    kept = tuple(sorted({*plan, 12}))
    longest = max(b - a for a, b in pairwise(kept))
    better = improved(kept, errors, forced, longest, ends)
    before, after = errors(np.array([kept]))[0], errors(np.array([better]))[0]
    assert after <= before
    assert len(better) == len(set(better)) == len(kept) and list(better) == sorted(better)
    assert {0, 1, 12, STEPS - 1} <= set(better)
    assert max(b - a for a, b in pairwise(better)) <= longest
    assert improved(better, errors, forced, longest, ends) == better
    if len(kept) < STEPS:
        assert after < before
