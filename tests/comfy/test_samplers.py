"""Every sampler, every scheduler and every part of a schedule: the place comes from sigma, never from counting (law 5)."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_model_advanced import ModelSamplingSD3

from skipstone.core.step.auto.selection import SamplerInfo
from skipstone.nodes.auto import auto_of
from skipstone.patch.step import samplers
from skipstone.patch.step.sampler_response import response_of
from skipstone.patch.step.samplers import evaluations_per_step, integrator_of, second_order
from skipstone.tests.thorough import params

from .floors import SAME_PICTURE

pytestmark = pytest.mark.filterwarnings("ignore:::(comfy|torchsde)")  # their own, and none of ours

STEPS = 10
TURBO = {"preset": "Turbo"}


def sound(watch, reports, out, ends=True):
    """What holds of every run; the last one's report is meant."""
    report = reports[-1]
    assert torch.isfinite(out).all()
    assert report.finished
    watch.agrees_with(report)
    assert watch.written == []
    assert watch.computed[0]
    if ends:
        last = report.steps - 1
        assert all(e.computed for e in report.evaluations if e.step >= last)
        assert watch.computed[-1], "nothing after the last evaluation could mend it"


@pytest.mark.parametrize("sampler", comfy.samplers.SAMPLER_NAMES)
def test_every_sampler(studio, meancache, watched, sampler):
    patched, reports = meancache(**TURBO)
    model, watch = watched(patched)
    out = studio.sample(model, steps=STEPS, sampler=sampler)
    sound(watch, reports, out)
    # two of them step by themselves, and stop where the others make their last step, to zero
    assert reports[0].steps == STEPS - (sampler in ("dpm_fast", "dpm_adaptive"))
    assert reports[0].skipped > 0
    assert reports[0].notes == []


@pytest.mark.parametrize("sampler", comfy.samplers.SAMPLER_NAMES)
def test_which_samplers_add_noise_on_the_way(studio, sampler):
    """Those whose result depends on the seed though the noise that they start from does not."""
    outs = [
        studio.sample(studio.model, noise=studio.noise(), seed=seed, steps=3, cfg=1.0, sampler=sampler)
        for seed in (1, 2)
    ]
    kind = integrator_of(comfy.samplers.sampler_object(sampler))
    assert (kind == "sde") == (not torch.equal(*outs))
    assert (kind == "euler") == (sampler in ("euler", "ddim"))


@pytest.mark.parametrize("sampler", comfy.samplers.KSAMPLER_NAMES)
def test_how_often_a_sampler_evaluates_the_model_is_known(studio, cached, sampler):
    """Of all samplers of ComfyUI: the last step may have fewer evaluations."""
    kind = comfy.samplers.sampler_object(sampler)
    patched, reports = cached(auto_of("Balanced", first_run="skip at once"), studio.model)
    studio.sample(patched, steps=STEPS, sampler=sampler, cfg=1.0)
    if sampler not in ("dpm_fast", "dpm_adaptive"):
        assert math.ceil(len(reports[0].evaluations) / STEPS) == evaluations_per_step(kind)
        assert second_order(kind) == (evaluations_per_step(kind) > 1 and integrator_of(kind) != "sde")


def test_an_unknown_sampler_is_observed(studio, meancache):
    """The first run finds out, and the next one knows."""

    def of_a_pack(model, x, sigmas, extra_args=None, callback=None, disable=None):
        for sigma, after in pairwise(sigmas):
            ones = x.new_ones([x.shape[0]])
            d = (x - model(x, sigma * ones, **(extra_args or {}))) / sigma
            if after > 0:
                ahead = x + d * (after - sigma)
                d = (d + (ahead - model(ahead, after * ones, **(extra_args or {}))) / after) / 2
            x = x + d * (after - sigma)
        return x

    kind = comfy.samplers.KSAMPLER(of_a_pack)
    samplers._observed.clear()
    assert evaluations_per_step(kind) == 1 and not second_order(kind)
    model, _ = meancache(**TURBO)
    studio.sample_custom(model, torch.linspace(1, 0, STEPS + 1), sampler=kind)
    assert evaluations_per_step(kind) == 2 and second_order(kind)
    assert evaluations_per_step(comfy.samplers.KSAMPLER(lambda model, x, sigmas: x)) == 1


