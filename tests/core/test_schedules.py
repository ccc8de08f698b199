"""Schedules: budgets, the published ones, the default costs, and values that make no sense."""

import math

import numpy as np
import pytest

from skipstone.core.step.calibration.costs import shipped
from skipstone.core.step.calibration.gram import Gram
from skipstone.core.step.clock import Grid
from skipstone.core.step.planning.published_schedules import PUBLISHED_SCHEDULES
from skipstone.core.step.policies import Budget, Cap, RunContext, Schedule, Warmup, Window
from skipstone.core.step.predictors import Corrected, Linear, Reuse
from skipstone.core.step.predictors.linear import SLOPES
from skipstone.tests.core.grids import flow, karras


def anchors(schedule, grid, predictor=None, guards=None):
    context = RunContext(grid, predictor or Linear())
    for guard in guards or (Warmup(2),):
        guard.start(context)
    plan = schedule.start(context).plan
    assert plan is not None
    return plan.anchors


@pytest.mark.parametrize("grid", [flow(50), flow(20), flow(8), flow(100), flow(30, 3.0), karras(30), flow(3)])
@pytest.mark.parametrize("predictor", [Corrected(), Reuse()])
def test_a_solved_schedule_keeps_to_its_budget_and_to_both_ends(grid, predictor):
    found = anchors(Schedule(Budget.of(0.4)), grid, predictor)
    assert len(found) <= max(int(0.4 * grid.steps + 1e-6), 3)
    assert {0, 1, grid.steps - 1} <= set(found)
    assert list(found) == sorted(set(found))


def test_a_larger_budget_never_costs_more_evaluations_than_it_allows_and_uses_them():
    counts = [len(anchors(Schedule(Budget.of(b / 50)), flow(50))) for b in (10, 13, 17, 25, 40, 50)]
    assert counts == [10, 13, 17, 25, 40, 50]


def test_the_solver_knows_what_the_guards_will_compute():
    grid = flow(40)
    found = anchors(Schedule(Budget.of(0.5)), grid, guards=(Warmup(4), Window(0.2, 0.9)))
    outside = {i for i, s in enumerate(grid.sigmas[:-1]) if i < 4 or s > 0.8 + 1e-9 or s < 0.1 - 1e-9}
    assert outside <= set(found)
    assert max(np.diff(anchors(Schedule(Budget.of(0.3)), grid, guards=(Cap(3),)))) <= 4


def test_the_published_schedules_compute_as_many_steps_as_their_names_say():
    assert len(PUBLISHED_SCHEDULES) == 11
    for name, released in PUBLISHED_SCHEDULES.items():
        plan = released.plan(flow(50, 3.0))
        assert len(plan.anchors) == int(name.split()[-1])
        assert plan.anchors[0] == 0 and plan.anchors[-1] == 49
    assert PUBLISHED_SCHEDULES["Z-Image 13"].plan(flow(50)).anchors == (0, 1, 2, 3, 5, 9, 15, 22, 29, 36, 43, 47, 49)
    assert PUBLISHED_SCHEDULES["Z-Image 13"].plan(flow(50)).spans == {
        3: 2,
        5: 1,
        9: 1,
        15: 1,
        22: 1,
        29: 1,
        36: 1,
        43: 5,
        47: 2,
    }


@pytest.mark.parametrize("grid", [flow(20, 3.0), flow(100, 3.0), karras(28), flow(4)])
@pytest.mark.parametrize("name", PUBLISHED_SCHEDULES)
def test_the_published_schedules_fit_other_runs_by_sigma(grid, name):
    plan = PUBLISHED_SCHEDULES[name].plan(grid)
    assert plan.anchors[0] == 0 and plan.anchors[-1] == grid.steps - 1
    assert set(plan.spans) <= set(plan.anchors)


def test_at_the_same_shift_a_published_schedule_keeps_its_places():
    plan = PUBLISHED_SCHEDULES["Z-Image 20"].plan(flow(100, 3.0))
    assert set(plan.anchors) == {2 * a for a in PUBLISHED_SCHEDULES["Z-Image 20"].anchors} | {99}


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, math.nan, math.inf])
def test_a_budget_out_of_range_says_what_it_is(share):
    with pytest.raises(ValueError, match="share of steps to compute"):
        Budget.of(share)


