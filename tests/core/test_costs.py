"""The costs that a run is planned with: which recordings count, how much, and what is read between their steps."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from skipstone.core.step.calibration.costs import Origin, Recording, costs_for, default
from skipstone.core.step.calibration.gram import Gram
from skipstone.core.step.calibration.recipe import Recipe, similarity
from skipstone.core.step.clock import Grid
from skipstone.core.step.planning.edge_costs import displacement, edge_costs
from skipstone.core.step.planning.planner import Question, solve
from skipstone.core.step.planning.pssp import Paths
from skipstone.core.step.predictors import Corrected

STEPS = 20
OWN = Recipe("Flux:aa", "Flow", "sample_euler", "3 (CFGGuider)", "16x16", STEPS, (1.0, 0.0), base="Flux:aa")
LORA = replace(OWN, model="Flux:bb")
FINE_TUNE = replace(OWN, model="Flux:cc", base="Flux:cc")
OTHER = replace(OWN, model="UNet:dd", base="UNet:dd")


def grid(steps=STEPS, shift=3.0):
    t = np.linspace(1, 0, steps + 1)
    return Grid.of((shift * t / (1 + (shift - 1) * t)).tolist())


def derivatives(times, seed=0, elements=80):
    """Two passes of a smooth function of t that bends most at a place of its own, shape (2, n, elements)."""
    rng = np.random.default_rng(seed)
    at, rate = 0.2 + 0.6 * rng.random(), rng.standard_normal((2, 1, elements))
    t = np.asarray(times)[None, :, None]
    return np.tanh((t - at) * 6) * rate + np.sin(3 * t + rng.standard_normal((2, 1, elements)))


def recorded(at, steps=None, seed=0, passes=2, kept="velocity", runs=1):
    """A Gram matrix of the steps `steps` of the grid; of all without."""
    times = at.times[:-1] if steps is None else at.times[:-1][list(steps)]
    conditional, unconditional = derivatives(times, seed)
    rows = [conditional, unconditional] if passes == 2 else [unconditional + 3 * (conditional - unconditional)]
    return replace(Gram.of(times, np.concatenate(rows), "recorded", kept, passes), runs=runs)


def own_costs(at, cfg=3.0, seed=0):
    return costs_for(OWN, cfg, at, "velocity", [Recording(recorded(at, seed=seed), OWN, True)])


def planned(at, gram, budget):
    forced = tuple(i in (0, 1, at.steps - 1) for i in range(at.steps))
    return solve(Question(Corrected(), at.sigmas, at.flow, gram, budget, 2.0, forced))


def true_error(at, gram, solution):
    """Of a plan, by the costs of the model itself."""
    cost = edge_costs(solution.predictor, at, gram)[:, :, : at.steps]
    paths = Paths(cost, at.steps, 2.0, np.zeros(at.steps, bool))
    return paths.error(solution.anchors) / displacement(at, gram)


# --- which recordings count ---


def test_without_recordings_costs_are_shipped():
    found = costs_for(OWN, 3.0, grid(), "velocity")
    assert found.origin is Origin.SHIPPED and found.runs == 0
    assert np.array_equal(found.gram.products, default(grid(), 3.0).products)


@pytest.mark.parametrize(("recorded_at", "passes", "alone"), [(1.0, 1, False), (1.0, 2, True), (6.0, 1, True)])
def test_a_full_run_without_guidance_tells_little_of_a_guided_one(recorded_at, passes, alone):
    """It has one pass, so the built-in costs count more than it does. Both passes, or other guidance, tell more."""
    recipe = replace(OWN, cfg=f"{recorded_at:g} (CFGGuider)")
    gram = recorded(grid(), passes=passes)
    found = costs_for(OWN, 3.0, grid(), "velocity", [Recording(gram, recipe, True)])
    assert found.origin is (Origin.MEASURED if alone else Origin.LEARNED)
    if not alone:
        shares = [
            np.corrcoef(found.gram.products.ravel(), m.ravel())[0, 1]
            for m in (gram.on(grid()), default(grid(), 3.0).products)
        ]
        assert shares[1] > shares[0]


def test_a_full_run_with_the_same_guider_without_a_scale_counts_as_measured():
    recipe = replace(OWN, cfg="DualCFGGuider")
    other = Recording(recorded(grid(), passes=1), replace(recipe, sampler="sample_dpmpp_2m"), True)
    assert recipe.guidance is None
    assert costs_for(recipe, None, grid(), "velocity", [other]).origin is Origin.MEASURED


def test_a_full_run_with_the_same_settings_is_used_alone():
    full = Recording(recorded(grid()), OWN, True)
    others = [Recording(recorded(grid(), seed=s), replace(OWN, sampler=f"sample_{s}"), True) for s in (1, 2)]
    found = costs_for(OWN, 3.0, grid(), "velocity", [*others, full])
    assert found.origin is Origin.MEASURED
    assert np.allclose(found.gram.products, full.gram.guided(3.0).products)


@pytest.mark.parametrize(
    ("recipe", "origin"),
    [
        (replace(OWN, sampler="sample_dpmpp_2m"), Origin.MEASURED),
        (replace(OWN, cfg="7 (CFGGuider)"), Origin.MEASURED),
        (replace(OWN, size="32x32"), Origin.MEASURED),
        (replace(OWN, sigmas=(0.9, 0.0)), Origin.MEASURED),
        (LORA, Origin.MEASURED),
        (replace(OWN, base=""), Origin.MEASURED),
        (FINE_TUNE, Origin.RELATED),
        (OTHER, Origin.SHIPPED),
        (replace(OWN, prediction="Eps"), Origin.SHIPPED),
    ],
    ids=[
        "sampler",
        "CFG",
        "size",
        "sigmas",
        "LoRA",
        "an earlier version's",
        "fine-tune",
        "other model",
        "other prediction",
    ],
)
def test_what_is_known_is_used_for_neighbours(recipe, origin):
    found = costs_for(OWN, 3.0, grid(), "velocity", [Recording(recorded(grid()), recipe, True)])
    assert found.origin is origin
    assert np.allclose(found.gram.products, default(grid(), 3.0).products) is (origin is Origin.SHIPPED)


def test_runs_that_skipped_are_learned_from_beside_shipped_costs():
    part = Recording(recorded(grid(), range(0, STEPS, 2)), OWN, False)
    found = costs_for(OWN, 3.0, grid(), "velocity", [part])
    assert found.origin is Origin.LEARNED and found.runs == 1
    shipped, alone = default(grid(), 3.0).products, own_costs(grid()).gram.products
    assert 0 < np.linalg.norm(found.gram.products - alone) < np.linalg.norm(shipped - alone)


def test_the_more_runs_skipped_the_less_shipped_costs_count():
    """One prompt alone could mislead."""
    shipped = default(grid(), 3.0).products
    apart = []
    for runs in (1, 2, 8):
        part = Recording(recorded(grid(), range(0, STEPS, 2), runs=runs), OWN, False)
        found = costs_for(OWN, 3.0, grid(), "velocity", [part]).gram.products
        apart.append(float(np.linalg.norm(found - shipped)))
    assert 0 < 2 * apart[0] < 1.5 * apart[1] < 1.5 * apart[2]


def test_a_recording_of_another_part_of_the_schedule_is_left_out():
    late = [i for i in range(STEPS) if grid().times[i] < 0.5]
    found = costs_for(OWN, 3.0, grid(), "velocity", [Recording(recorded(grid(), late), OWN, True)])
    assert found.origin is Origin.SHIPPED


@pytest.mark.parametrize("kept", ["velocity", "denoised"])
def test_recordings_of_the_value_that_the_run_predicts_are_preferred(kept):
    both = [Recording(recorded(grid(), seed=s, kept=k), OWN, False) for s, k in enumerate(("velocity", "denoised"))]
    assert costs_for(replace(OWN, cfg="2 (CFGGuider)"), 2.0, grid(), kept, both).gram.kept == kept


def test_the_nearest_counts_most():
    order = [
        OWN,
        replace(OWN, size="32x16"),
        LORA,
        replace(LORA, size="32x16"),
        FINE_TUNE,
    ]
    factors = [similarity(r, OWN, 1) for r in order]
    assert factors == sorted(factors, reverse=True) and factors[0] == 1 and factors[-1] > 0
    assert similarity(OTHER, OWN) == 0
    assert (
        similarity(replace(OWN, cfg="1 (CFGGuider)"), OWN, 1)
        < similarity(replace(OWN, cfg="4 (CFGGuider)"), OWN, 1)
        < 1
    )
    assert similarity(replace(OWN, cfg="1 (CFGGuider)"), OWN, 2) == 1, "two passes give the costs of any CFG"
    assert similarity(replace(OWN, sampler="sample_euler_ancestral"), OWN) < 0.5


# --- one recording for every CFG ---


@pytest.mark.parametrize("cfg", [0.0, 1.0, 2.5, 7.0])
def test_both_passes_give_the_costs_of_any_cfg(cfg):
    conditional, unconditional = derivatives(grid().times[:-1])
    wanted = Gram.of(grid().times[:-1], unconditional + cfg * (conditional - unconditional))
    assert np.allclose(recorded(grid()).guided(cfg).products, wanted.products)


def test_both_passes_survive_their_file():
    gram = recorded(grid())
    again = Gram.from_json(gram.to_json())
    assert again.passes == 2 and np.allclose(again.products, gram.products, rtol=1e-5, atol=1e-9)
    with pytest.raises(ValueError, match="not a Skipstone calibration"):
        Gram.from_json(json.dumps({**gram.as_data(), "passes": 1}))


# --- what is learned from runs that skip ---


@pytest.mark.parametrize("seed", range(4))
def test_runs_that_skip_come_near_to_a_full_recording(seed):
    """A model that bends elsewhere than the shipped ones: most of the distance, in dB by its true costs, is gone after 8 runs of 11 steps
    of 20. For the demo's models see `make bench-carry`."""
    at = grid()
    own = own_costs(at, seed=seed).gram
    best = true_error(at, own, planned(at, own, 11))
    parts: list[Recording] = []
    errors = []
    for _ in range(9):
        plan = planned(at, costs_for(OWN, 3.0, at, "velocity", parts).gram, 11)
        errors.append(20 * np.log10(true_error(at, own, plan) / best))
        parts.append(Recording(recorded(at, plan.anchors, seed), OWN, False))
    assert errors[0] > 3 and errors[-1] <= 0.6 * errors[0]


