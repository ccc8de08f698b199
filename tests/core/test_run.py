"""A run: one decision an evaluation for all slots, history from sigma, nothing left behind, a true report."""

import json
import math

import pytest
import torch

from skipstone.core.step.clock import Grid
from skipstone.core.step.indicators.output import InputChange
from skipstone.core.step.method import Blocks, Method
from skipstone.core.step.modalities import Modalities
from skipstone.core.step.movement import NoiseWatch
from skipstone.core.step.policies import Accumulator, Budget, Cap, Schedule, Warmup, Window
from skipstone.core.step.predictors import BySampler, Linear, Reuse
from skipstone.core.step.report.report import Report
from skipstone.core.step.run import Run

GRID = Grid.of([1 - i / 20 for i in range(21)])
HALF = Method("Test", "", (Warmup(2), Schedule(Budget.of(0.5))), BySampler())


def denoise(x, sigma, slot=0.0):
    return 0.5 * torch.cos(x) * (1 - sigma) + slot


def stepped(run, slot, x, sigma, after, compute, i):
    """The slot's latent after an Euler step on the model's output, or on its prediction."""
    if compute:
        d = denoise(x, sigma, i)
        run.observe(slot, x, d)
    else:
        d = run.predict(slot, x)
    return x + (after - sigma) * (x - d) / sigma


def euler(run, slots=("a",), grid=GRID, dtype=torch.float32):
    """A sampler and a model around a run, as the hook uses it. Returns the last latent of every slot."""
    x = {s: torch.linspace(-1, 1, 8, dtype=dtype) for s in slots}
    for sigma, after in zip(grid.sigmas, grid.sigmas[1:], strict=False):
        run.tick(sigma)
        compute = run.decide(slots).compute
        for i, s in enumerate(slots):
            x[s] = stepped(run, s, x[s], sigma, after, compute, i)
    return x


def test_skips_follow_the_budget_and_are_close_to_the_truth():
    run = Run(HALF, GRID, "euler")
    out = euler(run)["a"]
    full = euler(Run(Method("Full", "", (Warmup(99),), Reuse()), GRID, "euler"))["a"]
    report = run.close(True)
    assert (report.computed, report.skipped) == (10, 10)
    assert torch.dist(out, full) < 0.02 * full.norm()


def test_the_first_steps_and_the_last_are_computed():
    run = Run(Method("Test", "", (Warmup(3),), Reuse()), GRID, "euler")
    euler(run)
    timeline = run.close(True).evaluations
    assert [e.step for e in timeline if e.computed] == [0, 1, 2, 19]
    assert [e.reason for e in timeline if e.computed] == ["warmup"] * 3 + ["last step"]


def test_slots_never_mix():
    together = euler(Run(HALF, GRID, "euler"), ("a", "b"))
    alone = euler(Run(HALF, GRID, "euler"), ("a",))
    assert torch.equal(together["a"], alone["a"])
    assert not torch.equal(together["a"], together["b"])


def test_one_decision_an_evaluation_whoever_asks_first():
    run = Run(HALF, GRID, "euler")
    for sigma in GRID.sigmas[:-1]:
        run.tick(sigma)
        first, second = run.decide(["a"]), run.decide(["b"])
        assert first == second or (second.compute and second.reason == "new conditioning")
        x = torch.ones(2)
        for slot in ("a", "b"):
            if run.decide([slot]).compute:
                run.observe(slot, x, x * 0.1)
    assert len(run.close(True).evaluations) == GRID.steps


def test_a_slot_without_history_makes_all_compute():
    run = Run(Method("Test", "", (Warmup(1),), Reuse()), GRID, "euler")
    x = torch.ones(2)
    for sigma in GRID.sigmas[:2]:
        run.tick(sigma)
        run.decide(["a"])
        run.observe("a", x, x)
    run.tick(GRID.sigmas[2])
    decision = run.decide(["a", "new"])
    assert decision.compute and decision.reason == "new conditioning"


def test_a_slot_that_shows_up_after_a_skip_was_decided_is_computed_and_so_is_the_next_evaluation():
    run = Run(Method("Test", "", (Warmup(1),), Reuse()), GRID, "euler")
    x = torch.ones(2)
    run.tick(GRID.sigmas[0])
    run.decide(["a"])
    run.observe("a", x, x)
    run.tick(GRID.sigmas[1])
    assert not run.decide(["a"]).compute
    assert run.decide(["late"]).compute
    run.tick(GRID.sigmas[2])
    assert run.decide(["a"]).reason == "new conditioning"


