"""Where a conditioning begins, ends or changes is known before the first step, and planned for: as ComfyUI itself will find it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import comfy.controlnet
import comfy.hooks
import comfy.sampler_helpers
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingSD3

from nodes import ConditioningCombine, ConditioningSetTimestepRange
from skipstone.core.step.clock import Grid
from skipstone.core.step.policies import StepMask
from skipstone.nodes.easycache import easycache_of, ucache_of
from skipstone.nodes.meancache import method_of
from skipstone.nodes.spectrum import spectrum_of
from skipstone.nodes.taylorseer import taylorseer_of
from skipstone.patch.step.conditioning_changes import changes

STEPS = 20


def ranged(cond, start, end):
    return ConditioningSetTimestepRange().set_range(cond, start, end)[0]


class Control(comfy.controlnet.ControlBase):
    """A ControlNet without a network that adds a constant to the first block's output, within its range."""

    def __init__(self, start=0.0, end=1.0, previous=None):
        super().__init__()
        self.timestep_percent_range = (start, end)
        if previous is not None:
            self.set_previous_controlnet(previous)

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        before = None
        if self.previous_controlnet is not None:
            before = self.previous_controlnet.get_control(x_noisy, t, cond, batched_number, transformer_options)
        if t[0] > self.timestep_range[0] or t[0] < self.timestep_range[1]:
            return before
        return self.control_merge({"input": [torch.full((1, 64, 64), 0.5)], "middle": [], "output": []}, before, None)


def controlled(cond, control):
    return [[text, {**options, "control": control, "control_apply_to_uncond": True}] for text, options in cond]


def keyframed(model, cond, frames):
    """CONDITIONING with a LoRA hook on the model that has (percent, strength) keyframes."""
    generator = torch.Generator().manual_seed(3)
    weight = model.model.diffusion_model.double_blocks[0].img_attn.qkv.weight
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    group = comfy.hooks.create_hook_lora(
        {
            f"{name}.lora_up.weight": torch.randn(weight.shape[0], 4, generator=generator),
            f"{name}.lora_down.weight": torch.randn(4, weight.shape[1], generator=generator),
        },
        1.0,
        0.0,
    )
    keyframes = comfy.hooks.HookKeyframeGroup()
    for percent, strength in frames:
        keyframes.add(comfy.hooks.HookKeyframe(strength, percent))
    group.set_keyframes_on_hooks(keyframes)
    return comfy.hooks.set_hooks_for_conditioning(cond, group)


@pytest.fixture(
    scope="module", params=["flow, simple", "flow, shifted", "noise, karras", "noise, simple", "flow, part"]
)
def place(request, tiny_flux, tiny_unet):
    """A model's sampling and its sigmas, (N + 1,)."""
    kind, how = request.param.split(", ")
    model = tiny_flux if kind == "flow" else tiny_unet
    if how == "shifted":
        (model,) = ModelSamplingSD3().patch(model, 3.0)
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, how if how in ("karras",) else "simple", STEPS)
    return sampling, sigmas[6:] if how == "part" else sigmas


def foretold(place, **conds):
    sampling, sigmas = place
    grid = Grid.of(sigmas.tolist(), isinstance(sampling, comfy.model_sampling.CONST), sampling.percent_to_sigma)
    return changes({k: comfy.sampler_helpers.convert_cond(c) for k, c in conds.items()}, grid)


def where(states):
    """The steps at which it is another than before."""
    return {i for i in range(1, len(states)) if states[i] != states[i - 1]}


PERCENTS = [(0.0, 1.0), (0.31, 1.0), (0.0, 0.62), (0.25, 0.75), (0.5, 0.5), (0.33, 0.34), (0.8, 0.2), (0.05, 0.95)]


