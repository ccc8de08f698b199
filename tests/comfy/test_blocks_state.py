"""A run's state at block level is created with it, ends with it and is never shared; impossible requests are refused with a reason."""

from __future__ import annotations

import copy
import gc
import re
import weakref
from typing import Any

import comfy.model_management
import pytest
import torch
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode

from skipstone.core.step.history import History
from skipstone.core.step.run import Run
from skipstone.nodes.meancache import method_of
from skipstone.patch.errors import StepCacheError
from skipstone.patch.step.attach import attach
from skipstone.tests.comfy.block_observer import (
    Raises,
    below,
    every,
    inner_part,
    insides,
    outer_part,
    sample,
    untouched,
)
from skipstone.tests.comfy.test_conflicts import naming
from skipstone.tests.comfy.test_state import alive

STEPS = 6
METHODS: dict[str, Any] = {
    "static": lambda: every(2),
    "adaptive": lambda: below(2.0),
    "last blocks too": lambda: every(2, 1, 1),
}


@pytest.fixture(scope="module")
def flux(small_flux):
    """A MODEL of 2 + 3 blocks."""
    return small_flux(depth=2, depth_single_blocks=3)


@pytest.fixture(params=["flux", "unet"])
def model(request, flux, tiny_unet):
    return flux if request.param == "flux" else tiny_unet


# A run's state is created with it and ends with it


@pytest.mark.parametrize("how", METHODS)
def test_one_model_sampled_again_and_again_is_as_fresh_ones(studio, model, cached, how):
    one, reports = cached(METHODS[how](), model)
    again = [sample(studio, one, seed=seed) for seed in (1, 2, 1)]
    fresh = [sample(studio, cached(METHODS[how](), model)[0], seed=seed) for seed in (1, 2)]
    assert torch.equal(again[0], fresh[0])
    assert torch.equal(again[1], fresh[1])
    assert torch.equal(again[2], fresh[0])
    assert not torch.equal(fresh[0], sample(studio, model))  # it did something
    assert [r.skipped for r in reports] == [reports[0].skipped] * 3


def test_a_run_within_a_run_on_a_clone_changes_neither(studio, model, cached):
    one, _ = cached(every(2), model)
    alone, within = sample(studio, one), []

    def callback(step, *_):
        if step in (1, 2):
            patcher = model.model.current_patcher  # ComfyUI itself forgets it when a run ends
            within.append(sample(studio, one.clone(), seed=2))
            model.model.current_patcher = patcher

    assert torch.equal(sample(studio, one, callback=callback), alone)
    assert torch.equal(within[0], within[1])
    assert torch.equal(within[0], sample(studio, one, seed=2))


def test_a_run_within_a_call_of_the_network(studio, flux, cached):
    """Somebody samples from within a block."""
    one, _ = cached(every(2), flux)
    alone, inner = studio.sample(one, steps=STEPS), studio.sample(one, steps=STEPS, seed=2)
    done: list[Any] = []

    def within(*_):
        if not done:
            done.append(None)
            patcher = flux.model.current_patcher
            done[0] = studio.sample(one.clone(), steps=STEPS, seed=2)
            flux.model.current_patcher = patcher

    handle = inner_part(flux).register_forward_pre_hook(within)
    try:
        assert torch.equal(studio.sample(one, steps=STEPS), alone)
    finally:
        handle.remove()
    assert torch.equal(done[0], inner)


@pytest.mark.parametrize("where", [inner_part, outer_part], ids=["a skipped block", "a block that always runs"])
@pytest.mark.parametrize(
    "error", [RuntimeError("out of luck"), comfy.model_management.InterruptProcessingException()], ids=type
)
def test_an_error_in_a_block_leaves_nothing_behind(studio, model, cached, error, where):
    one, reports = cached(every(3), model)
    before = insides(model)
    with Raises(where(model), 2, error), pytest.raises(type(error)) as caught:
        sample(studio, one)
    assert caught.value is error
    untouched(before, insides(model))
    assert not reports[0].finished
    del caught
    error.__traceback__ = None
    assert not alive(Run)
    assert torch.equal(sample(studio, one), sample(studio, cached(every(3), model)[0]))


def test_nothing_of_a_run_can_be_reached_after_it(studio, model, cached):
    one, _ = cached(below(2.0), model)
    seen: list[Any] = []

    def callback(step, *_):
        if step == 3:
            seen.extend(weakref.ref(run) for run in alive(Run))
            seen.extend(weakref.ref(value) for h in alive(History) for value in h.anchors.values())

    before = insides(model)
    sample(studio, one, callback=callback)
    assert len(seen) == 1 + 2  # the run, and one residual of two conditionings
    gc.collect()
    assert [ref() for ref in seen if ref() is not None] == []
    untouched(before, insides(model))


