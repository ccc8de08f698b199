"""Where what is asked changes, the next evaluation is computed; so are the first steps and the last (law 4)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import comfy.controlnet
import comfy.hooks
import comfy.samplers
import pytest
import torch

from nodes import ConditioningCombine, ConditioningSetTimestepRange
from skipstone.patch.step.slots import slots_of

STEPS = 20
SPARSE: dict[str, Any] = {"preset": "Custom", "predictor": "reuse", "budget": 0.3}


@pytest.fixture(scope="module")
def skipped_step(studio):
    """A step in the middle that SPARSE skips, as it does the steps on both sides of it; the model's sigmas are 1 - i/20."""
    from skipstone.nodes.meancache import method_of
    from skipstone.patch.step.attach import attach

    reports: list[Any] = []
    studio.sample(attach(studio.model, method_of(**SPARSE), (reports.append,)), steps=STEPS, cfg=1.0)
    skipped = {e.step for e in reports[0].evaluations if not e.computed}
    step = next(i for i in range(7, STEPS) if {i - 1, i, i + 1} <= skipped)
    assert reports[0].evaluations[step].sigma == pytest.approx(1 - step / STEPS)
    return step


def between(step):
    """The percent half-way between the sigmas of a step and of the one before."""
    return (step - 0.5) / STEPS


def ranged(cond, start, end):
    return ConditioningSetTimestepRange().set_range(cond, start, end)[0]


def computed_at(report):
    return {e.step: e.reason for e in report.evaluations if e.computed}


@pytest.mark.parametrize("preset", ["Quality", "Balanced", "Speed", "Turbo"])
def test_the_first_steps_and_the_last_are_computed(studio, meancache, watched, preset):
    patched, reports = meancache(preset=preset)
    model, watch = watched(patched)
    studio.sample(model, steps=12, cfg=1.0)
    watch.agrees_with(reports[0])
    assert watch.computed[:2] == [True, True]
    assert watch.computed[-1]
    assert not all(watch.computed)


@pytest.mark.parametrize("warmup", [0, 1, 5])
def test_as_many_first_steps_as_asked_for(studio, meancache, warmup):
    model, reports = meancache(preset="Custom", budget=0.3, warmup=warmup)
    studio.sample(model, steps=STEPS, cfg=1.0)
    reasons = [e.reason for e in reports[0].evaluations]
    assert reasons[:warmup] == ["warmup"] * warmup
    assert "warmup" not in reasons[warmup:]
    assert reports[0].evaluations[0].computed  # whatever the warmup: nothing is known yet
    assert reasons[-1] == "last step"


def test_a_prompt_that_gives_way_to_another(studio, meancache, watched, skipped_step):
    percent = between(skipped_step)
    first, second = (
        ranged(studio.prompt(), 0.0, percent),
        ranged(studio.prompt("a frog on a white background"), percent, 1.0),
    )
    patched, reports = meancache(**SPARSE)
    model, watch = watched(patched)
    studio.sample(model, ConditioningCombine().combine(first, second)[0], steps=STEPS)
    watch.agrees_with(reports[0])
    assert computed_at(reports[0])[skipped_step] == "conditioning change"
    assert skipped_step - 1 not in computed_at(reports[0])


@pytest.mark.parametrize("which", ["positive", "negative"])
@pytest.mark.parametrize("begins", [True, False])
def test_a_prompt_that_comes_or_goes(studio, meancache, skipped_step, which, begins):
    percent = between(skipped_step)
    extra = ranged(studio.prompt("a frog on a white background"), *((percent, 1.0) if begins else (0.0, percent)))
    prompts = {"positive": studio.prompt(), "negative": studio.prompt("")}
    prompts[which] = ConditioningCombine().combine(prompts[which], extra)[0]
    model, reports = meancache(**SPARSE)
    studio.sample(model, **prompts, steps=STEPS)
    assert computed_at(reports[0])[skipped_step] == "conditioning change"


