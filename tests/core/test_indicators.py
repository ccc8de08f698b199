"""EasyCache and UCache compared with plain numpy: the same decisions, values and outputs, and the report of a run."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from skipstone.core.step.clock import Grid
from skipstone.core.step.context import RunContext
from skipstone.core.step.indicators.output import InputChange
from skipstone.core.step.indicators.reading import SAMPLE, subsample
from skipstone.core.step.method import Method
from skipstone.core.step.policies import Accumulator, Budget, Cap, Schedule, Warmup, Window
from skipstone.core.step.predictors import Corrected, Reuse
from skipstone.core.step.run import Run

STEPS = 40
START = np.random.default_rng(3).standard_normal(300)
FLOW = Grid.of([1 - i / STEPS for i in range(STEPS + 1)])
EPS = Grid.of([*np.geomspace(14.6, 0.03, STEPS).tolist(), 0.0], flow=False)


def network(z, sigma):
    """A network's output for its input: bends with both, and is of no size in particular."""
    return 0.3 * np.sin(2 * z + 4 * sigma / (1 + sigma)) - 0.5 * z + 0.1


def level_one(z, sigma):
    """The same, always of mean size 1."""
    out = network(z, sigma)
    return out / np.abs(out).mean()


@dataclass
class Told:
    """What a rule did, evaluation by evaluation."""

    computed: list[bool] = field(default_factory=list)
    values: list[float | None] = field(default_factory=list)
    latents: list[np.ndarray] = field(default_factory=list)


def mean(value):
    return float(np.abs(value).mean())


def reference(grid, model, warmup, foretold):
    """Euler with residual reuse; foretold(z, state) -> (the number, skip or not) for every evaluation after warmup but the last.

    Written from the formulas alone: k, z and F of the last two computed evaluations, and Delta = F_c - z_c.
    """
    told, x = Told(), START.copy()
    state: dict[str, Any] = {"k": None, "F": None, "z": None, "previous": None, "skips": 0, "trend": None}
    for i in range(grid.steps):
        sigma, after = grid.sigmas[i], grid.sigmas[i + 1]
        z = x if grid.flow else x / (1 + sigma**2) ** 0.5
        value, skip = None, False
        if warmup <= i < grid.steps - 1 and state["k"] is not None:
            value, skip = foretold(z, state)
        if skip:
            out = z + state["F"] - state["z"]
            state["skips"] += 1
        else:
            out = model(z, sigma)
            if state["F"] is not None:
                change = mean(out - state["F"])
                state["k"] = change / mean(z - state["z"])
                state["trend"] = change if state["trend"] is None else 0.8 * state["trend"] + 0.2 * change
            state["F"], state["z"], state["skips"] = out, z, 0
        state["previous"] = z
        told.computed.append(not skip)
        told.values.append(value)
        x = x + (after - sigma) * out
        told.latents.append(x)
    return told


def easycache(grid, threshold, warmup, anchored):
    """Skip as long as the sum of k mean|z - z_ref| / mean|F_c| is below the threshold."""
    total = 0.0

    def foretold(z, state):
        nonlocal total
        value = state["k"] * mean(z - (state["z"] if anchored else state["previous"])) / mean(state["F"])
        total += value
        if total < threshold:
            return value, True
        total = 0.0
        return value, False

    return reference(grid, network, warmup, foretold)


def ucache(grid, threshold, decay, relative, reset):
    """For outputs of mean size 1, where it makes no difference what is divided by that size and what is multiplied with it."""
    total, computed = 0.0, 2  # the two that are computed before there is a rate

    def foretold(z, state):
        nonlocal total, computed
        value = state["k"] * mean(z - state["z"])
        if relative:
            value /= math.sqrt(max(1.6 * state["trend"], 1e-6))
        total = decay * total + value * (1 + 0.5 * state["skips"])
        progress = computed / grid.steps
        if total < threshold * (0.5 if progress < 0.2 else 1.5 if progress > 0.8 else 1.0):
            return value, True
        computed += 1
        if reset:
            total = 0.0
        return value, False

    return reference(grid, level_one, 0, foretold)


def played(method, grid, model, events=()):
    """The same by the pack: a sampler around a Run, as the hook uses it."""
    run = Run(method, grid, "euler", events=events)
    told, x = Told(), torch.from_numpy(START.copy())
    for sigma, after in zip(grid.sigmas, grid.sigmas[1:], strict=False):
        run.tick(sigma)
        decision = run.decide(["a"], run.input_of(x))
        if decision.compute:
            z = x if grid.flow else x / (1 + sigma**2) ** 0.5
            denoised = x - sigma * torch.from_numpy(model(z.numpy(), sigma))
            run.observe("a", x, denoised)
        else:
            denoised = run.predict("a", x)
        x = x + (after - sigma) * (x - denoised) / sigma
        told.computed.append(decision.compute)
        told.latents.append(x.numpy())
    report = run.close(True)
    told.values = [e.indicator for e in report.evaluations]
    return told, report


