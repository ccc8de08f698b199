"""At block level too a static method costs no host sync, and an adaptive one at most one an evaluation (law 8)."""

from __future__ import annotations

from typing import Any

import pytest

from skipstone.core.step.indicators.blocks import Probed
from skipstone.core.step.method import Blocks, Method
from skipstone.core.step.policies import Interval, Threshold, Warmup
from skipstone.core.step.predictors import Reuse, Taylor
from skipstone.tests.comfy.block_observer import below, every, sample
from skipstone.tests.comfy.test_slots import area
from skipstone.tests.comfy.test_syncs import a_device, counted

STEPS = 10
STATIC: dict[str, Any] = {
    "reuse": lambda: every(2),
    "last blocks too": lambda: every(3, 1, 1),
    "forecast": lambda: Method("Forecast", "", (Interval(3, 2),), Taylor(1), blocks=Blocks(1, 0, "none")),
}
ADAPTIVE: dict[str, Any] = {
    "what the first blocks add": lambda: below(2.0),
    "the state after them": lambda: Method(
        "Probed", "", (Warmup(2), Threshold(2.0)), Reuse(), indicator=Probed(), blocks=Blocks(1, 0, "states")
    ),
}


@pytest.fixture(scope="module")
def flux(small_flux):
    """A MODEL of 2 + 3 blocks."""
    return small_flux(depth=2, depth_single_blocks=3)


@pytest.fixture(params=["flux", "unet"])
def model(request, flux, tiny_unet):
    return flux if request.param == "flux" else tiny_unet


@pytest.mark.parametrize("sampler", ["euler", "heun"])
@pytest.mark.parametrize("how", STATIC)
def test_a_static_method_never_waits(studio, model, cached, monkeypatch, how, sampler):
    a_device(monkeypatch)
    patched, reports = cached(STATIC[how](), model)
    one, waited = counted(patched)
    sample(studio, one, steps=STEPS, sampler=sampler)
    assert reports[0].skipped > 0
    assert len(waited) == len(reports[0].evaluations) + 1
    assert [w for w in waited if w] == []


@pytest.mark.parametrize("sampler", ["euler", "heun"])
@pytest.mark.parametrize("how", ADAPTIVE)
def test_an_adaptive_method_waits_once_an_evaluation_at_most(studio, model, cached, monkeypatch, how, sampler):
    a_device(monkeypatch)
    patched, reports = cached(ADAPTIVE[how](), model)
    one, waited = counted(patched)
    sample(studio, one, steps=STEPS, sampler=sampler)
    asked = [e.indicator is not None for e in reports[0].evaluations]
    assert any(asked) and reports[0].skipped > 0
    assert [len(w) for w in waited] == [*asked, 0]  # where it was read, and nowhere else


@pytest.mark.parametrize("how", ["reuse", "what the first blocks add"])
def test_however_conditionings_are_batched(studio, flux, cached, monkeypatch, how):
    """Regions, prompts that cannot be run together, several pictures."""
    a_device(monkeypatch)
    patched, reports = cached((STATIC | ADAPTIVE)[how](), flux)
    one, waited = counted(patched)
    prompts = [*studio.prompt(), *area(studio, "a frog on a white background", 0, 64)]
    studio.sample(one, prompts, studio.long_prompt, noise=studio.noise(batch=2), steps=STEPS)
    asked = [e.indicator is not None for e in reports[0].evaluations]
    assert reports[0].skipped > 0
    assert [len(w) for w in waited] == [*asked, 0]
