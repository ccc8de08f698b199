"""Step Cache (Auto) on the demo's three models, as a newcomer uses it: dropped in, wired, queued twice."""

from __future__ import annotations

import logging
import math
import sys
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.utils
import pytest
import torch
from comfy_extras.nodes_easycache import EasyCacheNode

from skipstone.nodes.auto import DECIBELS, SPEEDUP, auto_of
from skipstone.nodes.meancache import method_of
from skipstone.patch.errors import StepCacheError
from skipstone.patch.step.attach import attach
from skipstone.tests.thorough import params

from .floors import DECIBELS_BELOW, SAME_PICTURE

pytestmark = [
    pytest.mark.usefixtures("user"),
    pytest.mark.filterwarnings("ignore:::(comfy|torchsde)"),  # their own, and none of ours
]

DEMO = Path(__file__).resolve().parents[2] / "demo"
MODELS = ("flux", "nextdit", "unet")
SMALL = "nextdit"
SAMPLERS = ("euler", "dpmpp_2m", "euler_ancestral")
LEARNED = "; runs recorded: "


@pytest.fixture(scope="session")
def trained(demo):
    """The demo's MODELs by name; and how many tokens of a prompt each was trained to read."""
    before = list(sys.path)
    sys.path.insert(0, str(DEMO / "training"))
    try:
        import small

        words = small.WORDS
        models = {n: small.load(n, DEMO / "models" / f"skipstone_demo_{n}.safetensors") for n in small.BUILDERS}
    finally:
        sys.path[:] = before
    return {"flux": (demo.model, None), **{n: (m, words) for n, m in models.items()}}


@pytest.fixture
def sampled(demo, trained):
    """A run: `out, report = sampled(model, name, sampler="heun")`; report is None where the model has no step cache of ours."""

    def run(model, name=SMALL, text="a red apple on a blue background", **how):
        words = trained[name][1]
        positive, negative = ([[tokens[:, :words], more] for tokens, more in demo.prompt(t)] for t in (text, ""))
        return demo.sample(model, positive, negative, **{"steps": 10, "cfg": 1.0, **how})

    return run


@pytest.fixture
def auto_model(trained):
    """A MODEL with the node on it, and the reports of its runs: `model, reports = auto_model("unet", wish="Turbo")`."""

    def patched(name=SMALL, **values):
        reports: list[Any] = []
        return attach(trained[name][0], auto_of(**values), (reports.append,)), reports

    return patched


def notes(report):
    return " | ".join(report.notes)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", params(MODELS, {SMALL}))
def test_calibrate_computes_the_first_run_in_full_and_skips_by_it_in_the_second(
    trained, sampled, auto_model, name, sampler
):
    model, reports = auto_model(name, first_run="calibrate")
    first, second = (sampled(model, name, sampler=sampler) for _ in range(2))
    full = sampled(trained[name][0], name, sampler=sampler)
    learning, skipping = reports
    assert torch.equal(first, full)
    assert learning.skipped == 0
    assert LEARNED in notes(learning)
    assert learning.chosen.startswith("method: MeanCache (")
    assert not torch.equal(second, full)
    assert torch.dist(second, full) < SAME_PICTURE * full.norm()
    assert skipping.costs == next(iter(learned_of(learning)))
    count = len(skipping.planned)
    assert 0 < count < 10
    assert f"Next run: {count} of 10 steps" in notes(learning)  # the first run said what the second would do
    assert skipping.chosen.startswith(f"method: MeanCache, {count} of 10 steps (")
    assert skipping.notes == []


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", params(MODELS, {SMALL}))
def test_it_skips_from_the_first_run_on(trained, sampled, auto_model, user, name, sampler):
    model, reports = auto_model(name)
    first = sampled(model, name, sampler=sampler)
    full = sampled(trained[name][0], name, sampler=sampler)
    assert torch.dist(first, full) < SAME_PICTURE * full.norm()
    assert reports[0].skipped > 0 and reports[0].notes == [] and reports[0].costs.startswith("built-in")
    sampled(model, name, sampler=sampler)
    assert "10 steps, CFG 1" in reports[1].costs, "the second is planned with what the first computed"