def agree(told, wanted):
    assert told.computed == wanted.computed
    for said, own in zip(told.values, wanted.values, strict=True):
        assert own is None or said == pytest.approx(own, rel=1e-4)
    for said, own in zip(told.latents, wanted.latents, strict=True):
        assert np.allclose(said, own, rtol=1e-9, atol=1e-9)


def easy(threshold, warmup=3, reference="previous", guards=()):
    policies = (Warmup(warmup), *guards, Accumulator(threshold))
    return Method("EasyCache", "", policies, Reuse(), keeps="residual", indicator=InputChange(reference))


def u_cache(threshold, decay, relative, reset, late=1.5):
    accumulator = Accumulator(threshold, decay, reset, penalty=0.5, early=0.5, late=late)
    moved = InputChange("anchor", relative)
    return Method("UCache", "", (accumulator,), Reuse(), keeps="residual", indicator=moved)


@pytest.mark.parametrize("grid", [FLOW, EPS], ids=["flow", "eps"])
@pytest.mark.parametrize("threshold", [0.02, 0.05, 0.11, 0.3])
@pytest.mark.parametrize("warmup", [2, 10])
@pytest.mark.parametrize("against", ["previous", "anchor"])
def test_easycache_is_its_published_rule_and_with_the_anchor_that_of_comfyui(grid, threshold, warmup, against):
    wanted = easycache(grid, threshold, warmup, against == "anchor")
    told, _ = played(easy(threshold, warmup, against), grid, network)
    agree(told, wanted)
    assert all(told.computed[:warmup]) and told.computed[-1]


@pytest.mark.parametrize("grid", [FLOW, EPS], ids=["flow", "eps"])
def test_the_two_references_are_two_rules_and_both_skip(grid):
    previous, _ = played(easy(0.11), grid, network)
    anchor, _ = played(easy(0.11, reference="anchor"), grid, network)
    assert sum(previous.computed) < sum(anchor.computed) < STEPS


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize(("decay", "threshold"), [(1.0, 0.2), (1.0, 1.0), (0.5, 0.4), (0.9, 2.0), (1.0, 3.0)])
def test_ucache_weighs_decays_and_moves_its_threshold_as_documented(decay, threshold, relative, reset):
    wanted = ucache(FLOW, threshold, decay, relative, reset)
    told, _ = played(u_cache(threshold, decay, relative, reset), FLOW, level_one)
    agree(told, wanted)


def test_the_cases_of_ucache_skip_and_differ():
    """Each option has an effect, so the comparison above covers it."""
    base = ucache(FLOW, 0.8, 1.0, True, True).computed
    others = [ucache(FLOW, 0.8, *case).computed for case in ((0.5, True, True), (1.0, False, True), (1.0, True, False))]
    assert 2 < sum(base) < STEPS and all(other != base for other in others)


def test_the_late_threshold_is_held_against_runs_that_computed_most():
    wanted = ucache(FLOW, 0.1, 1.0, True, True)
    told, _ = played(u_cache(0.1, 1.0, True, True), FLOW, level_one)
    agree(told, wanted)
    late = [i for i, n in enumerate(np.cumsum(wanted.computed)) if n > 0.8 * STEPS]
    without, _ = played(u_cache(0.1, 1.0, True, True, late=1.0), FLOW, level_one)
    assert not all(wanted.computed[i] for i in late)
    assert without.computed != told.computed


def test_a_window_of_steps_holds_the_steps_that_its_percents_say():
    method = easy(1e9, 0, guards=(Window(0.15, 0.95, of_steps=True),))
    told, report = played(method, FLOW, network)
    assert [i for i, c in enumerate(told.computed) if not c] == list(range(6, 38))
    assert {e.reason for e in report.evaluations if e.computed} == {"window", "last step"}


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.0), (1.0, 1.0), (0.5, 0.5), (0.8, 0.2)])
def test_an_empty_window_of_steps_skips_nothing(start, end):
    told, _ = played(easy(1e9, 0, guards=(Window(start, end, of_steps=True),)), FLOW, network)
    assert all(told.computed)


