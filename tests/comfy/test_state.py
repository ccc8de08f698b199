"""A node holds configuration only: a run's state is created with it, ends with it and is never shared (laws 1 and 6)."""

from __future__ import annotations

import copy
import gc
import weakref
from itertools import pairwise
from typing import Any

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP

from skipstone.core.step.history import History
from skipstone.core.step.run import Run

TURBO = {"preset": "Turbo"}  # at 8 steps: 5 computed, 3 skipped


def alive(kind):
    gc.collect()
    return [o for o in gc.get_objects() if type(o) is kind]


def test_one_model_sampled_twice_is_as_two_fresh_ones(studio, meancache):
    model, reports = meancache(**TURBO)
    again = [studio.sample(model, seed=seed) for seed in (1, 2, 1)]
    fresh = [studio.sample(meancache(**TURBO)[0], seed=seed) for seed in (1, 2)]
    assert torch.equal(again[0], fresh[0])
    assert torch.equal(again[1], fresh[1])
    assert torch.equal(again[2], fresh[0])
    assert not torch.equal(fresh[0], studio.full())  # it did something
    assert [r.skipped for r in reports] == [3, 3, 3]


def test_one_guider_sampled_twice(studio, meancache):
    model, reports = meancache(**TURBO)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(studio.prompt(), studio.prompt(""))
    guider.set_cfg(3.0)
    sigmas = torch.linspace(1, 0, 9)
    first, second = (
        guider.sample(studio.noise(), torch.zeros_like(studio.noise()), comfy.samplers.sampler_object("euler"), sigmas)
        for _ in range(2)
    )
    assert torch.equal(first, second)
    assert [r.skipped for r in reports] == [3, 3]


def test_a_run_within_a_run_on_a_clone_changes_neither(studio, meancache):
    """Nothing is shared: not even by a clone that samples while the other is in the middle of its steps."""
    model, _ = meancache(**TURBO)
    alone = studio.sample(model)
    within = []

    def callback(step, *_):
        if step in (3, 5):
            base = studio.model.model
            patcher = base.current_patcher  # ComfyUI itself forgets it when a run ends, and is asked for it below
            within.append(studio.sample(model.clone(), seed=2))
            base.current_patcher = patcher

    assert torch.equal(studio.sample(model, callback=callback), alone)
    assert len(within) == 2
    assert torch.equal(within[0], within[1])
    assert torch.equal(within[0], studio.sample(model, seed=2))


def test_a_clone_that_goes_its_own_way_leaves_the_first_alone(studio, meancache):
    model, _ = meancache(**TURBO)
    before = studio.sample(model)
    other = model.clone()
    other.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * 0.5)
    changed = studio.sample(other)
    assert not torch.equal(changed, before)
    assert torch.equal(studio.sample(model), before)


class Trouble:
    """A DIFFUSION_MODEL wrapper that raises at the given model call of the run, once."""

    def __init__(self, at, error):
        self.left, self.error = at, error

    def __call__(self, executor, *args, **kwargs):
        self.left -= 1
        if self.left == 0:
            raise self.error
        return executor(*args, **kwargs)


@pytest.mark.parametrize(
    "error", [RuntimeError("out of memory"), comfy.model_management.InterruptProcessingException()], ids=type
)
def test_an_error_in_mid_run_leaves_nothing_behind(studio, meancache, error):
    model, reports = meancache(**TURBO)
    troubled = model.clone()
    troubled.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "trouble", Trouble(3, error))
    with pytest.raises(type(error)) as caught:
        studio.sample(troubled)
    assert caught.value is error
    assert not reports[0].finished
    assert [e.computed for e in reports[0].evaluations].count(True) == 3  # the third was decided, and failed
    del caught
    error.__traceback__ = None
    assert not alive(Run)
    # the same MODEL object again: as fresh
    assert torch.equal(studio.sample(troubled), studio.sample(meancache(**TURBO)[0]))
    assert reports[1].finished


def test_nothing_of_a_run_can_be_reached_after_it(studio, meancache):
    model, _ = meancache(**TURBO)
    seen: list[Any] = []

    def callback(step, *_):
        if step == 4:
            seen.extend(weakref.ref(run) for run in alive(Run))
            seen.extend(weakref.ref(value) for h in alive(History) for value in h.anchors.values())

    studio.sample(model, callback=callback)
    assert len(seen) >= 1 + 2 * 2  # the run, and two anchors at least of two conditionings
    gc.collect()
    assert [ref() for ref in seen if ref() is not None] == []


