"""MagCache: the schedule follows from the ratios alone, is known at the start, and is read in sigma for any number of steps."""

import math

import numpy as np
import pytest
import torch

from skipstone.core.step.calibration.block_profile import BlockProfile
from skipstone.core.step.clock import Grid
from skipstone.core.step.method import Blocks, Method
from skipstone.core.step.policies import Cap, ConditioningChanges, Mask, Ratios, StepMask, Warmup
from skipstone.core.step.predictors import Reuse
from skipstone.core.step.published.coefficients import MAGCACHE, MEASURED, Magnitudes, magnitudes, names, row_of
from skipstone.core.step.run import Run
from skipstone.tests.core.grids import flow, karras

FLUX = {"image_model": "flux", "hidden_size": 3072, "vec_in_dim": 768}
WAN = {"image_model": "wan2.1", "model_type": "t2v", "in_dim": 16}


def published(ratios, error, most, retention):
    """MagCache's loop, as the paper has it, for ratios with a 1 in front. Which steps are computed; the last one always is."""
    rho, total, n, computed = 1.0, 0.0, 0, []
    for i, ratio in enumerate(ratios):
        skip = False
        if i >= max(int(retention * len(ratios)), 1):
            rho, n = rho * ratio, n + 1
            total += abs(1 - rho)
            skip = total < error and n <= most and i < len(ratios) - 1
        if not skip:
            rho, total, n = 1.0, 0.0, 0
        computed.append(not skip)
    return computed


def played(grid, policy, *guards, **known):
    """Which of the grid's steps a run computes, and its report."""
    run = Run(Method("MagCache", "", (*guards, policy), Reuse(), blocks=Blocks(0, 0, "none")), grid, "euler", **known)
    computed = []
    for sigma in grid.sigmas[:-1]:
        run.tick(sigma)
        computed.append(run.decide(["a"]).compute)
        if computed[-1]:
            run.keep("a", torch.ones(2))
    return computed, run.close(True)


@pytest.mark.parametrize("name", names(MAGCACHE))
def test_the_schedule_is_the_published_one(name):
    row = row_of(MAGCACHE, name, {})
    assert row is not None
    for error, retention, most in ((0.06, 0.2, 2), (0.24, 0.1, 5), (0.02, 0.2, 3)):
        computed, report = played(flow(row.steps, row.data["shift"]), Ratios(error, retention, most, name))
        wanted = published([1.0, *row.data["ratios"]], error, most, retention)
        assert computed == wanted
        assert report.planned == [i for i, c in enumerate(wanted) if c]


@pytest.mark.parametrize("name", names(MAGCACHE))
def test_a_table_belongs_to_its_number_of_steps(name):
    row = row_of(MAGCACHE, name, {})
    assert row is not None
    assert len(row.data["ratios"]) == row.steps - 1
    assert all(0.5 < r < 1.7 for r in row.data["ratios"])
    assert math.prod(magnitudes(name).ratios(flow(row.steps, row.data["shift"]))) == pytest.approx(
        math.prod(row.data["ratios"])
    )


@pytest.mark.parametrize("steps", [8, 15, 56, 100])
def test_at_another_number_of_steps_the_size_goes_the_same_way(steps):
    """Of each step to the one before it is another ratio, but from the start to any time it is the same."""
    row = row_of(MAGCACHE, "Flux", {})
    assert row is not None
    shift = row.data["shift"]
    ratios = magnitudes("Flux").ratios(flow(steps, shift))
    assert ratios[0] == 1
    sizes, published_sizes = np.cumprod(ratios), np.cumprod([1.0, *row.data["ratios"]])
    times = [flow(n, shift).times[:-1] for n in (steps, row.steps)]
    inside = times[0] >= times[1][-1]
    there = np.exp(np.interp(-times[0], -times[1], np.log(published_sizes)))
    assert np.allclose(sizes[inside], there[inside])


