"""One tester for every output-level method: it skips, reports truly, leaves nothing behind, and is reset whatever happens."""

from __future__ import annotations

import copy
import gc
import json
import re
import weakref
from typing import Any

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP

from skipstone.core.step.history import History
from skipstone.core.step.indicators.output import InputChangeState
from skipstone.core.step.run import Run
from skipstone.nodes import easycache, meancache, spectrum, taylorseer
from skipstone.patch.errors import StepCacheError
from skipstone.patch.step.attach import attach

from .floors import SAME_PICTURE

OF: dict[str, Any] = {
    "MeanCache": meancache.method_of,
    "EasyCache": easycache.easycache_of,
    "UCache": easycache.ucache_of,
    "Spectrum": spectrum.spectrum_of,
    "TaylorSeer": taylorseer.taylorseer_of,
}
ADAPTIVE = ("EasyCache", "UCache")
PRESETS = {
    "MeanCache": [*meancache.PRESETS],
    "EasyCache": [*easycache.EASY_PRESETS, easycache.PUBLISHED, easycache.CORE],
    "UCache": [*easycache.U_PRESETS, easycache.U_PUBLISHED],
    "Spectrum": [*spectrum.PRESETS],
    "TaylorSeer": [*taylorseer.PRESETS],
}
EVERY = [(name, preset) for name, presets in PRESETS.items() for preset in presets]
NEVER: dict[str, list[dict[str, Any]]] = {
    "MeanCache": [{"budget": 1.0}, {"max_error": 1e-9}],
    "EasyCache": [{"threshold": 0.0}, {"start_percent": 1.0}],
    "UCache": [{"threshold": 0.0}, {"start_percent": 0.6, "end_percent": 0.4}],
    "Spectrum": [{"window": 1.0, "flex": 0.0}, {"stop": 0.0}],
    "TaylorSeer": [{"interval": 1}, {"start_percent": 1.0}],
}
STEPS = 12

pytestmark = pytest.mark.filterwarnings("ignore:::(comfy|torchsde)")  # their own, and none of ours


@pytest.fixture(scope="module")
def quick(studio, tiny_flux):
    """Samples at STEPS steps with guidance: `quick(model, seed=2)`."""

    def sample(model, **how):
        return studio.sample(model, **{"steps": STEPS, **how})

    return sample


@pytest.fixture(scope="module")
def fresh(quick, tiny_flux):
    """What a MODEL that was never sampled before gives: `fresh("Spectrum", "Balanced", seed=2)`; without a name, what the
    unpatched one gives."""
    known: dict[Any, torch.Tensor] = {}

    def picture(name="", preset="Balanced", **how):
        key = (name, preset, *sorted(how.items()))
        if key not in known:
            known[key] = quick(attach(tiny_flux, OF[name](preset)) if name else tiny_flux, **how)
        return known[key].clone()

    return picture


@pytest.fixture(scope="module")
def few_objects(fresh):
    """What there is already is not looked at by the garbage collector, nor by `alive`: both are quick."""
    gc.collect()
    gc.freeze()


def sound(watch, report, out):
    """What holds of every run that can skip."""
    assert torch.isfinite(out).all()
    assert report.finished
    watch.agrees_with(report)
    assert watch.written == []
    assert watch.computed[0] and watch.computed[-1]
    assert all(e.computed for e in report.evaluations if e.step >= report.steps - 1)
    assert report.skipped > 0


def state_of(model):
    """What a run could have left in a MODEL, as text and as facts."""
    parts = list(model.model.diffusion_model.modules())
    return (
        repr((model.model_options, model.wrappers, model.callbacks, model.object_patches, model.patches)),
        sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in parts),
        sum("forward" in m.__dict__ for m in parts),
    )


