"""Step Cache (Auto) chooses a method once sampler and steps are known, and the report names it with the reason."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from skipstone.core.step.auto.method import WHY, WHY_FEW, AutoMethod, within
from skipstone.core.step.auto.selection import Choice, SamplerInfo, tolerance
from skipstone.core.step.calibration.costs import Costs, Origin, default
from skipstone.core.step.calibration.gram import Gram
from skipstone.core.step.clock import Grid
from skipstone.core.step.method import Method
from skipstone.core.step.policies import Budget, Schedule, Warmup
from skipstone.core.step.predictors import BySampler, Integrator, Reuse
from skipstone.core.step.reasons import Reason
from skipstone.core.step.report.report import Evaluation, Report
from skipstone.core.step.run import Run

PLANNED = Method("Planned", "", (Warmup(2), Schedule(Budget.of(0.5))), BySampler())
FREE = Method("Free", "", (Warmup(3),), Reuse())
BALANCED = AutoMethod("Balanced", PLANNED, FREE)
INTEGRATORS: tuple[Integrator, ...] = get_args(Integrator)


def grid(steps):
    return Grid.of([1 - i / steps for i in range(steps + 1)])


def costs(steps, origin=Origin.MEASURED):
    return Costs(default(grid(steps)), origin)


def run(auto, steps=20, integrator="euler", adaptive_steps=False, second_order=False, **more):
    """A finished run of `auto`, with all decisions made and nothing sampled."""
    method = auto.resolve(SamplerInfo(integrator, steps, adaptive_steps, second_order))
    at = grid(steps)
    run = Run(method, at, integrator, **more)
    for sigma in at.sigmas[:-1]:
        run.tick(sigma)
        if run.decide(["a"]).compute:
            run.keep("a", torch.zeros(1))
    return run.close(True)


def test_a_method_is_what_it_is_in_every_run():
    assert PLANNED.resolve(SamplerInfo("sde", 4, True)) is PLANNED


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_steps_are_planned_where_that_is_best(integrator):
    report = run(BALANCED, integrator=integrator)
    assert (report.method, report.variant, report.computed) == ("Planned", "Auto, Balanced", 10)
    assert report.chosen == f"method: Planned, 10 of 20 steps ({WHY[integrator]})"


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_and_decided_as_they_come_where_they_cannot_be_planned(integrator):
    report = run(BALANCED, integrator=integrator, adaptive_steps=True)
    assert report.method == "Free"
    assert report.chosen == "method: Free (decided during the run, like the sampler's steps)"


def test_and_where_planning_was_not_best():
    report = run(BALANCED, integrator="ode", second_order=True)
    assert report.method == "Free"
    assert report.chosen.startswith("method: Free (decided during the run; best for heun and the like")


@pytest.mark.parametrize("exact", [{"speedup": 2.0}, {"decibels": 30.0}])
def test_but_what_is_to_be_held_is_planned(exact):
    free = None if "decibels" in exact else FREE
    report = run(replace(BALANCED, adaptive=free, **exact), integrator="ode", second_order=True, costs=costs(20))
    assert report.method == "Planned"
    assert WHY["ode"] in report.chosen


def test_every_kind_of_sampler_has_its_reason():
    assert WHY.keys() == set(INTEGRATORS)
    assert len({*WHY.values()}) == len(INTEGRATORS)


def test_what_nobody_chose_for_a_person_says_nothing():
    assert run(PLANNED).chosen == ""


def test_a_run_that_learns_says_that_it_does_and_counts_nothing():
    report = run(BALANCED, learning=True)
    assert report.skipped == 0
    assert report.chosen.startswith("method: Planned (")
    assert " of 20 steps" not in report.chosen
    assert report.notes == []


@pytest.mark.parametrize("steps", [8, 4])
def test_few_steps_are_said_to_be_few(steps):
    assert run(BALANCED, steps).chosen.endswith(f" of {steps} steps ({WHY_FEW})")
    assert WHY_FEW not in run(BALANCED, 20).chosen


def test_where_every_skip_would_be_visible_nothing_is_skipped_and_that_is_said():
    """Of outputs that have nothing to do with one another, no prediction is any good."""
    at = grid(8)
    random = Costs(Gram(at.times[:-1], np.eye(8)), Origin.MEASURED)
    report = run(BALANCED, 8, costs=random)
    assert report.skipped == 0 and report.warnings == []
    assert report.advice == "8 steps: nothing can be skipped without a visible change"
    exact = run(replace(BALANCED, speedup=2.0), 8, costs=random)
    assert exact.skipped > 0, "who asks for a speed-up gets it"


def test_a_run_too_short_to_skip_is_said_to_be_and_is_no_fault():
    report = run(BALANCED, 3)
    assert report.skipped == 0
    said = "3 steps are too few to skip any (12 or more gain): bypass this node"
    assert (report.advice, report.notes, report.warnings) == (said, [said], [])


# a speed-up


def faster(times):
    planned = Method("Planned", "", (Warmup(2), Schedule(Budget.of(1 / times))), BySampler())
    return AutoMethod(f"{times:g}x", planned, FREE, speedup=times)


@pytest.mark.parametrize("steps", [20, 28, 50])
@pytest.mark.parametrize("times", [1.5, 2.0, 3.0, 4.0])
def test_no_more_steps_are_computed_than_the_speed_up_allows(steps, times):
    report = run(faster(times), steps)
    assert report.computed == int(steps / times)
    assert not any("had to be computed" in n for n in report.notes)


def test_a_speed_up_that_so_few_steps_cannot_give_is_said_to_be_missed():
    report = run(faster(8), 8)
    assert report.computed > 1
    (note,) = report.notes
    assert note.startswith(
        f"target speed-up 8x not reached: {report.computed} of 8 evaluations had to be computed, which allows "
        f"{8 / report.computed:.1f}x"
    )


def timed(computed, total, seconds, deciding):
    timeline = [Evaluation(i, 1.0, i < computed, Reason.SCHEDULE) for i in range(total)]
    return Report("Planned", "", total, evaluations=timeline, seconds=seconds, deciding=deciding)


def test_a_speed_up_that_predicting_eats_up_is_said_to_be_missed():
    choice = Choice("", speedup=2.0)
    assert choice.missed(timed(10, 20, 10.0, 0.1)) == ""
    assert choice.missed(timed(10, 20, 10.0, 5.0)).startswith("target speed-up 2x not reached: about 1.5x")
    assert Choice("").missed(timed(20, 20, 10.0, 5.0)) == ""


def test_a_run_in_which_nothing_was_looked_at_missed_nothing():
    assert Choice("", speedup=2.0).missed(Report("Planned", "", 20)) == ""


# decibels


def near(decibels):
    return AutoMethod(f"{decibels:g} dB", PLANNED, decibels=decibels)


@pytest.mark.parametrize("integrator", ["euler", "multistep", "ode"])
def test_the_predicted_error_is_what_the_decibels_allow(integrator):
    counts = []
    for decibels in (20, 30, 40, 50):
        report = run(near(decibels), 50, integrator, costs=costs(50))
        assert report.error is not None and report.error <= tolerance(decibels, integrator)
        counts.append(report.computed)
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_more_decibels_allow_less(integrator):
    allowed = [tolerance(d, integrator) for d in range(20, 81)]
    assert allowed == sorted(allowed, reverse=True)
    assert len({*allowed}) == len(allowed)


@pytest.mark.parametrize("integrator", sorted({*INTEGRATORS} - {"euler"}))
def test_guidance_allows_less(integrator):
    """Up to CFG 6, the highest that was measured."""
    errors = [tolerance(40, integrator, cfg) for cfg in (1.0, 3.0, 4.5, 6.0, 12.0)]
    assert errors[0] == errors[1] > errors[2] > errors[3] == errors[4]


def test_a_target_counts_the_guidance_of_the_run():
    kept = [near(40).resolve(SamplerInfo("multistep", 20, cfg=cfg)).policies[-1] for cfg in (3.0, 6.0)]
    assert kept[0].max_error > kept[1].max_error > 0


def test_decibels_that_no_skip_keeps_are_kept_by_skipping_nothing():
    report = run(near(80), 10, costs=costs(10))
    assert report.skipped == 0
    assert "10 of 10 steps" in report.chosen
    assert "a lower target" in " ".join(report.notes)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"adaptive_steps": True}, "samplers that choose their own steps"),
        ({"integrator": "sde"}, "because they add noise"),
    ],
)
def test_where_no_decibels_can_be_foretold_everything_is_computed(how, why):
    report = run(near(40), **how)
    assert report.skipped == 0
    assert report.chosen.startswith("method: Full run (a quality target does not work with ")
    assert why in report.chosen
    assert "another sampler" in " ".join(report.notes)


def test_only_schedules_are_given_an_error_to_keep_within():
    assert within(FREE, 0.1) == FREE
    assert within(PLANNED, 0.1).policies == (Warmup(2), Schedule(Budget.of(0.5), max_error=0.1, cautious=True))
