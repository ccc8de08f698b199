"""TaylorSeer's and Spectrum's forecasts, on outputs that are known functions of the place on the schedule."""

import math

import numpy as np
import pytest
from numpy.polynomial import chebyshev

from skipstone.core.step.clock import Clock, Grid
from skipstone.core.step.plan import Plan
from skipstone.core.step.predictors import Corrected, Linear, Spectrum, Taylor
from skipstone.core.step.trajectory import Trajectory

UNIFORM = Grid.of([1 - i / 10 for i in range(11)])
BENT = Grid.of([1.0, 0.97, 0.9, 0.82, 0.7, 0.61, 0.5, 0.33, 0.2, 0.08, 0.0])
EPS = Grid.of([14.6, 9.0, 6.1, 4.0, 2.5, 1.4, 0.8, 0.4, 0.15, 0.03, 0.0], flow=False)
GRIDS = pytest.mark.parametrize("grid", [UNIFORM, BENT, EPS], ids=["uniform", "bent", "eps"])
COORDINATES = pytest.mark.parametrize("at", ["sigma", "time", "log-SNR", "index"])

PAPER = Spectrum()
SDCPP = Spectrum(0.4, 3, 1.0, keep=6, half=True)


def weights(predictor, grid, anchors, step):
    """The weights of `predictor` at `step` after full evaluations at the steps `anchors`: anchor -> weight."""
    trajectory, clock, prediction = Trajectory(predictor.depth), Clock(grid), predictor.start(Plan(grid))
    for i in anchors:
        clock.tick(grid.sigmas[i])
        trajectory.computed(i, clock.sigma)
        prediction.computed(trajectory)
    clock.tick(grid.sigmas[step])
    found = prediction.weights(clock, trajectory)
    assert found.keys() <= trajectory.needed
    return found


def said(predictor, grid, anchors, step, output):
    return sum(w * output(grid.sigmas[k]) for k, w in weights(predictor, grid, anchors, step).items())


def polynomial(coordinate, degree):
    """An output that is a polynomial in the coordinate, all of its coefficients of some size."""
    rng = np.random.default_rng(degree)
    c = rng.standard_normal(degree + 1) + 1
    return lambda sigma: float(np.polynomial.polynomial.polyval(coordinate(sigma), c))


# --- the coordinates ---


def test_coordinates_are_what_they_are_called():
    assert [BENT.along("sigma")(s) for s in (1.0, 0.4)] == [1.0, 0.4]
    assert BENT.along("time")(0.4) == 0.4
    assert EPS.along("time")(4.0) == pytest.approx(0.8)
    assert BENT.along("log-SNR")(0.8) == pytest.approx(math.log(0.8 / 0.2))
    assert EPS.along("log-SNR")(4.0) == pytest.approx(math.log(4.0))
    assert [BENT.along("index")(s) for s in (1.0, 0.97, 0.935, 0.0)] == pytest.approx([0, 1, 1.5, 10])


@GRIDS
@COORDINATES
def test_every_coordinate_is_finite_and_runs_one_way(grid, at):
    places = [grid.along(at)(s) for s in grid.sigmas]
    assert np.isfinite(places).all()
    assert (np.diff(places) < 0).all() or (np.diff(places) > 0).all()


# --- Taylor ---


