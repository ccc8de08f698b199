"""What predictors return, on velocities that are known functions of sigma."""

import math

import pytest

from skipstone.core.step.clock import Clock, Grid
from skipstone.core.step.plan import Plan
from skipstone.core.step.predictors import JVP, BySampler, Corrected, Linear, RecursiveJVP, Reuse
from skipstone.core.step.predictors.linear import SPREAD
from skipstone.core.step.trajectory import Trajectory, lagrange


def play(predictor, grid, anchors, velocity, spans=None, gain=None):
    """Run a scalar ODE whose velocity depends on sigma alone; the outputs of every step, in order."""
    plan = Plan(grid, tuple(anchors), spans or {}, gain=gain)
    trajectory, clock, prediction = Trajectory(predictor.depth), Clock(grid), predictor.start(plan)
    said = []
    for i in range(grid.steps):
        clock.tick(grid.sigmas[i])
        if i in anchors:
            trajectory.computed(i, clock.sigma)
            prediction.computed(trajectory)
            said.append(velocity(clock.sigma))
        else:
            weights = prediction.weights(clock, trajectory)
            assert weights.keys() <= trajectory.needed
            trajectory.predicted(i, clock.sigma, weights)
            said.append(sum(w * velocity(grid.sigmas[k]) for k, w in weights.items()))
    return said


def moved(grid, said):
    return sum((b - a) * v for a, b, v in zip(grid.sigmas, grid.sigmas[1:], said, strict=False))


UNIFORM = Grid.of([1 - i / 10 for i in range(11)])
BENT = Grid.of([1.0, 0.97, 0.9, 0.82, 0.7, 0.61, 0.5, 0.33, 0.2, 0.08, 0.0])


@pytest.mark.parametrize(
    "predictor", [Reuse(), Linear(), Corrected(), JVP(1), JVP(3), RecursiveJVP(1), RecursiveJVP(3)]
)
@pytest.mark.parametrize("grid", [UNIFORM, BENT])
def test_a_constant_velocity_is_predicted_exactly(predictor, grid):
    assert play(predictor, grid, (0, 1, 2, 5, 9), lambda s: 3.0) == pytest.approx([3.0] * 10)


@pytest.mark.parametrize("predictor", [Linear(), Corrected(1.0)])
@pytest.mark.parametrize("grid", [UNIFORM, BENT])
def test_a_velocity_linear_in_sigma_is_extrapolated_exactly(predictor, grid):
    said = play(predictor, grid, (0, 1, 4, 9), lambda s: 2 - 5 * s)
    assert said == pytest.approx([2 - 5 * s for s in grid.sigmas[:-1]])


def test_the_correction_mends_what_an_edge_missed():
    """Here nothing shrinks by itself, so that only a part is given back; still it is nearer."""

    def curve(s):
        return s**3

    anchors = (0, 1, 5, 8, 9)
    truth = moved(BENT, [curve(s) for s in BENT.sigmas[:-1]])
    plain = abs(moved(BENT, play(Linear(), BENT, anchors, curve)) - truth)
    mended = abs(moved(BENT, play(Corrected(1.0), BENT, anchors, curve)) - truth)
    assert mended < 0.9 * plain


def test_a_damped_slope_lies_between_reuse_and_the_line():
    said = [play(p, BENT, (0, 1, 5, 9), lambda s: 2 - 5 * s)[3] for p in (Reuse(), Linear(0.25), Linear())]
    assert said[1] == pytest.approx(0.75 * said[0] + 0.25 * said[2])


def test_what_an_edge_owes_is_given_back_over_the_next_edge_and_only_once():
    def step_function(s):
        return 1.0 if s > 0.55 else 2.0

    said = play(Corrected(1.0), UNIFORM, (0, 1, 5, 8, 9), step_function)
    # steps 2..4 were predicted as 1 and were right; interpolation between 1 and 5 says 1.25, 1.5, 1.75
    owed = (0.25 + 0.5 + 0.75) * -0.1
    # of it, when sigma has come down from step 5's to step 8's: in proportion to the deviation of x
    left = math.hypot(0.8 * SPREAD, 0.2) / math.hypot(0.5 * SPREAD, 0.5)
    extrapolated = [2.25, 2.5]  # the line through steps 1 and 5
    assert said[6:8] == pytest.approx([e + owed * left / -0.2 for e in extrapolated])


