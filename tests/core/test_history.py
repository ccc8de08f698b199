"""The history of a slot: copies of its own, on the requested device, transferred without a sync; and weighted sums of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from skipstone.core.step import history
from skipstone.core.step.history import History, HostCopy, HostMemory
from skipstone.tests.accelerator import Accelerator

HOST = torch.device("cpu")
CUDA = torch.device("cuda")


@pytest.fixture
def gpu() -> Iterator[Accelerator]:
    with torch.inference_mode(), Accelerator() as device:
        yield device


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(history, "CHUNK", 64)


def on_host(
    count: int, shape: tuple[int, ...] = (5, 7), memory: HostMemory | None = None
) -> tuple[History, list[torch.Tensor]]:
    kept = History(HOST, memory)
    values = [torch.arange(35.0).view(shape) + 100 * i for i in range(count)]
    for i, value in enumerate(values):
        kept.observe(i, value.to(CUDA), range(count))
    return kept, values


def test_what_goes_to_main_memory_and_comes_back_keeps_nobody_waiting(gpu, small_chunks):
    kept, values = on_host(2)
    assert all(isinstance(a, HostCopy) and len(a.chunks) == 3 for a in kept.anchors.values())
    found = kept.combine({0: 1.0, 1: 0.5}, CUDA)
    assert not gpu.syncs
    assert found.device.type == "cuda"
    assert torch.equal(found.cpu(), values[0] + 0.5 * values[1])
    assert all(pinned for where, _, pinned in gpu.copied if where == "to the host" and not gpu.syncs)


def test_page_locked_memory_is_used_again_and_given_back(gpu, small_chunks):
    memory = HostMemory()
    kept, _ = on_host(2, memory=memory)
    held = gpu.pinned.held
    assert held <= 2 * (35 * 4 + 64)
    for i in range(2, 9):
        kept.observe(i, torch.ones(5, 7, device=CUDA), {i - 1})
        assert len(kept.anchors) == 2
    assert gpu.pinned.held <= held + 3 * 64
    kept.clear()
    torch.cuda.synchronize()
    memory.close()
    assert gpu.pinned.held == 0


@pytest.mark.parametrize("why", ["not allowed", "none left"])
def test_where_there_is_no_page_locked_memory_it_is_copied_all_the_same(why, small_chunks):
    with torch.inference_mode(), Accelerator(pinnable=float("inf") if why == "not allowed" else 100) as gpu:
        memory = HostMemory(0 if why == "not allowed" else float("inf"))
        kept, values = on_host(1, memory=memory)
        assert isinstance(kept.anchors[0], torch.Tensor)
        assert torch.equal(kept.combine({0: 2.0}, CUDA).cpu(), 2 * values[0])
        kept.clear()
        memory.close()
        assert gpu.pinned.held == 0


@pytest.mark.parametrize("device", [None, HOST])
def test_what_is_there_already_is_not_copied(device):
    """The caller must not write to a tensor after it was handed over."""
    value = torch.ones(3)
    kept = History(device)
    kept.observe(0, value, ())
    assert kept.anchors[0] is value


def test_a_host_waits_for_what_comes_to_it(gpu):
    """It reads it right away."""
    kept = History()
    kept.observe(0, torch.ones(3, device=CUDA), ())
    assert kept.combine({0: 1.0}, HOST).tolist() == [1.0] * 3
    assert len(gpu.syncs) == 1


@pytest.mark.parametrize("where", ["device", "host"])
@pytest.mark.parametrize("slice_", [1 << 24, 8])
def test_layouts_do_not_matter(gpu, small_chunks, monkeypatch, where, slice_):
    """Channels-last, transposed and plain tensors of one shape may follow each other."""
    monkeypatch.setattr(history, "SLICE", slice_)
    values = [
        torch.randn(1, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(1, 3, 4, 5),
        torch.randn(5, 4, 3, 1).permute(3, 2, 1, 0),
    ]
    for last in range(3):
        kept = History(None if where == "device" else HOST)
        weights = {}
        for i in range(3):
            kept.observe(i, values[(last + i) % 3].to(CUDA), range(3))
            weights[i] = i + 1.0
        expected = sum(w * values[(last + i) % 3] for i, w in weights.items())
        found = kept.combine(weights, CUDA)
        torch.testing.assert_close(found.cpu(), expected)
        # a dimension of one element has no place in the order
        assert found.squeeze().stride() == values[(last + 2) % 3].squeeze().stride()


def test_a_scalar_and_nothing_at_all():
    kept = History()
    kept.observe(0, torch.tensor(2.0), ())
    assert kept.combine({0: 3.0}, HOST).item() == 6.0
    kept.observe(1, torch.zeros(0, 4), ())
    assert kept.combine({1: 3.0}, HOST).shape == (0, 4)
    with pytest.raises(ValueError, match="anchor"):
        kept.combine({}, HOST)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights", [(1.65, -0.65), (3.3, -2.3), (6.0, -5.0), (2.5, -2.0, 0.5)], ids=str)
def test_sums_are_rounded_once(dtype, weights):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4096, generator=generator)
    values = [(base + 0.1 * torch.randn(4096, generator=generator)).to(dtype) for _ in weights]
    kept = History()
    for i, value in enumerate(values):
        kept.observe(i, value, range(9))
    exact = sum(w * v.double() for w, v in zip(weights, values, strict=True))
    found = kept.combine(dict(enumerate(weights)), HOST)
    assert found.dtype == dtype
    assert torch.equal(found, exact.to(torch.float32).to(dtype)) or (
        (found.double() - exact).norm() <= 1.01 * (exact.to(dtype).double() - exact).norm()
    )


def test_no_infinity_comes_of_halves():
    """1.65 * 45000 is beyond float16, and the sum is not."""
    kept = History()
    kept.observe(0, torch.full((4,), 44000.0, dtype=torch.float16), range(9))
    kept.observe(1, torch.full((4,), 45000.0, dtype=torch.float16), range(9))
    assert kept.combine({0: -0.65, 1: 1.65}, HOST).tolist() == [45632.0] * 4
    assert kept.combine({0: -5.0, 1: 6.0}, HOST).tolist() == [49952.0] * 4
    assert kept.combine({0: -50.0, 1: 51.0}, HOST).tolist() == [torch.finfo(torch.float16).max] * 4


def test_memory_beside_the_anchors_is_bounded(monkeypatch):
    monkeypatch.setattr(history, "SLICE", 1000)
    with torch.inference_mode(), Accelerator() as gpu:
        kept = History()
        for i in range(3):
            kept.observe(i, torch.ones(100_000, device=CUDA, dtype=torch.bfloat16), range(3))
        before = gpu.memory.live
        gpu.memory.reset_peak()
        kept.combine({0: 1.0, 1: -2.0, 2: 2.0}, CUDA)
        assert gpu.memory.peak - before <= 200_000 + 3 * 4000