@pytest.mark.parametrize(("name", "preset"), EVERY)
def test_it_skips_reports_truly_and_writes_to_nothing(studio, cached, watched, fresh, tiny_flux, name, preset):
    method = OF[name](preset)
    patched, reports = cached(method, tiny_flux)
    model, watch = watched(patched)
    noise, latent = studio.noise(), torch.zeros(1, 16, 16, 16)
    prompts = [studio.prompt(), studio.prompt("")]
    before, as_it_was = copy.deepcopy((noise, latent, prompts)), (state_of(tiny_flux), state_of(patched))

    steps = 20 if name in ADAPTIVE else STEPS  # an adaptive method may find nothing to skip in few
    out = studio.sample(model, *prompts, noise=noise, latent=latent, steps=steps, cfg=1.0)

    (report,) = reports
    sound(watch, report, out)
    assert not torch.equal(out, fresh(steps=steps, cfg=1.0))
    assert (report.method, report.variant, report.steps) == (name, preset, steps)
    assert report.predictor
    told = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert told["computed"] + told["skipped"] == told["evaluations"] == steps
    assert sum(told["skip_reasons"].values()) == told["skipped"]
    assert (told["threshold"] is not None) == (told["percentiles"] != {}) == (name in ADAPTIVE)
    assert f"{report.skipped} skipped" in report.line()

    assert (state_of(tiny_flux), state_of(patched)) == as_it_was
    assert "skipstone" not in as_it_was[0][0]
    assert torch.equal(noise, before[0]) and torch.equal(latent, before[1])
    for was, now in zip(before[2], prompts, strict=True):
        for (text_was, options_was), (text_now, options_now) in zip(was, now, strict=True):
            assert torch.equal(text_was, text_now)
            assert options_was.keys() == options_now.keys()
            assert torch.equal(options_was["pooled_output"], options_now["pooled_output"])
    assert method == OF[name](preset)  # a node's configuration is no place for a run's state


def noise_predicted(studio, model):
    """Samples a model that predicts noise, on a small latent."""
    return studio.sample(model, steps=STEPS, cfg=1.0, scheduler="karras", latent=torch.zeros(1, 4, 8, 8))


@pytest.fixture(scope="module")
def noise_predicted_in_full(studio, tiny_unet):
    return noise_predicted(studio, tiny_unet)


@pytest.mark.parametrize(("name", "preset"), EVERY)
def test_it_fires_on_a_model_that_predicts_noise(
    studio, cached, watched, tiny_unet, noise_predicted_in_full, name, preset
):
    patched, reports = cached(OF[name](preset), tiny_unet)
    model, watch = watched(patched)
    as_it_was, full = state_of(tiny_unet), noise_predicted_in_full
    out = noise_predicted(studio, model)
    sound(watch, reports[0], out)
    assert state_of(tiny_unet) == as_it_was
    assert not torch.equal(out, full)
    assert (out - full).norm() < full.norm()  # a network of random weights bends more than one that was trained


@pytest.mark.parametrize(("name", "preset"), EVERY)
def test_a_second_run_is_as_a_fresh_one(quick, cached, fresh, tiny_flux, name, preset):
    steps = 20 if name in ADAPTIVE else STEPS
    model, reports = cached(OF[name](preset), tiny_flux)
    outs = [quick(model, seed=seed, steps=steps) for seed in (2, 1)]
    assert torch.equal(outs[1], fresh(name, preset, seed=1, steps=steps))
    assert not torch.equal(*outs)
    assert all(r.skipped > 0 for r in reports)


def alive(*kinds):
    gc.collect()
    return [o for o in gc.get_objects() if type(o) in kinds]


def tensors_of(thing):
    """All tensors in a history or an indicator at work."""
    values = [*vars(thing).values()]
    found = []
    while values:
        value = values.pop()
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, dict):
            values += value.values()
        elif isinstance(value, tuple | list):
            values += value
    return found


@pytest.mark.parametrize(("name", "preset"), EVERY)
def test_nothing_of_a_run_can_be_reached_after_it(quick, few_objects, cached, tiny_flux, name, preset):
    model, _ = cached(OF[name](preset), tiny_flux)
    seen: list[Any] = []

    def callback(step, *_):
        if step == 8:
            for thing in alive(Run, History, InputChangeState):
                seen.extend(weakref.ref(t) for t in (thing, *tensors_of(thing)))

    quick(model, callback=callback)
    # the run, two histories of one anchor at least, and what an indicator looks at
    assert len(seen) >= 5 + 4 * (name in ADAPTIVE)
    gc.collect()
    assert [ref() for ref in seen if ref() is not None] == []


ERRORS = {
    "an error": lambda: RuntimeError("out of memory"),
    "an interrupt": lambda: comfy.model_management.InterruptProcessingException(),
}