def test_an_output_that_contains_the_samplers_noise_is_never_predicted(studio, meancache):
    """As FlowEdit's, to which HunyuanLoom hands the model's velocity as if it were the picture."""

    def velocities(model, x, sigmas, extra_args=None, callback=None, disable=None):
        draw = torch.Generator().manual_seed(5)
        edited = x
        for sigma, after in pairwise(sigmas):
            noise = torch.randn(x.shape, generator=draw)
            at = (1 - sigma) * edited + sigma * noise
            edited = edited + (after - sigma) * model(at, sigma * x.new_ones([x.shape[0]]), **(extra_args or {}))
        return edited

    def velocity(executor, x, timestep, *args, **kwargs):
        return (x - executor(x, timestep, *args, **kwargs)) / timestep[0]

    loom = studio.model.clone()
    loom.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "loom", velocity)
    kind, sigmas = comfy.samplers.KSAMPLER(velocities), torch.linspace(1, 0, 13)
    patched, reports = meancache(loom, **TURBO)
    for _ in range(2):
        out = studio.sample_custom(patched, sigmas, sampler=kind)
        assert torch.equal(out, studio.sample_custom(loom, sigmas, sampler=kind))
        assert reports[-1].skipped == 0 and "follows the sampler's noise" in " ".join(reports[-1].notes)


def test_auto_takes_the_same_method_for_all_second_order_samplers():
    auto = auto_of("Balanced")
    names = {
        name: auto.resolve(SamplerInfo(integrator_of(kind), 20, False, second_order(kind))).name
        for name in ("heun", "exp_heun_2_x0", "dpm_2", "heunpp2")
        for kind in [comfy.samplers.sampler_object(name)]
    }
    assert set(names.values()) == {"UCache"}, names


@pytest.mark.parametrize("skips", [1, 2, 3, 4])
def test_a_cap_in_evaluations_is_planned_in_steps(studio, meancache, watched, skips):
    """heun evaluates twice a step: the plan keeps to the cap, so the cap breaks no plan."""
    patched, reports = meancache(preset="Custom", budget=0.3, max_skips=skips, warmup=2)
    model, watch = watched(patched)
    out = studio.sample(model, steps=STEPS, sampler="heun")
    sound(watch, reports, out)
    assert {e.step for e in reports[0].evaluations if e.computed} == set(reports[0].planned)
    assert max(b - a - 1 for a, b in pairwise(reports[0].planned)) <= skips // 2
    assert (reports[0].skipped > 0) == (skips > 1)


@pytest.mark.parametrize("option", ["eta", "s_churn"])
def test_a_sampler_that_adds_noise_when_asked_to(option):
    name = {"eta": "dpm_adaptive", "s_churn": "euler"}[option]
    assert integrator_of(comfy.samplers.ksampler(name, {option: 0.0})) != "sde"
    assert integrator_of(comfy.samplers.ksampler(name, {option: 0.5})) == "sde"


@pytest.mark.parametrize("scheduler", comfy.samplers.SCHEDULER_NAMES)
def test_every_scheduler(studio, meancache, watched, scheduler):
    patched, reports = meancache(**TURBO)
    model, watch = watched(patched)
    out = studio.sample(model, steps=STEPS, scheduler=scheduler)
    sound(watch, reports, out)
    # euler makes one evaluation a step (ddim_uniform makes more steps than it was asked for)
    assert len(watch.evaluations) == reports[0].steps >= STEPS
    assert reports[0].skipped >= STEPS // 3
    assert [e.step for e in reports[0].evaluations] == list(range(reports[0].steps))


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "euler_ancestral", "dpmpp_2m_sde"])
def test_a_model_that_predicts_noise(studio, meancache, watched, tiny_unet, sampler):
    """Not flow matching: sigma falls from 14.6, and its share of the latent is sigma / (1 + sigma)."""
    patched, reports = meancache(tiny_unet, **TURBO)
    model, watch = watched(patched)
    out = studio.sample(model, steps=12, sampler=sampler, scheduler="karras", latent=torch.zeros(1, 4, 16, 16))
    sound(watch, reports, out)
    assert reports[0].skipped > 0


