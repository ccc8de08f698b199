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

from skipstone.tests.accelerator.tensor import CUDA

ROOT = Path(__file__).resolve().parents[3]
# of the others most ask for what the pretend device has nothing of, or take long
RUN = ["equal_wherever_it_is_kept", "device_memory", "little_memory"]
ROWS = [
    "equal_wherever_it_is_kept", "device_memory", "little_memory", "equal_wherever_it_is_kept, Wan",
    "device_memory, Wan", "equal_wherever_it_is_kept, LTXAV", "device_memory, LTXAV",
]  # fmt: skip


@pytest.fixture
def bench(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("bench_gpu", ROOT / "bench" / "gpu.py")
    assert spec and spec.loader
    module: Any = importlib.util.module_from_spec(spec)
    monkeypatch.syspath_prepend(ROOT / "bench")
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


TINY: dict[str, dict[str, Any]] = {
    "Flux": {
        "latent": ((1, 16, 16, 16),), "text": (8, 64), "pooled": 768, "steps": 5,
        "network": {
            "hidden_size": 48, "num_heads": 2, "context_in_dim": 64, "axes_dim": [8, 8, 8], "depth": 1,
            "depth_single_blocks": 3,
        },
    },
    "Wan": {
        "latent": ((1, 16, 3, 6, 4),), "text": (7, 24), "steps": 5,
        "network": {"dim": 48, "ffn_dim": 64, "freq_dim": 32, "text_dim": 24, "num_heads": 2, "num_layers": 2},
    },
    "LTXAV": {
        "latent": ((1, 128, 2, 4, 3), (1, 8, 5, 16)), "text": (7, 48), "steps": 5,
        "network": {
            "num_layers": 2, "attention_head_dim": 24, "num_attention_heads": 2, "cross_attention_dim": 48, "caption_channels": 24,
            "audio_attention_head_dim": 16, "audio_num_attention_heads": 2, "audio_cross_attention_dim": 32,
            "connector_attention_head_dim": 12, "connector_num_attention_heads": 2,
        },
    },
}  # fmt: skip


def tiny(rig: Any, gpu: Any) -> Any:
    """A rig of the bench at another size, made on the CPU and put on the pretend device."""

    class Small(rig):
        def device(self) -> torch.device:
            return torch.device("cpu")

        def made(self) -> Any:
            model = gpu.put(super().made())
            model.model.memory_usage_factor = 1e-6
            self.cuda = CUDA
            return model

    Small.__name__ = rig.__name__
    for name, value in TINY[rig.__name__].items():
        setattr(Small, name, {**rig.network, **value} if name == "network" else value)
    return Small


@pytest.mark.thorough
def test_its_checks_run(bench, accelerator, monkeypatch, tmp_path):
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
    rigs = {rig: tiny(rig, gpu) for rig in bench.RIGS}
    monkeypatch.setattr(bench, "RIGS", tuple(rigs.values()))
    for name, (function, on) in bench.CHECKS.items():
        monkeypatch.setitem(bench.CHECKS, name, (function, tuple(rigs[rig] for rig in on)))
    monkeypatch.setattr(bench, "LITTLE", 1 << 20)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--only", *RUN])
    result = bench.main()
    found = json.loads((tmp_path / "gpu.json").read_text())["checks"]
    assert {name: row.get("why") for name, row in found.items()} == dict.fromkeys(ROWS)
    assert result == 0 and "right" in (tmp_path / "gpu.txt").read_text()


def test_encoded_values_are_compared(bench, monkeypatch):
    """On the CPU, with the encoders that it makes for a GPU."""
    monkeypatch.setattr(bench, "ENCODED", (32, 32))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.get_rng_state())
    with torch.inference_mode():
        found = bench.encoded_values(SimpleNamespace(cuda=torch.device("cpu")))
    assert {"picture, DiskTier", "text, DiskTier", "picture, MemoryTier", "text, MemoryTier"} <= set(found)
