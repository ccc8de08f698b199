"""`make bench-gpu` on the pretend device: its checks run and report their results. The figures are not meaningful."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from skipstone.tests.accelerator import move
from skipstone.tests.accelerator.tensor import CUDA

ROOT = Path(__file__).resolve().parents[3]
# of the others most ask for what the pretend device has nothing of, or take long
RUN = ["device_memory", "little_memory"]


@pytest.fixture
def bench(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("bench_gpu", ROOT / "bench" / "gpu.py")
    assert spec and spec.loader
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "OUTPUT", tmp_path)
    return module


def test_without_a_gpu_it_says_so():
    done = subprocess.run(
        [sys.executable, ROOT / "bench" / "gpu.py"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert (done.returncode, done.stdout) == (0, "bench-gpu: there is no NVIDIA GPU here, and nothing is checked\n")


def test_its_checks_run(bench, studio, small_flux, accelerator, monkeypatch, tmp_path):
    gpu = accelerator(cost=lambda name, result: 20e-3 if name in ("linear", "addmm") else 1e-4)
    memory = gpu.device.memory
    for name, value in {
        "memory_allocated": lambda: memory.live,
        "max_memory_allocated": lambda: memory.peak,
        "reset_peak_memory_stats": memory.reset_peak,
        "get_device_name": lambda: "pretend",
        "is_available": lambda: True,
        "mem_get_info": lambda device=None: (8 << 20, 8 << 20),
        "empty_cache": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)

    class Rig(bench.Rig):  # type: ignore[name-defined]
        def __init__(self) -> None:
            self.cuda = CUDA
            self.prompt = studio.prompt()
            inner = small_flux(depth=1, depth_single_blocks=3)
            inner.model.memory_usage_factor = 1e-6
            self.model = gpu.put(inner)
            move(self.model.model)

        size = 16

    monkeypatch.setattr(bench, "Rig", Rig)
    monkeypatch.setattr(bench, "STEPS", 6)
    monkeypatch.setattr(bench, "LITTLE", 1 << 20)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--only", *RUN])
    result = bench.main()
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert list(found["checks"]) == RUN
    assert [row.get("why") for row in found["checks"].values()] == [None] * len(RUN)
    assert result == 0 and "right" in (tmp_path / "gpu.txt").read_text()


def test_encoded_values_are_compared(bench, monkeypatch):
    """On the CPU, with the encoders that it makes for a GPU."""
    monkeypatch.setattr(bench, "ENCODED", (32, 32))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.get_rng_state())
    with torch.inference_mode():
        found = bench.encoded_values(SimpleNamespace(cuda=torch.device("cpu")))
    assert {"picture, DiskTier", "text, DiskTier", "picture, MemoryTier", "text, MemoryTier"} <= set(found)
