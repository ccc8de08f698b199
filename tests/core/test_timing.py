"""What a skip takes of a computed evaluation, by the clock; and what the report makes of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from skipstone.core.step.clock import Grid
from skipstone.core.step.method import Blocks, Method
from skipstone.core.step.policies import Interval
from skipstone.core.step.predictors import Reuse
from skipstone.core.step.report import timing
from skipstone.core.step.run import Run


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now.seconds))
    return now


def ran(clock, pattern, waited=lambda i: True):
    """pattern: (computed, seconds) of each evaluation; one more decision ends the last."""
    found = timing.StepTimer()
    for i, (computed, seconds) in enumerate(pattern):
        found.decided(computed, waited(i))
        clock.seconds += seconds
    found.decided(True, waited(len(pattern)))
    return found.share


def test_a_share_is_the_median_skip_over_the_median_computed_evaluation(clock):
    pattern = [(True, 90.0), (True, 8.0), (False, 2.0), (True, 8.0), (False, 2.0), (True, 8.0), (False, 7.0)]
    assert ran(clock, pattern) == 0.25  # the first one compiled, and one skip was interrupted


def test_too_few_say_nothing(clock):
    assert ran(clock, [(True, 8.0), (False, 2.0)] * 2) is None
    assert ran(clock, [(True, 8.0)] * 9) is None


def test_a_lap_counts_where_the_host_waited_at_both_ends(clock):
    """Elsewhere its clock says only how long it took to tell the device what to do."""
    pattern = [(True, 1.0), (False, 1.0), *[(True, 8.0), (False, 2.0)] * 3]
    assert ran(clock, pattern, lambda i: i >= 2) == 0.25
    assert ran(clock, pattern, lambda i: i % 2 == 0) is None


def test_a_skip_takes_no_more_than_all(clock):
    assert ran(clock, [(True, 1.0), (False, 3.0)] * 4) == 1.0


def sampled(clock, blocks):
    """A run that skips every second evaluation, of 8 seconds, in 2; the blocks' share by their parameters is said to be 0.1."""
    run = Run(
        Method("Every", "2", (Interval(1, 2),), Reuse(), blocks=blocks),
        Grid(tuple(1 - i / 20 for i in range(21))),
        "euler",
    )
    run.report.share = 0.1
    for i in range(20):
        run.tick(1 - i / 20)
        if run.decide(["a"]).compute:
            run.keep("a", torch.zeros(2))
            clock.seconds += 8
        else:
            run.recall("a", torch.device("cpu"))
            clock.seconds += 2
    return run.close(True)


def test_a_report_of_block_level_goes_by_the_clock(clock):
    report = sampled(clock, Blocks(1, 0, "none"))
    assert report.skipped >= 8
    assert report.share == 0.25


def test_at_output_level_a_skip_takes_nothing(clock):
    assert sampled(clock, None).share == 0.1  # as it was set
