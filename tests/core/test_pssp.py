"""PSSP finds the cheapest path within the budget, and edge costs are the errors that the predictors make."""

from itertools import combinations

import numpy as np
import pytest

from skipstone.core.step.calibration.gram import Gram
from skipstone.core.step.clock import Clock, Grid
from skipstone.core.step.plan import Plan
from skipstone.core.step.planning.edge_costs import edge_costs
from skipstone.core.step.planning.pssp import Paths, solve
from skipstone.core.step.predictors import JVP, Corrected, Linear, RecursiveJVP, Reuse
from skipstone.core.step.trajectory import Trajectory


def price(cost, path, gamma):
    edges = ((path[max(j - 1, 0)], path[j], path[j + 1]) for j in range(len(path) - 1))
    return sum(cost[a, b, c] ** gamma for a, b, c in edges if c > b + 1)


def cheapest(cost, budget, gamma, forced):
    n = len(cost)
    paths = (
        (0, *middle, n - 1)
        for k in range(max(budget - 1, 0))
        for middle in combinations(range(1, n - 1), k)
        if all(i in (0, *middle, n - 1) for i in np.flatnonzero(forced))
    )
    return min(price(cost, p, gamma) for p in paths)


@pytest.mark.parametrize("seed", range(25))
def test_the_path_is_as_cheap_as_the_best_of_all_paths(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 9))
    cost = rng.random((n, n, n)) + 0.1
    forced = rng.random(n) < 0.2
    forced[[0, -1]] = True
    budget = max(int(rng.integers(2, n + 1)), int(forced.sum()))
    gamma = float(rng.choice([1.0, 2.0, 4.0]))
    weight = rng.choice([1.0, 3.0], n)
    path = solve(cost, budget, gamma, forced, weight)
    assert len(path) <= budget
    assert set(np.flatnonzero(forced)) <= set(path)
    weighed = cost * weight[None, :, None]
    assert price(weighed, path, gamma) == pytest.approx(cheapest(weighed, budget, gamma, forced))


def test_a_weight_moves_anchors_and_not_the_error_that_is_foretold():
    cost = np.ones((24, 24, 24)) * np.abs(np.subtract.outer(range(24), range(24))) ** 2.0
    weight = np.where(np.arange(24) < 6, 1.0, 10.0)
    even, late = (Paths(cost, 8, 2.0, np.zeros(24, bool), w) for w in (1.0, weight))
    assert sum(i >= 12 for i in late.best()) > sum(i >= 12 for i in even.best())
    assert late.error(even.best()) == even.error(even.best()) < late.error(late.best())


def test_edges_that_may_not_be_are_not_taken():
    cost = np.ones((8, 8, 8))
    b, c = np.indices((8, 8))
    path = solve(np.where(c - b - 1 > 1, np.inf, cost), 5, 2.0, np.zeros(8, bool))
    assert max(np.diff(path)) <= 2


def test_more_forced_steps_than_budget_are_all_computed():
    assert solve(np.ones((5, 5, 5)), 2, 2.0, np.ones(5, bool)) == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("n", [1, 2])
def test_one_or_two_steps_are_computed(n):
    assert solve(np.ones((n, n, n)), 1, 2.0, np.zeros(n, bool)) == tuple(range(n))


def displacement_error(predictor, grid, gram, head, b, c):
    """By running the predictor: what the steps from b to c add up to, less the truth, measured with the Gram matrix."""
    trajectory, clock, prediction = Trajectory(predictor.depth), Clock(grid), predictor.start(Plan(grid))
    miss = np.zeros(len(gram))
    for i in range(c):
        clock.tick(grid.sigmas[i])
        if i in head or i == b:
            trajectory.computed(i, grid.sigmas[i])
            prediction.computed(trajectory)
        elif i > b:
            h = grid.sigmas[i + 1] - grid.sigmas[i]
            weights = prediction.weights(clock, trajectory)
            trajectory.predicted(i, grid.sigmas[i], weights)
            miss[i] -= h
            for k, w in weights.items():
                miss[k] += h * w
    return float(np.sqrt(miss @ gram @ miss))


@pytest.mark.parametrize(
    "predictor", [Reuse(), Linear(), Linear(0.75), Linear(1.0, "log-SNR"), Corrected(1.0), Corrected()]
)
def test_two_anchor_costs_are_the_error_of_running_the_predictor(predictor):
    rng = np.random.default_rng(1)
    grid = Grid.of([*np.sort(rng.random(12))[::-1].tolist(), 0.0])
    d = rng.standard_normal((12, 40))
    gram = d @ d.T / 40
    cost = edge_costs(predictor, grid, Gram(grid.times[:-1], gram))
    for a, b, c in [(0, 1, 4), (1, 3, 9), (2, 7, 11), (4, 5, 6)]:
        assert cost[a, b, c] == pytest.approx(displacement_error(predictor, grid, gram, {a}, b, c), abs=1e-7)
    assert cost[0, 0, 5] == pytest.approx(displacement_error(predictor, grid, gram, set(), 0, 5), abs=1e-7)


@pytest.mark.parametrize("predictor", [JVP(1), JVP(3), RecursiveJVP(2), RecursiveJVP(4)])
def test_average_velocity_costs_are_the_error_after_a_full_run(predictor):
    rng = np.random.default_rng(2)
    grid = Grid.of(np.linspace(1, 0, 13).tolist())
    d = rng.standard_normal((12, 40))
    gram = d @ d.T / 40
    cost = edge_costs(predictor, grid, Gram(grid.times[:-1], gram))
    for b, c in [(1, 4), (5, 9), (7, 11)]:
        wanted = displacement_error(predictor, grid, gram, set(range(b)), b, c)
        assert cost[0, b, c] == pytest.approx(wanted, abs=1e-7)