def test_history_older_than_a_rise_in_sigma_is_dropped():
    run = Run(Method("Test", "", (Warmup(1),), Reuse()), GRID, "euler")
    x = torch.ones(2)
    for sigma in (1.0, 0.5):
        run.tick(sigma)
        if run.decide(["a"]).compute:
            run.observe("a", x, x)
    run.tick(0.7)
    decision = run.decide(["a"])
    assert decision.compute and decision.reason == "history"


def test_a_change_of_shape_drops_the_history():
    run = Run(HALF, GRID, "euler")
    for sigma, n in ((1.0, 2), (0.95, 3)):
        run.tick(sigma)
        run.decide(["a"])
        run.observe("a", torch.ones(n), torch.ones(n))
    assert len(run.histories["a"].anchors) == 1


@pytest.mark.parametrize("integrator", ["euler", "ode", "sde"])
def test_what_is_kept_is_no_alias_and_inputs_stay_as_they_were(integrator):
    run = Run(Method("Test", "", (Warmup(2),), Linear()), GRID, integrator)
    for sigma in GRID.sigmas[:2]:
        run.tick(sigma)
        run.decide(["a"])
        x, d = torch.ones(4), torch.full((4,), 0.5)
        run.observe("a", x, d)
        assert x.eq(1).all() and d.eq(0.5).all()
        d.fill_(math.nan)
        x.fill_(math.nan)
    run.tick(GRID.sigmas[2])
    assert not run.decide(["a"]).compute
    x = torch.ones(4)
    out = run.predict("a", x)
    assert torch.isfinite(out).all() and x.eq(1).all()
    out.zero_()
    assert torch.isfinite(run.predict("a", x)).all() and not run.predict("a", x).eq(0).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_predictions_have_the_latents_dtype(dtype):
    run = Run(HALF, GRID, "euler")
    assert euler(run, dtype=dtype)["a"].dtype == dtype


def test_a_cap_limits_the_skips_in_a_row():
    run = Run(Method("Test", "", (Warmup(1), Cap(2)), Reuse()), GRID, "euler")
    euler(run)
    line = "".join("C" if e.computed else "-" for e in run.close(True).evaluations)
    assert "---" not in line and "--" in line


def test_outside_the_window_all_is_computed():
    run = Run(Method("Test", "", (Window(0.25, 0.5),), Reuse()), GRID, "euler")
    euler(run)
    assert all(0.5 <= e.sigma <= 0.75 for e in run.close(True).evaluations if not e.computed)


def test_a_grid_without_order_is_computed_and_said():
    grid = Grid.of([1.0, 0.5, 0.8, 0.4, 0.0])
    run = Run(HALF, grid, "euler")
    for sigma in grid.sigmas[:-1]:
        run.tick(sigma)
        assert run.decide(["a"]).compute
    assert "do not fall" in " ".join(run.close(True).notes)


@pytest.mark.parametrize("steps", [1, 2])
def test_very_few_steps_are_computed_and_the_report_says_why(steps):
    grid = Grid.of([1 - i / steps for i in range(steps + 1)])
    run = Run(HALF, grid, "euler")
    euler(run, grid=grid)
    report = run.close(True)
    assert report.skipped == 0 and any("too few to skip" in n for n in report.notes)


def test_a_closed_run_holds_no_tensor():
    run = Run(HALF, GRID, "euler")
    euler(run)
    run.close(False)
    assert not run.histories and not run.trajectory.entries


def test_the_report_is_json_and_adds_up():
    run = Run(HALF, GRID, "euler")
    euler(run)
    heard: list[Report] = []
    run.close(True, (heard.append,))
    data = json.loads(json.dumps(heard[0].as_dict()))
    assert data["computed"] + data["skipped"] == data["evaluations"] == len(data["timeline"]) == 20
    assert sum(data["reasons"].values()) == 20
    assert data["finished"] and data["steps"] == 20
    assert "20 steps, 10 computed, 10 skipped (50%), " in heard[0].line()


def test_an_interrupted_run_counts_what_happened():
    run = Run(HALF, GRID, "euler")
    run.tick(1.0)
    run.decide(["a"])
    report = run.close(False)
    assert not report.finished and report.computed == 1
    assert report.line() == "Test: interrupted at step 1 of 20, 1 computed, 0 skipped"


