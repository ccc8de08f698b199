"""A model's own costs: recorded from full runs, kept as JSON, and turned into the schedule that was asked for."""

import json
import math
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch

from skipstone.core.step.calibration.gram import Gram
from skipstone.core.step.calibration.gram_recorder import GramRecorder
from skipstone.core.step.clock import Grid
from skipstone.core.step.indicators.reading import SAMPLE
from skipstone.core.step.method import Method
from skipstone.core.step.planning.edge_costs import edge_costs
from skipstone.core.step.planning.pssp import Paths
from skipstone.core.step.policies import (
    Budget,
    Cap,
    ConditioningChanges,
    LastStep,
    Mask,
    RunContext,
    Schedule,
    StepMask,
    Warmup,
    Window,
)
from skipstone.core.step.predictors import JVP, Corrected, Linear, RecursiveJVP, Reuse, Spectrum, Taylor
from skipstone.core.step.run import Run

STEPS = 14
FLOW = Grid.of([*np.linspace(1, 0.08, STEPS).tolist(), 0.0])
EPS = Grid.of([*np.geomspace(14.6, 0.05, STEPS).tolist(), 0.0], flow=False)


def trajectory(grid, elements=60, seed=0):
    """x and D at every step of a full run: any functions of sigma do."""
    rng = np.random.default_rng(seed)
    steps = np.arange(grid.steps)[:, None]
    x = rng.standard_normal((1, elements)) * (1 + np.array(grid.sigmas[:-1])[:, None])
    d = np.sin(0.3 * steps + 3 * rng.standard_normal((1, elements))) + 0.1 * rng.standard_normal((grid.steps, elements))
    return torch.from_numpy(x), torch.from_numpy(d)


def recorded(grid, kept="velocity", seed=0, elements=60):
    recorder = GramRecorder(grid, kept)
    for sigma, x, d in zip(grid.sigmas, *trajectory(grid, elements, seed), strict=False):
        recorder.observe(sigma, x, d)
    return recorder


def planned(schedule, grid, guards=(), costs=None, predictor=None):
    context = RunContext(grid, predictor or Linear(), costs)
    for guard in (LastStep(), *guards):
        guard.start(context)
    return schedule.start(context)


# --- PSSP: every budget at once ---


def price(cost, path, gamma):
    edges = zip((path[0], *path), path, path[1:], strict=False)
    return sum(cost[a, b, c] ** gamma for a, b, c in edges if c > b + 1)


def every_path(n, forced):
    for k in range(n - 1):
        for middle in combinations(range(1, n - 1), k):
            if set(forced) <= {0, *middle, n - 1}:
                yield (0, *middle, n - 1)


@pytest.mark.parametrize("seed", range(12))
def test_one_solution_answers_for_every_budget(seed):
    rng = np.random.default_rng(seed)
    n, gamma = int(rng.integers(4, 9)), float(rng.choice([1.0, 2.0, 4.0]))
    cost = rng.random((n, n, n)) + 0.05
    mask = rng.random(n) < 0.15
    forced = np.flatnonzero(mask)
    paths = Paths(cost, n, gamma, mask)
    assert paths.least == len({0, n - 1, *forced.tolist()})
    for budget in range(1, n + 2):
        path = paths.best(budget)
        room = max(budget, paths.least)
        assert len(path) <= room and {0, n - 1, *forced.tolist()} <= set(path)
        cheapest = min(price(cost, p, gamma) for p in every_path(n, forced.tolist()) if len(p) <= room)
        assert price(cost, path, gamma) == pytest.approx(cheapest)
    assert paths.best() == paths.best(n) == tuple(range(n))


def test_a_smaller_solution_says_the_same_as_a_larger():
    cost = np.random.default_rng(5).random((12, 12, 12))
    large = Paths(cost, 12, 2.0, np.zeros(12, bool))
    for budget in range(2, 12):
        small = Paths(cost, budget, 2.0, np.zeros(12, bool))
        assert small.best() == large.best(budget)
        assert small.best(12) == small.best(), "no more than was solved for"


def test_of_equal_paths_the_one_with_the_fewest_evaluations_is_taken():
    assert Paths(np.zeros((9, 9, 9)), 9, 2.0, np.zeros(9, bool)).best() == (0, 8)