# --- bounds ---


@pytest.mark.parametrize("steps", [129, 1000, 10_000])
def test_costs_of_long_runs_are_small(steps):
    found = costs_for(OWN, 3.0, grid(steps), "velocity", [Recording(recorded(grid()), OWN, False)])
    assert found.gram.products.size <= 128**2
    assert np.isfinite(found.gram.products).all()


@pytest.mark.parametrize(
    "spoiled",
    [
        None, [], "recipe", {}, {"model": 7}, {"steps": "20"}, {"steps": None}, {"sigmas": "1"}, {"sigmas": [None]},
        {"sampler": ["a"]}, {"cfg": "3\nERROR"}, {"size": "x" * 5000}, {"base": 3},
    ],
    ids=repr,
)  # fmt: skip
def test_a_recipe_that_is_none_is_refused(spoiled):
    good = json.loads(json.dumps(asdict(OWN)))
    assert Recipe.from_data(good) == OWN
    data = {**good, **spoiled} if isinstance(spoiled, dict) and spoiled else spoiled
    with pytest.raises(ValueError, match="not a recipe"):
        Recipe.from_data(data)


@pytest.mark.parametrize("size", ["", "ax2", "0x0", "-2x4"])
def test_a_foreign_size_is_no_error(size):
    assert similarity(replace(OWN, size=size), OWN) >= 0