def test_noise_that_a_sampler_adds_does_not_stay_in_a_prediction():
    """Between evaluations of an SDE sampler x moves by fresh noise; what the model said of the picture still holds."""
    run = Run(Method("Test", "", (Warmup(2),), Reuse()), GRID, "sde")
    for sigma in GRID.sigmas[:2]:
        run.tick(sigma)
        run.decide(["a"])
        run.observe("a", torch.randn(4), torch.full((4,), 0.25))
    run.tick(GRID.sigmas[2])
    run.decide(["a"])
    assert torch.equal(run.predict("a", torch.randn(4) * 100), torch.full((4,), 0.25))


def in_turn(run, slots):
    """Euler for each slot, which the sampler asks about one after the other at every step."""
    x = {s: torch.linspace(-1, 1, 8) for s in slots}
    for sigma, after in zip(GRID.sigmas, GRID.sigmas[1:], strict=False):
        for i, s in enumerate(slots):
            run.tick(sigma)
            compute = run.decide([s], x[s]).compute
            x[s] = stepped(run, s, x[s], sigma, after, compute, i)
    return x


def test_conditionings_in_turn_keep_a_track_each():
    together = Run(HALF, GRID, "euler")
    out = in_turn(together, ("a", "b"))
    report = together.close(True)
    full = in_turn(Run(Method("Full", "", (Warmup(99),), Reuse()), GRID, "euler"), ("a", "b"))
    assert report.skipped >= GRID.steps - 2
    for slot in ("a", "b"):
        assert torch.dist(out[slot], full[slot]) < 0.03 * full[slot].norm()


@pytest.mark.parametrize(("noise", "skips"), [(0.0, True), (1.0, False)])
def test_conditionings_in_turn_with_noise_that_the_sampler_adds_are_not_predicted(noise, skips):
    """With noise in the latents, as FlowEdit makes them, the difference of two outputs is of its size."""
    run = Run(HALF, GRID, "ode", watches_noise=True)
    draw, x = torch.Generator().manual_seed(1), torch.linspace(-1, 1, 64)
    for sigma, after in zip(GRID.sigmas, GRID.sigmas[1:], strict=False):
        at, velocities = x + noise * sigma * torch.randn(64, generator=draw), []
        for slot in ("a", "b"):
            run.tick(sigma, at)
            compute = run.decide([slot]).compute
            d = denoise(at, sigma, 0.2 * (slot == "b")) if compute else run.predict(slot, at)
            if compute:
                run.observe(slot, at, d)
            run.returned(d)
            velocities.append((at - d) / sigma)
        x = x + (velocities[1] + 3 * (velocities[0] - velocities[1])) * (after - sigma)
    report = run.close(True)
    assert (report.skipped > 0) == skips
    assert ("sampler's noise" in report.advice) != skips


def test_conditionings_in_turn_are_decided_together_at_a_sigma():
    """Their outputs are subtracted from each other: one that is predicted and one that is not would differ by the prediction's error."""
    method = Method(
        "Test", "", (Warmup(4), Accumulator(0.2)), Reuse(), keeps="velocity", indicator=InputChange("anchor")
    )
    run = Run(method, GRID, "euler")
    in_turn(run, ("a", "b"))
    evaluations = run.close(True).evaluations
    computed = [e.computed for e in evaluations]
    assert computed[::2] == computed[1::2] and not all(computed)
    assert all(e.indicator is not None for e in evaluations[12:-2:2])


def test_no_more_than_two_sets_of_slots_are_held_and_one_until_a_set_returns():
    run = Run(Method("Test", "", (Warmup(99),), Linear()), GRID, "euler")
    held = []
    for step, slot in zip((0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 7, 7), "aabbababcabc", strict=True):
        run.tick(GRID.sigmas[step])
        run.decide([slot])
        run.observe(slot, torch.ones(2), torch.ones(2))
        held.append(sorted(map(str, run.histories)))
    assert held[3] == ["b"], "a set that does not return is dropped"
    assert held[4] == ["a"], "one that returns at another sigma takes no turns"
    assert held[5] == ["a", "b"] and max(map(len, held)) <= 3
    assert len(run.tracks) == 2


