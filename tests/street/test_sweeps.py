"""Sweeps, such as XY plots: every picture skips, from the first on, and what is kept of them is bounded (law 16)."""

from __future__ import annotations

from typing import Any

import comfy.sd
import pytest
import torch

from skipstone.nodes.auto import auto_of
from skipstone.patch.step import calibration
from skipstone.patch.step.attach import attach

from ..comfy.test_models import lora

pytestmark = [pytest.mark.usefixtures("user"), pytest.mark.filterwarnings("ignore:::(comfy|torchsde)")]

STEPS = 12


def sampled(studio: Any, model: Any, **how: Any) -> Any:
    """The report of a picture with Step Cache (Auto) as it comes."""
    reports: list[Any] = []
    studio.sample(attach(model, auto_of(), (reports.append,)), **{"steps": STEPS, **how})
    return reports[0]


def test_lora_strengths_and_cfg(studio: Any) -> None:
    weights = lora(studio)
    reports = []
    for strength in (0.25, 0.5, 0.75, 1.0):
        model, _ = comfy.sd.load_lora_for_models(studio.model, None, weights, strength, 0.0)
        reports += [sampled(studio, model, cfg=cfg) for cfg in (1.5, 3.0, 4.5)]
    assert len(reports) == 12
    assert all(r.skipped > 0 and not r.learning and not r.warnings for r in reports)
    assert calibration.stored()[0] == 12


def test_another_denoise_for_each_picture(studio: Any) -> None:
    picture = torch.zeros(1, 16, 16, 16)
    reports = [sampled(studio, studio.model, latent=picture, denoise=0.4 + 0.05 * i) for i in range(12)]
    assert all(r.skipped > 0 and not r.learning and not r.warnings for r in reports)


def test_a_long_sweep_leaves_a_bounded_number_of_files(studio: Any, user: Any, monkeypatch: Any) -> None:
    """The oldest are dropped, and all can be deleted in the settings."""
    monkeypatch.setattr(calibration, "MOST_RECIPES", 5)
    for i in range(8):
        assert sampled(studio, studio.model, cfg=1.5 + 0.25 * i).skipped > 0
    setups, size = calibration.stored()
    assert setups == 5 and 0 < size < 5 * 40_000
    assert len(list((user / "skipstone" / "calibration").iterdir())) <= 3 * 5
    calibration.forget()
    assert calibration.stored() == (0, 0)
