"""Planning takes bounded memory and work for any number of steps, and keeps budget, forced steps and caps (law 13)."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from skipstone.core.step.calibration.costs import default
from skipstone.core.step.calibration.gram import Gram
from skipstone.core.step.clock import Grid
from skipstone.core.step.planning import planner
from skipstone.core.step.planning.edge_costs import edge_costs
from skipstone.core.step.planning.planner import LARGEST, Question, solve
from skipstone.core.step.policies import Budget, Full, Reason, RunContext, Schedule, Warmup
from skipstone.core.step.predictors import Corrected, Linear
from skipstone.core.step.predictors.linear import SLOPES

BYTES = 64 * 2**20


def question(steps: int, share: float = 0.44, **more) -> Question:
    sigmas = tuple(1 - i / steps for i in range(steps + 1))
    forced = tuple(i in (0, 1, steps - 1) for i in range(steps))
    return Question(
        Corrected(), sigmas, True, default(Grid.of(sigmas)), max(int(share * steps), 3), 2.0, forced, **more
    )


@pytest.fixture(autouse=True)
def fresh():
    solve.cache_clear()


@pytest.mark.parametrize("steps", [64, 65, 200, 10_000])
def test_memory_is_bounded(steps):
    tracemalloc.start()
    solve(question(steps))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < BYTES


@pytest.mark.parametrize("steps", [65, 200, 1000, 10_000])
@pytest.mark.parametrize("more", [{}, {"max_error": 0.01}], ids=["budget", "max_error"])
def test_work_is_bounded(steps, more, monkeypatch):
    """The dynamic programme's size is that of its grid: no grid of more than LARGEST steps is solved, and one for each slope."""
    sizes: list[int] = []

    def observed(predictor, grid, costs):
        sizes.append(grid.steps)
        return edge_costs(predictor, grid, costs)

    monkeypatch.setattr(planner, "edge_costs", observed)
    solve(question(steps, **more))
    assert sizes and max(sizes) <= LARGEST and len(sizes) <= len(SLOPES)


@pytest.mark.parametrize("steps", [65, 100, 1000, 10_000])
def test_a_long_run_is_planned_as_a_short_one_is(steps):
    """Same budget as a share, the same density of anchors, and the forced steps."""
    short, long = solve(question(LARGEST)), solve(question(steps))
    assert 0.97 * 0.44 * steps - 2 <= len(long.anchors) <= 0.44 * steps
    assert {0, 1, steps - 1} <= set(long.anchors) and list(long.anchors) == sorted(set(long.anchors))
    shares = np.linspace(0, 1, 9)
    density = [np.quantile(np.array(s.anchors) / n, shares) for s, n in ((short, LARGEST), (long, steps))]
    assert np.abs(density[0] - density[1]).mean() < 0.03
    assert long.error == pytest.approx(short.error, rel=0.5)


@pytest.mark.parametrize("steps", [20, 64, 100, 1000])
@pytest.mark.parametrize("cap", [1, 3, 10])
def test_a_cap_is_kept(steps, cap):
    anchors = solve(question(steps, 0.1, max_skipped_steps=cap)).anchors
    assert max(b - a for a, b in pairwise(anchors)) <= cap + 1


def test_where_older_anchors_are_dropped_a_plan_computes_the_next_step_too():
    """The output lies on a line, which two anchors predict exactly: without a break it does not matter which steps are computed."""
    steps, at = 12, 6
    sigmas = tuple(1 - i / steps for i in range(steps + 1))
    line = np.array([[1.0, 3 * s] for s in sigmas[:-1]])
    gram = Gram(Grid.of(sigmas).times[:-1], line @ line.T, "a line", "velocity")
    forced = tuple(i in (0, 1, at, steps - 1) for i in range(steps))
    asked = Question(Linear(), sigmas, True, gram, 6, 2.0, forced, breaks=frozenset((at,)))
    solution = solve(asked)
    assert {at, at + 1} <= set(solution.anchors) and solution.error == pytest.approx(0, abs=1e-6)
    assert solve(replace(asked, budget=4)).error > 0.01 > solve(replace(asked, budget=4, breaks=frozenset())).error


def test_more_forced_steps_than_the_budget_are_all_computed():
    asked = question(1000, 0.1)
    forced = tuple(i < 300 or i == 999 for i in range(1000))
    assert set(range(300)) <= set(solve(replace(asked, forced=forced)).anchors)


def test_the_same_question_is_solved_once_also_after_the_costs_are_read_anew():
    text = default(Grid.of(question(50).sigmas)).to_json()
    for _ in range(3):
        solve(replace(question(50), costs=Gram.from_json(text)))
    assert solve.cache_info().misses == 1
    other = Gram.from_json(text)
    solve(replace(question(50), costs=replace(other, products=2 * other.products)))
    assert solve.cache_info().misses == 2


def test_a_run_that_computes_everything_solves_nothing(monkeypatch):
    monkeypatch.setattr(planner, "edge_costs", lambda *_: pytest.fail("solved"))
    context = RunContext(Grid.of([1 - i / 500 for i in range(501)]), Linear())
    Full(Reason.CALIBRATION).start(context)
    Warmup(2).start(context)
    plan = Schedule(Budget.of(0.4)).start(context).plan
    assert plan is not None and len(plan.anchors) == 500


def test_nothing_of_the_model_is_kept_by_the_solutions():
    """A grid's percent_to_sigma belongs to the model."""
    import gc
    import weakref

    class Sampling:
        def to_sigma(self, percent):
            return 1 - percent

    sampling = Sampling()
    alive = weakref.ref(sampling)
    grid = Grid.of([1 - i / 20 for i in range(21)], True, sampling.to_sigma)
    Schedule(Budget.of(0.4)).start(RunContext(grid, Linear()))
    del sampling, grid
    gc.collect()
    assert alive() is None