@pytest.mark.parametrize(("start", "end"), PERCENTS)
def test_a_prompt_with_a_range(studio, place, start, end):
    """As ComfyUI decides at every step whether the prompt applies there."""
    sampling, sigmas = place
    cond = ranged(studio.prompt(), start, end)
    told = comfy.sampler_helpers.convert_cond(cond)
    comfy.samplers.calculate_start_end_timesteps(SimpleNamespace(model_sampling=sampling), told)
    x = torch.zeros(1, 16, 16, 16)
    states = [
        comfy.samplers.get_area_and_mult({**told[0], "model_conds": {}}, x, sigma[None]) is not None
        for sigma in sigmas[:-1]
    ]
    assert foretold(place, positive=cond, negative=studio.prompt("")) == where(states)
    assert foretold(place, positive=studio.prompt(), negative=cond) == where(states)


@pytest.mark.parametrize("percent", [i / STEPS for i in range(1, STEPS)])
def test_a_range_that_ends_at_the_very_sigma_of_a_step(studio, place, percent):
    """A hair's breadth decides, and it must be ComfyUI's."""
    test_a_prompt_with_a_range(studio, place, percent, 1.0)
    test_a_prompt_with_a_range(studio, place, 0.0, percent)


@pytest.mark.parametrize(("start", "end"), PERCENTS)
@pytest.mark.parametrize("chained", [False, True])
def test_a_controlnet_with_a_range(studio, place, start, end, chained):
    sampling, sigmas = place
    control = Control(start, end)
    control.pre_run(None, sampling.percent_to_sigma)
    states = [not (t > control.timestep_range[0] or t < control.timestep_range[1]) for t in sigmas[:-1]]
    if chained:
        control = Control(previous=control)
    assert foretold(place, positive=controlled(studio.prompt(), control), negative=studio.prompt("")) == where(states)


@pytest.mark.parametrize(
    "starts", [(0.0,), (0.0, 0.4), (0.0, 0.3, 0.61, 0.8), (0.0, 1.0), (0.5,), (0.2, 0.7), (0.0, 0.52, 0.53)]
)
def test_keyframes_of_a_hook(studio, tiny_flux, place, starts):
    """As the hook itself comes to them, step by step; of two within one step the second waits for the next, as it asks to."""
    sampling, sigmas = place
    cond = keyframed(tiny_flux, studio.prompt(), [(percent, 0.5 + i / 10) for i, percent in enumerate(starts)])
    told = foretold(place, positive=cond)
    group = cond[0][1]["hooks"].hooks[0].hook_keyframe
    group.initialize_timesteps(SimpleNamespace(model_sampling=sampling))
    states = []
    for sigma in sigmas[:-1]:
        group.prepare_current_keyframe(curr_t=sigma, transformer_options={"sample_sigmas": sigmas})
        states.append(group._current_index)
    assert where(states) <= told
    if starts[0] == 0:  # the first is in force before its own time, too: to compute there does no harm
        assert told == where(states)


def test_several_at_once(studio, place):
    """Prompts, both sides of them, and a ControlNet: all that happens anywhere."""
    first, second = ranged(studio.prompt(), 0.0, 0.3), ranged(studio.prompt("a frog on a white background"), 0.3, 1.0)
    third = controlled(studio.prompt(), Control(0.0, 0.55))
    both = ConditioningCombine().combine(first, second)[0]
    alone = [foretold(place, positive=c) for c in (first, second, third)]
    assert any(alone)
    assert foretold(place, positive=both, negative=third) == frozenset().union(*alone)


def test_the_range_of_a_hook_on_the_text_encoder(studio, place):
    """A scheduled encoding has a range of its own; ComfyUI takes what is within both."""
    sampling, sigmas = place
    cond = [
        [text, {**options, "clip_start_percent": 0.2, "clip_end_percent": 0.8}] for text, options in studio.prompt()
    ]
    told = comfy.sampler_helpers.convert_cond(ranged(cond, 0.5, 1.0))
    comfy.samplers.calculate_start_end_timesteps(SimpleNamespace(model_sampling=sampling), told)
    inside = [told[0]["timestep_end"] <= float(t) <= told[0]["timestep_start"] for t in sigmas[:-1]]
    assert where(inside) <= foretold(place, positive=ranged(cond, 0.5, 1.0))


