"""What methods keep in main memory, what they may, and what is left of it; and what happens when a device runs out of memory."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from typing import Any

import comfy.model_management
import pytest
import torch
from comfy.cli_args import args

from skipstone.core.step.predictors import Linear, Spectrum
from skipstone.nodes import spectrum, taylorseer
from skipstone.patch.blocks import hook
from skipstone.patch.blocks.hook import ELSEWHERE
from skipstone.patch.blocks.hook import OOM as BLOCKS_OOM
from skipstone.patch.step import output
from skipstone.patch.step.attach import attach
from skipstone.patch.step.sigmas import pinnable
from skipstone.tests.comfy.block_observer import every

pytestmark = [pytest.mark.usefixtures("no_gc", "user"), pytest.mark.filterwarnings("ignore:::(comfy|torchsde)")]

STEPS = 7
CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def flux(small_flux):
    return small_flux(depth=1, depth_single_blocks=2)


@pytest.fixture
def line():
    return replace(every(3), predictor=Linear(), history_device="cpu")


@pytest.mark.parametrize("option", ["disable_pinned_memory", "deterministic", None])
def test_page_locked_memory_is_had_where_comfyui_lets_us(studio, flux, accelerator, monkeypatch, line, option):
    gpu = accelerator()
    if option:
        monkeypatch.setattr(args, option, True)
    model = gpu.put(flux)
    picture = studio.sample(attach(model, line), steps=STEPS, cfg=1.0)
    assert picture.isfinite().all()
    assert (gpu.device.pinned.requests == 0) == bool(option)
    assert gpu.device.pinned.held == 0


def test_no_more_is_had_than_comfyui_leaves(studio, flux, accelerator, monkeypatch, line):
    gpu = accelerator()
    monkeypatch.setattr(comfy.model_management, "MAX_PINNED_MEMORY", 100_000)
    monkeypatch.setattr(comfy.model_management, "TOTAL_PINNED_MEMORY", 80_000)
    assert pinnable(CUDA) == 20_000
    model = gpu.put(flux)
    studio.sample(attach(model, line), steps=STEPS, cfg=1.0)
    assert 0 < gpu.device.pinned.peak <= 20_000


@pytest.mark.parametrize("device", ["cpu", "mps", "privateuseone"])
def test_devices_without_page_locked_memory(device):
    assert pinnable(torch.device(device)) == 0


def test_a_machine_without_any(studio, flux, accelerator, line):
    gpu = accelerator(pinnable=0)
    model = gpu.put(flux)
    reports: list[Any] = []
    assert studio.sample(attach(model, line, (reports.append,)), steps=STEPS, cfg=1.0).isfinite().all()
    assert reports[0].skipped


@pytest.mark.parametrize("told", [0, -1, float("nan"), None, "error"])
def test_a_device_that_reports_no_free_memory(studio, flux, accelerator, monkeypatch, told):
    """What is kept goes to main memory."""
    gpu = accelerator()
    model = gpu.put(flux)

    class Unsure(type(model)):  # type: ignore[misc]
        def get_free_memory(self, device: Any) -> Any:
            if sys._getframe(1).f_globals["__name__"] != hook.__name__:  # ComfyUI needs a number
                return super().get_free_memory(device)
            if told == "error":
                raise RuntimeError("no such statistics")
            return told

    model.__class__ = Unsure
    reports: list[Any] = []
    assert studio.sample(attach(model, every(2), (reports.append,)), steps=STEPS, cfg=1.0).isfinite().all()
    assert reports[0].skipped and reports[0].notes == [ELSEWHERE]
    assert gpu.device.pinned.requests and gpu.device.pinned.held == 0


def test_many_anchors_of_an_output_level_method_go_to_main_memory(studio, flux, accelerator, monkeypatch):
    """Spectrum keeps up to 100: of a video that is more than a gigabyte."""
    gpu = accelerator()
    model = gpu.put(flux)
    method = spectrum.spectrum_of("Custom", warmup=3)
    assert isinstance(method.predictor, Spectrum) and method.history_device == "auto"
    memory = gpu.device.memory
    held: dict[int, int] = {}
    pictures = []
    for large in (1 << 30, 1000):
        monkeypatch.setattr(output, "LARGE", large)
        before = memory.live
        during: list[int] = []
        look = partial(lambda found, *_: found.append(memory.live), during)
        pictures.append(studio.sample(attach(model, method), steps=STEPS, callback=look))
        held[large] = max(during) - before
        assert memory.live == before and gpu.device.pinned.held == 0
    latent = 16 * 16 * 16 * 4
    assert held[1 << 30] - held[1000] >= 2 * 2 * latent  # of two conditionings
    assert torch.equal(*pictures)


@pytest.mark.parametrize("when", ["computed", "skipped"])
@pytest.mark.parametrize("level", ["output", "blocks"])
def test_a_device_that_runs_out_of_memory(studio, flux, accelerator, level, when):
    """What is kept goes, the evaluation runs again, and nothing is left behind."""
    gpu = accelerator()
    memory, model = gpu.device.memory, gpu.put(flux)
    method = every(3) if level == "blocks" else taylorseer.taylorseer_of("Custom", interval=3, warmup=1)
    method = replace(method, predictor=Linear())
    reports: list[Any] = []
    before = memory.live
    plain = studio.sample(model, steps=STEPS, cfg=1.0)
    layer = model.model.diffusion_model.double_blocks[0].img_attn.qkv
    calls: list[int] = []

    def short(*_: Any) -> None:
        calls.append(1)
        # the first call holds nothing; the blocks that always run do so in skipped evaluations as well
        if len(calls) == {"computed": 4 if level == "blocks" else 2, "skipped": 2}[when]:
            gpu.device.fails = True

    if (level, when) == ("output", "skipped"):
        pytest.skip("a skipped evaluation runs nothing of the model")
    handle = layer.register_forward_pre_hook(short)
    picture = studio.sample(attach(model, method, (reports.append,)), steps=STEPS, cfg=1.0)
    handle.remove()
    assert picture.isfinite().all() and picture.shape == plain.shape
    assert memory.live == before
    assert (BLOCKS_OOM if level == "blocks" else output.OOM) in reports[0].notes
    assert level == "output" or ELSEWHERE in reports[0].notes


class Stop(BaseException):
    """As ComfyUI's InterruptProcessingException."""


@pytest.mark.parametrize("error", [Stop, RuntimeError])
@pytest.mark.parametrize("where", ["auto", "cpu"])
@pytest.mark.parametrize("level", ["output", "blocks"])
def test_nothing_is_left_behind_by_a_run_that_did_not_finish(studio, flux, accelerator, level, where, error):
    gpu = accelerator()
    memory, model = gpu.device.memory, gpu.put(flux)
    method = every(3) if level == "blocks" else taylorseer.taylorseer_of("Custom", interval=3, warmup=1)
    patched = attach(model, replace(method, history_device=where))
    before = memory.live

    def stop(step: int, *_: Any) -> None:
        if step == 4:
            raise error("as a test has it")

    with pytest.raises(error):
        studio.sample(patched, steps=STEPS, cfg=1.0, callback=stop)
    assert memory.live == before
    assert gpu.device.pinned.held == 0
