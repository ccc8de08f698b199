"""The report: counts that add up, numbers that agree with each other, and JSON that every reader takes."""

import json
import math

import numpy as np
import pytest
import torch

from skipstone.core.step.auto.selection import typical_decibels
from skipstone.core.step.calibration.costs import Costs, Origin
from skipstone.core.step.calibration.gram import Gram
from skipstone.core.step.clock import Grid
from skipstone.core.step.indicators.output import InputChange
from skipstone.core.step.method import Method
from skipstone.core.step.policies import Accumulator, Budget, Schedule, Threshold, Warmup
from skipstone.core.step.predictors import Linear, Reuse
from skipstone.core.step.reasons import Reason
from skipstone.core.step.report.messages import VISIBLE
from skipstone.core.step.report.report import Evaluation, Report
from skipstone.core.step.run import Run

NOT_FINITE = (math.nan, math.inf, -math.inf)


def report(computed=20, skipped=30, steps=50, seconds=10.0, deciding=0.0, indicators=()):
    filled = Report("Name", "Variant", steps, seconds=seconds, deciding=deciding, finished=True)
    for i in range(computed + skipped):
        value = indicators[i] if i < len(indicators) else None
        skip = i >= computed
        filled.evaluations.append(
            Evaluation(min(i, steps - 1), 1 - i / 100, not skip, Reason.METHOD if skip else Reason.WARMUP, value)
        )
    return filled


def strict(filled):
    """As a browser reads it: JSON has no NaN."""
    return json.loads(json.dumps(filled.as_dict(), allow_nan=False))


def test_the_line_is_the_one_promised():
    assert report(deciding=2 / 3).line() == "Name Variant: 50 steps, 20 computed, 30 skipped (60%), 2.4x"


@pytest.mark.parametrize(
    ("filled", "line"),
    [
        (report(50, 0), "Name Variant: 50 steps, all computed"),
        (report(1, 0, steps=1), "Name Variant: 1 step, all computed"),
        (report(4, 4, steps=4), "Name Variant: 4 steps, 8 evaluations, 4 computed, 4 skipped (50%), 2.0x"),
        (report(1, 2, steps=3), "Name Variant: 3 steps, 1 computed, 2 skipped (67%), 3.0x"),
    ],
)
def test_other_lines(filled, line):
    assert filled.line() == line


def test_a_method_without_a_variant_has_no_blank_in_its_line():
    assert Report("Name", "", 3).line().startswith("Name: 3 steps")


@pytest.mark.parametrize("deciding", [0.0, 0.5, 4.0])
@pytest.mark.parametrize(("computed", "skipped"), [(20, 30), (50, 0), (1, 49), (49, 1)])
def test_saved_time_and_speedup_say_the_same(computed, skipped, deciding):
    filled = report(computed, skipped, deciding=deciding)
    # every skipped evaluation would have cost what a computed one did
    assert filled.saved == pytest.approx(skipped * (10.0 - deciding) / computed)
    assert filled.speedup == pytest.approx((filled.seconds + filled.saved) / filled.seconds)
    data = strict(filled)
    assert (data["saved"], data["speedup"]) == pytest.approx((filled.saved, filled.speedup))


@pytest.mark.parametrize(
    "filled",
    [report(0, 0, seconds=0.0), report(0, 3), report(2, 2, seconds=0.0), report(1, 1, seconds=1.0, deciding=2.0)],
)
def test_estimates_are_finite_and_never_negative_whatever_happened(filled):
    assert filled.saved >= 0 and filled.speedup >= 1
    assert math.isfinite(filled.saved) and math.isfinite(filled.speedup)
    strict(filled)


def test_percentiles_are_those_of_the_indicators():
    values = [i / 100 for i in range(101)]
    shuffled = values[1::2] + values[::2]
    filled = report(50, 51, steps=101, indicators=shuffled)
    assert filled.percentiles == pytest.approx({5: 0.05, 25: 0.25, 50: 0.5, 75: 0.75, 95: 0.95})


@pytest.mark.parametrize("values", [[0.3], [0.1, 0.2], [0.5, 0.1, 0.4, math.nan, 0.2, math.inf, None]])
def test_percentiles_rise_and_lie_within_what_was_seen(values):
    found = list(report(indicators=values).percentiles.values())
    seen = [v for v in values if v is not None and math.isfinite(v)]
    assert found == sorted(found) and min(seen) <= found[0] and found[-1] <= max(seen)


@pytest.mark.parametrize("values", [[], [None, None], [math.nan, None]])
def test_without_indicators_there_are_no_percentiles(values):
    assert strict(report(indicators=values))["percentiles"] == {}


@pytest.mark.parametrize("bad", NOT_FINITE)
def test_an_indicator_that_is_not_finite_is_null_in_json(bad):
    data = strict(report(indicators=[0.25, bad]))
    assert [e["indicator"] for e in data["timeline"][:3]] == [0.25, None, None]
    assert data["percentiles"]["50"] == 0.25


def test_the_counts_add_up():
    filled = report()
    filled.evaluations[3].reason = "conditioning change"
    data = strict(filled)
    assert data["evaluations"] == data["computed"] + data["skipped"] == len(data["timeline"]) == 50
    assert data["reasons"] == {"warmup": 19, "conditioning change": 1, "method": 30}
    assert data["skip_reasons"] == {"method": 30}


