"""Runs that are a part of a trajectory (law 4): two samplers in turn, a refiner, img2img."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from skipstone.core.step.calibration.costs import default
from skipstone.core.step.clock import Grid
from skipstone.core.step.context import RunContext
from skipstone.core.step.method import Method
from skipstone.core.step.planning.edge_costs import edge_costs, edge_weights
from skipstone.core.step.planning.parts import part_budget, whole_grid
from skipstone.core.step.planning.planner import LARGEST, Question, solve
from skipstone.core.step.policies import Budget, Full, Schedule, Warmup
from skipstone.core.step.predictors import BySampler, Corrected, Linear, Reuse, Taylor
from skipstone.core.step.reasons import Reason
from skipstone.core.step.run import Run

SHIFT = 8.0
BALANCED = Budget(((4, 1.0), (20, 0.56), (50, 0.45)))
FIRST, SECOND = slice(0, 11), slice(10, 21)  # of the 21 sigmas of 20 steps


def shifted(percent):
    t = 1 - percent
    return SHIFT * t / (1 + (SHIFT - 1) * t)


def part(of=slice(None), steps=20):
    sigmas = [shifted(i / steps) for i in range(steps + 1)]
    return Grid.of(sigmas[of], True, shifted, 1.0)


PLANNED = Warmup(2), Schedule(BALANCED)


def ran(grid, policies=PLANNED, predictor=None):
    """The report of a run over the grid, of an output that is a smooth function of sigma."""
    run = Run(Method("Test", "", policies, predictor or BySampler()), grid, "euler")
    for sigma in grid.sigmas[:-1]:
        run.tick(sigma)
        if run.decide(["a"]).compute:
            run.keep("a", torch.full((4,), sigma**2))
        else:
            assert torch.isfinite(run.recall("a", torch.device("cpu"))).all()
    return run.close(True)


def test_what_is_a_part_is_known_by_its_sigmas():
    whole, first, second = part(), part(FIRST), part(SECOND)
    assert (whole.begins, whole.ends) == (True, True)
    assert (first.begins, first.ends) == (True, False)
    assert (second.begins, second.ends) == (False, True)
    assert whole.whole == (0, 20)
    assert first.whole == pytest.approx((0, 20), abs=0.01)
    assert second.whole == pytest.approx((10, 20), abs=0.01)


def test_a_grid_that_knows_no_highest_sigma_begins_a_trajectory():
    assert Grid.of(part(SECOND).sigmas).begins


def test_a_scheduler_that_begins_a_step_lower_begins_a_trajectory_too():
    """ddim_uniform leaves out the highest timesteps."""

    def percent_to_sigma(percent):
        return 14.6 * (1 - percent) ** 3

    def grid(first):
        sigmas = [percent_to_sigma(p) for p in np.linspace(first, 1, 21)]
        return Grid.of(sigmas, False, percent_to_sigma, 14.6)

    assert grid(0.0).begins and grid(1 / 21).begins
    assert not grid(0.15).begins


def test_the_trajectory_that_a_part_is_of_is_made_of_its_sigmas():
    for of in (slice(0, 11), slice(10, 21), slice(5, 12)):
        whole, first = whole_grid(part(of))
        assert first == of.start and whole.sigmas == pytest.approx(part().sigmas, abs=1e-6)
        assert whole.begins and whole.ends


def test_parts_share_the_budget_as_a_plan_of_the_whole_trajectory_does():
    whole = ran(part())
    for of in (FIRST, SECOND):
        inside = [i for i in whole.planned if of.start <= i < of.stop - 1]
        assert abs(ran(part(of)).computed - len(inside)) <= 1


def test_a_sampler_that_ends_above_zero_by_itself_ends_a_trajectory():
    """dpm_fast and dpm_adaptive stop at the last sigma above zero."""
    grid = Grid.of(part().sigmas[:-1], True, shifted, 1.0, ended=True)
    assert grid.whole == pytest.approx((0, 19))
    assert ran(grid).evaluations[-1].reason is Reason.LAST_STEP


def test_two_parts_compute_as_many_steps_as_the_whole_run():
    whole, first, second = ran(part()), ran(part(FIRST)), ran(part(SECOND))
    assert whole.computed == 11
    assert first.computed + second.computed == 11


@pytest.mark.parametrize("cut", range(4, 18))
@pytest.mark.parametrize("share", [0.3, 0.45, 0.56, 0.66, 0.9])
def test_budgets_of_parts_add_up(cut, share):
    parts = part(slice(0, cut + 1)), part(slice(cut, 21))
    assert sum(Budget.of(share).count(grid) for grid in parts) == Budget.of(share).count(part())


@pytest.mark.parametrize("at", range(1, 9))
def test_a_break_in_the_second_part_is_where_it_is_in_the_whole_trajectory(at):
    def asked(grid, steps):
        forced = tuple(i in steps for i in range(grid.steps))
        return Question(Linear(), grid.sigmas, True, default(grid), 9, 2.0, forced, breaks=frozenset({steps[-2]}))

    second, whole = part(SECOND), part()
    plan = solve(replace(asked(whole, (0, 1, 10 + at, 19)), simulated=False))
    budget = part_budget(second, 0.46, asked(second, (at, 9)), "velocity")
    assert budget == sum(i >= 10 for i in plan.anchors)


def test_times_that_differ_by_rounding_weigh_the_same():
    """With 20 steps ComfyUI's Flux has one at exactly 0.9, where the weights change."""
    below, above = (Grid.of([1.0, 0.95, 0.9 + by, 0.5, 0.0]) for by in (-3e-8, 3e-8))
    assert edge_weights(below) == pytest.approx(edge_weights(above), rel=1e-5)