def learned_of(report):
    """The settings key that a calibrated run reports."""
    for note in report.notes:
        if LEARNED in note:
            yield note.split("(setup: ", 1)[1].rsplit("; runs recorded: 1", 1)[0]


@pytest.mark.parametrize(("sampler", "why"), [("heun", "best for heun"), ("dpm_adaptive", "like the sampler's steps")])
@pytest.mark.parametrize("name", params(MODELS, {SMALL}))
def test_where_planned_steps_are_not_best_it_decides_as_it_goes(trained, sampled, auto_model, name, sampler, why):
    """There is nothing to learn for that: the first run skips."""
    model, reports = auto_model(name, wish="Speed")
    out = sampled(model, name, sampler=sampler, steps=16)
    full = sampled(trained[name][0], name, sampler=sampler, steps=16)
    assert reports[0].skipped > 0
    assert reports[0].notes == []
    assert reports[0].chosen.startswith("method: UCache (decided during the run")
    assert why in reports[0].chosen
    assert torch.dist(out, full) < SAME_PICTURE * full.norm()


@pytest.mark.parametrize("wish", [{"wish": SPEEDUP, "speedup": 1.5}, {"wish": DECIBELS, "decibels": 20.0}])
@pytest.mark.parametrize("name", MODELS)
def test_what_is_to_be_held_is_planned_with_heun_too(sampled, auto_model, name, wish):
    model, reports = auto_model(name, **wish)
    sampled(model, name, sampler="heun", steps=12)
    (skipping,) = reports
    assert skipping.skipped > 0
    assert skipping.method == "MeanCache"
    if "speedup" in wish:
        assert skipping.computed <= len(skipping.evaluations) / 1.5


def test_what_is_chosen_follows_the_sampler_and_not_the_run_before(sampled, auto_model):
    """The node holds a target only."""
    model, reports = auto_model(first_run="skip at once")
    a, _, b = (sampled(model, sampler=s) for s in ("euler", "dpm_adaptive", "euler"))
    assert torch.equal(a, b)
    assert [r.method for r in reports] == ["MeanCache", "UCache", "MeanCache"]


def test_skip_at_once_skips_at_once(sampled, auto_model, user):
    model, reports = auto_model(first_run="skip at once")
    sampled(model)
    assert reports[0].skipped > 0
    assert reports[0].costs.startswith("built-in")
    assert not list(user.rglob("*.json"))  # and learns nothing


def test_skip_at_once_uses_what_was_learned_before(sampled, auto_model, user):
    sampled(auto_model(first_run="calibrate")[0])
    files = {p: p.read_bytes() for p in user.rglob("*.json")}
    model, reports = auto_model(first_run="skip at once")
    sampled(model)
    assert reports[0].skipped > 0
    assert "sample_euler" in reports[0].costs
    assert {p: p.read_bytes() for p in user.rglob("*.json")} == files


def test_one_calibration_serves_all_targets_and_meancache(trained, sampled, auto_model):
    sampled(auto_model(wish="Quality", first_run="calibrate")[0])
    for wish in ("Turbo", SPEEDUP, DECIBELS):
        model, reports = auto_model(wish=wish, first_run="calibrate")
        sampled(model)
        assert LEARNED not in notes(reports[0])
    reports = []
    sampled(attach(trained[SMALL][0], method_of("Speed", calibration="calibrate"), (reports.append,)))
    assert reports[0].skipped > 0


@pytest.mark.parametrize("wish", ["Quality", "Balanced", "Speed", "Turbo"])
def test_a_preset_does_what_meancaches_does(trained, sampled, auto_model, wish):
    model, reports = auto_model(wish=wish, first_run="skip at once")
    out = sampled(model, steps=16)
    assert torch.equal(out, sampled(attach(trained[SMALL][0], method_of(wish)), steps=16))
    assert (reports[0].method, reports[0].variant) == ("MeanCache", f"Auto, {wish}")


@pytest.mark.parametrize("times", [1.5, 2.0, 4.0])
def test_a_speed_up_is_planned_for(sampled, auto_model, times):
    model, reports = auto_model(wish=SPEEDUP, speedup=times, first_run="skip at once")
    sampled(model, steps=20)
    assert reports[0].computed == int(20 / times)
    assert reports[0].variant == f"Auto, {times:g}x"


