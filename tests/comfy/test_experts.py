"""A run that changes its model in the middle, as Wan 2.2's graphs do: two samplers, each with one expert and its part of the steps."""

from __future__ import annotations

import pytest
import torch

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
    assert reports[0].skipped > 0
    assert more[0].skipped > 0
    assert 0 < float((out - full).norm() / full.norm()) < SAME_PICTURE