def test_nothing_is_written_to_what_the_graph_hands_in(studio, model, cached, watched):
    latent = (
        torch.randn(1, 4, 8, 8) if hasattr(model.model.diffusion_model, "input_blocks") else torch.randn(1, 16, 16, 16)
    )
    noise, prompts = torch.randn_like(latent), [studio.prompt(), studio.prompt("")]
    before = copy.deepcopy((noise, latent, prompts))
    patched, watch = watched(cached(every(2), model)[0])
    sample(studio, patched, latent=latent, noise=noise)
    assert watch.written == []
    assert torch.equal(before[0], noise) and torch.equal(before[1], latent)
    for was, now in zip(before[2], prompts, strict=True):
        assert torch.equal(was[0][0], now[0][0]) and was[0][1].keys() == now[0][1].keys()


def test_two_sizes_one_after_the_other(studio, flux, cached):
    one, reports = cached(below(2.0), flux)
    for size in ((1, 16, 16, 16), (2, 16, 8, 24), (1, 16, 16, 16)):
        fresh = studio.sample(cached(below(2.0), flux)[0], latent=torch.zeros(size), steps=STEPS)
        assert torch.equal(studio.sample(one, latent=torch.zeros(size), steps=STEPS), fresh)
    assert all(r.skipped for r in reports)


# Two step caches


def rival(name, model):
    node = {"EasyCache": EasyCacheNode, "LazyCache": LazyCacheNode}[name]
    return node.execute(model, 0.2, 0.15, 0.95, False)[0]


def test_a_second_step_cache_is_refused_by_name(studio, flux, cached):
    turbo, ours = method_of("Turbo"), every(2)
    for first, second in ((turbo, ours), (ours, turbo), (ours, below(0.1))):
        with pytest.raises(StepCacheError, match=naming(re.escape(first.title), re.escape(second.title))):
            attach(attach(flux, first), second)
    for name in ("EasyCache", "LazyCache"):
        with pytest.raises(StepCacheError, match=naming("Every", name)):
            attach(rival(name, flux), ours)
        patched, reports = cached(ours, flux)
        with pytest.raises(StepCacheError, match=naming("Every", name)):
            studio.sample(rival(name, patched))
        assert reports == []


# What cannot be done is said


@pytest.mark.parametrize(("prefix", "suffix"), [(5, 0), (1, 4), (8, 2)])
def test_more_blocks_than_there_are(flux, prefix, suffix):
    with pytest.raises(
        StepCacheError, match=rf"Fn \+ Bn = {prefix} \+ {suffix} blocks.* has 5: .* add up to less than 5"
    ):
        attach(flux, every(2, prefix, suffix))
    attach(flux, every(2, 1, 3))


@pytest.mark.parametrize(("prefix", "suffix"), [(5, 0), (1, 3), (0, 2)])
def test_more_blocks_than_a_unet_has_or_can_do_without(tiny_unet, prefix, suffix):
    with pytest.raises(StepCacheError, match=f"Fn is at most 2 .* Bn at most Fn \\+ 1, not {prefix} and {suffix}"):
        attach(tiny_unet, every(2, prefix, suffix))


def test_a_kind_of_model_that_nobody_described(small_flux):
    """One that is derived from a known one and runs its blocks itself is another kind. This one has two blocks."""
    model = small_flux(depth=1)
    network = model.model.diffusion_model
    network.__class__ = type("Mine", (type(network),), {"forward_orig": lambda self, *a, **k: None})
    with pytest.raises(StepCacheError, match=r"Mine.*not known.*MeanCache.* work with every model"):
        attach(model, every(2))


def test_a_threshold_that_never_fires(studio, model, cached):
    patched, reports = cached(below(1e-6), model)
    assert torch.equal(sample(studio, patched), sample(studio, model))
    smallest = min(e.indicator for e in reports[0].evaluations if e.indicator is not None)
    (note,) = reports[0].notes
    assert "nothing was skipped" in note
    assert f"raise the threshold (1e-06); smallest change: {smallest:.3g}" in note


# Numbers that are none


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_block_that_overflows(studio, model, cached, value):
    """One of the first, in two steps of ten: these and the next are computed, and it is said. The picture goes on, as another node
    puts numbers in place of what is none."""
    mended = model.clone()
    mended.set_model_sampler_post_cfg_function(lambda args: args["denoised"].nan_to_num(0.0, 0.0, 0.0))
    patched, reports = cached(below(1e9), mended)
    calls: list[None] = []

    def spoil(_, args, out):
        calls.append(None)
        return torch.full_like(out, value) if len(calls) in (5, 6) else out

    handle = outer_part(model).register_forward_hook(spoil)
    out = sample(studio, patched, steps=10)
    handle.remove()
    assert torch.isfinite(out).all()
    told = [e.reason for e in reports[0].evaluations]
    assert told == ["warmup"] * 2 + ["threshold"] * 2 + ["not finite"] * 3 + ["threshold"] * 2 + ["last step"]
    assert reports[0].skipped == 4
    assert reports[0].notes == ["the indicator was not a finite number: those evaluations were computed"]