def test_the_first_slot_decides_and_each_keeps_its_own_residual():
    method = easy(0.15)
    alone, _ = played(method, FLOW, network)
    run = Run(method, FLOW, "euler")
    a = torch.from_numpy(START.copy())
    b = 100 * torch.from_numpy(START[::-1].copy())
    computed, kept = [], torch.zeros_like(b)
    for sigma, after in zip(FLOW.sigmas, FLOW.sigmas[1:], strict=False):
        run.tick(sigma)
        compute = run.decide(["a", "b"], run.input_of(a)).compute
        computed.append(compute)
        if compute:
            da, out = a - sigma * torch.from_numpy(network(a.numpy(), sigma)), torch.cos(b)
            run.observe("a", a, da)
            run.observe("b", b, b - sigma * out)
            kept = out - b
        else:
            da = run.predict("a", a)
            assert torch.allclose((b - run.predict("b", b)) / sigma, b + kept)
        a = a + (after - sigma) * (a - da) / sigma
        b = b * 0.99
    assert computed == alone.computed


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_input_that_is_not_finite_is_computed_and_said(bad):
    run = Run(easy(1e9), FLOW, "euler")
    reasons = []
    for i, sigma in enumerate(FLOW.sigmas[:8]):
        x = torch.from_numpy(START * sigma)
        if i == 5:
            x[7] = bad
        run.tick(sigma)
        decision = run.decide(["a"], run.input_of(x))
        reasons.append((decision.compute, decision.reason))
        if decision.compute:
            run.observe("a", x, x - sigma * torch.from_numpy(network(START * sigma, sigma)))
    assert reasons[5] == (True, "not finite") and reasons[4] == (False, "threshold")
    assert any("not a finite number" in note for note in run.close(True).notes)


def test_a_network_that_says_nan_is_asked_again():
    run = Run(easy(1e9), FLOW, "euler")
    for i, sigma in enumerate(FLOW.sigmas[:6]):
        x = torch.from_numpy(START * sigma)
        run.tick(sigma)
        decision = run.decide(["a"], run.input_of(x))
        if decision.compute:
            run.observe("a", x, x * (math.nan if i == 2 else 0.5 + i / 10))
    computed = [e.computed for e in run.close(True).evaluations]
    assert computed[3], "a prediction from NaN"


def test_an_input_that_does_not_move_gives_no_rate_and_is_computed():
    run = Run(easy(1e9), FLOW, "euler")
    x = torch.from_numpy(START.copy())
    for sigma in FLOW.sigmas[:6]:
        run.tick(sigma)
        assert run.decide(["a"], run.input_of(x)).compute
        run.observe("a", x, x * 0.5)


def test_a_run_without_a_hit_says_how_near_it_came_and_to_what():
    told, report = played(easy(1e-3), FLOW, network)
    assert all(told.computed)
    smallest = min(v for v in told.values if v is not None)
    said = " ".join(report.notes)
    assert f"{smallest:.3g}" in said and "0.001" in said and "raise the threshold" in said
    assert report.threshold == 1e-3


def test_a_run_that_never_came_to_ask_says_that():
    _, report = played(easy(1.0, warmup=99), FLOW, network)
    assert any("never compared" in note for note in report.notes)


def test_a_run_with_hits_has_nothing_to_say():
    _, report = played(easy(0.1), FLOW, network)
    assert report.skipped and not report.notes


@pytest.mark.parametrize("threshold", [0.0, -0.0])
def test_at_threshold_0_all_is_computed(threshold):
    told, _ = played(easy(threshold), FLOW, network)
    assert all(told.computed)


@pytest.mark.parametrize("threshold", [-1e-9, math.nan, -math.inf])
def test_a_threshold_below_0_is_refused(threshold):
    with pytest.raises(ValueError, match="threshold"):
        Accumulator(threshold)


def test_a_sampler_may_write_over_its_latent():
    kept, _ = played(easy(0.11, reference="anchor"), FLOW, network)
    run = Run(easy(0.11, reference="anchor"), FLOW, "euler")
    x = torch.from_numpy(START.copy())
    computed = []
    for sigma, after in zip(FLOW.sigmas, FLOW.sigmas[1:], strict=False):
        run.tick(sigma)
        compute = run.decide(["a"], run.input_of(x)).compute
        computed.append(compute)
        if compute:
            denoised = x - sigma * torch.from_numpy(network(x.numpy(), sigma))
            run.observe("a", x, denoised)
        else:
            denoised = run.predict("a", x)
        x += (after - sigma) * (x - denoised) / sigma
    assert computed == kept.computed


