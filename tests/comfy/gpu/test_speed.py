"""Reported times are true of a slow device that runs behind the host (law 15)."""

from __future__ import annotations

from typing import Any

import pytest

from skipstone.patch.step.attach import attach
from skipstone.tests.comfy.gpu.test_matrix import ADAPTIVE, STATIC

pytestmark = [pytest.mark.usefixtures("user"), pytest.mark.filterwarnings("ignore:::(comfy|torchsde)")]

STEPS = 16
METHODS = STATIC | ADAPTIVE
SLOW = {"addmm", "mm", "bmm", "linear", "_scaled_dot_product_flash_attention_for_cpu", "scaled_dot_product_attention"}


def cost(name: str, result: Any) -> float:
    """Seconds: products are what takes long, as on a real device."""
    return 20e-3 if name in SLOW else 0.1e-3


@pytest.fixture(scope="module")
def flux(small_flux):
    return small_flux(depth=1, depth_single_blocks=2)


@pytest.fixture(scope="module")
def plain():
    """Virtual seconds of the unpatched model: they are the same on every device of this kind, and are measured once."""
    return []


@pytest.mark.parametrize("name", METHODS)
def test_the_speed_up_that_is_reported_is_the_true_one(studio, flux, accelerator, plain, name):
    gpu = accelerator(cost=cost)
    model, clock = gpu.put(flux), gpu.device.clock
    reports: list[Any] = []

    def seconds(patched: Any) -> float:
        began = clock.now()
        studio.sample(patched, steps=STEPS, cfg=1.0)
        return clock.now() - began

    if not plain:
        seconds(model)  # what is done once
        plain.append(seconds(model))
    (full,), cached = plain, seconds(attach(model, METHODS[name](), (reports.append,)))
    (report,) = reports
    print(f"{name}: true {full / cached:.3f}, reported {report.speedup:.3f}, deciding {report.deciding:.3f} s")
    assert full / cached > 1.1
    assert report.speedup == pytest.approx(full / cached, rel=0.03)
    assert report.seconds == pytest.approx(cached, rel=0.03)
    assert report.saved == pytest.approx(full - cached, rel=0.1)
    assert report.deciding < 0.05 * report.seconds
