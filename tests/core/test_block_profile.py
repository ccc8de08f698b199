"""One full run teaches TeaCache's polynomial and MagCache's ratios: exact where the truth is known, sane where it is not."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from skipstone.core.step.calibration.block_profile import BlockProfile, BlockProfiler, fit
from skipstone.core.step.indicators.blocks import FirstBlockChange, Modulated
from skipstone.core.step.method import Blocks, Method
from skipstone.core.step.policies import Accumulator, PerModel, Ratios, Threshold, Warmup
from skipstone.core.step.predictors import Reuse
from skipstone.core.step.published.coefficients import MEASURED
from skipstone.core.step.run import Run
from skipstone.tests.core.grids import flow, karras

STEPS = 12
FLUX = {"image_model": "flux", "hidden_size": 3072, "vec_in_dim": 768}


def blocks(steps=STEPS, tokens=40, channels=16, seed=0):
    """Residuals (1, tokens, channels) and modulated inputs of the same shape, one a step, from numpy."""
    draw = np.random.default_rng(seed)
    residual, modulated = draw.standard_normal((2, 1, tokens, channels))
    told = []
    for i in range(steps):
        residual = residual * (1 - 0.01 * i) + 0.05 * draw.standard_normal(residual.shape)
        modulated = modulated + 0.03 * draw.standard_normal(modulated.shape)
        told.append((residual, modulated))
    return told


def taught(told, grid=None, dtype=torch.float64, modulated=True):
    profiler = BlockProfiler(grid or flow(len(told)))
    for sigma, (r, m) in zip(profiler.grid.sigmas, told, strict=False):
        profiler.observe(sigma, torch.from_numpy(r).to(dtype), torch.from_numpy(m).to(dtype) if modulated else None)
    return profiler


def relative(new, old):
    return np.abs(new - old).mean() / np.abs(old).mean()


def test_what_is_learned_is_what_the_formulas_say():
    told = blocks()
    profile = taught(told).profile("a tiny model, 12 steps")
    for i, ((old_r, old_m), (r, m)) in enumerate(pairwise(told)):
        sizes = np.linalg.norm(r, axis=-1) / np.linalg.norm(old_r, axis=-1)
        assert profile.ratios[i] == pytest.approx(sizes.mean(), rel=1e-5)
        assert profile.outputs[i] == pytest.approx(relative(r, old_r), rel=1e-4)
        assert profile.inputs[i] == pytest.approx(relative(m, old_m), rel=1e-4)
    assert profile.recipe == "a tiny model, 12 steps"
    assert np.allclose(profile.magnitudes.ratios(flow(STEPS))[1:], profile.ratios)


def test_half_precision_does_not_overflow():
    told = [(300 * r, m) for r, m in blocks(channels=512)]
    profile = taught(told, dtype=torch.float16).profile("")
    assert np.allclose(profile.ratios, taught(told).profile("").ratios, atol=2e-3)


def test_channels_may_be_another_dimension():
    told = blocks()
    profiler = BlockProfiler(flow(STEPS))
    for sigma, (r, m) in zip(profiler.grid.sigmas, told, strict=False):
        profiler.observe(sigma, torch.from_numpy(r.swapaxes(1, 2).copy()), torch.from_numpy(m), channels=1)
    assert np.allclose(profiler.profile("").ratios, taught(told).profile("").ratios)


def test_tokens_of_nothing_have_no_ratio():
    told = blocks()
    padded = [(np.concatenate((r, np.zeros_like(r[:, :7])), 1), m) for r, m in told]
    assert np.allclose(taught(padded).profile("").ratios, taught(told).profile("").ratios)


def test_without_a_modulated_input_there_are_ratios_and_no_polynomial():
    profile = taught(blocks(), modulated=False).profile("")
    assert profile.polynomial is None
    assert len(profile.ratios) == STEPS - 1
    assert Modulated().requires_profile({}, profile) and not Ratios(0.1).requires_profile({}, profile)


def test_looks_off_the_grid_and_second_looks_do_not_count():
    told, grid = blocks(), flow(STEPS)
    profiler = BlockProfiler(grid)
    for i, (r, m) in enumerate(told):
        profiler.observe(grid.sigmas[i], torch.from_numpy(r), torch.from_numpy(m))
        profiler.observe(grid.sigmas[i], torch.from_numpy(9 * r), torch.from_numpy(m))
        profiler.observe((grid.sigmas[i] + grid.sigmas[i + 1]) / 2, torch.from_numpy(9 * r), torch.from_numpy(m))
    assert np.allclose(profiler.profile("").ratios, taught(told).profile("").ratios)


def spoilt(profiler):
    profiler.invalidate()


def one_step_less(profiler):
    profiler.steps.pop()


def other_order(profiler):
    profiler.steps[3:5] = profiler.steps[4:2:-1]


@pytest.mark.parametrize("how", [spoilt, one_step_less, other_order])
def test_of_a_run_that_was_not_seen_whole_nothing_is_learned(how):
    profiler = taught(blocks())
    how(profiler)
    with pytest.raises(ValueError, match="at every step"):
        profiler.profile("")


def test_a_change_of_size_spoils_it():
    told = blocks()
    told[5] = (told[5][0][:, :30], told[5][1])
    with pytest.raises(ValueError, match="at every step"):
        taught(told).profile("")


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_blocks_that_gave_no_numbers_teach_nothing(value):
    told = blocks()
    told[5] = (np.full_like(told[5][0], value), told[5][1])
    with pytest.raises(ValueError, match="not finite"):
        taught(told).profile("")


def test_what_is_seen_is_neither_kept_nor_written_to():
    told, grid = blocks(), flow(STEPS)
    profiler = BlockProfiler(grid)
    for sigma, (r, m) in zip(grid.sigmas, told, strict=False):
        values = torch.from_numpy(r.copy()), torch.from_numpy(m.copy())
        profiler.observe(sigma, *values)
        assert torch.equal(values[0], torch.from_numpy(r)) and torch.equal(values[1], torch.from_numpy(m))
        for v in values:
            v.fill_(5.0)
    assert np.allclose(profiler.profile("").outputs, taught(told).profile("").outputs)


def test_of_large_residuals_little_is_kept():
    profiler = BlockProfiler(flow(4))
    profiler.observe(1.0, torch.ones(1, 100_000, 8), torch.ones(1, 100_000, 8))
    assert all(t is not None and t.numel() <= 65_536 for t in profiler.last)


@pytest.mark.parametrize("true", [(0.0, 1.5, 0.0), (0.02, 0.5, 3.0), (0.1, 0.0, 0.0), (0.0, 0.0, 7.0)])
def test_a_relation_of_its_kind_is_found_exactly(true):
    x = np.linspace(0.02, 0.3, 30)
    p = fit(x, true[0] + true[1] * x + true[2] * x**2)
    assert p.coefficients == pytest.approx(tuple(reversed(true)), abs=1e-6)
    assert (p.low, p.high) == (0.02, 0.3)


@pytest.mark.parametrize("seed", range(8))
def test_whatever_the_pairs_the_fit_is_above_0_rises_and_stays_within_them(seed):
    draw = np.random.default_rng(seed)
    n = int(draw.integers(1, 40))
    x, y = draw.uniform(0.001, 0.5, n), draw.uniform(0.001, 0.5, n)
    p = fit(x, y)
    values = np.array([p(v) for v in np.linspace(0, 1, 200)])
    assert (values > 0).all() and (np.diff(values) >= -1e-12).all()
    # three coefficients that cannot be below 0 follow no scatter: P does not leave what was seen
    inside = np.array([np.polyval(p.coefficients, v) for v in x])
    assert inside.max() <= y.max() * 1.5 and inside.min() >= y.min() * 0.5


def test_a_scatter_is_met_in_the_middle():
    draw = np.random.default_rng(1)
    x = draw.uniform(0.02, 0.2, 200)
    y = (0.01 + 1.2 * x) * draw.uniform(0.7, 1.3, 200)
    p = fit(x, y)
    grid = np.linspace(0.03, 0.19, 20)
    assert np.allclose([p(v) for v in grid], 0.01 + 1.2 * grid, rtol=0.12)


def test_json_and_back():
    profile = taught(blocks()).profile("a tiny model")
    again = BlockProfile.from_json(profile.to_json())
    for name in ("times", "ratios", "outputs", "inputs"):
        assert np.allclose(getattr(again, name), getattr(profile, name), rtol=1e-5)
    assert (again.recipe, again.runs) == ("a tiny model", 1)
    assert len(profile.to_json()) < 2000


def test_several_runs_are_averaged():
    a, b, c = (taught(blocks(seed=s)).profile("x") for s in range(3))
    both = a.averaged(b).averaged(c)
    assert both.runs == 3
    assert np.allclose(both.ratios, (a.ratios + b.ratios + c.ratios) / 3)
    assert np.allclose(both.inputs, (a.inputs + b.inputs + c.inputs) / 3)


def test_runs_of_other_steps_or_without_the_input_are_not_averaged():
    a = taught(blocks()).profile("")
    with pytest.raises(ValueError, match="different runs"):
        a.averaged(taught(blocks(steps=10)).profile(""))
    with pytest.raises(ValueError, match="different runs"):
        a.averaged(taught(blocks(), karras(STEPS)).profile(""))
    with pytest.raises(ValueError, match="modulated"):
        a.averaged(taught(blocks(), modulated=False).profile(""))


def changed(**parts):
    data = json.loads(taught(blocks()).profile("x").to_json())
    data.update(parts)
    return json.dumps(data)


HOSTILE = {
    "no json": "{",
    "a list": "[]",
    "nothing": "{}",
    "too deep": "[" * 100_000,
    "words": changed(ratios=["a"] * (STEPS - 1)),
    "truths": changed(ratios=[True] * (STEPS - 1)),
    "one short": changed(ratios=[1.0] * (STEPS - 2)),
    "too long": changed(times=[1 - i / 5000 for i in range(5000)], ratios=[1.0] * 4999),
    "no numbers": changed(ratios=[math.nan] * (STEPS - 1)),
    "no end": changed(inputs=[math.inf] * (STEPS - 1)),
    "rising": changed(times=[i / STEPS for i in range(STEPS)]),
    "beyond noise": changed(times=[9.0 - i / STEPS for i in range(STEPS)]),
    "ratios of 0": changed(ratios=[0.0] * (STEPS - 1)),
    "ratios below 0": changed(ratios=[-1.0] * (STEPS - 1)),
    "changes below 0": changed(outputs=[-0.1] * (STEPS - 1)),
    "huge numbers": changed(outputs=[1e300] * (STEPS - 1)),
    "numbers too large": changed(times=[10**400] * STEPS),
    "one time": changed(times=[1.0], ratios=[], outputs=[], inputs=[]),
    "no runs": changed(runs=0),
    "runs of words": changed(runs="many"),
    "a run that is true": changed(runs=True),
    "a dictionary": changed(ratios={"0": 1.0}),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_file_that_is_none_of_ours_is_refused(what):
    with pytest.raises(ValueError, match="not a Skipstone block profile"):
        BlockProfile.from_json(HOSTILE[what])


def test_a_method_says_whether_it_lacks_a_run():
    def of(policy, indicator=None):
        return Method("Test", "", (Warmup(2), policy), Reuse(), indicator=indicator, blocks=Blocks())

    profile = taught(blocks()).profile("")
    tea = of(Accumulator(0.3), Modulated())
    assert (
        tea.requires_profile({}, None)
        and not tea.requires_profile(FLUX, None)
        and not tea.requires_profile({}, profile)
    )
    assert of(Accumulator(0.3), Modulated(MEASURED)).requires_profile(FLUX, None)
    cases = PerModel(((FLUX, Ratios(0.2, table="Flux")),), Ratios(0.1))
    assert of(cases).requires_profile({}, None) and not of(cases).requires_profile(FLUX, None)
    assert not of(Threshold(0.1), FirstBlockChange()).requires_profile({}, None)


def test_a_fitted_polynomial_is_used_and_said():
    told = blocks(steps=20)
    grid, profile = flow(20), taught(told).profile("my model, 20 steps")
    method = Method(
        "TeaCache",
        "",
        (Warmup(2), Accumulator(0.5)),
        Reuse(),
        indicator=Modulated(),
        blocks=Blocks(0, 0, "modulated"),
    )
    run = Run(method, grid, "euler", block_profile=profile)
    for sigma, (r, m) in zip(grid.sigmas, told, strict=False):
        run.tick(sigma)
        if run.decide(["a"], torch.from_numpy(m)).compute:
            run.keep("a", torch.from_numpy(r).clone())
            assert run.indicator is not None
            run.indicator.observe_output(torch.from_numpy(r))
    report = run.close(True)
    assert report.skipped
    assert report.costs == "a run of this model"
    assert report.notes == []
    p = profile.polynomial
    assert p is not None
    x = [relative(b[1], a[1]) for a, b in pairwise(told)]
    assert report.evaluations[5].indicator == pytest.approx(p(x[4]), rel=1e-4)


def test_a_run_that_is_learned_from_is_computed_in_full_and_says_nothing_of_what_it_lacks():
    run = Run(
        Method("MagCache", "", (Ratios(0.3),), Reuse(), blocks=Blocks(0, 0, "none")), flow(8), "euler", learning=True
    )
    for sigma in flow(8).sigmas[:-1]:
        run.tick(sigma)
        assert run.decide(["a"]).compute
        run.keep("a", torch.ones(1))
    assert run.close(True).notes == []