@pytest.mark.parametrize("how", ERRORS)
@pytest.mark.parametrize("name", OF)
def test_it_is_reset_after(quick, few_objects, cached, fresh, tiny_flux, name, how):
    """Raised by the sampler's callback, where the Cancel button is looked at, in the middle of the run."""
    model, reports = cached(OF[name]("Balanced"), tiny_flux)
    as_it_was, error = state_of(model), ERRORS[how]()

    def callback(step, *_):
        if step == 8:
            raise error

    with pytest.raises(type(error)) as caught:
        quick(model, callback=callback)
    assert caught.value is error
    del caught
    error.__traceback__ = None
    assert not reports[0].finished
    assert len(reports[0].evaluations) == 9
    assert reports[0].skipped > 0
    assert not alive(Run, History, InputChangeState)
    assert state_of(model) == as_it_was
    assert torch.equal(quick(model), fresh(name))
    assert reports[1].finished


@pytest.mark.parametrize("name", OF)
def test_clones_share_no_state(quick, cached, fresh, tiny_flux, name):
    """Not even a clone that samples while the other is in the middle of its steps."""
    model, reports = cached(OF[name]("Balanced"), tiny_flux)
    clone, within = model.clone(), []

    def callback(step, *_):
        if step in (5, 6, 7):
            patcher = (
                tiny_flux.model.current_patcher
            )  # ComfyUI itself forgets it when a run ends, and is asked for it below
            within.append(quick(clone, seed=2))
            tiny_flux.model.current_patcher = patcher

    assert torch.equal(quick(model, callback=callback), fresh(name))
    assert len(within) == 3
    assert all(torch.equal(w, fresh(name, seed=2)) for w in within)
    assert all(r.skipped > 0 for r in reports)


@pytest.mark.parametrize("second", OF)
@pytest.mark.parametrize("first", OF)
def test_two_on_one_model_are_refused_by_their_names(studio, first, second):
    model = attach(studio.model, OF[first]("Speed"))
    with pytest.raises(StepCacheError, match=rf"(?=.*{first} \(Speed\))(?=.*{second} \(Turbo\)).*remove or bypass"):
        attach(model.clone(), OF[second]("Turbo"))
    attach(studio.model, OF[second]("Turbo"))  # a branch of its own is another matter


@pytest.mark.parametrize(
    ("name", "how"),
    [(n, how) for n, ways in NEVER.items() for how in (*ways, {"warmup": 1000})],
    ids=lambda v: str(v).strip("{}").replace("'", ""),
)
def test_never_skipping_is_the_unpatched_model(quick, cached, watched, fresh, tiny_flux, name, how):
    patched, reports = cached(OF[name]("Custom", **how), tiny_flux)
    model, watch = watched(patched)
    assert torch.equal(quick(model), fresh())
    watch.agrees_with(reports[0])
    assert watch.computed == [True] * STEPS
    (note,) = reports[0].notes
    assert note.startswith("nothing was skipped")


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_threshold_that_is_never_met_is_told_with_what_it_was_held_against(quick, cached, tiny_flux, name):
    """A threshold above the reported value does skip."""
    values: dict[str, Any] = {"warmup": 2, "start_percent": 0.0, "end_percent": 1.0}
    model, reports = cached(OF[name]("Custom", threshold=1e-5, **values), tiny_flux)
    quick(model)
    (note,) = reports[0].notes
    told = re.search(r"raise the threshold \(([\d.e+-]+)\); smallest accumulated change: ([\d.e+-]*\d)", note)
    assert told is not None, note
    threshold, smallest = map(float, told.groups())
    assert threshold in (1e-5, 0.5e-5, 1.5e-5)  # UCache's own differs over the run
    assert smallest > threshold
    assert smallest == pytest.approx(min(e.indicator for e in reports[0].evaluations if e.indicator), rel=1e-2)
    model, reports = cached(OF[name]("Custom", threshold=3 * smallest, **values), tiny_flux)
    quick(model)
    assert reports[0].skipped > 0


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_lower_threshold_computes_more(quick, cached, tiny_flux, name):
    computed = []
    for threshold in (0.02, 0.1, 0.5):
        model, reports = cached(OF[name]("Custom", threshold=threshold), tiny_flux)
        quick(model)
        computed.append(reports[0].computed)
    assert computed == sorted(computed, reverse=True)
    assert computed[0] > computed[-1]


