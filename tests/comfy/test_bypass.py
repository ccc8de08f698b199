"""A node that is bypassed, muted or removed leaves nothing on the model, in the same process and after runs that skipped; one that skips
nothing changes nothing. Browsers leave bypassed and muted nodes out of the prompt (tests/browser/test_pack.py)."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from skipstone.core.step.policies import StepMask
from skipstone.nodes import dbcache, dicache, easycache, firstblock, magcache, meancache, spectrum, taylorseer, teacache
from skipstone.nodes.auto import auto_of
from skipstone.patch.blocks import transformer
from skipstone.patch.step.attach import attach
from skipstone.tests.comfy.block_observer import insides, untouched

pytestmark = [pytest.mark.usefixtures("user"), pytest.mark.filterwarnings("ignore:::(comfy|torchsde)")]

STEPS = 12
# each so that it skips, and so that it does not
METHODS: dict[str, tuple[Any, Any]] = {
    "MeanCache": (
        lambda: meancache.method_of("Turbo", calibration="default"),
        lambda: meancache.method_of("Custom", budget=1.0, calibration="default"),
    ),
    "EasyCache": (
        lambda: easycache.easycache_of("Custom", threshold=9.0, warmup=1),
        lambda: easycache.easycache_of("Custom", threshold=0.0),
    ),
    "UCache": (
        lambda: easycache.ucache_of("Custom", threshold=9.0, start_percent=0.0, end_percent=1.0, warmup=1),
        lambda: easycache.ucache_of("Custom", threshold=0.0),
    ),
    "Spectrum": (
        lambda: spectrum.spectrum_of("Custom", warmup=2),
        lambda: spectrum.spectrum_of("Custom", warmup=STEPS),
    ),
    "TaylorSeer": (
        lambda: taylorseer.taylorseer_of("Turbo"),
        lambda: taylorseer.taylorseer_of("Custom", interval=1),
    ),
    "TaylorSeer at the blocks": (
        lambda: taylorseer.taylorseer_of("Custom", interval=3, warmup=2, level="blocks"),
        lambda: taylorseer.taylorseer_of("Custom", interval=1, level="blocks"),
    ),
    "First Block Cache": (
        lambda: firstblock.firstblock_of("Custom", threshold=9.0, warmup=1),
        lambda: firstblock.firstblock_of("Custom", threshold=0.0),
    ),
    "DBCache": (
        lambda: dbcache.dbcache_of("Custom", fn=1, bn=1, threshold=9.0, warmup=1),
        lambda: dbcache.dbcache_of("Custom", fn=1, threshold=0.0),
    ),
    "Cache-DiT": (
        lambda: dbcache.cachedit_of("Custom", fn=1, threshold=9.0, warmup=1),
        lambda: dbcache.cachedit_of("Custom", fn=1, threshold=0.0),
    ),
    "TeaCache": (
        lambda: teacache.teacache_of("Custom", threshold=9.0, warmup=1, polynomial="Flux"),
        lambda: teacache.teacache_of("Custom", threshold=0.0, polynomial="Flux"),
    ),
    "MagCache": (
        lambda: magcache.magcache_of("Custom", threshold=9.0, warmup=1, ratios="Flux"),
        lambda: magcache.magcache_of("Custom", threshold=0.0, ratios="Flux"),
    ),
    "DiCache": (
        lambda: dicache.dicache_of("Custom", threshold=9.0, warmup=1),
        lambda: dicache.dicache_of("Custom", threshold=0.0),
    ),
}


class Marks:
    """What nodes put on a MODEL, and what hangs on its network."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.options = copy.deepcopy(list(model.model_options["transformer_options"]))
        self.keys = {*model.model_options}
        self.inside = insides(model)
        self.all = self._all()

    def _all(self) -> list[Any]:
        model = self.model
        placed = [
            model.wrappers,
            model.callbacks,
            model.attachments,
            model.injections,
            model.hook_patches,
            model.patches,
        ]
        return [copy.copy(p) for p in (*placed, model.object_patches, model.additional_models)]

    def are_unchanged(self) -> None:
        assert self._all() == self.all
        assert list(self.model.model_options["transformer_options"]) == self.options
        assert {*self.model.model_options} == self.keys
        untouched(self.inside, insides(self.model))


@pytest.fixture(scope="module")
def flux(small_flux):
    return small_flux(depth=1, depth_single_blocks=3)


@pytest.fixture(scope="module")
def plain(studio, flux):
    return studio.sample(flux, steps=STEPS)


@pytest.mark.parametrize("name", METHODS)
def test_nothing_is_left_of_it(studio, flux, plain, name):
    skips, does_not = METHODS[name]
    marks = Marks(flux)
    reports: list[Any] = []
    assert not torch.equal(studio.sample(attach(flux, skips(), (reports.append,)), steps=STEPS), plain)
    assert reports[0].skipped
    marks.are_unchanged()
    # bypassed, muted or removed: the sampler gets the MODEL of the loader
    assert torch.equal(studio.sample(flux, steps=STEPS), plain)
    # it is there and skips nothing
    assert torch.equal(studio.sample(attach(flux, does_not(), (reports.append,)), steps=STEPS), plain)
    assert reports[1].computed == STEPS
    marks.are_unchanged()
    assert torch.equal(studio.sample(flux, steps=STEPS), plain)
    assert all(w.visit is None and w.own is None for w in transformer._WRAPPERS.values())


def test_a_step_mask_that_skips_nothing(studio, flux, plain):
    mask = StepMask((True,) * STEPS)
    for method in (
        meancache.method_of("Turbo", calibration="default", step_mask=mask),
        firstblock.firstblock_of("Custom", threshold=9.0, warmup=1, step_mask=mask),
    ):
        assert torch.equal(studio.sample(attach(flux, method), steps=STEPS), plain)


def test_a_run_too_short_for_auto_to_skip_in(studio, flux):
    marks = Marks(flux)
    short = studio.sample(flux, steps=3)
    assert torch.equal(studio.sample(attach(flux, auto_of()), steps=3), short)
    marks.are_unchanged()