def test_nothing_happens(studio, place):
    always = Control()
    assert foretold(place, positive=studio.prompt(), negative=controlled(studio.prompt(""), always)) == frozenset()
    assert foretold(place) == frozenset()
    assert foretold(place, positive=[], negative=[]) == frozenset()


def test_no_conditioning_at_all(place):
    sampling, sigmas = place
    nothing: dict[str, Any] = {"positive": None, "negative": []}
    assert changes(nothing, Grid.of(sigmas.tolist(), True, sampling.percent_to_sigma)) == frozenset()
    assert (
        changes({"positive": [{"start_percent": 0.5}]}, Grid.of(sigmas.tolist())) == frozenset()
    )  # no map from percent


# in a run

METHODS: dict[str, Any] = {
    "MeanCache": lambda **how: method_of("Custom", budget=0.3, **how),
    "MeanCache without costs": lambda **how: method_of("Custom", budget=0.3, calibration="off", **how),
    "EasyCache": lambda **how: easycache_of("Custom", threshold=3.0, **how),
    "UCache": lambda **how: ucache_of("Custom", threshold=100.0, **how),
    "Spectrum": lambda **how: spectrum_of("Custom", window=6.0, warmup=3, **how),
    "TaylorSeer": lambda **how: taylorseer_of("Custom", interval=7, **how),
    "a static mask": lambda **how: easycache_of(
        "Custom", step_mask=StepMask(tuple(i in (0, 1, 2, 10, 19) for i in range(STEPS))), **how
    ),
}
PLANNED = [name for name in METHODS if name not in ("EasyCache", "UCache")]


@pytest.fixture
def run(studio, cached, watched, tiny_flux):
    """One run, watched: `report, watch = run("Spectrum", positive)`; the tiny Flux has sigmas of 1 - i / 20."""

    def sampled(name, positive=None, negative=None, *, model=None, **how):
        patched, reports = cached(METHODS[name](), model or tiny_flux)
        model, watch = watched(patched)
        out = studio.sample(model, positive, negative, **{"steps": STEPS, **how})
        assert torch.isfinite(out).all()
        watch.agrees_with(reports[0])
        return reports[0], watch

    return sampled


def skipped_without(report):
    """A step in the middle that is skipped when nothing happens, with its neighbours."""
    skipped = {e.step for e in report.evaluations if not e.computed}
    return next(i for i in range(6, STEPS - 2) if {i - 1, i, i + 1} <= skipped)


def reason_at(report):
    return {e.step: e.reason for e in report.evaluations if e.computed}


@pytest.fixture(params=["a prompt ends", "a prompt begins", "a ControlNet", "a keyframe"])
def happening(request, studio, tiny_flux):
    """Something that happens at a step: positive and negative for a run."""

    def at(step):
        percent = (step - 0.5) / STEPS
        if request.param == "a prompt ends":
            combined = ConditioningCombine().combine(
                studio.prompt(), ranged(studio.prompt("a frog on a white background"), 0, percent)
            )
            return combined[0], None
        if request.param == "a prompt begins":
            late = ranged(studio.prompt("a frog on a white background"), percent, 1.0)
            return None, ConditioningCombine().combine(studio.prompt(""), late)[0]
        if request.param == "a ControlNet":
            return controlled(studio.prompt(), Control(percent, 1.0)), None
        return keyframed(tiny_flux, studio.prompt(), [(0.0, 0.0), (percent, 1.0)]), None

    return at


@pytest.mark.parametrize("name", METHODS)
def test_what_happens_is_computed_at_once(run, happening, name):
    """And planned for, where a method plans; what comes before and after is skipped as ever."""
    plain, _ = run(name)
    assert "conditioning change" not in plain.as_dict()["reasons"]
    step = skipped_without(plain)
    report, watch = run(name, *happening(step))
    assert reason_at(report)[step] == "conditioning change"
    assert report.as_dict()["reasons"]["conditioning change"] == 1
    assert report.skipped > 0
    if name in PLANNED:
        assert step in report.planned
        assert report.planned == sorted(reason_at(report))
    # from the step on both conditionings answer for what they say now
    assert all(call.ran for call in watch.evaluations[step].calls)
    assert not all(watch.computed[6 : STEPS - 1])


