"""The pretend device finds the mistakes that it is for: each is planted here, and passes unnoticed on the CPU."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from skipstone.tests.accelerator import Accelerator, DeviceTensor, Race, move


@pytest.fixture
def gpu() -> Iterator[Accelerator]:
    with torch.inference_mode(), Accelerator() as device:
        yield device


def ones(*shape: int, **more: object) -> Tensor:
    return torch.ones(*shape, device="cuda", **more)  # type: ignore[call-overload]


def test_it_computes_what_the_cpu_computes(gpu):
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.SiLU(), torch.nn.LayerNorm(16))
    x = torch.randn(4, 8, generator=generator)
    expected = layer(x)
    there = move(layer)(x.to("cuda"))
    assert there.is_cuda and there.device == torch.device("cuda", 0)
    assert torch.equal(there.cpu(), expected)
    assert all(p.is_cuda and isinstance(p, torch.nn.Parameter) for p in layer.parameters())


def test_views_and_writes_in_place_are_of_the_same_memory(gpu):
    x = ones(4, 4)
    x[1] = 3.0
    x[:, 2:].mul_(2)
    assert x.cpu().tolist()[1] == [3.0, 3.0, 6.0, 6.0]
    assert x.add_(1) is x
    assert gpu.memory.live == x.nbytes


@pytest.mark.parametrize(
    "mistake",
    [
        lambda x: x + torch.ones(4),
        lambda x: torch.cat([x, torch.ones(4)]),
        lambda x: torch.stack([torch.ones(4), x]),
        lambda x: x.add_(torch.ones(4)),
        lambda x: torch.where(x > 0, x, torch.zeros(4)),
    ],
)
def test_operands_on_different_devices_are_an_error(gpu, mistake):
    with pytest.raises(RuntimeError, match="same device"):
        mistake(ones(4))
    mistake(torch.ones(4))


def test_a_scalar_on_the_host_is_none(gpu):
    assert (ones(4) * torch.tensor(2.0)).cpu().tolist() == [2.0] * 4


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: float(x.sum()),
        lambda x: bool(x.any()),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.to("cpu", non_blocking=True),
        lambda x: x[x > 0],
        lambda x: x[[0, 1]],
        lambda x: x.nonzero(),
        lambda x: x.isfinite().all().item(),
        lambda x: torch.equal(x, x),
        lambda x: torch.empty(4).copy_(x, non_blocking=True),  # into pageable memory
        lambda x: x[torch.tensor([0, 1])],
        lambda x: torch.cuda.synchronize(),
    ],
)
def test_what_has_the_host_wait_is_recorded_with_its_caller(gpu, wait):
    x = ones(4)
    wait(x)
    assert {s.module for s in gpu.syncs} == {__name__}
    assert all(s.line.startswith("test_accelerator.py:") for s in gpu.syncs)


def test_what_does_not_wait_is_not(gpu):
    x = ones(4)
    room = torch.empty(4, pin_memory=True)
    room.copy_(x, non_blocking=True)
    y = room.to("cuda", non_blocking=True)
    (x + y).mean()
    x[1:3], x[..., None], x.narrow(0, 1, 2)
    torch.cuda.Event().record()
    assert not gpu.syncs


def pending() -> tuple[Tensor, Tensor]:
    x = ones(4) * 3
    room = torch.empty(4, pin_memory=True)
    return x, room.copy_(x, non_blocking=True)


@pytest.mark.parametrize(
    "read",
    [lambda t: t.sum(), lambda t: t.tolist(), lambda t: t.numpy(), lambda t: float(t[0]), lambda t: t + 1],
)
def test_pinned_memory_that_is_read_too_early_is_a_race(gpu, read):
    _, room = pending()
    with pytest.raises(Race):
        read(room)


@pytest.mark.parametrize(
    "wait",
    [lambda: torch.cuda.synchronize(), lambda: float(ones(1)), lambda: ones(1).cpu()],
    ids=["synchronize", "float", "cpu"],
)
def test_it_can_be_read_after_a_wait(gpu, wait):
    x, room = pending()
    x.zero_()  # after the copy, in the stream's order
    wait()
    assert room.tolist() == [3.0] * 4


def test_an_event_tells_when_a_copy_has_arrived(gpu):
    _, room = pending()
    event = torch.cuda.Event()
    event.record()
    assert not event.query()
    for _ in range(50):
        ones(1)  # the host goes on, and time passes
    assert event.query()
    assert room.tolist() == [3.0] * 4


def test_the_device_reads_pinned_memory_in_the_streams_order(gpu):
    _, room = pending()
    assert room.to("cuda", non_blocking=True).cpu().tolist() == [3.0] * 4


def test_pageable_memory_is_told_from_pinned(gpu):
    torch.ones(4).to("cuda", non_blocking=True)
    torch.ones(4).pin_memory().to("cuda", non_blocking=True)
    assert gpu.copied == [("to the device", 16, False), ("to the device", 16, True)]


def test_live_bytes_are_counted(gpu):
    x = ones(1000)
    y = x * 2
    del x
    part = y[:10]
    del y
    assert (gpu.memory.live, gpu.memory.peak) == (4000, 8000)  # the part holds on to the whole
    del part
    assert gpu.memory.live == 0


def test_a_cycle_keeps_memory_alive_until_the_collector_runs(gpu):
    gc.disable()
    try:
        holder: list[object] = [ones(1000)]
        holder.append(holder)
        del holder
        assert gpu.memory.live == 4000
        gc.collect()
        assert gpu.memory.live == 0
    finally:
        gc.enable()


def test_memory_runs_out():
    with torch.inference_mode(), Accelerator(capacity=10_000) as gpu:
        x = ones(2000)
        with pytest.raises(torch.OutOfMemoryError):
            x * 2
        assert gpu.free == 2000
        x.mul_(2)


def test_pinned_memory_is_rounded_up_and_kept_until_the_pool_is_emptied(gpu):
    room = torch.empty(1500, dtype=torch.uint8, pin_memory=True)
    assert room.is_pinned() and not torch.empty(1500).is_pinned()
    assert gpu.pinned.held == 2048
    del room
    assert (gpu.pinned.live, gpu.pinned.held) == (0, 2048)
    room = torch.empty(1100, dtype=torch.uint8, pin_memory=True)
    assert gpu.pinned.held == 2048
    del room
    torch._C._host_emptyCache()
    assert gpu.pinned.held == 0


def test_pinning_fails_where_there_is_no_more():
    with torch.inference_mode(), Accelerator(pinnable=1000), pytest.raises(RuntimeError):
        torch.empty(1000, pin_memory=True)


def test_the_device_takes_time_and_the_host_runs_ahead():
    with torch.inference_mode(), Accelerator(cost=lambda name, result: 1.0, launch=0.001):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        began = time.perf_counter()
        start.record()
        x = ones(4)
        for _ in range(9):
            x = x + 1
        end.record()
        assert time.perf_counter() - began < 0.1
        with pytest.raises(RuntimeError, match="not ready"):
            start.elapsed_time(end)
        float(x[0])
        assert 10 < time.perf_counter() - began < 13
        assert 10_000 < start.elapsed_time(end) < 11_000


def test_the_queue_is_bounded():
    """The host is at most so many launches ahead."""
    with torch.inference_mode(), Accelerator(cost=lambda name, result: 1.0, launch=0.0):
        x = ones(4)
        for _ in range(1100):
            x.add_(1)
        assert 70 < time.perf_counter() < 80


def test_nothing_stays_patched():
    before = (torch.tensor, torch.cuda.Event, torch.cuda._lazy_init, time.perf_counter, torch._C._host_emptyCache)
    with Accelerator():
        assert torch.tensor is not before[0]
    assert before == (
        torch.tensor,
        torch.cuda.Event,
        torch.cuda._lazy_init,
        time.perf_counter,
        torch._C._host_emptyCache,
    )
    assert DeviceTensor.accelerator is None