def test_a_share_of_the_correction_is_made():
    """The predictor's own share, or else the plan's."""

    def said(gain, planned=None):
        return play(Corrected(1.0, gain), BENT, (0, 1, 5, 8, 9), lambda s: s**3, gain=planned)

    line, full = play(Linear(), BENT, (0, 1, 5, 8, 9), lambda s: s**3), said(None)
    assert full != pytest.approx(line)
    assert said(1.0, planned=0.0) == said(None, planned=1.0) == full
    assert said(0.0) == said(None, planned=0.0) == pytest.approx(line)
    half = said(0.5)
    assert half[2:5] == pytest.approx(line[2:5])
    assert half[6:8] == pytest.approx([(a + b) / 2 for a, b in zip(full[6:8], line[6:8], strict=True)])


def test_what_was_given_back_is_no_error_of_the_edge_it_was_given_back_on():
    """After one wrong edge the velocity is a line: nothing is owed any more, and the line is predicted."""
    line = [1.0, 1.0, None, None, *(2 - 0.5 * i for i in range(16))]
    grid = Grid.of([1 - i / 20 for i in range(21)])
    said = play(Corrected(1.0), grid, (0, 1, 4, 7, 10, 13, 19), lambda s: line[round((1 - s) * 20)])
    assert said[11:13] == pytest.approx(line[11:13])
    assert said[14:19] == pytest.approx(line[14:19])


def test_k_of_one_is_reuse():
    velocity = lambda s: s * s  # noqa: E731
    for k1 in (JVP(1), RecursiveJVP(1)):
        assert play(k1, UNIFORM, (0, 1, 2, 5, 9), velocity) == pytest.approx(
            play(Reuse(), UNIFORM, (0, 1, 2, 5, 9), velocity)
        )


@pytest.mark.parametrize(("k", "share"), [(1, 0), (2, 0.25), (3, 1 / 3), (4, 0.375), (5, 0.4)])
def test_jvp_k_recovers_the_published_share_of_a_linear_drift(k, share):
    """A uniform grid, K computed steps, slope d a step: the first correction is d (K - 1) / (2 K)."""
    drift = 1.0
    said = play(RecursiveJVP(k), UNIFORM, tuple(range(6)), lambda s: drift * 10 * (1 - s))
    assert said[6] - said[5] == pytest.approx(drift * share)


def test_one_shot_carries_an_edge_by_the_average_velocity():
    """The whole edge moves by (s - t) (v(t) + (s - t) JVP_K), JVP_K from the last K computed steps."""
    k, t, s = 3, 5, 8
    velocity = lambda sigma: 10 * (1 - sigma)  # noqa: E731 - one more each step
    said = play(JVP(k), UNIFORM, (*range(6), 8, 9), velocity)
    h = -0.1
    u = (velocity(0.8) + velocity(0.7) + velocity(0.6)) / 3
    jvp = (u - velocity(0.8)) / (k * h)
    wanted = (s - t) * h * (velocity(0.5) + (s - t) * h * jvp)
    assert h * sum(said[t:s]) == pytest.approx(wanted)


def test_the_span_may_differ_from_edge_to_edge():
    velocity = lambda s: s * s  # noqa: E731
    anchors = (0, 1, 2, 3, 6, 7, 9)
    mixed = play(RecursiveJVP(3), UNIFORM, anchors, velocity, spans={3: 1, 7: 3})
    assert mixed[4:6] == pytest.approx([velocity(0.7)] * 2)
    assert mixed[8] != pytest.approx(velocity(UNIFORM.sigmas[7]))


def test_a_repeated_sigma_keeps_the_newest_computed_value_and_draws_no_slope():
    trajectory = Trajectory(3)
    trajectory.computed(0, 1.0)
    trajectory.computed(1, 0.5)
    trajectory.computed(2, 0.5)
    trajectory.predicted(3, 0.5, {2: 1.0})
    assert trajectory.nodes == {0: 1.0, 2: 0.5}
    assert Linear().weights(_at(0.25), trajectory) == pytest.approx({0: -0.5, 2: 1.5})


def _at(sigma):
    clock = Clock(UNIFORM)
    clock.tick(sigma)
    return clock


def test_the_track_forgets_all_but_the_anchors_asked_for():
    trajectory = Trajectory(2)
    for i, sigma in enumerate((1.0, 0.9, 0.8, 0.7)):
        trajectory.computed(i, sigma)
    assert list(trajectory.nodes) == [2, 3]


def test_lagrange_is_exact_for_a_polynomial_of_its_degree():
    nodes = {0: 1.0, 1: 0.6, 2: 0.1}
    weights = lagrange(0.35, nodes)
    assert sum(w * (nodes[k] ** 2 - nodes[k]) for k, w in weights.items()) == pytest.approx(0.35**2 - 0.35)


def test_auto_has_a_predictor_for_every_kind_of_sampler():
    euler, multistep = BySampler().choose("euler"), BySampler().choose("multistep")
    assert euler == multistep == Corrected()
    assert isinstance(BySampler().choose("ode"), Linear)
    assert BySampler().choose("sde").need == 1