def test_a_shift_is_in_force_at_the_first_run(studio, meancache, watched):
    """The node for the shift patches the model only when sampling has begun; start_percent must count with it."""
    (shifted,) = ModelSamplingSD3().patch(studio.model, 3.0)
    percents = {"start_percent": 0.5, "end_percent": 0.75}
    patched, reports = meancache(shifted, preset="Custom", predictor="linear", budget=0.2, **percents)
    model, watch = watched(patched)
    sound(watch, reports, studio.sample(model, steps=20))
    skipped = [e.sigma for e in watch.evaluations if not e.computed]
    assert skipped
    assert max(skipped) <= 0.75  # 3 * 0.5 / (1 + 2 * 0.5)
    assert min(skipped) >= 0.5  # 3 * 0.25 / (1 + 2 * 0.25)


def test_less_than_full_denoise(studio, meancache, watched):
    patched, reports = meancache(**TURBO)
    model, watch = watched(patched)
    sound(watch, reports, studio.sample(model, steps=12, denoise=0.6, latent=studio.noise(5)))
    assert reports[0].steps == 12
    assert watch.evaluations[0].sigma == pytest.approx(0.6)
    assert watch.computed[0], "it goes on from a picture: no step but the first is special"
    assert reports[0].skipped > 0


def test_two_stages_share_nothing(studio, meancache):
    """As two KSamplerAdvanced do it: the second goes on where the first stopped, and knows nothing of it."""
    model, reports = meancache(**TURBO)
    half = studio.sample(model, steps=20, start_step=0, last_step=10)
    second: dict[str, Any] = {"steps": 20, "start_step": 10, "last_step": 20, "force_full_denoise": True}
    whole = studio.sample(model, latent=half, noise=torch.zeros_like(half), **second)
    assert [r.steps for r in reports] == [10, 10]
    assert all(report.skipped > 0 for report in reports)
    first, last = ([e.computed for e in report.evaluations] for report in reports)
    assert first[:2] == [True, True] and last[0] and last[-1]
    fresh, _ = meancache(**TURBO)
    assert torch.equal(studio.sample(fresh, latent=half, noise=torch.zeros_like(half), **second), whole)


def test_only_the_last_steps_of_a_schedule(studio, meancache, watched):
    patched, reports = meancache(**TURBO)
    model, watch = watched(patched)
    out = studio.sample(model, steps=20, latent=studio.noise(5), start_step=8)
    sound(watch, reports, out)
    assert reports[0].steps == 12