def test_a_note_is_said_once():
    filled = report()
    for _ in range(3):
        filled.note("one")
    filled.note("two")
    assert strict(filled)["notes"] == ["one", "two"]


def played(method, steps=20, nan_at=-1):
    grid = Grid.of([1 - i / steps for i in range(steps + 1)])
    run = Run(method, grid, "euler")
    x = torch.linspace(-1, 1, 64)
    for i, sigma in enumerate(grid.sigmas[:-1]):
        run.tick(sigma)
        here = x * math.nan if i == nan_at else x
        if run.decide(["a"], run.input_of(here)).compute:
            d = 0.5 * torch.cos(here + sigma)
            run.observe("a", here, d)
        else:
            d = run.predict("a", here)
        x = x - (x - 0.5 * torch.cos(x + sigma)) / sigma / steps
    return run.close(True)


def test_a_run_with_a_nan_in_it_has_a_report_that_is_json():
    method = Method("EasyCache", "Speed", (Warmup(2), Accumulator(0.2)), Reuse(), indicator=InputChange())
    data = strict(played(method, nan_at=6))
    assert data["timeline"][6] | {"sigma": 0} == {
        "step": 6,
        "sigma": 0,
        "computed": True,
        "reason": "not finite",
        "indicator": None,
        "score": None,
        "threshold": None,
    }
    assert data["threshold"] == 0.2 and data["percentiles"] and data["skipped"]
    assert "not finite" in data["reasons"] and "not finite" not in data["skip_reasons"]
    assert data["deciding"] <= data["seconds"]


def test_a_solved_schedule_reports_its_plan_its_error_and_where_the_costs_are_from():
    data = strict(played(Method("MeanCache", "Speed", (Warmup(2), Schedule(Budget.of(0.5))), Linear())))
    assert data["planned"] == [e["step"] for e in data["timeline"] if e["computed"]]
    assert 0 < data["error"] < 1 and data["costs"] and data["predictor"] == "linear"
    assert data["threshold"] is None and data["percentiles"] == {}


def test_a_schedule_that_looked_at_no_costs_claims_no_error():
    data = strict(played(Method("MeanCache", "", (Warmup(2), Schedule(Budget.of(0.5), name="even")), Linear())))
    assert data["error"] is None and data["costs"] == ""


def test_nothing_is_advised_where_all_is_well():
    data = strict(report())
    assert data["advice"] == data["risk"] == "" and data["learning"] is False


def test_a_run_that_skipped_nothing_is_told_what_to_turn():
    method = Method("EasyCache", "Quality", (Warmup(2), Accumulator(1e-9)), Reuse(), indicator=InputChange())
    data = strict(played(method))
    assert "raise the threshold" in data["advice"] and data["advice"] in data["notes"][-1]
    assert data["risk"] == ""


@pytest.mark.parametrize(
    ("decibels", "said"),
    [
        (29.4, "visible difference likely (29 dB)"),
        (-3.0, "below 15 dB"),
        (30.0, ""),
        (45.0, ""),
    ],
)
def test_quality_is_at_risk_where_the_expected_error_can_be_seen(decibels, said):
    filled = report()
    filled.decibels = decibels
    assert said in filled.advice and bool(filled.advice) is bool(said)


@pytest.mark.parametrize(("computed", "skipped", "risky"), [(13, 37, False), (12, 38, True), (50, 0, False)])
def test_where_nothing_was_foretold_quality_is_at_risk_when_most_was_skipped(computed, skipped, risky):
    filled = report(computed, skipped)
    assert bool(filled.risk) is risky
    filled.finished = False  # the share is not known before the end
    assert filled.risk == ""


def test_what_is_at_risk_is_said_before_all_else():
    filled = report()
    filled.decibels, filled.hint = 20.0, "something else"
    assert filled.advice == filled.risk != ""


def test_a_run_that_learns_says_so_and_then_what_comes_of_it():
    filled = report(20, 0, steps=20)
    filled.learning, filled.finished = True, False
    assert "no steps are skipped" in filled.advice and "next" in filled.advice
    filled.finished, filled.hint = True, "learned"
    assert filled.advice == "learned"


def test_decibels_are_expected_only_of_costs_learned_of_the_users_own_model():
    schedule = Method("MeanCache", "Speed", (Warmup(2), Schedule(Budget.of(0.3))), Linear())
    assert played(schedule).decibels is None
    grid = Grid.of([1 - i / 20 for i in range(21)])
    costs = Gram(grid.times[:-1], np.diag(np.linspace(0.1, 1, 20)))
    learned = Run(schedule, grid, "euler", costs=Costs(costs, Origin.MEASURED)).report
    assert learned.decibels is not None and learned.error is not None
    assert learned.decibels == pytest.approx(typical_decibels(learned.error, "euler"))
    assert learned.decibels < VISIBLE and "visibly" not in learned.advice, "nothing was skipped yet"


@pytest.mark.parametrize("policy", [Accumulator(0.1), Threshold(0.03), Threshold(0.02)])
def test_what_is_held_against_the_threshold_explains_every_decision_by_it(policy):
    data = strict(played(Method("EasyCache", "Speed", (Warmup(2), policy), Reuse(), indicator=InputChange())))
    asked = [e for e in data["timeline"] if e["reason"] == "threshold"]
    assert len(asked) > 10
    for e in asked:
        assert (e["score"] >= e["threshold"]) is e["computed"] and e["score"] >= e["indicator"]
    assert all(e["score"] is None for e in data["timeline"] if e["indicator"] is None)
