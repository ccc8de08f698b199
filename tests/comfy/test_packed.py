"""Packed latents of two modalities with a trained model: both arrive, and both are predicted where a step is skipped."""

from __future__ import annotations

import math
from typing import Any

import comfy.sample
import pytest
import torch

from skipstone.core.step.calibration.gram_recorder import GramRecorder
from skipstone.core.step.indicators.reading import SAMPLE
from skipstone.patch.step import run_setup

from .packed import SOUND, VIDEO, latent, packed


@pytest.fixture(scope="session")
def studio(demo):
    """How well a step is predicted shows with a trained model alone."""
    return demo


@pytest.fixture(scope="module")
def model(studio):
    return packed(studio.model)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_its_frames_are_the_pictures_of_the_model_inside(studio, model):
    noise = comfy.sample.prepare_noise(latent(), 1)
    video, sound = studio.sample(model, latent=latent(), noise=noise, steps=4).unbind()
    assert video.shape == VIDEO
    assert sound.shape == SOUND
    for frame, its_noise in zip(video.unbind(2), noise.unbind()[0].unbind(2), strict=True):
        alone = studio.sample(studio.model, noise=its_noise, steps=4)
        assert torch.allclose(frame, alone, atol=1e-4)


def test_both_modalities_are_predicted_well(studio, model, meancache):
    cached, reports = meancache(preset="Balanced", model=model)
    full = studio.sample(model, latent=latent(), steps=20).unbind()
    outs = studio.sample(cached, latent=latent(), steps=20).unbind()
    few = studio.sample(model, latent=latent(), steps=reports[0].computed).unbind()
    assert reports[0].skipped > 0
    for out, plain, wanted in zip(outs, few, full, strict=True):
        assert 0 < distance(out, wanted) < distance(plain, wanted)


def test_the_sound_weighs_as_much_as_the_video_in_what_is_recorded(studio, model, meancache, monkeypatch):
    """It is 640 of 8,832 numbers of the latent."""
    made: list[GramRecorder] = []

    class Watched(GramRecorder):
        def __init__(self, *args: Any, **how: Any) -> None:
            super().__init__(*args, **how)
            made.append(self)

    monkeypatch.setattr(run_setup, "GramRecorder", Watched)
    cached, reports = meancache(preset="Balanced", model=model, calibration="auto")
    studio.sample(cached, latent=latent(), steps=8)
    (recorder,) = made
    assert reports[0].finished and list(recorder.parts) == [math.prod(VIDEO), math.prod(SOUND)]
    row = next(iter(recorder.rows.values()))
    assert abs(len(row) - SAMPLE) < 0.2 * SAMPLE


def test_the_report_names_the_modality_that_is_harder_to_predict(studio, model, meancache):
    """The sound here changes smoothly; noise added to its velocity does not."""
    cached, reports = meancache(preset="Balanced", model=model)
    studio.sample(cached, latent=latent(), steps=20)
    quiet = reports[0].modalities
    assert set(quiet) == {"video", "audio"}
    assert all(0 < error < 1 for error in quiet.values())

    network, generator = model.model.diffusion_model, torch.Generator().manual_seed(0)
    plain = network.velocity

    def noisy(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return plain(x, sigma) + 2 * torch.randn(x.shape, generator=generator)

    network.velocity = noisy
    try:
        studio.sample(cached, latent=latent(), steps=20)
    finally:
        del network.velocity
    assert reports[1].modalities["audio"] > 2 * reports[1].modalities["video"]
    assert any(note.startswith("the audio is the hardest to predict") for note in reports[1].notes)