def test_inpainting(studio, meancache, watched):
    """The latent outside of the mask is put back at every evaluation, and is what it was in the end."""
    latent, mask = studio.full(steps=12), torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1
    patched, reports = meancache(**TURBO)
    model, watch = watched(patched)
    out = studio.sample(model, seed=2, steps=12, latent=latent, noise_mask=mask)
    sound(watch, reports, out)
    assert reports[0].skipped > 0
    torch.testing.assert_close(out[..., 8:], latent[..., 8:], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(out[..., :8], latent[..., :8], atol=1e-1)


def test_sigmas_that_rise(studio, meancache, watched):
    """No place on such a grid is certain: everything is computed, and that is said."""
    sigmas = [1.0, 0.8, 0.6, 0.9, 0.7, 0.5, 0.3, 0.1, 0.0]
    patched, reports = meancache(**TURBO)
    model, watch = watched(patched)
    assert torch.equal(studio.sample_custom(model, sigmas), studio.sample_custom(studio.model, sigmas))
    watch.agrees_with(reports[0])
    assert reports[0].skipped == 0
    assert len(reports[0].notes) == 1
    assert "do not fall" in reports[0].notes[0]


def test_a_sampler_that_goes_back_up_drops_its_past(studio, meancache, watched):
    """A falling grid, but a sampler that adds noise and returns to a higher sigma, as Restart does."""

    def restart(model, x, sigmas, extra_args=None, callback=None, disable=None):
        def down(x, sigmas):
            for a, b in pairwise(sigmas):
                x = x + (x - model(x, a * x.new_ones(len(x)), **extra_args)) / a * (b - a)
            return x

        x = down(x, sigmas[:9])
        share = (1 - sigmas[2]) / (1 - sigmas[8])
        x = x * share + torch.randn_like(x) * (sigmas[2] ** 2 - (sigmas[8] * share) ** 2).sqrt()
        return down(x, sigmas[2:])

    patched, reports = meancache(preset="Custom", budget=0.3, warmup=2)
    model, watch = watched(patched)
    torch.manual_seed(0)
    out = studio.sample_custom(model, torch.linspace(1, 0, 13), sampler=comfy.samplers.KSAMPLER(restart))
    sound(watch, reports, out)
    again = next(i for i in range(1, 20) if watch.evaluations[i].sigma > watch.evaluations[i - 1].sigma)
    assert watch.computed[again]  # nothing older may be asked
    assert not all(watch.computed[:again]) and not all(watch.computed[again:])


def test_a_sampler_with_larger_steps_than_the_grid_misses_no_anchor(studio, meancache, watched):
    """As dpm_fast, which makes its own steps: an anchor that it steps over is computed at its next evaluation."""

    def strides(model, x, sigmas, extra_args=None, callback=None, disable=None):
        own = torch.cat((sigmas[:-1:3], sigmas[-1:]))
        for a, b in pairwise(own):
            x = x + (x - model(x, a * x.new_ones(len(x)), **extra_args)) / a * (b - a)
        return x

    patched, reports = meancache(preset="Custom", predictor="linear", budget=0.3)
    model, watch = watched(patched)
    sigmas = torch.linspace(1, 0, 41)
    out = studio.sample_custom(model, sigmas, sampler=comfy.samplers.KSAMPLER(strides), cfg=1.0)
    assert torch.isfinite(out).all()
    watch.agrees_with(reports[0])
    steps = [-1, *(e.step for e in reports[0].evaluations)]
    assert steps[1:] == [*range(0, 40, 3)]
    for (before, step), computed in zip(pairwise(steps), watch.computed, strict=True):
        passed = [a for a in reports[0].planned if before < a <= step]
        assert computed or not passed
    assert not all(watch.computed)


@pytest.mark.parametrize("towards", params((0.0, 1.0, None), (1.0, None)))
def test_a_sampler_that_comes_back_to_a_sigma_but_for_rounding(demo, meancache, watched, towards):
    """Ancestral samplers of second order do; no slope can be drawn between two sigmas that are meant to be one."""

    def heun(model, x, sigmas, extra_args=None, callback=None, disable=None):
        ones = x.new_ones(len(x))
        for a, b in pairwise(sigmas[:-1]):
            beside = b if towards is None else torch.nextafter(b, torch.tensor(towards))
            d = (x - model(x, a * ones, **extra_args)) / a
            ahead = x + d * (b - a)
            d = (d + (ahead - model(ahead, beside * ones, **extra_args)) / b) / 2
            x = x + d * (b - a)
        return model(x, sigmas[-2] * ones, **extra_args)

    sampler, sigmas = comfy.samplers.KSAMPLER(heun), torch.linspace(1, 0, 17)
    patched, reports = meancache(demo.model, preset="Balanced")
    model, watch = watched(patched)
    out, full = (demo.sample_custom(m, sigmas, sampler=sampler, cfg=1.0) for m in (model, demo.model))
    sound(watch, reports, out)
    assert reports[0].skipped >= 10
    assert (out - full).norm() < SAME_PICTURE * full.norm()


def test_sigmas_that_end_above_zero(studio, meancache, watched):
    patched, reports = meancache(**TURBO)
    model, watch = watched(patched)
    sound(watch, reports, studio.sample_custom(model, torch.linspace(1, 0.1, 13)), ends=False)
    assert reports[0].steps == 12
    assert reports[0].skipped > 0


@pytest.mark.parametrize("preset", ["Balanced", "Turbo"])
@pytest.mark.parametrize("steps", [1, 2])
def test_one_step_and_two(studio, meancache, watched, steps, preset):
    patched, reports = meancache(preset=preset)
    model, watch = watched(patched)
    assert torch.equal(studio.sample(model, steps=steps), studio.full(steps=steps))
    watch.agrees_with(reports[0])
    assert watch.computed == [True] * steps
    assert "too few to skip any" in " ".join(reports[0].notes)


def test_no_step_at_all(studio, meancache):
    model, reports = meancache(**TURBO)
    latent = studio.noise(5)
    assert torch.equal(studio.sample_custom(model, [], latent=latent), latent)
    assert torch.equal(
        studio.sample_custom(model, [0.5], latent=latent), studio.sample_custom(studio.model, [0.5], latent=latent)
    )
    assert all(r.evaluations == [] for r in reports)


def test_every_predictor_on_first_and_second_order_samplers(demo, meancache, watched):
    predictors = ["linear", "average velocity (paper)", "average velocity (released)", "reuse"]
    how: dict[str, Any] = {"steps": 12, "cfg": 1.0}
    full = {sampler: demo.full(**how, sampler=sampler) for sampler in ("euler", "heun")}
    for predictor in predictors:
        for sampler, truth in full.items():
            patched, reports = meancache(demo.model, preset="Custom", budget=0.7, predictor=predictor)
            model, watch = watched(patched)
            out = demo.sample(model, **how, sampler=sampler)
            sound(watch, reports, out)
            error = float((out - truth).norm() / truth.norm())
            assert error < SAME_PICTURE, (predictor, sampler, error)


@pytest.mark.parametrize("schedule", ["Z-Image 25", "Qwen-Image 10"])
def test_published_schedules_on_another_number_of_steps(studio, meancache, watched, schedule):
    patched, reports = meancache(preset="Custom", schedule=schedule, predictor="average velocity (released)")
    model, watch = watched(patched)
    sound(watch, reports, studio.sample(model, steps=20))
    assert reports[0].skipped > 0
    assert schedule in reports[0].line()


def test_at_most_so_many_skips_in_a_row(studio, meancache, watched):
    patched, reports = meancache(preset="Custom", budget=0.1, max_skips=2)
    model, watch = watched(patched)
    sound(watch, reports, studio.sample(model, steps=16))
    runs = "".join("c" if c else "s" for c in watch.computed)
    assert "ss" in runs
    assert "sss" not in runs


def test_the_report_is_json(studio, meancache):
    model, reports = meancache(**TURBO)
    studio.sample(model, sampler="heun")
    told = json.loads(json.dumps(reports[0].as_dict(), allow_nan=False))
    assert told["computed"] + told["skipped"] == told["evaluations"] == len(told["timeline"]) == 15
    assert sum(told["reasons"].values()) == 15
    assert told["finished"] and math.isfinite(told["seconds"])


# the response of multistep samplers


MULTISTEP = [n for n in comfy.samplers.SAMPLER_NAMES if integrator_of(comfy.samplers.sampler_object(n)) == "multistep"]


class Outputs:
    """A model whose outputs (x - D) / sigma are given; notes the latent before each step."""

    def __init__(self, patcher: Any, values: torch.Tensor) -> None:
        self.inner_model = SimpleNamespace(model_patcher=patcher)
        self.values = values
        self.latents: list[torch.Tensor] = []

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, **_: Any) -> torch.Tensor:
        self.latents.append(x)
        return x - sigma.reshape(-1, 1, 1, 1) * self.values[len(self.latents) - 1]