@pytest.mark.parametrize("budget", [0.3, 0.5])
def test_an_event_is_paid_from_the_budget(studio, cached, tiny_flux, budget):
    """The schedule is solved with it; it comes on top only where the budget is spent on what must be."""
    model, reports = cached(method_of("Custom", budget=budget), tiny_flux)
    events = ranged(studio.prompt("a frog on a white background"), 0.31, 0.73)
    studio.sample(model, ConditioningCombine().combine(studio.prompt(), events)[0], steps=STEPS, cfg=1.0)
    assert reports[0].computed == int(budget * STEPS)
    assert [e.step for e in reports[0].evaluations if e.reason == "conditioning change"] == [7, 15]


@pytest.mark.parametrize("sampler", ["heun", "dpm_2", "dpmpp_2m", "euler_ancestral"])
@pytest.mark.parametrize("name", ["MeanCache", "TaylorSeer"])
def test_with_other_samplers(studio, run, name, sampler):
    """The first look at the step is computed, wherever the sampler takes it from."""
    plain, _ = run(name, sampler=sampler, cfg=1.0)
    step = skipped_without(plain)
    late = ranged(studio.prompt("a frog on a white background"), (step - 0.5) / STEPS, 1.0)
    report, _ = run(name, ConditioningCombine().combine(studio.prompt(), late)[0], sampler=sampler, cfg=1.0)
    first = next(e for e in report.evaluations if e.step >= step)
    assert first.computed and first.reason == "conditioning change"


def test_a_shift_is_in_force_at_the_first_run(studio, run, tiny_flux):
    """The node for the shift patches the model only when sampling has begun: a percent is one of the shifted schedule."""
    (shifted,) = ModelSamplingSD3().patch(tiny_flux, 5.0)
    late = ranged(studio.prompt("a frog on a white background"), 0.5, 1.0)
    report, watch = run("TaylorSeer", ConditioningCombine().combine(studio.prompt(), late)[0], model=shifted, cfg=1.0)
    (step,) = (e.step for e in report.evaluations if e.reason == "conditioning change")
    edge = 5 * 0.5 / (1 + 4 * 0.5)
    assert watch.evaluations[step].sigma <= edge < watch.evaluations[step - 1].sigma


def test_in_a_second_stage_what_happened_before_is_none(studio, run):
    """As a KSamplerAdvanced that begins at step 10 does it."""
    early = ConditioningCombine().combine(
        studio.prompt(), ranged(studio.prompt("a frog on a white background"), 0.0, 0.28)
    )[0]
    late = ranged(studio.prompt("a frog on a white background"), 0.68, 1.0)
    second: dict[str, Any] = {"start_step": 10, "last_step": STEPS, "force_full_denoise": True, "cfg": 1.0}
    report, _ = run("TaylorSeer", early, **second)
    assert "conditioning change" not in report.as_dict()["reasons"]
    report, _ = run("TaylorSeer", ConditioningCombine().combine(studio.prompt(), late)[0], **second)
    assert [e.step for e in report.evaluations if e.reason == "conditioning change"] == [
        4
    ]  # of this sampler: 14 of the whole trajectory


def test_a_change_at_the_last_step_or_the_first_is_no_event(studio, run):
    """They are computed anyhow."""
    for start, end in ((0.0, 0.97), (0.96, 1.0), (0.001, 1.0)):
        extra = ranged(studio.prompt("a frog on a white background"), start, end)
        report, _ = run("TaylorSeer", ConditioningCombine().combine(studio.prompt(), extra)[0], cfg=1.0)
        told = reason_at(report)
        assert told[STEPS - 1] == "last step"
        assert set(told.values()) - {"conditioning change"} >= {"warmup", "interval", "last step"}
        assert [s for s, reason in told.items() if reason == "conditioning change"] == ([1] if start == 0.001 else [])
