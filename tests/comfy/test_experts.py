"""A run that changes its model in the middle, as Wan 2.2's graphs do: two samplers, each with one expert and its part of the steps."""

from __future__ import annotations

import pytest
import torch

from skipstone.patch.step import shared_trajectory

from .conftest import BOUNDARY
from .floors import SAME_PICTURE

STEPS = 20


@pytest.fixture(scope="session")
def studio(demo):
    """How good a picture is shows with a trained model alone."""
    return demo


def two_samplers(studio, first, second):
    """As two KSamplerAdvanced nodes: the second goes on, without new noise, from what the first leaves."""
    change = int(STEPS * BOUNDARY)
    half = studio.sample(first, steps=STEPS, last_step=change, force_full_denoise=False)
    noise = torch.zeros_like(half)
    return studio.sample(second, steps=STEPS, start_step=change, latent=half, noise=noise, disable_noise=True)


@pytest.fixture(scope="module")
def full(studio):
    return two_samplers(studio, studio.model, studio.second_expert)


def test_the_second_expert_is_another_model(studio, full):
    assert studio.second_expert.model is not studio.model.model
    alone = two_samplers(studio, studio.model, studio.model)
    assert 0 < float((full - alone).norm() / alone.norm()) < SAME_PICTURE


def test_both_parts_skip_and_come_near_the_full_run(studio, meancache, full):
    first, reports = meancache(preset="Balanced")
    second, more = meancache(preset="Balanced", model=studio.second_expert)
    out = two_samplers(studio, first, second)
    assert reports[0].computed + more[0].computed == 11, (
        "the share of the whole trajectory, as one sampler of 20 steps has it"
    )
    assert not reports[0].evaluations[-1].computed or 9 in reports[0].planned, (
        "its last step is no different from others"
    )
    assert 0 < float((out - full).norm() / full.norm()) < SAME_PICTURE


def test_two_samplers_lose_no_more_than_one_of_as_many_steps(studio, meancache, full):
    """Law 4. The errors of both halves against their own full runs, with as many computed steps in all."""
    first, _ = meancache(preset="Balanced")
    second, _ = meancache(preset="Balanced", model=studio.second_expert)
    halves = two_samplers(studio, first, second)
    alone, reports = meancache(preset="Balanced")
    whole = studio.sample(alone, steps=STEPS)
    assert reports[0].computed == 11
    one = studio.sample(studio.model, steps=STEPS)
    errors = [float((a - b).norm() / b.norm()) for a, b in ((halves, full), (whole, one))]
    assert errors[0] <= errors[1] * 1.5


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "euler_ancestral", "uni_pc", "res_multistep"])
def test_a_part_that_leaves_noise_is_finite_with_every_kind_of_sampler(studio, meancache, sampler):
    model, reports = meancache(preset="Turbo")
    half = studio.sample(model, steps=STEPS, last_step=10, force_full_denoise=False, sampler=sampler)
    assert torch.isfinite(half).all() and reports[0].skipped > 0


def test_the_second_report_tells_what_both_came_to(studio, meancache, monkeypatch):
    prompt = "one"
    monkeypatch.setattr(shared_trajectory, "prompt_id", lambda: prompt)
    model, reports = meancache(preset="Balanced")
    two_samplers(studio, model, model)
    first, second = reports
    assert first.together is None
    assert second.together == (first.computed + second.computed, STEPS)
    assert any("with the sampler before it" in note for note in second.notes)


def test_what_another_prompt_left_is_not_counted(studio, meancache, monkeypatch):
    prompts = iter(["one", "two"])
    monkeypatch.setattr(shared_trajectory, "prompt_id", lambda: next(prompts))
    model, reports = meancache(preset="Balanced")
    two_samplers(studio, model, model)
    assert [r.together for r in reports] == [None, None]


def test_a_batch_by_lists_is_joined_pair_by_pair(studio, meancache, monkeypatch):
    """ComfyUI runs the first node for the whole list, then the second."""
    monkeypatch.setattr(shared_trajectory, "prompt_id", lambda: "one")
    model, reports = meancache(preset="Turbo")
    change = int(STEPS * BOUNDARY)
    halves = [
        studio.sample(model, steps=STEPS, last_step=change, force_full_denoise=False, seed=seed) for seed in (1, 2)
    ]
    for half in halves:
        noise = torch.zeros_like(half)
        studio.sample(model, steps=STEPS, start_step=change, latent=half, noise=noise, disable_noise=True)
    assert [r.together is None for r in reports] == [True, True, False, False]
    assert {r.together[1] for r in reports[2:]} == {STEPS}
