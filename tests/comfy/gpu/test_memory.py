"""Device memory of block-level methods, measured at every operation: reserved with ComfyUI, kept, and left behind."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import comfy.sampler_helpers
import pytest

from skipstone.core.step.predictors import Linear, ProbeAligned, Reuse, Taylor
from skipstone.nodes.taylorseer import taylorseer_of
from skipstone.patch.step.attach import attach
from skipstone.patch.step.hook_base import _windows
from skipstone.tests.comfy.block_observer import every
from skipstone.tests.comfy.test_slots import windows

pytestmark = [pytest.mark.usefixtures("no_gc"), pytest.mark.filterwarnings("ignore:::(comfy|torchsde)")]

STEPS = 9
PREDICTORS: dict[str, Any] = {
    "reuse": Reuse(),
    "line": Linear(),
    "taylor 2": Taylor(2),
    "probe-aligned": ProbeAligned(),
}
RESIDUAL = 64 * 64 * 4  # bytes: tokens, width, float32


@dataclass
class Use:
    """Bytes above those of the unpatched model. told: to ComfyUI, before the run; held: after a step; peak: at any operation."""

    told: int
    held: int
    peak: int


@pytest.fixture(scope="module")
def flux(small_flux):
    model = small_flux(depth=2, depth_single_blocks=3)
    model.model.memory_usage_factor = 1e-6  # what a tiny model takes, beside which its residuals are something
    return model


@pytest.fixture
def use(studio, accelerator, flux, monkeypatch):
    """Samples with a method and without: `use(method, cfg=3.0)`."""
    gpu = accelerator()
    memory = gpu.device.memory
    model = gpu.put(flux)
    told: list[float] = []
    prepare = comfy.sampler_helpers._prepare_sampling

    def look(patcher: Any, noise_shape: Any, *args: Any, **kwargs: Any) -> Any:
        told.append(noise_shape[0] * patcher.memory_required([1, *noise_shape[1:]]))
        return prepare(patcher, noise_shape, *args, **kwargs)

    monkeypatch.setattr(comfy.sampler_helpers, "_prepare_sampling", look)

    def run(patched: Any, cfg: float) -> tuple[float, list[int], int]:
        held: list[int] = []
        before = memory.live
        memory.reset_peak()
        studio.sample(patched, steps=STEPS, cfg=cfg, callback=lambda *_: held.append(memory.live - before))
        assert memory.live == before, "device memory stays behind"
        return told.pop(), held, memory.peak - before

    def measured(method: Any, cfg: float = 1.0, change: Any = lambda model: model) -> Use:
        changed = change(model)
        plain, cached = run(changed, cfg), run(attach(changed, method), cfg)
        held = max(a - b for a, b in zip(cached[1], plain[1], strict=True))
        return Use(round(cached[0] - plain[0]), held, cached[2] - plain[2])

    return measured


@pytest.mark.parametrize("cfg", [1.0, 3.0], ids=["one conditioning", "two conditionings"])
@pytest.mark.parametrize("predictor", PREDICTORS)
def test_what_is_kept_is_at_most_what_comfyui_was_told(use, predictor, cfg):
    found = use(replace(every(3), predictor=PREDICTORS[predictor]), cfg)
    conds = 1 if cfg == 1.0 else 2
    one = RESIDUAL * conds
    print(f"{predictor}, {conds}: told {found.told / one:.2f} held {found.held / one:.2f} peak {found.peak / one:.2f}")
    assert found.held <= PREDICTORS[predictor].depth * one
    assert found.peak <= found.told <= (PREDICTORS[predictor].depth + 1.2) * one


@pytest.mark.parametrize("schedule", ["standard_static", "standard_uniform"])
@pytest.mark.parametrize("level", ["output", "blocks"])
def test_every_context_window_keeps_its_own(use, schedule, level):
    """Three windows of half the latent's height."""
    method = every(3) if level == "blocks" else taylorseer_of("Custom", interval=3, warmup=1, order=1)
    found = use(replace(method, predictor=Linear()), 1.0, lambda model: windows(model, schedule, 2, 8, 4))
    one = RESIDUAL // 2 if level == "blocks" else 16 * 8 * 16 * 4
    print(f"{level}, {schedule}: told {found.told / one:.2f} held {found.held / one:.2f} peak {found.peak / one:.2f}")
    assert found.held <= found.told and found.peak <= found.told
    assert found.told <= 3 * (2 + 1.2) * one
    assert found.held >= (2 * 3 * one if schedule == "standard_static" else one)


@pytest.mark.parametrize(
    ("latent", "dim", "length", "overlap", "closed", "expected"),
    [
        ((1, 16, 21, 8, 8), 2, 21, 4, False, 1),
        ((1, 16, 22, 8, 8), 2, 21, 4, False, 2),
        ((1, 16, 81, 8, 8), 2, 21, 5, False, 5),
        ((1, 16, 80, 8, 8), 2, 20, 4, True, 5),
        ((1, 16, 4, 8, 8), 2, 21, 4, False, 1),
        ((1, 1, 5000), 2, 21, 4, False, 1),
        ((1, 16, 64), 3, 21, 4, False, 1),
        ((1, 16, 30, 8, 8), 2, 8, 8, False, 23),
    ],
)
def test_how_many_windows_there_are(latent, dim, length, overlap, closed, expected):
    handler = SimpleNamespace(dim=dim, context_length=length, context_overlap=overlap, closed_loop=closed)
    assert _windows({"context_handler": handler}, latent) == expected
    assert _windows(None, latent) == _windows({}, latent) == 1