@GRIDS
@COORDINATES
@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_taylor_is_exact_for_polynomials_of_its_order_in_its_coordinate(grid, at, order):
    output = polynomial(grid.along(at), order)
    found = said(Taylor(order, at), grid, (0, 2, 3, 5), 7, output)
    assert found == pytest.approx(output(grid.sigmas[7]), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_taylor_is_not_exact_beyond_its_order(order):
    output = polynomial(BENT.along("sigma"), order + 1)
    found = said(Taylor(order), BENT, (0, 2, 3, 5), 7, output)
    assert found != pytest.approx(output(BENT.sigmas[7]), rel=1e-3)


@pytest.mark.parametrize("published", [False, True])
def test_taylor_takes_a_lower_order_while_anchors_are_few(published):
    assert weights(Taylor(3, "index", published), UNIFORM, (0,), 1) == {0: 1.0}
    assert weights(Taylor(3, "index", published), UNIFORM, (0, 1), 2) == pytest.approx({0: -1.0, 1: 2.0})


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("grid", [UNIFORM, BENT], ids=["uniform", "bent"])
def test_the_published_form_is_the_polynomial_up_to_order_1(grid, order):
    for at in ("sigma", "index"):
        own = weights(Taylor(order, at), grid, (0, 1, 4, 6), 8)
        assert weights(Taylor(order, at, True), grid, (0, 1, 4, 6), 8) == pytest.approx(own)


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("gap", [1, 2])
def test_the_published_form_is_a_taylor_series_in_backward_differences(order, gap):
    """Y + D_1 e + D_2 e^2 / 2 + ..., D_k the k-th difference at distance `gap`: as published, in the steps' index."""
    anchors = [i * gap for i in range(order + 1)]
    here, last = anchors[-1] + 2, anchors[-1]
    output = polynomial(UNIFORM.along("index"), 3)
    values = [output(UNIFORM.sigmas[i]) for i in anchors]
    wanted = sum(np.diff(values, k)[-1] / gap**k * (here - last) ** k / math.factorial(k) for k in range(order + 1))
    assert said(Taylor(order, "index", True), UNIFORM, anchors, here, output) == pytest.approx(wanted)


@pytest.mark.parametrize("order", [2, 3])
def test_the_published_form_scales_uneven_anchors_wrongly_from_order_2_on(order):
    """Not a fault of ours to be mended: what the option is for. Newton's own form is exact there."""
    output = polynomial(UNIFORM.along("index"), 2)
    anchors, here = (0, 1, 2, 6), 8
    truth = output(UNIFORM.sigmas[here])
    assert said(Taylor(order, "index"), UNIFORM, anchors, here, output) == pytest.approx(truth)
    assert said(Taylor(order, "index", True), UNIFORM, anchors, here, output) != pytest.approx(truth, rel=1e-3)


@COORDINATES
@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_taylors_weights_add_up_to_one(at, published, order):
    assert sum(weights(Taylor(order, at, published), BENT, (0, 2, 3, 5), 7).values()) == pytest.approx(1)


@pytest.mark.parametrize("order", [-1, 4, 100])
def test_an_order_that_is_none_is_refused(order):
    with pytest.raises(ValueError, match="order"):
        Taylor(order)


# eps models end below the smallest sigma that a log-SNR is told apart: those anchors stand at one place
LOW = Grid.of([10.0, 3.0, 1.0, 0.3, 0.0009, 0.0004, 0.0002, 0.0], flow=False)


@pytest.mark.parametrize("predictor", [Taylor(1, "log-SNR"), Taylor(3, "log-SNR"), Linear(at="log-SNR")])
@pytest.mark.parametrize(("anchors", "step"), [((3, 4, 5), 6), ((4, 5), 6), ((2, 3, 4, 5), 6)])
def test_of_anchors_at_one_place_the_newest_is_believed(predictor, anchors, step):
    found = weights(predictor, LOW, anchors, step)
    assert {k: w for k, w in found.items() if abs(w) > 1e-9} == pytest.approx({5: 1.0})


@pytest.mark.parametrize("predictor", [Taylor(2), Taylor(2, published=True), PAPER, SDCPP, Linear(), Corrected()])
def test_a_sigma_that_is_looked_at_twice_divides_by_nothing(predictor):
    trajectory, clock, prediction = Trajectory(predictor.depth), Clock(BENT), predictor.start(Plan(BENT))
    for k, i in enumerate((0, 0, 2, 2, 2, 5, 5)):
        clock.tick(BENT.sigmas[i] * (1 + 1e-6 * (k % 2)))
        trajectory.computed(k, clock.sigma)
        prediction.computed(trajectory)
    clock.tick(BENT.sigmas[7])
    found = prediction.weights(clock, trajectory)
    assert sum(found.values()) == pytest.approx(1) and max(map(abs, found.values())) < 20


# --- Spectrum ---


def penalised(spectrum, times, here):
    """The prediction of the reference code for a constant 1, which is the sum of its weights: its ridge penalises the constant term too."""
    past, now = chebyshev.chebvander(times, spectrum.m), chebyshev.chebvander(np.array([here]), spectrum.m)[0]
    ridge = spectrum.lam * np.eye(spectrum.m + 1)
    return float((now @ np.linalg.solve(past.T @ past + ridge, past.T)).sum())


@pytest.mark.parametrize("spectrum", [PAPER, SDCPP], ids=["paper", "stable-diffusion.cpp"])
@pytest.mark.parametrize("anchors", [(0, 1, 2, 3, 4), (0, 1, 2, 3, 4, 6, 8), (0,), (0, 1)])
@GRIDS
def test_a_constant_is_predicted_at_its_size(spectrum, anchors, grid):
    assert sum(weights(spectrum, grid, anchors, 9).values()) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("spectrum", [PAPER, SDCPP], ids=["paper", "stable-diffusion.cpp"])
def test_with_the_constant_penalised_it_would_not_be(spectrum):
    grid = Grid.of([1 - i / 50 for i in range(51)])
    for anchors in ((0, 1, 2, 3, 4), (0, 1, 2, 3, 4, 6, 8)):
        times = np.array([2 * i / 50 - 1 for i in anchors])
        assert penalised(spectrum, times, 2 * (anchors[-1] + 1) / 50 - 1) < 0.97
        assert sum(weights(spectrum, grid, anchors, anchors[-1] + 1).values()) == pytest.approx(1)


@COORDINATES
@pytest.mark.parametrize("m", [1, 2, 3, 4])
@GRIDS
def test_polynomials_are_recovered_as_the_ridge_goes_to_nothing(grid, m, at):
    output = polynomial(grid.along("sigma" if at == "sigma" else at), m)
    truth = output(grid.sigmas[7])
    found = [said(Spectrum(1.0, m, lam, at=at), grid, (0, 1, 2, 3, 4, 6), 7, output) for lam in (1.0, 1e-5, 1e-11)]
    size = max(abs(output(s)) for s in grid.sigmas[:8])
    assert abs(found[2] - truth) < 1e-2 * size
    assert abs(found[2] - truth) < abs(found[0] - truth)


@pytest.mark.parametrize("m", [2, 4])
def test_a_ridge_holds_back(m):
    """So that the limit above is one: at the published ridge a steep output is not followed."""
    output = polynomial(BENT.along("sigma"), m)
    assert said(Spectrum(1.0, m, 1.0), BENT, (0, 1, 2, 3), 5, output) != pytest.approx(output(BENT.sigmas[5]), rel=1e-2)


@pytest.mark.parametrize("spectrum", [PAPER, SDCPP, Spectrum(0.5, half=False)])
def test_time_is_that_of_the_runs_own_grid_however_many_steps_it_has(spectrum):
    """The same sigmas computed, the same sigma asked: the same weights, from a grid of 10, 20 or 50 steps."""
    found = []
    for every in (1, 2, 5):
        grid = Grid.of([1 - i / (10 * every) for i in range(10 * every + 1)])
        said = weights(spectrum, grid, [i * every for i in (0, 1, 2, 3, 5)], 8 * every)
        found.append({k // every: w for k, w in said.items()})
    assert found[1] == pytest.approx(found[0]) and found[2] == pytest.approx(found[0])


@pytest.mark.parametrize("scale", [0.5, 14.6])
def test_time_runs_over_the_grid_whatever_its_sigmas(scale):
    """An image-to-image run starts below 1, an eps model far above: -1 to 1 all the same."""
    scaled = Grid.of([s * scale for s in BENT.sigmas], flow=scale < 1)
    assert weights(PAPER, scaled, (0, 1, 2, 4), 6) == pytest.approx(weights(PAPER, BENT, (0, 1, 2, 4), 6))


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("w", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("anchors", [(0,), (0, 1), (0, 1, 2, 5)])
def test_spectrums_weights_add_up_to_one(w, half, anchors):
    assert sum(weights(Spectrum(w, half=half), BENT, anchors, 7).values()) == pytest.approx(1)


def test_without_the_chebyshev_part_a_line_is_left():
    assert weights(Spectrum(0.0, at="sigma"), BENT, (0, 1, 2, 5), 7) == pytest.approx(
        weights(Linear(), BENT, (0, 1, 2, 5), 7)
    )
    for step in (6, 7, 9):
        assert weights(Spectrum(0.0, half=True), BENT, (0, 1, 2, 5), step) == pytest.approx({5: 1.5, 2: -0.5})


def test_the_two_parts_are_blended():
    both = [weights(Spectrum(w), BENT, (0, 1, 2, 5), 7) for w in (1.0, 0.0, 0.25)]
    assert both[2] == pytest.approx({k: 0.25 * both[0][k] + 0.75 * both[1].get(k, 0.0) for k in both[0]})


def test_only_so_many_anchors_are_kept():
    assert len(weights(Spectrum(keep=6), BENT, range(9), 9)) == 6
    assert len(weights(Spectrum(keep=1, m=3), BENT, range(9), 9)) == 4, "the degree needs as many and one"


def test_more_coefficients_than_anchors_are_held_by_the_ridge():
    output = polynomial(BENT.along("sigma"), 1)
    found = said(Spectrum(m=12), BENT, (0, 1, 2), 3, output)
    assert abs(found) < 2 * max(abs(output(s)) for s in BENT.sigmas)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"w": -0.1}, "w is"),
        ({"w": 1.1}, "w is"),
        ({"w": math.nan}, "w is"),
        ({"m": 0}, "degree"),
        ({"m": 13}, "degree"),
        ({"lam": 0.0}, "ridge"),
        ({"lam": -1.0}, "ridge"),
        ({"lam": math.nan}, "ridge"),
    ],
)
def test_values_of_spectrum_that_make_no_sense_are_refused(values, word):
    with pytest.raises(ValueError, match=word):
        Spectrum(**values)