@pytest.mark.parametrize("share", [0.35, 0.4, 0.45, 0.5, 0.56, 0.6, 0.66])
@pytest.mark.parametrize("cut", range(4, 17))
def test_both_parts_are_of_one_plan_of_the_whole(cut, share):
    """Their budgets come from the sigmas that each knows, which differ a little."""
    whole, parts = part(), (part(slice(0, cut + 1)), part(slice(cut, 21)))

    def asked(grid):
        forced = tuple(i < 2 * grid.begins for i in range(grid.steps))
        return Question(Corrected(), grid.sigmas, True, default(grid), 9, 2.0, forced, ends=grid.ends)

    total = sum(part_budget(grid, share, asked(grid), "velocity") for grid in parts)
    assert total == Budget.of(share).count(whole)


def test_a_part_that_ends_above_zero_has_no_special_last_step():
    report = ran(part(FIRST))
    assert not report.evaluations[-1].computed
    assert Reason.LAST_STEP not in {e.reason for e in report.evaluations}
    assert ran(part(SECOND)).evaluations[-1].reason is Reason.LAST_STEP


def test_a_part_that_goes_on_has_no_warmup():
    reasons = [e.reason for e in ran(part(SECOND)).evaluations]
    assert Reason.WARMUP not in reasons
    assert [e.reason for e in ran(part(FIRST)).evaluations[:2]] == [Reason.WARMUP] * 2


def test_a_part_that_goes_on_computes_what_its_predictor_needs():
    report = ran(part(SECOND), (Warmup(2),), Taylor(2))
    assert report.evaluations[0].computed


def test_a_run_of_one_step_that_is_a_part_is_computed():
    assert ran(part(slice(10, 12))).computed == 1


@pytest.mark.parametrize("predictor", [Reuse(), Linear(), Corrected(0.65)], ids=lambda p: p.name)
def test_the_cost_of_skipping_to_the_end_is_that_of_a_step_more(predictor):
    """Of the first n steps of a run: the edge to step n, which the longer run computes."""
    whole = part()
    costs = default(whole)
    shorter = Grid.of(whole.sigmas[:13], True, shifted, 1.0)
    ended = edge_costs(predictor, shorter, costs)
    longer = edge_costs(predictor, whole, costs)
    scale = longer[3, 5, 9] / ended[3, 5, 9]
    assert ended.shape == (12, 12, 13)
    for a, b in ((3, 5), (0, 1), (7, 9)):
        assert ended[a, b, 12] * scale == pytest.approx(longer[a, b, 12], rel=1e-6)


@pytest.mark.parametrize("steps", [10, LARGEST, 100, 1000])
def test_plans_of_parts_keep_to_their_budget(steps):
    grid = part(slice(0, steps + 1), 2 * steps)
    asked = Question(
        Corrected(),
        grid.sigmas,
        True,
        default(grid),
        int(0.5 * steps),
        2.0,
        tuple(i < 2 for i in range(steps)),
        ends=False,
    )
    anchors = solve(asked).anchors
    assert {0, 1} <= set(anchors) and max(anchors) < steps
    assert 0.45 * steps <= len(anchors) <= 0.5 * steps
    capped = solve(Question(**{**asked.__dict__, "max_skipped_steps": 2})).anchors
    assert max(np.diff([*capped, steps])) <= 3


def test_a_run_that_is_computed_in_full_is_so_in_every_part():
    for grid in (part(FIRST), part(SECOND)):
        context = RunContext(grid, Linear())
        Full(Reason.CALIBRATION).start(context)
        assert all(context.forced)


def test_a_part_whose_sigmas_do_not_fall_gets_its_share_of_its_own_steps():
    grid = replace(Grid.of([0.4, 0.6, 0.3, 0.5, 0.2], True, shifted, 1.0), ended=False)
    assert not grid.falling
    asked = Question(Linear(), grid.sigmas, True, default(part()), 9, 2.0, (False,) * grid.steps)
    assert part_budget(grid, 0.5, asked, "velocity") == 2
    assert part_budget(grid, 0.1, asked, "velocity") == 1
