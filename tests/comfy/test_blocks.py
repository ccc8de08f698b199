"""The block hook on Flux under ComfyUI's own nodes: every conditioning is answered from its own past, and nothing is added twice."""

from __future__ import annotations

from typing import Any

import comfy.controlnet
import comfy.hooks
import comfy.ldm.flux.controlnet
import comfy.model_base
import comfy.ops
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_nag import NAGuidance
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT

from nodes import ConditioningCombine, ConditioningSetMask, ControlNetApplyAdvanced
from skipstone.core.step.report.report import Report
from skipstone.patch.blocks.transformer import LEFT_OUT
from skipstone.patch.errors import StepCacheError
from skipstone.patch.families import Family, family_of
from skipstone.patch.step import run_setup
from skipstone.patch.step.attach import attach
from skipstone.tests.comfy import zoo
from skipstone.tests.comfy.block_observer import BlockObserver, below, every
from skipstone.tests.comfy.test_changes import lora_hook, ranged
from skipstone.tests.comfy.test_families import Recording, Replay
from skipstone.tests.comfy.test_slots import SITUATIONS, area, guider_of, windows
from skipstone.tests.comfy.zoo.base import fill, normal

STEPS = 6
OUTER = [(1, 0), (1, 1), (0, 0), (2, 2)]
outer = pytest.mark.parametrize(("prefix", "suffix"), OUTER)


@pytest.fixture(scope="module")
def flux(small_flux):
    """A MODEL of 2 + 3 blocks."""
    return small_flux(depth=2, depth_single_blocks=3)


@pytest.fixture
def looked():
    """A clone of a MODEL whose blocks are observed: `model, observer = looked(model)`. Put it on last."""
    made = []

    def on(model, *blocks):
        made.append(BlockObserver(model, *blocks))
        return made[-1].on(model), made[-1]

    yield on
    for observer in made:
        observer.off()


def masked(studio):
    """Two prompts, each for a half of the picture, by masks: both are asked about the whole."""
    halves = []
    for text, half in (
        ("a red apple on a blue background", slice(0, 8)),
        ("a frog on a white background", slice(8, 16)),
    ):
        mask = torch.zeros(1, 16, 16)
        mask[..., half] = 1.0
        halves += ConditioningSetMask().append(studio.prompt(text), mask, "default", 1.0)[0]
    return halves


def ranges(studio):
    """One prompt throughout, one that goes and one that comes."""
    first, second = ranged(studio.prompt("a blue circle"), 0.0, 0.4), ranged(studio.long_prompt, 0.4, 1.0)
    return ConditioningCombine().combine(studio.prompt(), [*first, *second])[0]


def three_areas(studio):
    texts = ("a red apple on a blue background", "a frog on a white background", "a red apple on a blue background")
    return [*studio.prompt(), *(c for i, text in enumerate(texts) for c in area(studio, text, 32 * i, 64))]


SITUATIONS = {
    **SITUATIONS,
    "masks": (None, masked, None, 3.0, 2),
    "prompts with time ranges": (None, ranges, None, 3.0, 2),
    "areas of one size, and one prompt twice": (None, three_areas, None, 3.0, 2),
    "normalized attention guidance": (lambda m: NAGuidance.execute(m, 5.0, 0.5, 1.5)[0], None, None, 1.0, 2),
    "skip layer guidance of the first block": (lambda m: slg(m, "0", ""), None, None, 3.0, 3),
    "skip layer guidance without the first of those that a skip leaves out": (lambda m: slg(m, "1", ""), None, None, 3.0, 3),
    "skip layer guidance without the last block": (lambda m: slg(m, "", "2"), None, None, 3.0, 3),
    "windows over parts of the width": (lambda m: windows(m, "standard_static", 3, 10, 4), None, None, 3.0, 4),
}  # fmt: skip


def slg(model, double, single):
    return SkipLayerGuidanceDiT.execute(model, 2.0, 0.0, 1.0, double, single)[0]