def test_a_prompt_that_begins_at_the_very_sigma_of_a_step(studio, meancache, watched):
    """Whether it has begun is decided as ComfyUI decides it, in single precision, or a step would go without a prompt."""
    patched, reports = meancache(**SPARSE)
    studio.sample(patched, steps=STEPS)
    edges = {e.step: studio.model.get_model_object("model_sampling").percent_to_sigma(e.step / STEPS)
             for e in reports[0].evaluations if not e.computed}  # fmt: skip
    step = next(i for i, edge in edges.items() if float(torch.tensor(edge)) > edge)
    model, watch = watched(patched)
    studio.sample(model, ranged(studio.prompt(), step / STEPS, 1.0), steps=STEPS)
    spoke = [bool(e.calls[0].out[0].any()) for e in watch.evaluations]
    assert spoke == [i >= step for i in range(STEPS)]


class Push(comfy.controlnet.ControlBase):
    """A ControlNet without a network: adds to the first block's output, within its range. Not the same to every channel, which the next
    block's norm would take away."""

    def __init__(self, start, end, previous=None):
        super().__init__()
        self.timestep_percent_range = (start, end)
        self.asked = 0
        if previous is not None:
            self.set_previous_controlnet(previous)

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        self.asked += 1
        before = None
        if self.previous_controlnet is not None:
            before = self.previous_controlnet.get_control(x_noisy, t, cond, batched_number, transformer_options)
        if t[0] > self.timestep_range[0] or t[0] < self.timestep_range[1]:
            return before
        push = torch.linspace(-1, 1, 64).repeat(1, 64, 1)
        return self.control_merge({"input": [push], "middle": [], "output": []}, before, None)


def controlled(cond, control):
    return [[text, {**options, "control": control, "control_apply_to_uncond": True}] for text, options in cond]


@pytest.mark.parametrize("chained", [False, True])
@pytest.mark.parametrize("begins", [True, False])
def test_a_controlnet_that_begins_or_ends(studio, meancache, watched, skipped_step, begins, chained):
    percent = between(skipped_step)
    control = Push(*((percent, 1.0) if begins else (0.0, percent)))
    if chained:  # the one that changes is deeper in the chain
        control = Push(0.0, 1.0, control)
    patched, reports = meancache(**SPARSE)
    model, watch = watched(patched)
    out = studio.sample(model, controlled(studio.prompt(), control), steps=STEPS)
    watch.agrees_with(reports[0])
    assert computed_at(reports[0])[skipped_step] == "conditioning change"
    assert skipped_step - 1 not in computed_at(reports[0])
    assert control.asked == reports[0].computed  # a skipped evaluation saves its ControlNets as well
    assert not torch.allclose(out, studio.sample(patched, steps=STEPS), atol=1e-2)  # it took effect


def lora_hook(studio, frames):
    generator = torch.Generator().manual_seed(3)
    weight = studio.model.model.diffusion_model.double_blocks[0].img_attn.qkv.weight
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    lora = {
        f"{name}.lora_up.weight": torch.randn(weight.shape[0], 4, generator=generator) * 0.1,
        f"{name}.lora_down.weight": torch.randn(4, weight.shape[1], generator=generator) * 0.1,
    }
    group = comfy.hooks.create_hook_lora(lora, 1.0, 0.0)
    keyframes = comfy.hooks.HookKeyframeGroup()
    for percent, strength in frames:
        keyframes.add(comfy.hooks.HookKeyframe(strength, percent))
    group.set_keyframes_on_hooks(keyframes)
    return group


def test_a_hook_that_comes_to_its_next_keyframe(studio, meancache, watched, skipped_step):
    hooks = lora_hook(studio, [(0.0, 0.0), (between(skipped_step), 1.0)])
    cond = comfy.hooks.set_hooks_for_conditioning(studio.prompt(), hooks)
    patched, reports = meancache(**SPARSE)
    model, watch = watched(patched)
    out = studio.sample(model, cond, steps=STEPS)
    watch.agrees_with(reports[0])
    assert computed_at(reports[0])[skipped_step] == "conditioning change"
    assert not torch.allclose(out, studio.sample(patched, steps=STEPS), atol=1e-3)


