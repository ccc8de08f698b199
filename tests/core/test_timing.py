"""Times of evaluations, by the clock of the device that computes, and their use in the report."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from skipstone.core.step import run as running
from skipstone.core.step.clock import Grid
from skipstone.core.step.method import Blocks, Method
from skipstone.core.step.policies import Interval
from skipstone.core.step.predictors import Reuse
from skipstone.core.step.report import builder, timing
from skipstone.core.step.report.timing import StepTimer
from skipstone.core.step.run import Run
from skipstone.tests.accelerator import Accelerator

CUDA = torch.device("cuda")


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=0.0)
    for module in (timing, builder, running):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now.seconds))
    return now


def ran(clock, pattern):
    """pattern: (computed, seconds) of each evaluation; None: it was not decided."""
    found = StepTimer()
    for computed, seconds in pattern:
        found.mark()
        if computed is not None:
            found.decided(computed)
        clock.seconds += seconds
    found.close()
    return found


def test_the_share_is_the_time_of_a_skip_over_that_of_a_computed_evaluation(clock):
    pattern = [(True, 90.0), (True, 8.0), (False, 2.0), (True, 8.0), (False, 2.0), (True, 8.0), (False, 5.0)]
    found = ran(clock, pattern)
    assert (found.computed, found.share) == (8.0, 3 / 8)  # the first one compiled


def test_one_of_each_is_enough_and_without_either_there_is_no_share(clock):
    assert ran(clock, [(True, 8.0), (False, 2.0)]).share == 0.25
    assert ran(clock, [(True, 8.0)] * 9).share is None
    assert ran(clock, [(None, 8.0)] * 3).computed is None


def test_evaluations_without_a_decision_are_ignored(clock):
    assert ran(clock, [(True, 8.0), (None, 50.0), (False, 2.0), (None, 50.0)]).share == 0.25


def test_the_last_decision_counts(clock):
    found = StepTimer()
    found.mark()
    found.decided(False)
    found.decided(True)
    clock.seconds += 3
    found.close()
    assert (found.computed, found.seconds[False]) == (3.0, [])


def test_a_skip_takes_no_more_than_all(clock):
    assert ran(clock, [(True, 1.0), (False, 3.0)] * 4).share == 1.0


def timed(waits=False):
    """Six evaluations on the device, by turns computed with 8 operations and skipped with 2. waits: each reads sigma first."""
    found, x = StepTimer(CUDA), torch.ones(1, device=CUDA)
    for i in range(6):
        if waits:
            float(x)
        found.mark()
        found.decided(i % 2 == 0)
        for _ in range(8 if i % 2 == 0 else 2):
            x = x + 1
        if not waits:
            found.read()
    return found


def test_the_times_of_a_device_are_read_without_a_sync():
    """The host only queues work; the device takes a second for each operation."""
    with torch.inference_mode(), Accelerator(cost=lambda name, result: 1.0) as gpu:
        found = timed()
        assert not gpu.syncs and found.computed is None  # the device has done nothing yet
        found.close()
        assert len(gpu.syncs) == 1
        assert found.computed == pytest.approx(8.0, rel=0.01)
        assert found.share == pytest.approx(0.25, rel=0.01)


def test_a_device_without_events_is_timed_by_the_host(clock, monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", lambda **_: (_ for _ in ()).throw(RuntimeError("no such thing")))
    found = StepTimer(CUDA)
    for computed in (True, False):
        found.mark()
        found.decided(computed)
        clock.seconds += 2
    found.close()
    assert (found.computed, found.share) == (2.0, 1.0)
    assert StepTimer(torch.device("meta")).made is None


def sampled(clock, blocks):
    """A run that skips every second evaluation, of 8 seconds, in 2; the blocks' share by their parameters is said to be 0.1."""
    run = Run(
        Method("Every", "2", (Interval(1, 2),), Reuse(), blocks=blocks),
        Grid(tuple(1 - i / 20 for i in range(21))),
        "euler",
    )
    run.report.share = 0.1
    clock.seconds += 100  # the model is loaded
    for i in range(20):
        run.tick(1 - i / 20)
        if run.decide(["a"]).compute:
            run.keep("a", torch.zeros(2))
            clock.seconds += 8
        else:
            run.recall("a", torch.device("cpu"))
            clock.seconds += 2
    return run.close(True)


@pytest.mark.parametrize("blocks", [Blocks(1, 0, "none"), None], ids=["blocks", "output"])
def test_the_report_uses_measured_times(clock, blocks):
    report = sampled(clock, blocks)
    assert report.skipped >= 8
    assert report.share == 0.25
    assert report.seconds == 8 * report.computed + 2 * report.skipped
    assert report.saved == 6 * report.skipped
    assert report.speedup == pytest.approx(8 * 20 / report.seconds)


@pytest.mark.parametrize("event", [None, "raises", "has no timing"])
def test_a_device_without_events_is_waited_for_at_the_end_only(monkeypatch, event):
    """As DirectML: reading sigma waits for the device in every evaluation, and the host's clock is used."""
    with torch.inference_mode(), Accelerator(cost=lambda name, result: 1.0) as gpu:

        class Event(torch.cuda.Event):
            def __init__(self, **how: object) -> None:
                if event == "raises":
                    raise RuntimeError("no events")
                super().__init__(**how)

            def elapsed_time(self, other: object) -> float:
                raise RuntimeError("no timing")

        monkeypatch.setattr(torch.cuda, "Event", Event if event else None)
        found = timed()
        assert not gpu.syncs
        found.close()
        assert gpu.syncs and gpu.clock.host >= 30


def test_the_host_times_correctly_where_every_evaluation_waits():
    with torch.inference_mode(), Accelerator(cost=lambda name, result: 1.0), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "Event", None)
        found = timed(waits=True)
        found.close()
        assert found.share == pytest.approx(0.25, abs=0.15)
        assert found.computed == pytest.approx(8, abs=1.5)