@pytest.mark.parametrize("name", MULTISTEP)
def test_a_multistep_samplers_response_tells_where_its_latent_ends(studio, name):
    sampler, sigmas = comfy.samplers.ksampler(name), [1 - i / STEPS for i in range(STEPS + 1)]
    before = torch.get_rng_state()
    response = response_of(sampler, sigmas, studio.model)
    assert response is not None and torch.equal(before, torch.get_rng_state())
    values = torch.randn(STEPS, 1, 4, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    model = Outputs(studio.model, values)
    with torch.inference_mode():
        out = sampler.sampler_function(
            model, values[0] * 3, torch.tensor(sigmas, dtype=torch.float64), extra_args={"seed": 0}, disable=True
        )
    moved = sum(w * v for w, v in zip(response.total, values, strict=True))
    assert torch.allclose(out - values[0] * 3, moved, atol=1e-9)
    assert response.at_once[-1] == pytest.approx(response.total[-1])
    # the first step has no past
    assert torch.allclose(model.latents[1] - model.latents[0], response.at_once[0] * values[0], atol=1e-9)


def test_dpmpp_2m_extrapolates_and_takes_it_back(studio):
    response = response_of(comfy.samplers.ksampler("dpmpp_2m"), [1 - i / STEPS for i in range(STEPS + 1)], studio.model)
    assert response is not None
    assert all(now < total < 0 for now, total in zip(response.at_once[1:-2], response.total[1:-2], strict=True))


@pytest.mark.parametrize("name", [n for n in comfy.samplers.SAMPLER_NAMES if n not in MULTISTEP])
def test_of_other_samplers_no_response_is_asked(studio, name):
    assert response_of(comfy.samplers.sampler_object(name), [1.0, 0.5, 0.0], studio.model) is None


def test_a_sampler_that_fails_has_no_response(studio):
    def sample_dpmpp_2m(*_: Any, **__: Any) -> None:
        raise RuntimeError("another ComfyUI")

    assert response_of(comfy.samplers.KSAMPLER(sample_dpmpp_2m), [1.0, 0.5, 0.0], studio.model) is None