def sampled(studio, flux, situation, patch, steps=STEPS):
    change, positive, negative, cfg, _ = SITUATIONS[situation]
    model = patch(change(flux) if change else flux)
    return studio.sample(model, positive and positive(studio), negative and negative(studio), steps=steps, cfg=cfg)


@pytest.mark.parametrize("situation", SITUATIONS)
def test_each_is_answered_from_its_own_past(studio, flux, cached, looked, situation):
    reports, observers = [], []

    def patch(model):
        patched, told = cached(every(2), model)
        model, observer = looked(patched)
        reports.append(told)
        observers.append(observer)
        return model

    out = sampled(studio, flux, situation, patch)
    assert torch.isfinite(out).all()
    # nothing can be kept where the last block is another node's, so that this conditioning is a new one again and again
    observers[0].check(reports[0][0], at_least=1 if situation.endswith("without the last block") else 2)
    assert reports[0][0].notes == ([LEFT_OUT] if "without the" in situation else [])


@pytest.mark.parametrize("situation", SITUATIONS)
def test_never_skipping_is_bit_equal(studio, flux, cached, situation):
    plain = sampled(studio, flux, situation, lambda model: model, steps=4)
    for method in (every(1, 1, 1), below(0.0)):
        assert torch.equal(
            sampled(studio, flux, situation, lambda model, m=method: cached(m, model)[0], steps=4), plain
        )


def test_long_and_short_prompts_are_two_calls_and_others_one(studio, flux, cached, looked):
    for negative, calls in ((studio.prompt(""), 1), (studio.long_prompt, 2)):
        patched, reports = cached(every(2), flux)
        model, observer = looked(patched)
        studio.sample(model, negative=negative, steps=STEPS)
        assert {s.evaluation for s in observer.check(reports[0])} == {1, 3}
        assert [len(here) for here in observer.evaluations()] == [calls] * STEPS


@pytest.mark.parametrize("name", ["two prompts regular", "two prompts nested", "perp-neg", "two models"])
def test_other_guiders(studio, flux, cached, looked, name):
    patched, reports = cached(every(2), flux)
    model, observer = looked(patched)
    if name == "two models":  # the other one has blocks of its own, which are not observed
        studio = studio.of(cached(every(1), flux)[0])
    guider = guider_of(name, studio, model)
    noise, euler = studio.noise(), comfy.samplers.sampler_object("euler")
    out = guider.sample(noise, torch.zeros_like(noise), euler, torch.linspace(1, 0, STEPS + 1))
    assert torch.isfinite(out).all()
    observer.check(reports[0])


def test_windows_that_move(studio, flux, cached, looked):
    """Where a window was never seen there is nothing to skip with."""
    patched, _ = cached(every(3), windows(flux, "standard_uniform"))
    model, observer = looked(patched)
    assert torch.isfinite(studio.sample(model, steps=9)).all()
    seen: set[Any] = set()
    for call in observer.seen:
        if observer.skips(call):
            assert seen >= set(call.keys)
        seen |= set(call.keys)
    assert len({key[1] for key in seen}) > 3


def test_windows_over_the_batch(studio, flux, cached, looked):
    patched, reports = cached(every(2), windows(flux, "standard_static", dim=0, length=2, overlap=1))
    model, observer = looked(patched)
    studio.sample(model, noise=studio.noise(batch=3), cfg=1.0, steps=STEPS)
    observer.check(reports[0])


@pytest.mark.parametrize("situation", ["cfg", "regional prompt", "areas of one size, and one prompt twice"])
def test_whether_conditionings_are_run_together_may_change_from_step_to_step(
    studio, flux, cached, looked, monkeypatch, situation
):
    """ComfyUI decides it anew by the memory that is free."""
    together = sampled(studio, flux, situation, lambda model: cached(every(3), model)[0])
    observers, reports = [], []

    def patch(model):
        patched, told = cached(every(3), model)
        reports.append(told)
        model, observer = looked(patched)
        observers.append(observer)
        return model

    free = [0, 1 << 40, 1 << 40, 0, 0, 1 << 40]  # by evaluation
    monkeypatch.setattr(type(flux), "get_free_memory", lambda *_: free[len(observers[0].sigmas) - 1])
    split = sampled(studio, flux, situation, patch)
    torch.testing.assert_close(split, together, atol=1e-4, rtol=1e-3)
    counts = [len(here) for here in observers[0].evaluations()]
    assert counts[0] > counts[1]
    assert counts[3] > counts[2]
    observers[0].check(reports[0][0])