def test_a_speed_up_that_cannot_be_had_is_said(sampled, auto_model):
    model, reports = auto_model(wish=SPEEDUP, speedup=8.0, first_run="skip at once")
    sampled(model, steps=8)
    assert "target speed-up 8x not reached" in notes(reports[0])


# decibels

UNSEEN = (
    ("a frog on a white background", 31),
    ("a banana on a black background", 32),
    ("a whale on a pink background", 33),
)


@pytest.fixture(scope="module")
def decoded():
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(DEMO / "models" / "skipstone_demo_vae.safetensors")))

    def picture(latent):
        with torch.no_grad():
            return vae.decode(latent).clamp(0, 1).float().cpu()

    return picture


def psnr(a, b):
    return -10 * math.log10(max(float((a - b).pow(2).mean()), 1e-10))


@pytest.mark.parametrize("decibels", params((30.0, 40.0), {40.0}))
def test_decibels_are_kept_on_prompts_that_nothing_was_learned_on(demo, sampled, auto_model, decoded, decibels):
    model, reports = auto_model("flux", wish=DECIBELS, decibels=decibels, first_run="calibrate")
    how = {"name": "flux", "steps": 20, "cfg": 3.0}
    sampled(model, text="a ghost on a green background", seed=5, **how)
    for text, seed in UNSEEN:
        cached = sampled(model, text=text, seed=seed, **how)
        full = demo.full(text, seed=seed, steps=20)
        assert reports[-1].skipped > 0
        assert psnr(decoded(cached), decoded(full)) >= decibels - DECIBELS_BELOW


@pytest.mark.parametrize("sampler", ["dpm_adaptive", "euler_ancestral"])
def test_decibels_that_cannot_be_foretold_have_everything_computed(trained, sampled, auto_model, sampler):
    model, reports = auto_model(wish=DECIBELS)
    out = sampled(model, sampler=sampler)
    assert torch.equal(out, sampled(trained[SMALL][0], sampler=sampler))
    assert "a quality target does not work" in reports[0].chosen


def test_a_target_quality_is_an_estimate_until_something_was_measured_and_then_skips_more(sampled, auto_model, user):
    model, reports = auto_model(wish=DECIBELS, decibels=35.0)
    for _ in range(2):
        sampled(model, steps=20)
    assert "a rough estimate" in notes(reports[0]) and reports[0].decibels is None
    assert reports[1].notes == [] and reports[1].decibels >= 35


# beside others


@pytest.mark.parametrize("first", [True, False])
def test_a_second_step_cache_is_refused_by_name(studio, first):
    auto, other = auto_of(), method_of("Speed")
    inner, outer = (auto, other) if first else (other, auto)
    with pytest.raises(StepCacheError, match=r"(?=.*Step Cache \(Auto\))(?=.*MeanCache \(Speed\))"):
        attach(attach(studio.model, inner), outer)


def test_comfyuis_own_beside_it_is_refused_by_name(studio):
    rival = EasyCacheNode.execute(studio.model, 0.2, 0.15, 0.95, False)[0]
    with pytest.raises(StepCacheError, match=r"(?=.*Step Cache \(Auto\))(?=.*EasyCache)"):
        attach(rival, auto_of())


def test_the_log_says_what_was_chosen(sampled, auto_model, caplog):
    model, reports = auto_model(first_run="skip at once")
    with caplog.at_level(logging.INFO):
        sampled(model)
    assert reports[0].chosen in caplog.text


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"wish": "Magic"}, "wish is one of Quality"),
        ({"first_run": "never"}, "first_run is one of learn"),
        ({"wish": SPEEDUP, "speedup": 0.5}, "from 1 to 8"),
        ({"wish": SPEEDUP, "speedup": math.nan}, "from 1 to 8"),
        ({"wish": DECIBELS, "decibels": 100.0}, "from 20 to 80"),
    ],
)
def test_an_invalid_target_is_refused(values, said):
    with pytest.raises(ValueError, match=said):
        auto_of(**values)


def test_the_values_of_other_targets_are_ignored():
    assert auto_of("Speed", speedup=math.nan, decibels=1000.0) == auto_of("Speed")