@pytest.mark.parametrize(
    ("events", "slots", "said"),
    [
        (range(20), ["a"], "changes at nearly every step"),
        ((), [f"slot {i}" for i in range(20)], "other conditionings at nearly every step"),
    ],
)
def test_the_advice_follows_the_reason(events, slots, said):
    run = Run(HALF, GRID, "euler", events=events)
    for i, sigma in enumerate(GRID.sigmas[:-1]):
        run.tick(sigma)
        slot = slots[i % len(slots)]
        if run.decide([slot]).compute:
            run.observe(slot, torch.ones(2), torch.ones(2))
    report = run.close(True)
    assert report.skipped == 0 and said in report.advice and not report.warnings


def test_one_change_of_a_prompt_is_no_reason_for_a_run_without_skips():
    run = Run(Method("Test", "", (Warmup(99),), Reuse()), GRID, "euler", events=(5,))
    euler(run)
    assert "at nearly every step" not in run.close(True).advice


def test_a_run_of_one_step_is_too_short_for_a_method_that_decides_as_it_goes():
    grid = Grid.of([1.0, 0.0])
    run = Run(Method("Test", "", (Warmup(4), Accumulator(0.2)), Reuse(), indicator=InputChange()), grid, "euler")
    euler(run, grid=grid)
    assert run.close(True).advice.startswith("1 step is too few to skip any")


@pytest.mark.parametrize("name", ["observe", "errors"])
def test_a_failing_measurement_of_modalities_changes_nothing(monkeypatch, name):
    def fail(*_):
        raise RuntimeError("of torch")

    wanted = euler(Run(HALF, GRID, "euler"))["a"]
    monkeypatch.setattr(Modalities, name, fail)
    run = Run(HALF, GRID, "euler", parts=[5, 3], modalities=["video", "sound"])
    assert torch.equal(euler(run)["a"], wanted)
    assert run.close(True).modalities == {}


@pytest.mark.parametrize(("noise", "name", "kept"), [(0.0, "corrected", "velocity"), (0.3, "linear", "denoised")])
def test_a_sampler_of_another_pack_is_predicted_as_it_turns_out_to_be(noise, name, kept):
    run = Run(HALF, GRID, "unknown", watches_noise=True)
    watched_euler(run, noise)
    assert run.keeps == kept
    report = run.close(True)
    assert report.predictor == name and report.skipped > 0


@pytest.mark.parametrize("name", ["observe_input", "observe_output"])
def test_a_failing_watch_for_noise_changes_nothing(monkeypatch, name):
    def fail(*_):
        raise RuntimeError("of numpy")

    wanted = watched_euler(Run(HALF, GRID, "euler"))
    monkeypatch.setattr(NoiseWatch, name, fail)
    run = Run(HALF, GRID, "euler", watches_noise=True)
    assert torch.equal(watched_euler(run), wanted)
    assert run.close(True).skipped > 0


def watched_euler(run, noise=0.0):
    """Euler whose latents and outputs the run is told. noise: standard deviation of what is added after each step."""
    x, draw = torch.linspace(-1, 1, 64), torch.Generator().manual_seed(1)
    for sigma, after in zip(GRID.sigmas, GRID.sigmas[1:], strict=False):
        run.tick(sigma, x)
        compute = run.decide(["a"]).compute
        d = denoise(x, sigma) if compute else run.predict("a", x)
        if compute:
            run.observe("a", x, d)
        run.returned(d)
        x = x + (after - sigma) * (x - d) / sigma + noise * after * torch.randn(64, generator=draw)
    return x


def test_an_evaluation_at_sigma_zero_is_no_anchor():
    """Some samplers look at the finished latent once more: no velocity is defined there."""
    run = Run(HALF, GRID, "euler")
    x = euler(run)["a"]
    kept = [*run.trajectory.entries]
    run.tick(0.0)
    assert run.decide(["a"]).compute
    run.observe("a", x, x)
    assert [*run.trajectory.entries] == kept
    report = run.close(True)
    assert report.evaluations[-1].sigma == 0 and report.finished


@pytest.mark.parametrize(
    ("blocks", "said"),
    [({"prefix": -1}, "0 or more"), ({"suffix": -1}, "0 or more"), ({"prefix": 0}, "at least 1")],
)
def test_numbers_of_blocks_that_make_no_sense_are_refused(blocks, said):
    with pytest.raises(ValueError, match=said):
        Blocks(**blocks)