@pytest.mark.parametrize("name", ADAPTIVE)
def test_an_indicator_that_is_no_number_means_compute(quick, cached, watched, tiny_flux, name):
    """The model returns NaN from its fourth step on."""
    left = [4]

    def spoilt(executor, *args, **kwargs):
        left[0] -= 1
        out = executor(*args, **kwargs)
        return out if left[0] > 0 else out * float("nan")

    method = OF[name]("Custom", threshold=0.05, warmup=4, start_percent=0.0, end_percent=1.0)
    patched, reports = cached(method, tiny_flux)
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "spoilt", spoilt)
    model, watch = watched(patched)
    quick(model)
    watch.agrees_with(reports[0])
    assert all(watch.computed)
    assert [e.reason for e in reports[0].evaluations[4:-1]] == ["not finite"] * (STEPS - 5)
    assert any("not a finite number" in note for note in reports[0].notes)
    json.dumps(reports[0].as_dict(), allow_nan=False)


@pytest.mark.parametrize("name", OF)
def test_a_batch_of_two(studio, quick, cached, watched, tiny_flux, name):
    noise = studio.noise(batch=2)
    if name in ADAPTIVE:  # they decide by what both do together: as one alone only where both do the same
        noise[0] = noise[1]
    patched, reports = cached(OF[name]("Balanced"), tiny_flux)
    model, watch = watched(patched)
    out = quick(model, noise=noise)
    sound(watch, reports[0], out)
    alone = quick(patched, noise=noise[1:])
    assert out.shape == noise.shape
    torch.testing.assert_close(out[1:], alone, atol=1e-4, rtol=1e-3)
    assert torch.allclose(out[:1], alone, atol=1e-4) == (name in ADAPTIVE)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_two_pictures_of_a_batch_have_one_decision(studio, quick, cached, watched, tiny_flux, name):
    patched, reports = cached(OF[name]("Balanced"), tiny_flux)
    model, watch = watched(patched)
    out = quick(model, noise=studio.noise(batch=2))
    sound(watch, reports[0], out)
    assert out.shape[0] == 2
    assert not torch.allclose(out[0], out[1], atol=1e-2)


@pytest.mark.parametrize("name", OF)
def test_guidance_has_two_conditionings_and_one_decision(demo, cached, watched, name):
    patched, reports = cached(OF[name]("Balanced"), demo.model)
    model, watch = watched(patched)
    out = demo.sample(model, steps=STEPS)
    sound(watch, reports[0], out)
    for evaluation in watch.evaluations:
        assert len({call.ran for call in evaluation.calls}) == 1
        cond, uncond = evaluation.calls[0].out
        assert not torch.allclose(cond, uncond, atol=1e-3)  # each from its own history
    full = demo.full(steps=STEPS)
    assert (out - full).norm() < SAME_PICTURE * full.norm()


NOISY = ("euler_ancestral", "dpmpp_2m_sde")


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "res_multistep", "dpm_2", *NOISY])
@pytest.mark.parametrize("name", OF)
def test_every_kind_of_sampler(quick, cached, watched, fresh, tiny_flux, name, sampler):
    patched, reports = cached(OF[name]("Balanced"), tiny_flux)
    model, watch = watched(patched)
    out = quick(model, sampler=sampler)
    if name == "EasyCache" and sampler in NOISY and not reports[0].skipped:
        # the noise moves the latent further than the threshold allows: the report says so, and nothing is skipped
        said = " ".join(reports[0].notes)
        assert "nothing was skipped" in said or "too few to skip any" in said
        assert torch.equal(out, quick(tiny_flux, sampler=sampler))
        return
    sound(watch, reports[0], out)
    for evaluation in watch.evaluations:
        assert len({call.ran for call in evaluation.calls}) == 1


@pytest.mark.parametrize("name", OF)
def test_sigmas_that_rise(studio, cached, tiny_flux, name):
    """No place on such a grid is certain: everything is computed, and that is said."""
    sigmas = [1.0, 0.8, 0.6, 0.9, 0.7, 0.5, 0.3, 0.1, 0.0]
    model, reports = cached(OF[name]("Turbo"), tiny_flux)
    outs = [studio.sample_custom(m, sigmas) for m in (model, tiny_flux)]
    assert torch.equal(*outs)
    assert reports[0].skipped == 0
    (note,) = reports[0].notes
    assert "do not fall" in note


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("name", OF)
def test_very_few_steps(quick, cached, watched, tiny_flux, name, steps):
    """As with distilled models: hardly anything to skip, and never the first step or the last."""
    patched, reports = cached(OF[name]("Balanced"), tiny_flux)
    model, watch = watched(patched)
    out = quick(model, steps=steps)
    watch.agrees_with(reports[0])
    assert torch.isfinite(out).all()
    assert watch.computed[0] and watch.computed[-1]
    if all(watch.computed):
        assert torch.equal(out, quick(tiny_flux, steps=steps))
        said = " ".join(reports[0].notes)
        assert "nothing was skipped" in said or "too few to skip any" in said


