"""One decision an evaluation, and every conditioning answered from its own past (laws 2 and 3), however it is asked about."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras import nodes_custom_sampler
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_custom_sampler import DualCFGGuider
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_perpneg import PerpNegGuider
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT, SkipLayerGuidanceDiTSimple

from nodes import ConditioningCombine, ConditioningSetArea

# with reuse, the output of a skipped evaluation is known: the last velocity
REUSE = {"preset": "Custom", "predictor": "reuse", "budget": 0.6}
STEPS = 10


def check(watch, report, at_least=3):
    """The laws, checked on what the observer saw. Returns the skipped evaluations."""
    watch.agrees_with(report)
    assert watch.written == []
    last = {}
    for evaluation in watch.evaluations:
        assert len({call.ran for call in evaluation.calls}) == 1, "one decision for all calls of an evaluation"
        for call in evaluation.calls:
            for i, (d, present) in enumerate(zip(call.out, call.present, strict=True)):
                slot = (call.place, i)
                if not present:
                    assert not d.any()
                elif call.ran:
                    last[slot] = (call.x - d) / call.sigma
                else:
                    torch.testing.assert_close(d, call.x - last[slot] * call.sigma, atol=1e-5, rtol=1e-5)
    skipped = [e for e in watch.evaluations if not e.computed]
    assert len(skipped) >= at_least
    return skipped


def answers(evaluation):
    """All that was said in an evaluation, by whatever conditionings it was asked for."""
    return [d for call in evaluation.calls for d, present in zip(call.out, call.present, strict=True) if present]


def all_different(tensors):
    return all(
        not torch.allclose(a, b, atol=1e-3) for i, a in enumerate(tensors) for b in tensors[:i] if a.shape == b.shape
    )


def area(studio, text, x, width):
    (cond,) = ConditioningSetArea().append(studio.prompt(text), width=width, height=128, x=x, y=0, strength=1.0)
    return cond


def regional(studio):
    """A picture-wide prompt and one for the left half, which ComfyUI copies into the negative, uuid and all."""
    return ConditioningCombine().combine(studio.prompt(), area(studio, "a frog on a white background", 0, 64))[0]


def halves(studio):
    return [
        *area(studio, "a red apple on a blue background", 0, 64),
        *area(studio, "a frog on a white background", 64, 64),
    ]


# name: (what is done to the MODEL, the positive, the negative, cfg, answers in an evaluation)
SITUATIONS: dict[str, Any] = {
    "cfg": (None, None, None, 3.0, 2),
    "cfg 1": (None, None, None, 1.0, 1),
    "cond and uncond of different length": (None, None, lambda s: s.long_prompt, 3.0, 2),
    "regional prompt": (None, regional, None, 3.0, 2),
    "only regional prompts": (None, lambda s: halves(s), None, 3.0, 2),
    "skip layer guidance": (lambda m: SkipLayerGuidanceDiT.execute(m, 2.0, 0.0, 1.0, "0", "1")[0], None, None, 3.0, 3),
    "skip layer guidance simple": (lambda m: SkipLayerGuidanceDiTSimple.execute(m, 0.0, 1.0, "0", "1")[0], None, None, 3.0, 2),
    "windows": (lambda m: windows(m, "standard_static"), None, None, 3.0, 6),
    "guidance that blurs the latent": (lambda m: blurring(m), None, None, 3.0, 3),
    "no negative at all": (None, None, lambda s: [], 3.0, 1),
}  # fmt: skip


def windows(model, schedule, dim=2, length=8, overlap=4):
    return ContextWindowsManualNode.execute(model, length, overlap, schedule, 1, False, "pyramid", dim, False)[0]


def blurring(model):
    """As self-attention guidance does it: the model is asked about the same conditioning at a spoilt latent."""

    def post_cfg(args):
        x = torch.nn.functional.avg_pool2d(args["input"], 3, stride=1, padding=1)
        (worse,) = comfy.samplers.calc_cond_batch(
            args["model"], [args["uncond"]], x, args["sigma"], args["model_options"]
        )
        return args["denoised"] + 0.3 * (args["uncond_denoised"] - worse)

    guided = model.clone()
    guided.set_model_sampler_post_cfg_function(post_cfg)
    return guided


@pytest.mark.parametrize("situation", SITUATIONS)
def test_each_is_answered_from_its_own_past(studio, meancache, watched, situation):
    change, positive, negative, cfg, count = SITUATIONS[situation]
    patched, reports = meancache(change(studio.model) if change else studio.model, **REUSE)
    model, watch = watched(patched)
    out = studio.sample(model, positive and positive(studio), negative and negative(studio), steps=STEPS, cfg=cfg)
    assert torch.isfinite(out).all()
    skipped = check(watch, reports[0])
    assert len(skipped) == STEPS - len(reports[0].planned)
    for evaluation in skipped:
        assert len(answers(evaluation)) == count
        assert all_different(answers(evaluation))


def test_the_order_of_the_nodes_does_not_matter(studio, meancache):
    def guide(model):
        return SkipLayerGuidanceDiT.execute(model, 2.0, 0.0, 1.0, "0", "1")[0]

    before, _ = meancache(guide(studio.model), **REUSE)
    after = guide(meancache(**REUSE)[0])
    assert torch.equal(studio.sample(before), studio.sample(after))


def test_perturbed_attention_on_a_unet(studio, meancache, watched, tiny_unet):
    patched, reports = meancache(PerturbedAttentionGuidance.execute(tiny_unet, 3.0)[0], **REUSE)
    model, watch = watched(patched)
    assert torch.isfinite(studio.sample(model, steps=STEPS, latent=torch.zeros(1, 4, 16, 16))).all()
    for evaluation in check(watch, reports[0]):
        assert [call.place[2] for call in evaluation.calls] == [(), ("('middle', 0)",)]


def guider_of(name, studio, model):
    red, green, empty = studio.prompt(), studio.prompt("a frog on a white background"), studio.prompt("")
    if name == "two models":
        node = getattr(nodes_custom_sampler, "DualModelGuider", None)
        if node is None:
            pytest.skip("this ComfyUI has no DualModelGuider")
        return node.execute(model, red, 3.0, studio.model.clone(), empty)[0]
    if name == "perp-neg":
        return PerpNegGuider.execute(model, red, green, empty, 3.0, 1.0)[0]
    return DualCFGGuider.execute(model, red, green, empty, 3.0, 2.0, name.removeprefix("two prompts "))[0]


@pytest.mark.parametrize("name", ["two prompts regular", "two prompts nested", "perp-neg", "two models"])
def test_other_guiders(studio, meancache, watched, name):
    patched, reports = meancache(**REUSE)
    model, watch = watched(patched)
    guider = guider_of(name, studio, model)
    sigmas = torch.linspace(1, 0, STEPS + 1)
    guider.sample(studio.noise(), torch.zeros_like(studio.noise()), comfy.samplers.sampler_object("euler"), sigmas)
    for evaluation in check(watch, reports[0]):
        assert len(answers(evaluation)) == (2 if name == "two models" else 3)
        assert all_different(answers(evaluation))


@pytest.mark.parametrize("schedule", ["looped_uniform", "standard_uniform"])
def test_windows_that_move_are_not_answered_from_another_window(studio, meancache, watched, schedule):
    """Windows shift from step to step here: where one was never seen there is nothing to skip with."""
    patched, reports = meancache(windows(studio.model, schedule), preset="Custom", predictor="reuse", budget=0.2)
    model, watch = watched(patched)
    assert torch.isfinite(studio.sample(model, steps=STEPS)).all()
    seen = set()
    for evaluation in watch.evaluations:
        for call in evaluation.calls:
            if not call.ran:
                assert call.place in seen
            seen.add(call.place)
    assert len({call.place[1] for e in watch.evaluations for call in e.calls}) > 3
    assert any("windows that move" in note for note in reports[0].notes)


def test_windows_over_the_batch(studio, meancache, watched):
    """As with AnimateDiff, whose frames are a batch: the sigmas come in windows, too."""
    patched, reports = meancache(windows(studio.model, "standard_static", dim=0, length=2, overlap=1), **REUSE)
    model, watch = watched(patched)
    studio.sample(model, noise=studio.noise(batch=3), cfg=1.0)
    check(watch, reports[0])


def test_whether_cond_and_uncond_are_run_together_may_change_from_step_to_step(studio, meancache, watched, monkeypatch):
    """ComfyUI decides it anew by the memory that is free."""
    patched, reports = meancache(**REUSE)
    batched = studio.sample(patched)
    model, watch = watched(patched)
    free = [0, 1 << 40]
    monkeypatch.setattr(type(studio.model), "get_free_memory", lambda *_: free[len(watch.evaluations) % 2])
    torch.testing.assert_close(studio.sample(model), batched, atol=1e-4, rtol=1e-3)
    assert {e.model_ran for e in watch.evaluations} == {0, 1, 2}
    check(watch, reports[1], at_least=2)


def test_the_pictures_of_a_batch_do_not_mix(studio, meancache, watched):
    noise = studio.noise(batch=4)
    patched, reports = meancache(**REUSE)
    model, watch = watched(patched)
    together = studio.sample(model, noise=noise)
    check(watch, reports[0])
    for i in (0, 3):
        alone = studio.sample(patched, noise=noise[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("predictor", ["reuse", "auto"])
def test_guidance_that_begins_in_mid_run(studio, meancache, watched, predictor):
    """It may begin where a skip was decided already: then it alone is computed, and everything at the next evaluation."""
    sparse = {"preset": "Custom", "predictor": predictor, "budget": 0.3}
    patched, reports = meancache(**sparse)
    studio.sample(patched, steps=20)
    planned = reports[0].planned
    begin = next(i for i in range(5, 20) if i not in planned and i + 1 not in planned)
    guided = SkipLayerGuidanceDiT.execute(studio.model, 2.0, (begin - 0.5) / 20, 0.9, "0", "1")[0]
    patched, reports = meancache(guided, **sparse)
    model, watch = watched(patched)
    assert torch.isfinite(studio.sample(model, steps=20)).all()
    assert reports[0].planned == planned
    ran = [[call.ran for call in e.calls] for e in watch.evaluations]
    assert [len(r) for r in ran].index(2) == begin
    assert ran[begin] == [False, True]
    assert ran[begin + 1] == [True, True]
    assert [i for i, r in enumerate(ran) if len(set(r)) > 1] == [begin]


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m_sde", "lcm"])
def test_where_noise_is_added_on_the_way_it_is_the_picture_that_is_said_again(studio, meancache, watched, sampler):
    """A velocity depends on the noise in the latent: noise that was added since would remain in the picture."""
    model, watch = watched(meancache(**REUSE)[0])
    studio.sample(model, steps=STEPS, sampler=sampler)
    last: list[Any] = []
    for evaluation in watch.evaluations:
        if evaluation.computed:
            last = answers(evaluation)
        else:
            torch.testing.assert_close(answers(evaluation), last)
    assert not all(watch.computed)


def test_who_asks_the_model_outside_of_an_evaluation_gets_the_models_own_answer(studio, meancache):
    """While the sampler is under way, but not by it: neither counted nor skipped nor remembered."""
    asked = []

    def ask(executor, guider, sigmas, extra_args, callback, *args, **kwargs):
        conds, options = [guider.conds["positive"], guider.conds["negative"]], extra_args["model_options"]

        def between_evaluations(step, *_):
            for sigma in (sigmas[step], sigmas[step + 1]):
                x = studio.noise(9)
                asked.extend(comfy.samplers.calc_cond_batch(guider.inner_model, conds, x, sigma[None], options))

        between_evaluations(0)
        return executor(guider, sigmas, extra_args, between_evaluations, *args, **kwargs)

    curious = studio.model.clone()
    curious.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "curious", ask)
    patched, reports = meancache(curious, **REUSE)
    studio.sample(curious)
    count = len(asked)
    out = studio.sample(patched)
    for plain, cached in zip(asked[:count], asked[count:], strict=True):
        assert torch.equal(plain, cached)
    assert len(reports[0].evaluations) == 8
    assert torch.equal(out, studio.sample(meancache(**REUSE)[0]))


def test_a_model_asked_without_any_run(studio, meancache):
    model, reports = meancache(**REUSE)
    base, x, sigma = model.model, studio.noise(), torch.tensor([0.5])
    conds = {"positive": comfy.sampler_helpers.convert_cond(studio.prompt())}
    model.pre_run()
    try:
        (cond,) = comfy.samplers.process_conds(base, x, conds, x.device).values()
        answer, nothing = comfy.samplers.calc_cond_batch(base, [cond, None], x, sigma, model.model_options)
    finally:
        model.cleanup()
    assert torch.isfinite(answer).all() and answer.any() and not nothing.any()
    assert reports == []
