"""What people wire together never crashes and never ruins a picture: with a step cache it is as close to the picture in full as plain
sampling in as many steps is, or nothing is skipped and the report says why.

The table that `-s` shows, with every method: SKIPSTONE_STREET=all python tools/setup.py -m pytest --thorough -s tests/street/test_street.py
"""

from __future__ import annotations

import math
import os
from typing import Any

import pytest
import torch

from skipstone.nodes.auto import auto_of
from skipstone.nodes.easycache import easycache_of
from skipstone.nodes.firstblock import firstblock_of
from skipstone.nodes.meancache import method_of
from skipstone.nodes.taylorseer import taylorseer_of
from skipstone.patch.step import samplers as known_samplers
from skipstone.patch.step.attach import attach
from skipstone.tests.thorough import params

from . import samplers
from .cases import CASES, STEPS

pytestmark = [pytest.mark.usefixtures("user"), pytest.mark.filterwarnings("ignore:::(comfy|torchsde)")]

BELOW = 1.0  # dB
METHODS: dict[str, Any] = {
    "Auto": auto_of("Balanced"),
    "First Block Cache": firstblock_of("Balanced"),
}
if os.environ.get("SKIPSTONE_STREET") == "all":
    METHODS |= {
        "MeanCache": method_of("Speed"),
        "EasyCache": easycache_of("Balanced"),
        "TaylorSeer": taylorseer_of("Balanced"),
    }


def sampled(desk, name, method):
    """(picture, reports of its runs) with a step cache."""
    known_samplers._adds_noise.clear()
    known_samplers._observed.clear()
    reports: list[Any] = []
    picture = CASES[name].sampled(desk, lambda model: attach(model, method, (reports.append,)), STEPS)
    return picture, reports


# long ones, and those of which there is another of the kind
THOROUGH = {
    "LanPaint", "AnimateDiff, moving windows", "FlowEdit", "Ultimate SD Upscale", "prompts in turn, every step",
    "unnamed tiles", "rolled latent", "RES4LYF, SDE", "Attention Couple", "regional prompts", "PuLID", "skip layer guidance",
}  # fmt: skip


# Step Cache (Auto) is what people have by default
@pytest.mark.parametrize("method", params(METHODS, {"Auto"}))
@pytest.mark.parametrize("name", params(CASES, CASES.keys() - THOROUGH))
def test_a_picture_is_no_worse_than_of_plain_sampling(desk, plain, name, method):
    case = CASES[name]
    picture, reports = sampled(desk, name, METHODS[method])
    evaluations, computed = sum(len(r.evaluations) for r in reports), sum(r.computed for r in reports)
    assert all(r.finished for r in reports) and torch.isfinite(picture).all()
    fewer = math.ceil(STEPS * computed / evaluations)
    gained = plain.error(name, plain.latent(name, fewer)) - plain.error(name, picture) if fewer < STEPS else 0.0
    print(f"| {name} | {method} | {computed} of {evaluations} | {gained:+.1f} dB |")
    if computed == evaluations:
        assert torch.equal(picture, plain.latent(name))
        assert all(r.advice and r.advice in " ".join(r.notes) for r in reports), "the reason is said"
    assert gained >= -BELOW
    skips = case.blocks if method == "First Block Cache" else case.skips
    # EasyCache's threshold is absolute: where outputs change more than that, it skips nothing and the report says so
    if method != "EasyCache":
        assert (computed < evaluations) == skips
    if not skips:
        assert case.said in " ".join(reports[0].notes)


@pytest.mark.parametrize("method", [auto_of("Balanced"), method_of("Speed")], ids=["Auto", "MeanCache"])
def test_a_sampler_that_adds_noise_under_an_unknown_name_is_found_out(desk, plain, method):
    """It is no worse than plain sampling for any of the noises, and is known for an SDE sampler in the next run."""
    name = "noise of another pack"
    picture, (report,) = sampled(desk, name, method)
    full, fewer = plain.latent(name), plain.latent(name, report.computed)
    errors, most = ((p - full).square().mean((1, 2, 3)) for p in (picture, fewer))
    gained = 10 * (most / errors).log10()
    print(f"| {name} | {report.method} | {report.computed} of {STEPS} | {[f'{g:+.1f} dB' for g in gained]} |")
    assert report.skipped > 0
    assert (gained >= -BELOW).all()
    assert known_samplers.integrator_of(samplers.ancestral(0.5)) == "sde"
