"""Models of a real ComfyUI on the pretend device of tests/accelerator."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from typing import Any

import comfy.model_management
import comfy.model_patcher
import pytest
import torch

from skipstone.tests.accelerator import Accelerator, move
from skipstone.tests.accelerator.tensor import CUDA


class OnGpu:
    """A device for the duration of a test, and MODELs on it: `gpu.put(model)`."""

    def __init__(self, device: Accelerator) -> None:
        self.device = device

    def put(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        """A copy of a MODEL whose weights are on the device, in `dtype`."""
        config = model.model.model_config  # cannot be copied
        inner = copy.deepcopy(model.model, {id(config): config, id(model): None})
        inner.current_patcher = None
        if dtype is not None:
            inner.diffusion_model.to(dtype)
            inner.diffusion_model.dtype = dtype
        move(inner)
        inner.device = CUDA
        return comfy.model_patcher.ModelPatcher(inner, load_device=CUDA, offload_device=CUDA)


@pytest.fixture
def no_gc() -> Iterator[None]:
    """The garbage collector, which knows nothing of device memory, is off."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def accelerator(monkeypatch) -> Iterator[Any]:
    """Enters an Accelerator with the given options, and has ComfyUI see it: `gpu = accelerator(capacity=...)`."""
    entered: list[Accelerator] = []

    def enter(**options: Any) -> OnGpu:
        device = Accelerator(**options)
        device.__enter__()
        entered.append(device)

        def free(dev: Any = None, torch_free_too: bool = False) -> Any:
            amount = device.free if getattr(dev, "type", "") == "cuda" else float(1 << 34)
            return (amount, amount) if torch_free_too else amount

        monkeypatch.setattr(comfy.model_management, "get_free_memory", free)
        return OnGpu(device)

    with torch.inference_mode():
        yield enter
        for device in entered:
            device.__exit__(None, None, None)
    loaded = comfy.model_management.current_loaded_models
    loaded[:] = [m for m in loaded if m.device.type != "cuda"]
