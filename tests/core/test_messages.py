"""The messages about a run: one wording per range of decibels, and the message of a run that is stopped during calibration."""

import pytest

from skipstone.core.step.clock import Grid
from skipstone.core.step.method import Method
from skipstone.core.step.policies import Budget, Schedule
from skipstone.core.step.predictors import Linear
from skipstone.core.step.report import messages
from skipstone.core.step.run import Run


@pytest.mark.parametrize(
    ("decibels", "seen"),
    [(30.0, "slightly visible"), (39.9, "slightly visible"), (40.0, "hard to see"), (52.0, "not visible")],
)
def test_the_predicted_difference_is_in_words(decibels, seen):
    assert messages.outlook(decibels) == f"predicted difference: {seen} (about {decibels:.0f} dB)"


@pytest.mark.parametrize(("decibels", "said"), [(29.4, "29 dB"), (15.0, "15 dB"), (3.0, "below 15 dB")])
def test_a_visible_difference_is_said_to_be_one(decibels, said):
    assert messages.visible(decibels).startswith(f"visible difference likely ({said})")


def stopped(learning):
    grid = Grid.of([1 - i / 20 for i in range(21)])
    run = Run(Method("MeanCache", "", (Schedule(Budget.of(0.3)),), Linear()), grid, "euler", learning=learning)
    run.tick(1.0)
    run.decide(["slot"])
    while_running = run.report.advice
    return while_running, run.close(finished=False).advice


def test_a_stopped_learning_run_promises_nothing():
    assert stopped(learning=True) == (messages.LEARNING, messages.STOPPED_LEARNING)


def test_a_stopped_run_that_did_not_learn_says_nothing_of_learning():
    assert stopped(learning=False) == ("", "")