def test_a_budget_may_depend_on_the_number_of_steps():
    budget = Budget(((8, 1.0), (20, 0.5)))
    assert [budget.count(flow(n)) for n in (1, 4, 8, 14, 20, 50)] == [1, 4, 8, 10, 10, 25]


@pytest.mark.parametrize("gamma", [0.0, -1.0, math.nan, math.inf])
def test_a_gamma_that_is_no_exponent_is_refused(gamma):
    with pytest.raises(ValueError, match="gamma"):
        Schedule(Budget.of(0.5), gamma=gamma)


def test_an_unknown_schedule_names_those_there_are():
    with pytest.raises(ValueError, match="Z-Image 25"):
        Schedule(Budget.of(0.5), name="Z-Image 99")


@pytest.mark.parametrize("flow", [True, False])
@pytest.mark.parametrize("kept", ["velocity", "denoised"])
def test_the_shipped_costs_are_gram_matrices_of_both_passes(flow, kept):
    for gram in shipped(flow, kept):
        assert gram.recipe and gram.kept == kept and gram.passes == 2
        assert np.linalg.eigvalsh(gram.products).min() > -1e-3
        again = Gram.from_json(gram.to_json())
        assert np.allclose(again.products, gram.products, rtol=1e-5) and np.allclose(again.times, gram.times)


def test_a_gram_matrix_is_read_between_its_times_by_interpolating_the_derivatives():
    """Derivatives on a line through all recorded times leave nothing unknown between them."""
    slope, start = np.array([1.0, -2.0]), np.array([0.5, 3.0])
    times = np.array([1.0, 0.5, 0.1])
    d = start + times[:, None] * slope
    gram = Gram(times, d @ d.T)
    between = start + 0.75 * slope
    read = gram.on(Grid.of([1.0, 0.75, 0.05, 0.0]))
    rows = np.stack((d[0], between, start + 0.05 * slope))
    assert np.allclose(read, rows @ rows.T)


def test_what_lies_between_two_recorded_steps_is_not_taken_for_predictable():
    """Every second step of a bent path: the error of a line through its neighbours is estimated to be about what it is."""
    times = np.linspace(1, 0.05, 41)
    values = np.stack([np.cos(5 * times), np.sin(5 * times)], 1)
    grid = Grid.of([*times.tolist(), 0.0])
    read = Gram(times[::2], values[::2] @ values[::2].T).on(grid)
    miss = np.array([-0.5, 1.0, -0.5])
    for i in range(3, 38, 2):
        near = slice(i - 1, i + 2)
        true = float(np.square(miss @ values[near]).sum())
        estimated = float(miss @ read[near, near] @ miss)
        assert 0.5 * true < estimated < 2 * true
    assert np.allclose(read[::2, ::2], values[::2] @ values[::2].T), "recorded steps are as recorded"


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"times": [1, 2], "products": [1, 2, 3], "recipe": ""}', '{"times": [1, 0.5], "products": [1], "recipe": ""}',
     '{"times": [1, 0.5], "products": [1, NaN, 1], "recipe": ""}', '{"times": "x", "products": [], "recipe": ""}'],
)  # fmt: skip
def test_a_file_that_is_no_calibration_is_refused(text):
    with pytest.raises(ValueError, match="not a Skipstone calibration"):
        Gram.from_json(text)


def test_the_plan_says_with_which_slope_it_was_solved_best():
    """A velocity that turns round is followed only half-way; one that is a line all the way."""
    grid = Grid.of([1 - i / 20 for i in range(21)])
    times = grid.times[:-1]
    for velocity, slope in (
        (np.stack([np.cos(40 * times), np.sin(40 * times)], 1), SLOPES[0]),
        (times[:, None], SLOPES[-1]),
    ):
        context = RunContext(grid, Corrected(), Gram.of(times, velocity))
        plan = Schedule(Budget.of(0.4)).start(context).plan
        assert plan is not None
        assert plan.slope == slope
        assert Corrected().start(plan).line.slope == slope
        assert Corrected(0.7).start(plan).line.slope == 0.7