def test_a_change_of_shape_begins_anew():
    run = Run(easy(1e9), FLOW, "euler")
    computed = []
    for i, sigma in enumerate(FLOW.sigmas[:9]):
        x = torch.from_numpy(START[: 300 if i < 5 else 200] * sigma)
        slot = x.shape  # as the hook names slots: what has another shape has another history
        run.tick(sigma)
        decision = run.decide([slot], run.input_of(x))
        computed.append(decision.compute)
        if decision.compute:
            run.observe(slot, x, x * (0.3 + i / 20))
    assert computed == [True, True, True, False, False, True, True, False, False]


class Syncs(TorchDispatchMode):
    """Counts how often a number is read from a tensor."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("method", "most"),
    [
        (easy(0.1), STEPS),
        (easy(0.1, guards=(Cap(2),)), STEPS),
        (Method("Static", "", (Warmup(2), Schedule(Budget.of(0.5))), Corrected()), 0),
        (Method("Capped", "", (Warmup(2), Cap(3)), Reuse()), 0),
    ],
    ids=["adaptive", "adaptive with a cap", "schedule", "cap"],
)
def test_the_host_waits_once_an_evaluation_at_most_and_never_for_a_static_policy(method, most):
    run = Run(method, FLOW, "euler")
    x = torch.from_numpy(START.copy())
    with Syncs() as syncs:
        for sigma, after in zip(FLOW.sigmas, FLOW.sigmas[1:], strict=False):
            run.tick(sigma)
            for _ in range(2):
                compute = run.decide(["a"], run.input_of(x)).compute
            if compute:
                denoised = x - sigma * torch.sin(2 * x)
                run.observe("a", x, denoised)
            else:
                denoised = run.predict("a", x)
            x = x + (after - sigma) * (x - denoised) / sigma
    report = run.close(True)
    assert report.skipped
    assert syncs.count == sum(e.indicator is not None for e in report.evaluations) <= most


@pytest.mark.parametrize("shape", [(1, 4, 128, 128), (1, 16, 21, 60, 104), (2, 3, 5), (4096,), (4097,), ()])
def test_a_subsample_is_small_and_a_copy(shape):
    value = torch.randn(shape, dtype=torch.float16)
    sample = subsample(value)
    assert sample.dtype == torch.float32 and sample.ndim == 1
    assert min(value.numel(), 1365) <= sample.numel() <= 4096
    before = sample.clone()
    value.zero_()
    assert torch.equal(sample, before)


@pytest.mark.parametrize("width", [64, 128, 256])
def test_a_subsample_sees_every_column_and_every_channel(width):
    value = torch.arange(16).view(16, 1, 1) * 1000 + torch.arange(width).expand(16, width, width)
    sample = subsample(value).long()
    assert sample.remainder(1000).unique().numel() == width
    assert sample.div(1000, rounding_mode="floor").unique().numel() == 16


def test_each_modality_of_a_packed_latent_weighs_the_same():
    """Sound of a few hundred numbers beside a video of a hundred thousand."""
    video, sound = torch.zeros(2, 1, 100_000), torch.ones(2, 1, 300)
    packed = torch.cat([video, sound], -1)
    seen = subsample(packed, parts=(100_000, 300))
    assert 0.4 < float(seen.mean()) < 0.6 and len(seen) <= 1.5 * SAMPLE
    assert float(subsample(packed).mean()) < 0.01
    assert torch.equal(subsample(packed, parts=(5, 7)), subsample(packed)), "a latent of another form"


def test_a_change_of_the_sound_alone_is_noticed():
    parts = (50_000, 200)
    states = [InputChange().start(RunContext(FLOW, Reuse(), parts=p)) for p in (parts, ())]
    readings = []
    for state in states:
        for step in range(4):
            x = torch.ones(1, 1, sum(parts))
            x[..., parts[0] :] += step
            state.observe_input(x)
            reading = state.read()
            state.observe_output(x)
        assert reading is not None
        readings.append(reading.value)
    assert readings[0] > 20 * readings[1]


def test_an_input_of_another_shape_is_not_compared_with_the_one_before():
    """A sampler that enlarges the latent on its way."""
    state = InputChange().start(RunContext(FLOW, Reuse()))
    for sigma, size in ((1.0, 8), (0.9, 8), (0.8, 12), (0.7, 12)):
        state.observe_input(torch.full((1, 4, size, size), sigma))
        found = state.read()
        assert found is None or size == 8, "not before two were computed at this size"
        state.observe_output(torch.full((1, 4, size, size), 2 * sigma))
