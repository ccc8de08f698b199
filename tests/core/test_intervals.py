"""Schedules that count: TaylorSeer's interval, Spectrum's growing window, and those evenly spaced."""

import numpy as np
import pytest
import torch

from skipstone.core.step.clock import Grid
from skipstone.core.step.method import Method
from skipstone.core.step.policies import (
    Budget,
    Cap,
    ConditioningChanges,
    Interval,
    LastStep,
    Mask,
    RunContext,
    Schedule,
    StepMask,
    Warmup,
    Window,
)
from skipstone.core.step.policies.schedule import EVEN
from skipstone.core.step.predictors import Reuse
from skipstone.core.step.run import Run


def grid(steps):
    return Grid.of([1 - i / steps for i in range(steps + 1)])


def run_of(policies, steps, sigmas=None, events=()):
    """The report of a run over these sigmas (default: the grid's own)."""
    run = Run(Method("Test", "", tuple(policies), Reuse()), grid(steps), "euler", events=events)
    x = torch.ones(4)
    for sigma in sigmas if sigmas is not None else run.clock.grid.sigmas[:-1]:
        run.tick(sigma)
        if run.decide(["a"]).compute:
            run.observe("a", x, x * sigma)
    return run.close(True)


def computed(policies, steps):
    return [e.step for e in run_of(policies, steps).evaluations if e.computed]


def counted(steps, warmup, window, flex, stop=1.0):
    """Spectrum's rule as its code has it: full when (skipped in a row + 1) is a multiple of floor(N), then N grows."""
    full, skipped = [], 0
    for i in range(steps):
        if i < warmup or i >= int(stop * steps):
            full.append(i)
            skipped = 0
        elif (skipped + 1) % int(window) == 0:
            full.append(i)
            skipped, window = 0, window + flex
        else:
            skipped += 1
    return full


@pytest.mark.parametrize(
    ("flex", "published"),
    [
        (0.75, [0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 25, 31, 38, 46]),
        (3.0, [0, 1, 2, 3, 4, 6, 11, 19, 30, 44]),
    ],
)
def test_spectrums_published_schedules_and_the_last_step(flex, published):
    assert counted(50, 5, 2, flex) == published
    assert computed([Interval(5, 2, flex)], 50) == [*published, 49]


@pytest.mark.parametrize(("steps", "count"), [(50, 19), (28, 13), (20, 11)])
def test_stable_diffusion_cpps_schedule_computes_as_many_as_it_says(steps, count):
    """Its last tenth is computed in any case, so that no last step has to be forced."""
    found = computed([Interval(4, 2, 0.5, 0.9)], steps)
    assert found == counted(steps, 4, 2, 0.5, 0.9)
    assert len(found) == count and found[-1] == steps - 1


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8, 28, 100])
@pytest.mark.parametrize(
    ("warmup", "window", "flex", "stop"), [(3, 2, 0, 1), (1, 4, 1.5, 1), (2, 3.9, 0.3, 0.8), (1, 1, 0, 1)]
)
def test_other_schedules_follow_the_same_count(steps, warmup, window, flex, stop):
    wanted = {*counted(steps, warmup, window, flex, stop), steps - 1}
    assert computed([Interval(warmup, window, flex, stop)], steps) == sorted(wanted)


@pytest.mark.parametrize("every", [1, 2, 4, 6])
def test_a_window_that_does_not_grow_is_a_fixed_interval(every):
    found = computed([Interval(3, every)], 50)
    assert found == sorted({0, 1, 2, *range(2, 50, every), 49})


def test_from_stop_on_all_is_computed():
    assert computed([Interval(1, 50, stop=0.5)], 20) == [0, *range(10, 20)]
    assert computed([Interval(1, 50, stop=0.0)], 20) == list(range(20))


def test_what_guards_compute_restarts_the_count():
    assert computed([Warmup(6), Interval(3, 4)], 20) == [0, 1, 2, 3, 4, 5, 9, 13, 17, 19]
    mask = StepMask(tuple(i == 5 for i in range(20)), policy="dynamic")
    assert computed([Mask(mask), Interval(3, 4)], 20) == [0, 1, 2, 5, 9, 13, 17, 19]


def test_the_plan_is_what_happens():
    report = run_of([Warmup(6), Interval(3, 4)], 20)
    assert report.planned == [e.step for e in report.evaluations if e.computed]
    assert {e.reason for e in report.evaluations} == {"warmup", "interval", "last step"}


def test_an_event_is_computed_and_the_count_starts_from_it():
    found = [e for e in run_of([Interval(3, 4)], 20, events=(7,)).evaluations if e.computed]
    assert [e.step for e in found] == [0, 1, 2, 6, 7, 11, 15, 19]
    assert found[4].reason == "conditioning change"


def test_an_event_counts_once_and_off_the_grid_it_is_the_next_look():
    # Heun looks twice at a step; a sampler of its own steps walks over it
    twice = run_of([Interval(1, 50)], 10, [s for i in range(10) for s in (1 - i / 10, 1 - i / 10)], events=(4,))
    assert all(e.computed for e in twice.evaluations if e.step == 4)
    over = run_of([Interval(1, 50)], 10, [1.0, 0.85, 0.65, 0.45, 0.25], events=(4,))
    assert [e.reason for e in over.evaluations if e.computed] == ["interval", "conditioning change"]
    assert [e.sigma for e in over.evaluations if e.reason == "conditioning change"] == [0.45]


def test_an_events_steps_outside_the_run_are_nothing():
    context = RunContext(grid(5), Reuse())
    ConditioningChanges(frozenset((-1, 5, 99, 2))).start(context)
    assert context.forced == [False, False, True, False, False]


def test_a_sampler_with_larger_steps_of_its_own_computes_where_it_passed_an_anchor():
    report = run_of([Interval(2, 4)], 20, [1.0, 0.95, 0.85, 0.72, 0.6, 0.05])
    assert [e.computed for e in report.evaluations] == [True, True, False, True, False, True]


@pytest.mark.parametrize(("window", "flex"), [(0.5, 0), (0, 0), (-3, 1), (2, -0.1), (float("-inf"), 0)])
def test_a_window_below_1_is_refused(window, flex):
    with pytest.raises(ValueError, match="window"):
        Interval(3, window, flex)


@pytest.mark.parametrize(("steps", "share"), [(50, 0.4), (50, 0.04), (20, 0.55), (9, 1.0), (2, 0.5)])
def test_an_even_schedule_spends_its_budget_at_even_distances(steps, share):
    found = computed([Schedule(Budget.of(share), name=EVEN)], steps)
    assert len(found) == max(round(share * steps), 2)
    assert found[0] == 0 and found[-1] == steps - 1
    assert np.ptp(np.diff(found)) <= 1


def test_an_even_schedule_has_what_guards_compute_on_top():
    found = computed([Warmup(3), Schedule(Budget.of(0.2), name=EVEN)], 50)
    assert {0, 1, 2} <= set(found) and len(found) <= 12


def test_guards_say_what_they_force():
    context = RunContext(grid(10), Reuse())
    for policy in (LastStep(), Warmup(2), Window(0.0, 0.7, of_steps=True), Cap(0), Cap(4), Cap(2), Cap(6)):
        policy.start(context)
    assert [i for i, f in enumerate(context.forced) if f] == [0, 1, 7, 8, 9]
    assert context.max_skipped_steps == 2
