"""The place on the schedule comes from sigma."""

import math

import pytest

from skipstone.core.step.clock import Clock, Grid

GRID = Grid.of([1.0, 0.75, 0.5, 0.25, 0.0])


@pytest.mark.parametrize(
    ("sigma", "step"),
    [
        (1.0, 0),
        (0.9999, 0),
        (1.0001, 0),
        (0.8, 0),
        (0.75, 1),
        (0.75002, 1),
        (0.74, 1),
        (0.25, 3),
        (0.1, 3),
        (0.0, 3),
        (2.0, 0),
    ],
)
def test_a_sigma_belongs_to_the_step_whose_interval_holds_it(sigma, step):
    assert GRID.step_of(sigma) == step


def test_repeated_and_off_grid_sigmas_advance_nothing_twice():
    clock = Clock(GRID)
    steps = []
    for sigma in (1.0, 0.9, 0.75, 0.75, 0.6):
        clock.tick(sigma)
        steps.append((clock.step, clock.sigma_rose))
    assert steps == [(0, False), (0, False), (1, False), (1, False), (1, False)]


def test_a_rise_in_sigma_is_seen():
    clock = Clock(GRID)
    for sigma in (1.0, 0.5, 0.75):
        clock.tick(sigma)
    assert clock.sigma_rose


def test_the_last_step_is_the_one_that_ends_the_grid_even_if_it_does_not_end_at_zero():
    clock = Clock(Grid.of([1.0, 0.8, 0.6]))
    clock.tick(0.8)
    assert clock.last_step


@pytest.mark.parametrize("sigmas", [[1.0, 0.5, 0.7, 0.0], [1.0, 1.0, 0.0], [1.0, math.nan, 0.0]])
def test_a_grid_that_does_not_fall_says_so(sigmas):
    assert not Grid.of(sigmas).falling


def test_percent_is_asked_of_the_models_own_schedule():
    grid = Grid.of([14.6, 0.0], flow=False, percent_to_sigma=lambda p: 10 * (1 - p))
    assert grid.sigma_at(0.5) == 5.0
    assert grid.sigma_at(0.0) == math.inf and grid.sigma_at(1.0) == -math.inf


def test_time_is_the_share_of_noise_for_every_kind_of_model():
    assert Grid.of([3.0, 1.0, 0.0], flow=False).times.tolist() == [0.75, 0.5, 0.0]
    assert Grid.of([0.75, 0.5, 0.0]).times.tolist() == [0.75, 0.5, 0.0]