@pytest.mark.parametrize("name", OF)
def test_under_inference_mode_as_comfyui_runs_nodes(quick, cached, fresh, tiny_flux, name):
    with torch.inference_mode():
        inside = quick(cached(OF[name]("Balanced"), tiny_flux)[0])
    assert torch.equal(inside, fresh(name))


@pytest.mark.parametrize("device", ["gpu", "cpu"])
@pytest.mark.parametrize("name", OF)
def test_where_the_history_is_kept_changes_nothing(quick, cached, fresh, tiny_flux, name, device):
    assert torch.equal(quick(cached(OF[name]("Balanced", history_device=device), tiny_flux)[0]), fresh(name))


@pytest.mark.parametrize("name", OF)
def test_at_most_so_many_skips_in_a_row(quick, cached, watched, tiny_flux, name):
    eager: dict[str, dict[str, Any]] = {
        "MeanCache": {"budget": 0.1},
        "EasyCache": {"threshold": 3.0},
        "UCache": {"threshold": 100.0},
        "Spectrum": {"window": 10.0, "warmup": 3},
        "TaylorSeer": {"interval": 10},
    }
    patched, reports = cached(OF[name]("Custom", max_skips=2, **eager[name]), tiny_flux)
    model, watch = watched(patched)
    out = quick(model, steps=14)
    sound(watch, reports[0], out)
    runs = "".join("c" if c else "s" for c in watch.computed)
    assert "ss" in runs
    assert "sss" not in runs


@pytest.mark.parametrize(
    ("name", "widgets", "said"),
    [
        ("EasyCache", {"threshold": -0.1}, "threshold is at least 0"),
        ("EasyCache", {"threshold": float("nan")}, "threshold is at least 0"),
        ("EasyCache", {"reference": "tomorrow"}, "reference is one of"),
        ("EasyCache", {"predictor": "tomorrow"}, "predictor is one of"),
        ("UCache", {"threshold": -1.0}, "threshold is at least 0"),
        ("UCache", {"decay": 1.5}, "decay is a factor from 0 to 1"),
        ("UCache", {"decay": float("nan")}, "decay is a factor from 0 to 1"),
        ("Spectrum", {"w": 1.5}, "0 to 1"),
        ("Spectrum", {"m": 0}, "1 to 12"),
        ("Spectrum", {"lam": 0.0}, "above 0"),
        ("Spectrum", {"lam": float("inf")}, "lam"),
        ("Spectrum", {"window": 0.5}, "at least 1"),
        ("Spectrum", {"window": float("inf")}, "window"),
        ("Spectrum", {"flex": -0.5}, "at least 0"),
        ("Spectrum", {"flex": float("nan")}, "flex"),
        ("Spectrum", {"window": float("nan")}, "window"),
        ("Spectrum", {"stop": 1.5}, "stop is a share"),
        ("Spectrum", {"predict": "tomorrow"}, "predict is one of"),
        ("TaylorSeer", {"order": 4}, "0 to 3"),
        ("TaylorSeer", {"interval": 0}, "at least 1"),
        ("TaylorSeer", {"coordinate": "tomorrow"}, "coordinate is one of"),
        ("MeanCache", {"max_error": -0.1}, "max_error"),
        ("MeanCache", {"max_error": float("nan")}, "max_error"),
        ("MeanCache", {"calibration": "../../etc"}, "calibration is one of"),
        *((name, {"preset": "tomorrow"}, "preset is one of") for name in OF),
        *((name, {"history_device": "tomorrow"}, "history_device is one of") for name in OF),
        *((name, {"warmup": -1}, "warmup is a number of steps") for name in OF),
        *((name, {"max_skips": -1}, "max_skips is a number of steps") for name in OF),
        *((name, {"step_mask": "1,0,1"}, "step_mask takes the output of a Step Mask node") for name in OF),
    ],
)
def test_a_bad_value_is_refused_with_what_would_do(name, widgets, said):
    with pytest.raises(ValueError, match=said):
        OF[name](**{"preset": "Custom", **widgets})
