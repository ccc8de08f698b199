"""Files that earlier versions wrote are still used: data/calibration_0.1 was written by the code of b77e3a2 (28 November 2026)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from skipstone.nodes.meancache import method_of
from skipstone.nodes.teacache import teacache_of

OLD = Path(__file__).with_name("data") / "calibration_0.1"


@pytest.mark.parametrize(
    "method",
    [method_of(preset="Speed", calibration="auto"), teacache_of("Speed", polynomial="measured")],
    ids=lambda m: m.name,
)
def test_calibrations_are_used(user, studio, cached, tiny_flux, method):
    """The same model, sampler, steps, CFG and size: nothing is computed in full, and nothing is recorded anew."""
    folder = user / "skipstone" / "calibration"
    shutil.copytree(OLD, folder)
    patched, reports = cached(method, tiny_flux)
    studio.sample(patched, steps=10)
    (report,) = reports
    assert not report.learning and report.skipped > 0
    assert not any("calibration" in note or "computed in full" in note for note in report.notes)
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in OLD.iterdir())