def test_a_part_of_the_schedule_has_the_ratios_of_that_part():
    """As image to image, or the second of two samplers, runs it."""
    row = row_of(MAGCACHE, "Flux", {})
    assert row is not None
    whole = flow(row.steps, row.data["shift"])
    part = Grid.of(whole.sigmas[10:])
    assert np.allclose(magnitudes("Flux").ratios(part)[1:], row.data["ratios"][10:])
    assert magnitudes("Flux").ratios(part)[0] == 1


def test_below_what_was_measured_the_last_slope_goes_on():
    sizes = Magnitudes.of([1.0, 0.5], [0.5])
    grid = Grid.of([1.0, 0.75, 0.5, 0.25, 0.0])
    assert np.allclose(sizes.ratios(grid), [1, 0.5**0.5, 0.5**0.5, 0.5**0.5])


def test_time_is_the_share_of_noise_for_models_that_predict_noise():
    grid = karras(10)
    ratios = Magnitudes.of([1.0, 0.0], [math.exp(-1)]).ratios(grid)
    assert np.allclose(np.log(ratios[1:]), np.diff(grid.times[:-1]))


def test_the_table_is_chosen_by_what_the_model_is():
    def note(network, steps=28):
        return played(flow(steps), Ratios(0.5), network=network)[1].costs

    assert note(FLUX) == "Flux"
    assert "Flux Kontext" in note({**FLUX, "reference": True})
    assert "Wan 2.1 t2v 1.3B" in note({**WAN, "dim": 1536})
    assert "Wan 2.1 t2v 14B" in note({**WAN, "dim": 5120})
    assert "VACE 14B" in note({**WAN, "model_type": "vace", "dim": 5120})
    assert "Qwen-Image" in note({"image_model": "qwen_image"})
    video = {"image_model": "hunyuan_video", "vision_in_dim": 1152}
    assert "20 steps" in note(video, 12) and "20 steps" in note(video, 24)
    assert "40 steps" in note(video, 30) and "40 steps" in note(video, 50)


def test_without_a_table_everything_is_computed_and_that_is_said():
    computed, report = played(flow(20), Ratios(0.3), network={"image_model": "lumina2", "dim": 3840})
    assert all(computed)
    assert "no magnitude ratios are published for this model" in report.notes[0]
    assert "First Block Cache" in report.notes[1]


def test_measured_ratios_stand_in_where_none_are_published_and_go_before_where_asked_for():
    grid = flow(20)
    own = BlockProfile(grid.times[:-1], np.full(19, 0.99), np.full(19, 0.1), np.zeros(0), "a run")
    wanted = published([1.0, *own.ratios], 0.1, 3, 0.2)
    for network, table in (({}, "auto"), (FLUX, MEASURED), ({}, MEASURED)):
        computed, _ = played(grid, Ratios(0.1, 0.2, 3, table), network=network, block_profile=own)
        assert computed == wanted
    assert played(grid, Ratios(0.1, 0.2, 3), network=FLUX, block_profile=own)[0] != wanted
    assert Ratios(0.1).requires_profile({}, None) and Ratios(0.1, table=MEASURED).requires_profile(FLUX, None)
    assert not Ratios(0.1).requires_profile(FLUX, None) and not Ratios(0.1).requires_profile({}, own)


def test_what_guards_force_is_no_part_of_the_sum():
    """Nor does it leave a sum behind, as the reference's step 11 does."""
    grid, own = flow(20), BlockProfile(flow(20).times[:-1], np.full(19, 0.95), np.full(19, 0.1), np.zeros(0))
    policy = Ratios(0.11, table=MEASURED)  # one skip (0.05), not two (0.1475)
    alone, _ = played(grid, policy, Warmup(3), block_profile=own)
    assert [i for i, c in enumerate(alone) if not c] == [*range(3, 19, 2)]
    events, _ = played(grid, policy, Warmup(3), block_profile=own, events=(7,))
    assert [i for i, c in enumerate(events) if not c] == [3, 5, 8, 10, 12, 14, 16, 18]
    masked, _ = played(grid, policy, Mask(StepMask((True,) * 10 + (False,) * 10, policy="dynamic")), block_profile=own)
    assert [i for i, c in enumerate(masked) if not c] == [10, 12, 14, 16, 18]
    assert isinstance(ConditioningChanges(frozenset({7})), ConditioningChanges)


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 0.3])
def test_the_typical_deviation_fires_whatever_the_model(scale):
    draw = np.random.default_rng(0)
    own = BlockProfile(flow(20).times[:-1], 1 + scale * draw.standard_normal(19) / 3, np.full(19, 0.1), np.zeros(0))
    _, report = played(flow(20), Ratios(typical=1.2, retention=0.2, max_skips=1, table=MEASURED), block_profile=own)
    assert report.skipped >= 4
    usual = float(np.median(np.abs(own.ratios - 1)))
    wanted = published([1.0, *own.ratios], 1.2 * usual, 1, 0.2)
    assert [e.computed for e in report.evaluations] == wanted


