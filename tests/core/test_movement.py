"""Noise that a sampler adds, and parts of a latent that change places, are found from what goes in and comes out."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from skipstone.core.step.movement import Continuity, NoiseWatch

SIGMAS = [1 - i / 12 for i in range(12)]
WHOLE = torch.Size((1, 4, 16, 16))


def random(seed):
    return torch.randn(WHOLE, generator=torch.Generator().manual_seed(seed))


PICTURE = random(0)


def denoised(x, sigma):
    """Of a flow model that knows the picture more and more."""
    return (1 - sigma) * PICTURE + 0.02 * torch.tanh(x)


def euler(x, d, past, sigma, after, noise):
    return x + (after - sigma) * (x - d) / sigma


def multistep(x, d, past, sigma, after, noise):
    velocity = (x - d) / sigma
    if past is not None:
        velocity = 1.5 * velocity - 0.5 * past
    return x + (after - sigma) * velocity


def ancestral(x, d, past, sigma, after, noise):
    return euler(x, d, past, sigma, after, noise) + 0.5 * after * (sigma - after) ** 0.5 * noise


def renoised(x, d, past, sigma, after, noise):
    return (1 - after) * d + after * noise


def sampled(step, output=denoised):
    watch, x, past = NoiseWatch(), random(1), None
    for i, (sigma, after) in enumerate(pairwise(SIGMAS)):
        watch.observe_input(x)
        d = output(x, sigma)
        watch.observe_output(x, d)
        x, past = step(x, d, past, sigma, after, random(i + 2)), (x - d) / sigma
    return watch


@pytest.mark.parametrize("step", [euler, multistep])
def test_a_deterministic_sampler_adds_no_noise(step):
    watch = sampled(step)
    assert watch.ready and not watch.noisy and not watch.follows


@pytest.mark.parametrize("step", [ancestral, renoised])
def test_noise_is_found_and_a_denoised_latent_can_still_be_predicted(step):
    watch = sampled(step)
    assert watch.ready and watch.noisy and not watch.follows


def test_an_output_that_contains_the_noise_cannot_be_predicted():
    """As where a model's velocity is handed through as D: it changes with the noise."""
    watch = sampled(renoised, lambda x, sigma: (x - denoised(x, sigma)) / sigma)
    assert watch.noisy and watch.follows


def test_an_output_that_is_not_one_latent_and_a_new_size_end_the_comparison():
    watch = NoiseWatch()
    x = random(1)
    watch.observe_output(x, x)
    watch.observe_input(x[..., :8])
    for broken in ((x, None), (x, x[..., :8]), (), None, "x"):
        watch.observe_output(x, broken)
        watch.observe_input(random(2))
        assert not watch.ready and not watch.noisy


@pytest.mark.parametrize("step", [euler, multistep])
def test_a_sampler_that_receives_two_outputs_may_use_both(step):
    """As LanPaint's guider returns: of two guidance scales."""
    watch, x, past = NoiseWatch(), random(1), None
    for i, (sigma, after) in enumerate(pairwise(SIGMAS)):
        watch.observe_input(x)
        pair = denoised(x, sigma), random(i + 50) * 0.3
        watch.observe_output(x, pair)
        used = pair[0] + 0.7 * pair[1]
        x, past = step(x, used, past, sigma, after, random(i + 2)), (x - used) / sigma
    assert watch.ready and not watch.noisy and not watch.follows


def calls(part, step=euler):
    """A guidance that runs the model on a part of the latent, or on a changed latent, once more."""
    watch, x = Continuity(), random(1)
    for i, (sigma, after) in enumerate(pairwise(SIGMAS)):
        seen, d = part(x, i), denoised(x, sigma)
        watch.check("slot", seen, x, sigma)
        watch.observe_part("slot", seen, part(d, i), sigma)
        watch.observe_whole(x, d, sigma)
        x = step(x, d, None, sigma, after, random(i + 2))
    return watch.jumped


@pytest.mark.parametrize("step", [euler, ancestral, renoised])
def test_a_latent_that_is_changed_in_the_same_way_at_every_evaluation_does_not_jump(step):
    blurred = lambda x, i: torch.nn.functional.avg_pool2d(x, 3, stride=1, padding=1)  # noqa: E731
    assert not calls(blurred, step)
    assert not calls(lambda x, i: x.clone(), step)


@pytest.mark.parametrize("step", [euler, ancestral, renoised])
def test_a_latent_that_is_rolled_from_evaluation_to_evaluation_jumps(step):
    assert calls(lambda x, i: x.roll(5 * i, -1), step)
    assert calls(lambda x, i: x.roll(8 * (i % 2), -2), step)