def test_the_pictures_of_a_batch_do_not_mix(studio, flux, cached, looked):
    noise = studio.noise(batch=3)
    patched, reports = cached(every(2), flux)
    model, observer = looked(patched)
    together = studio.sample(model, noise=noise, steps=STEPS)
    observer.check(reports[0])
    alone = studio.sample(patched, noise=noise[2:], steps=STEPS)
    torch.testing.assert_close(together[2:], alone, atol=1e-4, rtol=1e-3)


SAMPLERS = ["heun", "dpm_2", "dpmpp_sde", "euler_ancestral", "dpmpp_2s_ancestral", "uni_pc", "lcm"]


@pytest.mark.filterwarnings("ignore:::torchsde")
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_of_other_orders_and_with_noise(studio, flux, cached, looked, sampler):
    patched, reports = cached(every(2), flux)
    model, observer = looked(patched)
    assert torch.isfinite(studio.sample(model, sampler=sampler, steps=STEPS)).all()
    observer.check(reports[0])


@pytest.mark.filterwarnings("ignore:::torchsde")
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_never_skipping_is_bit_equal_for_other_samplers(studio, flux, cached, sampler):
    plain = studio.sample(flux, sampler=sampler, steps=4)
    assert torch.equal(studio.sample(cached(below(0.0), flux)[0], sampler=sampler, steps=4), plain)


# What is added between the blocks


@pytest.fixture(scope="module")
def control_net(flux):
    """A CONTROL_NET as ComfyUI loads one for this Flux, of 2 + 1 blocks, with random weights."""
    config = {**flux.model.model_config.unet_config, "depth_single_blocks": 1}
    kind = comfy.ldm.flux.controlnet.ControlNetFlux
    network = kind(**{**config, "dtype": torch.float32, "vec_in_dim": 64}, operations=comfy.ops.disable_weight_init)
    fill(network, 7)
    device = torch.device("cpu")
    return comfy.controlnet.ControlNet(network.eval(), load_device=device, extra_conds=["y", "guidance"])


def with_control(studio, control_net, start=0.0, end=1.0):
    picture = normal(1, 128, 128, 3, seed=8).sigmoid()
    prompts = studio.prompt(), studio.prompt("")
    return ControlNetApplyAdvanced().apply_controlnet(*prompts, control_net, picture, 1.0, start, end)


def held_against_the_network(model, prefix, suffix, sample):
    """Each call of a run that skips gives the output of the network with one block's output replaced."""
    network, recording = model.model.diffusion_model, Recording()
    reports: list[Report] = []
    with recording.of(network):
        sample(attach(model, every(2, prefix, suffix), (reports.append,)))
    computed = [e.computed for e in reports[0].evaluations]
    at, calls = computed.index(False), len(recording.calls) // len(computed)
    before, here = (recording.calls[i * calls : (i + 1) * calls] for i in (at - 1, at))
    family = family_of(network)
    assert isinstance(family, Family)
    replay = Replay(network, family, prefix, suffix)
    for was, now in zip(before, here, strict=True):
        said, residual = replay(was)
        torch.testing.assert_close(said, was.said, rtol=1e-4, atol=1e-5)
        expected, other = replay(now, residual)
        torch.testing.assert_close(now.said, expected, rtol=1e-4, atol=1e-5)
        # and that differs from the output with the block's own
        assert any(not torch.allclose(other[n], r, rtol=1e-3, atol=1e-4) for n, r in residual.items())