# slots_of by itself


def slots(conds, sigma=0.5, options=None, call=0, x=None):
    return slots_of(conds, torch.zeros(1, 16, 16, 16) if x is None else x, sigma, options or {}, call)


def test_nothing_there_is_no_slot():
    assert slots([None, [], [{"uuid": 1, "timestep_start": 0.4}]]) == [None, None, None]


def test_a_cond_without_a_uuid_has_a_slot_all_the_same():
    assert slots([[{}]]) != [None]


def test_equal_uuids_in_two_places_are_two_slots():
    first, second = slots([[{"uuid": 1}], [{"uuid": 1}]])
    assert first != second


def test_what_makes_another_slot():
    x, cond = torch.zeros(1, 16, 16, 16), [{"uuid": 1}]
    window = {"context_window": SimpleNamespace(index_list=[0, 1])}
    base = slots([cond])
    assert slots([cond]) == base
    assert slots([[{"uuid": 2}]]) != base
    assert slots([cond], call=1) != base
    assert slots([cond], options=window) != base
    assert slots([cond], options={"patches_replace": {"dit": {("double_block", 0): len}}}) != base
    assert slots([cond], options={"patches": {"attn1_patch": [len]}}) != base
    assert slots([cond], x=x[..., :8]) != base
    assert slots([cond], sigma=0.4) == base  # but not sigma alone


@pytest.mark.parametrize("percent", [i / 20 for i in range(1, 20)])
def test_ranges_are_read_as_comfyui_reads_them(studio, percent):
    """At the very sigma where a range ends too: ComfyUI compares in the sigma's own precision, not in Python's."""
    edge = studio.model.get_model_object("model_sampling").percent_to_sigma(percent)
    at = torch.tensor([edge])
    for timestep in (at, torch.nextafter(at, torch.ones(1)), torch.nextafter(at, torch.zeros(1))):
        sigma = float(timestep)
        for key in ("timestep_start", "timestep_end"):
            cond = {"uuid": 1, key: edge, "model_conds": {}}
            covers = comfy.samplers.get_area_and_mult(cond, torch.zeros(1, 16, 16, 16), timestep) is not None
            assert (slots([[cond]], sigma) != [None]) == covers, (key, sigma)
        for span in ((edge, 0.0), (1.0, edge)):
            control = SimpleNamespace(timestep_range=span, previous_controlnet=None)
            within = not (timestep[0] > span[0] or timestep[0] < span[1])  # as ControlBase does it
            inside = SimpleNamespace(timestep_range=(1.0, 0.0), previous_controlnet=None)
            same = slots([[{"control": control}]], sigma) == slots([[{"control": inside}]], sigma)
            assert same == within, (span, sigma)


def test_every_controlnet_of_a_chain_counts():
    def chain(*spans):
        link = None
        for span in spans:
            link = SimpleNamespace(timestep_range=span, previous_controlnet=link)
        return [[{"uuid": 1, "control": link}]]

    on, off = (1.0, 0.4), (0.4, 0.0)
    told = [slots(chain(*spans)) for spans in ((), (on,), (off,), (on, on), (on, off), (off, on), (off, off))]
    assert all(a != b for i, a in enumerate(told) for b in told[:i])
    assert slots(chain(None)) == slots(chain(on))  # no range: always


def test_every_hook_of_a_group_counts():
    def group(*starts):
        frames = SimpleNamespace(keyframes=[SimpleNamespace(start_t=t) for t in starts])
        return [[{"uuid": 1, "hooks": SimpleNamespace(hooks=[SimpleNamespace(hook_keyframe=frames)])}]]

    assert slots(group(1.0, 0.6)) != slots(group(1.0, 0.4))
    assert slots(group(1.0, 0.6), sigma=0.6) == slots(group(1.0, 0.6), sigma=0.5)
    assert slots(group(1.0, 0.6), sigma=0.7) != slots(group(1.0, 0.6), sigma=0.5)