def test_a_paths_error_is_the_root_of_the_squares_of_its_edges():
    cost = np.random.default_rng(6).random((9, 9, 9))
    paths = Paths(cost, 9, 4.0, np.zeros(9, bool))
    assert paths.error((0, 3, 4, 8)) == pytest.approx(math.hypot(cost[0, 0, 3], cost[3, 4, 8]))
    assert paths.error((0, 2, 5, 8)) == pytest.approx(math.hypot(cost[0, 0, 2], cost[0, 2, 5], cost[2, 5, 8]))
    assert paths.error(tuple(range(9))) == 0


@pytest.mark.parametrize("longest", [1, 2, 3])
def test_edges_that_may_not_be_are_taken_by_no_budget_that_can_avoid_them(longest):
    n = 10
    b, c = np.indices((n, n))
    cost = np.where(c - b - 1 > longest, np.inf, np.random.default_rng(7).random((n, n, n)))
    paths = Paths(cost, n, 2.0, np.zeros(n, bool))
    least = math.ceil((n - 1) / (longest + 1)) + 1
    for budget in range(least, n + 1):
        path = paths.best(budget)
        assert path[0] == 0 and path[-1] == n - 1 and len(path) <= budget
        assert max(np.diff(path)) <= longest + 1


# --- the two questions: so many evaluations, or so much error ---


@pytest.mark.parametrize("predictor", [Linear(), Corrected(), Taylor(2), JVP(3)], ids=lambda p: p.name)
@pytest.mark.parametrize("limit", [1e-4, 0.01, 0.05, 0.1, 0.3, 1.0])
def test_the_least_budget_that_stays_within_the_error_is_chosen(limit, predictor):
    gram = recorded(FLOW).gram("test")
    errors = []
    for budget in range(1, STEPS + 1):
        found = planned(Schedule(Budget.of(budget / STEPS)), FLOW, (Warmup(2),), gram, predictor)
        assert found.plan is not None and found.predicted_error is not None
        errors.append((found.predicted_error, found.plan.anchors))
    assert all(a >= b for (a, _), (b, _) in pairwise(errors)), "a larger budget, a larger error"
    wanted = next(anchors for error, anchors in errors if error <= limit)
    chosen = planned(Schedule(Budget.of(0.1), max_error=limit), FLOW, (Warmup(2),), gram, predictor)
    assert chosen.plan is not None and chosen.predicted_error is not None
    assert chosen.plan.anchors == wanted and chosen.predicted_error <= limit


def test_the_limits_above_are_different_questions():
    gram = recorded(FLOW).gram("test")
    plans = [
        planned(Schedule(Budget.of(1), max_error=e), FLOW, (Warmup(2),), gram).plan for e in (1e-4, 0.05, 0.3, 1.0)
    ]
    counts = [len(p.anchors) for p in plans if p is not None]
    assert counts == sorted(counts, reverse=True) and len(set(counts)) >= 3


def test_an_error_is_a_share_of_the_runs_whole_displacement():
    """Reuse (JVP with K of 1) from step 0 to the last but one of a velocity that turns: the error can be computed by hand."""
    grid = Grid.of([1.0, 0.75, 0.5, 0.25, 0.0])
    v = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    found = planned(Schedule(Budget.of(0.5)), grid, costs=Gram(grid.times[:-1], v @ v.T), predictor=JVP(1))
    assert found.plan is not None and found.plan.anchors == (0, 3)
    # three steps: 0.75 (1, 0) for 0.25 (1, 0) + 0.5 (0, 1); the whole run moves by 0.25 (1, 0) + 0.75 (0, 1)
    assert found.predicted_error == pytest.approx(math.hypot(0.5, 0.5) / math.hypot(0.25, 0.75))


@pytest.mark.parametrize("limit", [-0.1, math.nan, -math.inf])
def test_a_limit_that_is_none_is_refused(limit):
    with pytest.raises(ValueError, match="max_error"):
        Schedule(Budget.of(0.5), max_error=limit)


@pytest.mark.parametrize("max_error", [0.0, 0.5])
def test_what_guards_force_is_in_the_solved_schedule_and_no_gap_is_longer_than_the_cap(max_error):
    gram = recorded(FLOW).gram("test")
    mask = Mask(StepMask(tuple(i == 5 for i in range(STEPS)), policy="dynamic"))
    guards = (Warmup(2), Window(0.0, 0.8, of_steps=True), ConditioningChanges(frozenset((8,))), mask, Cap(2))
    found = planned(Schedule(Budget.of(0.75), max_error=max_error), FLOW, guards, gram).plan
    assert found is not None
    assert {0, 1, 5, 8, 11, 12, 13} <= set(found.anchors)
    assert max(np.diff(found.anchors)) <= 3
    free = planned(Schedule(Budget.of(0.75), max_error=max_error), FLOW, guards[:-1], gram).plan
    assert free is not None and len(free.anchors) <= len(found.anchors)


