"""Two step caches on one MODEL are refused with an error that names both (law 10)."""

from __future__ import annotations

import pytest
import torch
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode

from skipstone.nodes.meancache import method_of
from skipstone.patch.errors import StepCacheError
from skipstone.patch.step.attach import attach

RIVALS = {"EasyCache": EasyCacheNode, "LazyCache": LazyCacheNode}


def rival(name, model):
    return RIVALS[name].execute(model, 0.2, 0.15, 0.95, False)[0]


def naming(*names):
    """A pattern that needs all the names."""
    return "".join(f"(?=.*{name})" for name in names)


def test_meancache_twice(studio, meancache):
    model, reports = meancache(preset="Speed")
    with pytest.raises(StepCacheError, match=naming(r"MeanCache \(Speed\)", r"MeanCache \(Turbo\)")):
        meancache(model, preset="Turbo")
    with pytest.raises(StepCacheError, match=naming(r"MeanCache \(Speed\)")):
        meancache(model.clone(), preset="Speed")  # not on a clone either, nor the same again
    method = method_of()
    with pytest.raises(StepCacheError, match=naming(r"MeanCache \(Balanced\)")):
        attach(attach(studio.model, method), method)  # nor the very same
    studio.sample(model)  # the first is none the worse
    assert reports[0].skipped > 0


@pytest.mark.parametrize("name", RIVALS)
def test_meancache_on_a_model_that_has_comfyuis_own(studio, meancache, name):
    with pytest.raises(StepCacheError, match=naming("MeanCache", f"ComfyUI's {name}")):
        meancache(rival(name, studio.model), preset="Speed")


@pytest.mark.parametrize("name", RIVALS)
def test_comfyuis_own_on_a_model_that_has_meancache(studio, meancache, watched, name):
    """The pack is not called when the second cache is attached, so the error comes when sampling starts, before anything is computed."""
    model, reports = meancache(preset="Speed")
    both, watch = watched(rival(name, model))
    with pytest.raises(StepCacheError, match=naming("MeanCache", f"ComfyUI's {name}")):
        studio.sample(both)
    assert watch.evaluations == []
    assert reports == []
    # the error left nothing behind
    out = studio.sample(model)
    assert torch.equal(out, studio.sample(meancache(preset="Speed")[0]))


def test_two_branches_of_a_graph_may_have_one_each(studio, meancache):
    first, _ = meancache(studio.model, preset="Speed")
    second, _ = meancache(studio.model, preset="Turbo")
    third = rival("EasyCache", studio.model)
    for model in (first, second, third):
        assert torch.isfinite(studio.sample(model)).all()


def test_the_error_says_what_to_do(meancache):
    model, _ = meancache(preset="Speed")
    with pytest.raises(ValueError, match="remove or bypass"):
        meancache(model, preset="Speed")