@outer
def test_what_a_controlnet_adds_is_added_once(studio, flux, control_net, prefix, suffix):
    conds = with_control(studio, control_net)
    held_against_the_network(flux, prefix, suffix, lambda model: studio.sample(model, *conds, steps=4))


def scribble(given):
    """As DiffSynth's and Z-Image's ControlNets and Uni3C do it, and onto what it is given."""
    i, img = given["block_index"], given["img"]
    source = given.get("img_input")
    img += 0.1 * (i + 1) if source is None else 0.1 * (i + 1) * source[:, : img.shape[1]]
    return {k: v for k, v in given.items() if k in ("img", "txt")}


@pytest.mark.parametrize(("prefix", "suffix"), [(1, 0), (1, 1), (0, 2)])
@pytest.mark.parametrize("name", ["Lumina2 (Z-Image)", "WAN21", "WAN21_Vace", "QwenImage"])
def test_what_a_patch_does_between_the_blocks_is_done_once(name, prefix, suffix):
    tiny = next((m for m in zoo.MODELS if m.name == name), None)
    if tiny is None or not hasattr(comfy.model_base, tiny.base):
        pytest.skip("this ComfyUI has no such model")
    model = tiny.build()
    conds = tiny.conds(model)
    model.set_model_patch(scribble, "double_block")

    def sample(model):
        with torch.inference_mode():
            return zoo.sample(tiny, model, *conds, steps=4)

    held_against_the_network(model, prefix, suffix, sample)


BLOCKS = [("double_block", 0), ("double_block", 1), ("single_block", 0), ("single_block", 1), ("single_block", 2)]


def with_face(model, block, in_place):
    """As PuLID does it: in place of a block stands what runs it, looks at the picture then, and adds to it."""

    def replacement(given, more):
        out = more["original_block"](given)
        picture = out["img"][:, -64:]  # in single blocks the text comes before it
        added = (0.3 + 0.1 * BLOCKS.index(block)) * picture.roll(1, 1).tanh() + 0.2
        if in_place:
            picture += added
            return out
        return {**out, "img": torch.cat((out["img"][:, :-64], picture + added), 1)}

    changed = model.clone()
    changed.set_model_patch_replace(replacement, "dit", *block)
    return changed


in_place = pytest.mark.parametrize("in_place", [False, True], ids=["a new stream", "in place"])
each_block = pytest.mark.parametrize("block", BLOCKS, ids=lambda block: " ".join(map(str, block)))


@in_place
@each_block
@pytest.mark.parametrize(("prefix", "suffix"), [(1, 0), (1, 1), (0, 2)])
def test_what_is_added_by_who_stands_in_place_of_a_block_is_added_once(studio, flux, prefix, suffix, block, in_place):
    """Before, at, among and after those that a skip leaves out. What is added after the last of these is added as ever; what is added
    among them is part of what is kept of them."""
    model = with_face(flux, block, in_place)
    held_against_the_network(model, prefix, suffix, lambda model: studio.sample(model, steps=4))


@in_place
@each_block
def test_never_skipping_is_bit_equal_with_who_stands_in_place_of_a_block(studio, flux, cached, block, in_place):
    model = with_face(flux, block, in_place)
    plain = studio.sample(model, steps=4)
    for method in (every(1, 1, 1), below(0.0)):
        assert torch.equal(studio.sample(cached(method, model)[0], steps=4), plain)
    assert not torch.allclose(plain, studio.sample(flux, steps=4), atol=1e-3)  # it took effect


# What changes on the way


def computed_at(report):
    return {e.step: e.reason for e in report.evaluations if e.computed}


MIDDLE, ALL = 6, 9
"""With every(5) steps 1 to 4 and 6, 7 of nine are skipped; the model's sigmas are 1 - i/9."""
PERCENT = (MIDDLE - 0.5) / ALL