def test_the_costs_that_are_given_are_those_that_are_used():
    one, other = recorded(FLOW, seed=1).gram("one"), Gram(FLOW.times[:-1], np.diag(np.arange(1.0, STEPS + 1)), "other")
    plans = [planned(Schedule(Budget.of(0.5)), FLOW, (Warmup(2),), g) for g in (one, other, None)]
    assert [p.source for p in plans[:2]] == ["one", "other"] and plans[2].source
    assert len({p.plan.anchors for p in plans if p.plan}) == 3


# --- the Gram matrix ---


def test_a_gram_matrix_is_that_of_the_values_relative_to_the_largest():
    values = np.random.default_rng(0).standard_normal((5, 40)) * 7
    gram = Gram.of(np.linspace(1, 0.1, 5), values, "recipe", "denoised")
    wanted = values @ values.T
    assert np.allclose(gram.products, wanted / wanted.diagonal().max())
    assert (gram.recipe, gram.kept, gram.runs) == ("recipe", "denoised", 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_are_no_calibration(bad):
    values = np.ones((3, 4))
    values[1, 2] = bad
    with pytest.raises(ValueError, match="not finite"):
        Gram.of(np.array([1.0, 0.5, 0.1]), values)


def test_values_of_nothing_are_no_division_by_zero():
    assert np.isfinite(Gram.of(np.array([1.0, 0.5]), np.zeros((2, 4))).products).all()


def test_runs_are_averaged_by_their_number():
    grams = [recorded(FLOW, seed=s).gram("test") for s in range(4)]
    one = grams[0]
    for other in grams[1:]:
        one = one.averaged(other)
    pairs = grams[0].averaged(grams[1]).averaged(grams[2].averaged(grams[3]))
    wanted = np.mean([g.products for g in grams], 0)
    assert one.runs == pairs.runs == 4
    assert np.allclose(one.products, wanted) and np.allclose(pairs.products, wanted)
    assert np.allclose(grams[0].products, recorded(FLOW, seed=0).gram("").products), "the parts stay as they were"


@pytest.mark.parametrize(
    "other",
    [
        recorded(FLOW, "denoised").gram(""),
        recorded(EPS).gram(""),
        Gram(FLOW.times[:-2], np.eye(STEPS - 1)),
        Gram(FLOW.times[:-1] * 0.99, np.eye(STEPS)),
    ],
    ids=["of another kind", "of another model", "shorter", "elsewhere"],
)
def test_runs_that_do_not_belong_together_are_not_averaged(other):
    with pytest.raises(ValueError, match="cannot be averaged"):
        recorded(FLOW).gram("").averaged(other)


@pytest.mark.parametrize("kept", ["velocity", "denoised"])
@pytest.mark.parametrize("grid", [FLOW, EPS], ids=["flow", "eps"])
def test_a_gram_matrix_survives_its_file(grid, kept):
    first = recorded(grid, kept, seed=1).gram('a "recipe", \u00fc \n')
    gram = first.averaged(recorded(grid, kept, seed=2).gram(""))
    again = Gram.from_json(gram.to_json())
    assert (again.recipe, again.kept, again.runs) == (gram.recipe, kept, 2)
    assert np.allclose(again.times, gram.times, atol=1e-6)
    assert np.allclose(again.products, gram.products, rtol=1e-5, atol=1e-9)
    assert np.array_equal(again.products, again.products.T)
    assert Gram.from_json(again.to_json()).to_json() == again.to_json()
    # and what is read can go on learning
    assert again.averaged(recorded(grid, kept, seed=3).gram("")).runs == 3


def test_an_older_file_is_of_one_run_and_of_velocities():
    gram = Gram.from_json('{"times": [1, 0.5], "products": [1, 0.5, 1], "recipe": "old"}')
    assert (gram.kept, gram.runs) == ("velocity", 1)


def test_on_its_own_grid_a_gram_matrix_is_itself():
    gram = recorded(EPS).gram("")
    assert np.allclose(gram.on(EPS), gram.products)


def test_a_long_calibration_is_still_small():
    grid = Grid.of([1 - i / 100 for i in range(101)])
    assert len(recorded(grid, elements=8).gram("x").to_json()) < 80_000


GOOD = recorded(FLOW).gram("good").to_json()


def changed(**values):
    return json.dumps({**json.loads(GOOD), **values})


def spoiled(name, *values):
    """The good file with its first numbers replaced."""
    data = json.loads(GOOD)
    data[name] = [*values, *data[name][len(values) :]]
    return json.dumps(data)


N = len(json.loads(GOOD)["products"])
HOSTILE = {
    "empty": "",
    "blank": " \n",
    "zeros": "\x00" * 100,
    "a page": "<html></html>",
    "null": "null",
    "a number": "1e3",
    "a string": '"times"',
    "a list": f"[{GOOD}]",
    "no times": json.dumps({"products": [1, 1, 1], "recipe": ""}),
    "no products": json.dumps({"times": [1, 0.5], "recipe": ""}),
    "no recipe": json.dumps({"times": [1, 0.5], "products": [1, 1, 1]}),
    "times a string": changed(times="1, 0.5"),
    "times words": spoiled("times", "one"),
    "times null": changed(times=None),
    "times with null": spoiled("times", None),
    "times a dict": changed(times={"0": 1}),
    "times of lists": changed(times=[[t] for t in range(STEPS)]),
    "times ragged": spoiled("times", [1, 2]),
    "times empty": changed(times=[], products=[]),
    "one time": changed(times=[1.0], products=[1.0]),
    "times that rise": spoiled("times", 0.0),
    "times that repeat": changed(times=[0.5] * STEPS),
    "times NaN": spoiled("times", math.nan),
    "times Infinity": spoiled("times", math.inf),
    "products NaN": spoiled("products", math.nan),
    "products -Infinity": spoiled("products", -math.inf),
    "products beyond float64": GOOD.replace('"products": [', '"products": [1e999, ', 1),
    "products too few": changed(products=[1.0] * (N - 1)),
    "products too many": changed(products=[1.0] * (N + 1)),
    "products a matrix": changed(products=np.eye(STEPS).tolist()),
    "products words": spoiled("products", "x"),
    "huge": changed(times=list(range(2001, 0, -1)), products=[0.0]),
    "huge and whole": changed(times=list(range(2500, 0, -1)), products=[0] * (2500 * 2501 // 2)),
    "kept unknown": changed(kept="residual"),
    "kept a path": changed(kept="../../velocity"),
    "kept null": changed(kept=None),
    "kept a list": changed(kept=["velocity"]),
    "kept a dict": changed(kept={"velocity": 1}),
    "runs 0": changed(runs=0),
    "runs negative": changed(runs=-3),
    "runs a word": changed(runs="many"),
    "runs null": changed(runs=None),
    "runs a list": changed(runs=[1]),
    "runs NaN": changed(runs=math.nan),
    "runs beyond reason": changed(runs=10**12),
    "a number of too many digits": changed(runs=0).replace('"runs": 0', f'"runs": {"9" * 5000}'),
    "two files": GOOD + GOOD,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_file_is_refused_as_what_it_is_not(text):
    with pytest.raises(ValueError, match="not a Skipstone calibration"):
        Gram.from_json(text)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9, 0.999])
def test_half_a_file_is_refused(share):
    with pytest.raises(ValueError, match="not a Skipstone calibration"):
        Gram.from_json(GOOD[: int(share * len(GOOD))])


# --- the recorder ---


@pytest.mark.parametrize("kept", ["velocity", "denoised"])
@pytest.mark.parametrize("grid", [FLOW, EPS], ids=["flow", "eps"])
def test_what_is_recorded_is_the_gram_matrix_of_the_outputs(grid, kept):
    x, d = trajectory(grid)
    sigmas = torch.tensor(grid.sigmas[:-1], dtype=torch.float64)[:, None]
    values = (d if kept == "denoised" else (x - d) / sigmas).numpy()
    gram = recorded(grid, kept).gram("recipe")
    wanted = Gram.of(grid.times[:-1], values)
    assert np.allclose(gram.products, wanted.products, atol=1e-5)
    assert np.allclose(gram.times, grid.times[:-1])
    assert (gram.recipe, gram.kept, gram.runs) == ("recipe", kept, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_large_latent_is_recorded_in_part_and_little_is_kept(dtype):
    shape = (1, 16, 9, 64, 128)
    recorder = GramRecorder(FLOW, "velocity")
    pattern = torch.linspace(-2, 2, 128).expand(shape)
    for i, sigma in enumerate(FLOW.sigmas[:-1]):
        d = torch.cos(pattern + 0.1 * i).to(dtype)
        recorder.observe(sigma, (d + sigma * torch.sin(pattern + 0.2 * i)).to(dtype), d)
    kept = sum(row.untyped_storage().nbytes() for row in recorder.rows.values())
    assert kept <= STEPS * SAMPLE * 8
    v = torch.stack([torch.sin(pattern[0, 0, 0, 0] + 0.2 * i) for i in range(STEPS)]).double().numpy()
    # rounding of half precision is divided by sigma
    assert np.allclose(recorder.gram("").products, Gram.of(FLOW.times[:-1], v).products, atol=0.06)


def test_what_is_recorded_is_no_alias():
    recorder = GramRecorder(FLOW, "denoised")
    for sigma, x, d in zip(FLOW.sigmas, *trajectory(FLOW), strict=False):
        recorder.observe(sigma, x, d)
        x.fill_(math.nan)
        d.fill_(math.nan)
    assert np.allclose(recorder.gram("").products, recorded(FLOW, "denoised").gram("").products)


@pytest.mark.parametrize("missing", [0, 5, STEPS - 1])
def test_a_run_with_a_step_missing_is_no_calibration(missing):
    recorder = GramRecorder(FLOW, "velocity")
    for i, (sigma, x, d) in enumerate(zip(FLOW.sigmas, *trajectory(FLOW), strict=False)):
        if i != missing:
            recorder.observe(sigma, x, d)
    with pytest.raises(ValueError, match="at every step"):
        recorder.gram("")


def test_looks_off_the_grid_and_second_looks_do_not_count():
    recorder = GramRecorder(FLOW, "velocity")
    noise = torch.full((60,), 99.0, dtype=torch.float64)
    for i, (x, d) in enumerate(zip(*trajectory(FLOW), strict=True)):
        sigma, after = FLOW.sigmas[i], FLOW.sigmas[i + 1]
        recorder.observe(sigma * (1 + 1e-7), x, d)  # a rounding error is no other place
        recorder.observe(sigma, noise, noise)  # Heun's second look
        recorder.observe((sigma + after) / 2, noise, noise)  # between two steps
    recorder.observe(0.0, noise, noise)
    assert np.allclose(recorder.gram("").products, recorded(FLOW).gram("").products, atol=1e-5)


def test_a_look_between_two_steps_is_none_at_either():
    recorder = GramRecorder(FLOW, "velocity")
    for sigma, after in zip(FLOW.sigmas, FLOW.sigmas[1:], strict=False):
        recorder.observe((sigma + after) / 2, torch.ones(4), torch.zeros(4))
    with pytest.raises(ValueError, match="at every step"):
        recorder.gram("")


def test_evaluations_a_little_below_the_grid_are_recorded_at_their_own_time():
    """Detail Daemon's, whose largest shifts are of more than a step."""
    recorder, times = GramRecorder(FLOW, "velocity"), []
    for i, (sigma, after) in enumerate(zip(FLOW.sigmas, FLOW.sigmas[1:], strict=False)):
        at = sigma - (sigma - after) * (0.3 if i != 5 else 0.7)
        recorder.observe(at, torch.full((4,), at, dtype=torch.float64), torch.zeros(4, dtype=torch.float64))
        times += [at] if i != 5 else []
    assert recorder.gram("").times == pytest.approx(times)


def test_a_nan_is_no_calibration():
    recorder = recorded(FLOW)
    recorder.rows.clear()
    for sigma, x, d in zip(FLOW.sigmas, *trajectory(FLOW), strict=False):
        recorder.observe(sigma, x, d * (math.nan if sigma == FLOW.sigmas[4] else 1))
    with pytest.raises(ValueError, match="not finite"):
        recorder.gram("")


@pytest.mark.parametrize("sigmas", [[1.0, 0.0], [1.0, 0.5, 0.7, 0.0], [0.0]])
def test_a_grid_that_teaches_nothing_is_no_calibration(sigmas):
    recorder = GramRecorder(Grid.of(sigmas), "velocity")
    for sigma in sigmas[:-1]:
        recorder.observe(sigma, torch.ones(4), torch.zeros(4))
    with pytest.raises(ValueError, match="at every step"):
        recorder.gram("")


# --- edge costs are errors that really happen ---


def real_error(predictor, grid, integrator, computed, b, c):
    """By a Run over a recorded trajectory that computes the steps `computed`: the displacement that the predictions of the
    steps b+1 .. c-1 put in the wrong place, where an error of D is one of -1/sigma in the derivative."""
    mask = StepMask(tuple(i in computed for i in range(grid.steps)))
    run = Run(Method("Test", "", (Mask(mask),), predictor), grid, integrator)
    x, d = trajectory(grid)
    miss = torch.zeros_like(d[0])
    for i in range(c):
        sigma, after = grid.sigmas[i], grid.sigmas[i + 1]
        run.tick(sigma)
        if run.decide(["a"], run.input_of(x[i])).compute:
            assert i <= b
            run.observe("a", x[i], d[i])
        elif i > b:
            miss += (after - sigma) * (d[i] - run.predict("a", x[i])) / sigma
        else:
            run.predict("a", x[i])
    rms = float(miss.square().mean().sqrt())
    return rms if grid.flow else rms / (1 + grid.sigmas[c])


def scale(grid, kept):
    """Gram matrices are kept relative to the largest mean square."""
    x, d = trajectory(grid)
    value = d if kept == "denoised" else (x - d) / torch.tensor(grid.sigmas[:-1], dtype=torch.float64)[:, None]
    return float(value.square().mean(1).max().sqrt())


KINDS = pytest.mark.parametrize(
    ("grid", "kept"),
    [(FLOW, "velocity"), (FLOW, "denoised"), (EPS, "velocity"), (EPS, "denoised")],
    ids=["flow", "flow denoised", "eps", "eps denoised"],
)


@KINDS
@pytest.mark.parametrize("predictor", [Reuse(), Linear(), Linear(0.75), Linear(1.0, "log-SNR"), Linear(0.5, "index")])
def test_costs_of_two_anchors_are_the_errors_of_a_real_run(predictor, grid, kept):
    cost = edge_costs(predictor, grid, recorded(grid, kept).gram("")) * scale(grid, kept)
    integrator = "sde" if kept == "denoised" else "euler"
    for a, b, c in [(0, 1, 4), (1, 3, 9), (2, 7, 11), (4, 5, 13), (4, 5, 6)]:
        wanted = real_error(predictor, grid, integrator, {*range(a + 1), b}, b, c)
        assert cost[a, b, c] == pytest.approx(wanted, rel=1e-3, abs=1e-4)
    wanted = real_error(predictor, grid, integrator, {0}, 0, 5)
    assert cost[0, 0, 5] == pytest.approx(wanted, rel=1e-3, abs=1e-4)


@KINDS
@pytest.mark.parametrize(
    "predictor",
    [
        Taylor(2),
        Taylor(3, "index", True),
        Spectrum(),
        Spectrum(0.4, 3, 1.0, keep=6, half=True),
        JVP(3),
        RecursiveJVP(2),
    ],
)
def test_costs_of_longer_pasts_are_the_errors_of_a_run_that_was_full_until_then(predictor, grid, kept):
    cost = edge_costs(predictor, grid, recorded(grid, kept).gram("")) * scale(grid, kept)
    integrator = "sde" if kept == "denoised" else "euler"
    for b, c in [(0, 3), (1, 4), (5, 9), (7, 13), (9, 11)]:
        wanted = real_error(predictor, grid, integrator, set(range(b + 1)), b, c)
        assert cost[max(b - 1, 0), b, c] == pytest.approx(wanted, rel=1e-3, abs=1e-4)


@KINDS
@pytest.mark.parametrize(
    "predictor", [Reuse(), Linear(), Corrected(), Taylor(2), Spectrum(), JVP(3)], ids=lambda p: p.name
)
def test_adjacent_steps_cost_nothing_and_others_something(predictor, grid, kept):
    cost = edge_costs(predictor, grid, recorded(grid, kept).gram(""))
    assert cost.shape == (STEPS, STEPS, STEPS + 1)
    for b in range(1, STEPS - 2):
        assert cost[b - 1, b, b + 1] == pytest.approx(0, abs=1e-6)
        assert cost[b - 1, b, b + 2] > 0