def test_a_history_is_bounded(studio, meancache):
    """However long the run: what is kept of a conditioning is a few anchors, not all there were."""
    kept: list[int] = []

    def callback(step, *_):
        if step in (25, 35):
            kept.extend(len(h.anchors) for h in alive(History))

    model, reports = meancache(preset="Custom", budget=0.5)
    studio.sample(model, steps=40, cfg=1.0, callback=callback)
    assert reports[0].computed == 20
    assert max(kept) <= 8


def test_sampling_leaves_the_models_options_as_they_were(studio, meancache):
    model, _ = meancache(**TURBO)
    options, wrappers = copy.copy(model.model_options), copy.deepcopy(list(model.wrappers))
    told = repr((model.model_options, model.wrappers, model.callbacks))
    studio.sample(model)
    assert model.model_options.keys() == options.keys()
    assert list(model.wrappers) == wrappers
    assert repr((model.model_options, model.wrappers, model.callbacks)) == told
    # and the node itself never wrote to the MODEL it was given
    assert "skipstone" not in repr(studio.model.model_options) + repr(studio.model.wrappers)


def test_a_wrapper_around_the_run_may_sample_twice_with_one_set_of_options(studio, meancache):
    """An OUTER_SAMPLE wrapper of another pack that goes first, and runs what is below it again."""
    outs = []

    def twice(executor, *args, **kwargs):
        told = repr(executor.class_obj.model_options)
        conds = {k: [c.copy() for c in v] for k, v in executor.class_obj.conds.items()}
        outs.append(executor(*args, **kwargs))
        assert repr(executor.class_obj.model_options) == told
        executor.class_obj.conds = conds
        outs.append(executor(*args, **kwargs))
        return outs[-1]

    around = studio.model.clone()
    around.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "another pack", twice)
    model, reports = meancache(around, **TURBO)
    studio.sample(model)
    assert torch.equal(outs[0], outs[1])
    assert [r.skipped for r in reports] == [3, 3]


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral"])  # velocities are kept, denoised ones are kept
def test_what_is_kept_is_not_what_others_may_write_to(studio, meancache, sampler):
    """Post-CFG functions that spoil the predictions in place, after use, change no later step."""

    def spoil(args):
        args["cond_denoised"].fill_(float("nan"))
        args["uncond_denoised"].fill_(float("nan"))
        return args["denoised"]

    model, reports = meancache(**TURBO)
    rude = model.clone()
    rude.set_model_sampler_post_cfg_function(spoil)
    assert torch.equal(studio.sample(rude, sampler=sampler), studio.sample(model, sampler=sampler))
    assert reports[0].skipped > 0


def test_a_sampler_may_step_in_place(studio, meancache):
    """The latent that the model was given is the sampler's own, and it goes on writing to it."""

    def in_place(model, x, sigmas, extra_args=None, callback=None, disable=None):
        for a, b in pairwise(sigmas):
            d = (x - model(x, a * x.new_ones(len(x)), **extra_args)) / a
            x.add_(d * (b - a))
        return x

    def out_of_place(model, x, sigmas, extra_args=None, callback=None, disable=None):
        for a, b in pairwise(sigmas):
            d = (x - model(x.clone(), a * x.new_ones(len(x)), **extra_args)) / a
            x = x + d * (b - a)
        return x

    sigmas = torch.linspace(1, 0, 9)
    model, reports = meancache(**TURBO)
    outs = [studio.sample_custom(model, sigmas, sampler=comfy.samplers.KSAMPLER(f)) for f in (in_place, out_of_place)]
    assert torch.equal(*outs)
    assert reports[0].skipped == 3


def test_nothing_is_written_to_what_the_graph_hands_in(studio, meancache, watched):
    model, watch = watched(meancache(**TURBO)[0])
    prompts = [studio.prompt("a red apple on a blue background"), studio.prompt("")]
    noise, latent, sigmas = studio.noise(), torch.randn(1, 16, 16, 16), torch.linspace(0.9, 0, 9)
    before = copy.deepcopy((prompts, noise, latent, sigmas))
    comfy.sample.sample_custom(
        model, noise, 3.0, comfy.samplers.sampler_object("euler"), sigmas, *prompts, latent, disable_pbar=True
    )
    assert sum(watch.computed) == 5
    assert watch.written == []  # the latent and the sigma of no evaluation, computed or skipped
    for was, now in zip(before[1:], (noise, latent, sigmas), strict=True):
        assert torch.equal(was, now)
    for was, now in zip(before[0], prompts, strict=True):
        assert len(was) == len(now)
        for (text_was, options_was), (text_now, options_now) in zip(was, now, strict=True):
            assert torch.equal(text_was, text_now)
            assert options_was.keys() == options_now.keys()
            assert torch.equal(options_was["pooled_output"], options_now["pooled_output"])
