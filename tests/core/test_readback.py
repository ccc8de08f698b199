"""A number is read from a device without waiting for it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from skipstone.core.step.clock import Grid
from skipstone.core.step.history import HostMemory
from skipstone.core.step.method import Method
from skipstone.core.step.policies import Interval
from skipstone.core.step.predictors import Reuse
from skipstone.core.step.readback import Readback
from skipstone.core.step.report.messages import OUTPUT_NOT_FINITE
from skipstone.core.step.run import Run
from skipstone.tests.accelerator import Accelerator

CUDA = torch.device("cuda")


def test_it_is_there_once_it_has_arrived():
    with torch.inference_mode(), Accelerator() as gpu:
        memory = HostMemory()
        x = torch.arange(3.0, device=CUDA) - 5
        found: Any = Readback.largest(x, memory)
        assert found.get() is None
        for _ in range(50):
            x = x + 1
        assert found.get() == found.get() == 5.0
        assert not gpu.syncs
        assert memory.had == 8 and Readback.largest(x, memory) and memory.had == 8  # its room is used again


def test_on_the_host_it_is_there_at_once():
    assert Readback.largest(torch.tensor([1.0, -3.0]), HostMemory()) == 3.0
    largest = Readback.largest(torch.tensor([1.0, math.nan]), HostMemory())
    assert isinstance(largest, float) and math.isnan(largest)
    assert Readback.largest(torch.zeros(0), HostMemory()) is None


def test_where_it_would_have_to_wait_there_is_none():
    with torch.inference_mode(), Accelerator() as gpu:
        assert Readback.largest(torch.ones(3, device=CUDA), HostMemory(0)) is None
        assert not gpu.syncs


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_nothing_is_predicted_from_what_is_not_finite(bad, device):
    """Every second evaluation of ten is to be skipped; the model's third is not finite."""
    with torch.inference_mode(), Accelerator() as gpu:
        run = Run(
            Method("Every", "2", (Interval(1, 2),), Reuse()),
            Grid(tuple(1 - i / 10 for i in range(11))),
            "euler",
            computes_on=torch.device(device),
        )
        for i in range(10):
            run.tick(1 - i / 10)
            if device == "cuda":
                gpu.clock.host += 1  # the host is slow: what was copied has arrived
            x = torch.ones(4, device=device)
            if run.decide(["a"]).compute:
                run.observe("a", x, x * (bad if i == 2 else 0.5))
            else:
                assert run.predict("a", x).isfinite().all()
        report = run.close(True)
    assert [e.computed for e in report.evaluations] == [True, False, True, True, True, False, True, False, True, True]
    assert report.evaluations[3].reason == "not finite"
    assert OUTPUT_NOT_FINITE in report.notes