def test_a_cap_and_the_most_in_a_row_are_both_in_force():
    own = BlockProfile(flow(20).times[:-1], np.full(19, 1.0), np.full(19, 0.1), np.zeros(0))
    for policy, guards, most in (
        (Ratios(1.0, max_skips=3, table=MEASURED), (), 3),
        (Ratios(1.0, table=MEASURED), (Cap(2),), 2),
        (Ratios(1.0, max_skips=3, table=MEASURED), (Cap(2),), 2),
        (Ratios(1.0, table=MEASURED), (), 18),
    ):
        computed, _ = played(flow(20), policy, *guards, block_profile=own)
        text = "".join("c" if c else "s" for c in computed)
        assert "s" * most in text and "s" * (most + 1) not in text


def test_a_threshold_that_is_not_met_says_how_near_it_came():
    own = BlockProfile(flow(20).times[:-1], np.full(19, 0.9), np.full(19, 0.1), np.zeros(0))
    computed, report = played(flow(20), Ratios(0.05, table=MEASURED), block_profile=own)
    assert all(computed)
    assert "raise the threshold (0.05); smallest error of a skip: 0.1" in report.notes[0]
    _, report = played(flow(20), Ratios(0.05, retention=1.0, table=MEASURED), block_profile=own)
    assert "no step was left to skip" in report.notes[0]


def test_nothing_is_read_from_a_tensor():
    computed, report = played(flow(28, 3.158), Ratios(0.24, 0.1, 5, "Flux"))
    assert not all(computed)
    assert all(e.indicator is None for e in report.evaluations)
    assert report.threshold is None


def test_a_sampler_that_looks_twice_a_step_follows_the_same_schedule():
    grid = flow(28, 3.158)
    run = Run(
        Method("MagCache", "", (Ratios(0.24, 0.1, 5, "Flux"),), Reuse(), blocks=Blocks(0, 0, "none")), grid, "ode"
    )
    looks = [s for a, b in zip(grid.sigmas[:-2], grid.sigmas[1:-1], strict=True) for s in (a, (a + b) / 2)]
    computed = []
    for sigma in looks:
        run.tick(sigma)
        computed.append(run.decide(["a"]).compute)
        if computed[-1]:
            run.keep("a", torch.ones(2))
    first = [i // 2 for i, c in enumerate(computed) if c and i % 2 == 0]
    assert first == [i for i in run.report.planned if i < 27]
    assert not any(computed[i] and not computed[i - 1] for i in range(1, len(computed), 2))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"error": -0.1}, "threshold is at least 0"),
        ({"error": math.nan}, "threshold is at least 0"),
        ({"error": 0.1, "retention": 1.5}, "retention is a share"),
        ({"error": 0.1, "retention": math.nan}, "retention is a share"),
        ({"error": 0.1, "max_skips": -1}, "number of steps"),
        ({"error": 0.1, "table": "tomorrow"}, "table is one of auto, measured, Flux Kontext, Flux"),
    ],
)
def test_a_bad_value_is_refused(values, said):
    with pytest.raises(ValueError, match=said):
        Ratios(**values)


def test_on_sigmas_that_do_not_fall_everything_is_computed():
    computed, report = played(Grid.of([1.0, 0.5, 0.8, 0.4, 0.6, 0.2, 0.0]), Ratios(9.0, 0.0, 5, "Flux"), network=FLUX)
    assert all(computed) and report.finished
