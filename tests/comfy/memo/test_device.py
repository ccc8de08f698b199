"""Encoders whose weights are on a device (the pretend one of tests/accelerator): what is kept and hit, waited for, and left there."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import nodes
from skipstone.core.memo import tensors
from skipstone.patch.memo import environment, fingerprint
from skipstone.patch.memo.encoders import memo_clip, memo_vae
from skipstone.tests.accelerator import DeviceTensor, move
from skipstone.tests.accelerator.tensor import CUDA
from skipstone.tests.comfy.gpu.conftest import accelerator  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore:::(comfy|torchsde)")
TEXT, VAE = "text", "vae"


@pytest.fixture(autouse=True)
def plain_weights(monkeypatch) -> Iterator[None]:
    """The device's tensors are of a class of their own, which a real device's are not: they count as plain weights."""
    own = fingerprint.stored_parts

    def parts(weight: Any) -> Iterator[Any]:
        if isinstance(weight, DeviceTensor):
            yield [], weight.detach()
        else:
            yield from own(weight)

    monkeypatch.setattr(fingerprint, "stored_parts", parts)
    about = SimpleNamespace(name="pretend", major=9, minor=0, total_memory=1 << 34, multi_processor_count=1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device=None: torch.zeros(16, dtype=torch.uint8))
    plain = tensors.plain
    monkeypatch.setattr(tensors, "plain", lambda t: plain(t.cpu() if isinstance(t, DeviceTensor) else t))
    yield
    environment._machine.cache_clear()


def there(encoder: Any, model: torch.nn.Module) -> Any:
    """The encoder with its weights on the device."""
    move(model)
    encoder.patcher.load_device = encoder.patcher.offload_device = CUDA
    encoder.patcher.model.device = CUDA
    if hasattr(encoder, "device"):
        encoder.device = CUDA
    return encoder


def vae_on(gpu: Any, make_vae: Any, seed: int = 0) -> Any:
    vae = make_vae(seed)
    return there(vae, vae.first_stage_model)


def clip_on(gpu: Any, make_clip: Any, seed: int = 0) -> Any:
    clip = make_clip(seed)
    return there(clip, clip.cond_stage_model)


def waits_of(gpu: Any) -> list[str]:
    """What the memo waited for."""
    return [f"{s.kind} in {s.module}:{s.line}" for s in gpu.device.syncs if ".memo" in s.module]


def test_a_latent(memo, loads, accelerator, make_vae, plain_vae, pixels, same):  # noqa: F811
    truth = plain_vae.encode(pixels())
    gpu = accelerator(capacity=1 << 34)
    vae = memo_vae(vae_on(gpu, make_vae))
    memory = gpu.device.memory
    vae.encode(pixels(1))  # what the model's first use leaves
    loads.clear()
    before = memory.live
    first = nodes.VAEEncode().encode(vae, pixels())[0]["samples"]
    assert first.device.type == "cpu" and len(loads) == 1
    again = nodes.VAEEncode().encode(vae, pixels())[0]["samples"]
    assert len(loads) == 1, memo.not_kept
    assert same(first, again)
    torch.testing.assert_close(first, truth)
    assert memo.counts(VAE) == (1, 2) and not memo.not_kept
    assert memory.live == before and gpu.device.pinned.held == 0


def test_a_prompt(memo, loads, accelerator, make_clip, plain_clip, same):  # noqa: F811
    truth = nodes.CLIPTextEncode().encode(plain_clip, "a red circle")[0]
    gpu = accelerator(capacity=1 << 34)
    clip = memo_clip(clip_on(gpu, make_clip))
    memory = gpu.device.memory
    nodes.CLIPTextEncode().encode(clip, "something else")
    loads.clear()
    before = memory.live
    first, again = (nodes.CLIPTextEncode().encode(clip, "a red circle")[0] for _ in range(2))
    assert len(loads) == 1, memo.not_kept
    assert same(first, again)
    torch.testing.assert_close(first[0][0], truth[0][0])
    assert memo.counts(TEXT) == (1, 2) and not memo.not_kept
    assert memory.live == before and gpu.device.pinned.held == 0


def test_weights_are_read_once_in_few_waits_and_looked_at_in_one(memo, accelerator, make_vae, pixels):  # noqa: F811
    gpu = accelerator(capacity=1 << 34)
    vae = memo_vae(vae_on(gpu, make_vae))
    vae.encode(pixels())
    first = waits_of(gpu)
    weights = len([*vae.first_stage_model.parameters()])
    assert 0 < len(first) <= 2 * weights
    gpu.device.syncs.clear()
    vae.encode(pixels())
    vae.encode(pixels(2))
    assert len(waits_of(gpu)) == 2


def test_other_weights_on_a_device_are_another_encoder(memo, accelerator, make_vae, pixels, same):  # noqa: F811
    gpu = accelerator(capacity=1 << 34)
    one, other = (memo_vae(vae_on(gpu, make_vae, seed)) for seed in (0, 1))
    assert not same(one.encode(pixels()), other.encode(pixels()))
    assert memo.counts(VAE) == (0, 2), memo.not_kept


def test_no_more_memory_than_a_weight_is_taken_to_know_one(memo, accelerator, make_vae, pixels):  # noqa: F811
    gpu = accelerator(capacity=1 << 34)
    plain, patched = vae_on(gpu, make_vae), vae_on(gpu, make_vae)
    memory = gpu.device.memory

    def peak(vae: Any) -> int:
        vae.encode(pixels(3))
        before = memory.live
        memory.reset_peak()
        vae.encode(pixels())
        return memory.peak - before

    known = memo_vae(patched)
    without = peak(plain)
    before = memory.live
    memory.reset_peak()
    known.encode(pixels())
    largest = max(p.nbytes for p in patched.first_stage_model.parameters())
    assert memory.peak - before <= without + 2 * largest