@pytest.mark.parametrize("begins", [True, False])
def test_a_prompt_that_comes_or_goes(studio, flux, cached, looked, begins):
    extra = ranged(studio.prompt("a frog on a white background"), *((PERCENT, 1.0) if begins else (0.0, PERCENT)))
    patched, reports = cached(every(5), flux)
    model, observer = looked(patched)
    studio.sample(model, ConditioningCombine().combine(studio.prompt(), extra)[0], steps=ALL)
    observer.check(reports[0])
    assert computed_at(reports[0])[MIDDLE] == "conditioning change"


def test_a_prompt_that_comes_unforeseen(studio, flux, cached, looked, monkeypatch):
    """It is run after the others, and yet the one decision for all of them knows that there is nothing to skip with."""
    monkeypatch.setattr(run_setup, "changes", lambda *_: frozenset())
    patched, reports = cached(every(5), flux)
    model, observer = looked(patched)
    first, second = ranged(studio.long_prompt, 0.0, PERCENT), ranged(studio.long_prompt, PERCENT, 1.0)
    studio.sample(model, negative=ConditioningCombine().combine(first, second)[0], steps=ALL)
    observer.check(reports[0])
    assert computed_at(reports[0])[MIDDLE] == "new conditioning"
    here = observer.evaluations()[MIDDLE]
    assert len(here) == 2
    assert not any(observer.skips(call) for call in here)


@pytest.mark.parametrize("begins", [True, False])
def test_a_controlnet_that_begins_or_ends(studio, flux, cached, looked, control_net, begins):
    conds = with_control(studio, control_net, *((PERCENT, 1.0) if begins else (0.0, PERCENT)))
    patched, reports = cached(every(5), flux)
    model, observer = looked(patched)
    studio.sample(model, *conds, steps=ALL)
    observer.check(reports[0])
    assert computed_at(reports[0])[MIDDLE] == "conditioning change"
    plain = studio.sample(flux, *conds, steps=ALL)
    assert torch.equal(studio.sample(cached(below(0.0), flux)[0], *conds, steps=ALL), plain)
    assert not torch.allclose(plain, studio.sample(flux, steps=ALL), atol=1e-3)  # it took effect


def test_a_hook_that_comes_to_its_next_keyframe(studio, flux, cached, looked):
    model = flux
    hooks = lora_hook(studio.of(model), [(0.0, 0.0), (PERCENT, 1.0)])
    cond = comfy.hooks.set_hooks_for_conditioning(studio.prompt(), hooks)
    patched, reports = cached(every(5), model)
    watched, observer = looked(patched)
    out = studio.sample(watched, cond, steps=ALL)
    observer.check(reports[0])
    assert computed_at(reports[0])[MIDDLE] == "conditioning change"
    assert not torch.allclose(out, studio.sample(patched, steps=ALL), atol=1e-4)
    plain = studio.sample(flux, cond, steps=ALL)
    assert torch.equal(studio.sample(cached(below(0.0), flux)[0], cond, steps=ALL), plain)


def test_a_model_on_several_gpus_is_computed_in_full(studio, flux, cached):
    """Each of ComfyUI's threads has a part of the batch, and a hook that sees one part alone decides nothing."""

    def on_several(executor, *args, **kwargs):
        options = args[5] if len(args) > 5 else kwargs["transformer_options"]
        options["multigpu_thread_device"] = torch.device("cpu")
        return executor(*args, **kwargs)

    spread = flux.clone()
    spread.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "spread", on_several)
    model, reports = cached(every(2), spread)
    assert torch.equal(studio.sample(model, steps=4), studio.sample(flux, steps=4))
    assert reports[0].skipped == 0 and any("GPU" in note for note in reports[0].notes)


def test_where_last_blocks_read_the_first_ones_outputs_there_are_no_more_of_them():
    tiny = next(m for m in zoo.here(zoo.MODELS) if m.base == "HunyuanDiT")
    model = tiny.build()
    with pytest.raises(StepCacheError, match="Bn is at most Fn"):
        zoo.sample(tiny, attach(model, every(2, 1, 2)), *tiny.conds(model), steps=2)
