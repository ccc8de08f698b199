"""Regression tests: edge cases of what policies, predictors and files are given."""

import json
import math

import numpy as np
import pytest
import torch

from skipstone.core.step.calibration.gram import Gram
from skipstone.core.step.clock import Grid
from skipstone.core.step.indicators.reading import subsample
from skipstone.core.step.policies import Budget, Cap, Interval, Schedule, StepMask, Warmup
from skipstone.core.step.policies.mask import NAMES
from skipstone.core.step.predictors import Corrected, Linear, Spectrum, Taylor
from skipstone.core.step.report.report import Report
from skipstone.core.step.run import Run
from skipstone.tests.core import test_calibration as cal
from skipstone.tests.core import test_indicators as ind
from skipstone.tests.core import test_intervals as itv
from skipstone.tests.core import test_masks as masks
from skipstone.tests.core import test_taylor_spectrum as tay
from skipstone.tests.core.grids import flow, karras


@pytest.mark.parametrize("name", NAMES)
def test_every_name_has_a_mask_for_every_number_of_steps(name):
    for steps in range(1, 10):
        assert len(StepMask(name=name).on(flow(steps))) == steps


def test_slow_at_9_and_8():
    assert masks.text(StepMask(name="slow").on(flow(9))) == "111110111"
    assert masks.text(StepMask(name="slow").on(flow(8))) == "11111011"


@pytest.mark.parametrize("grid", [flow, karras])
def test_a_faster_name_never_computes_more(grid):
    for steps in range(10, 101):
        counts = [sum(StepMask(name=name).on(grid(steps))) for name in NAMES]
        assert counts == sorted(counts, reverse=True), steps


@pytest.mark.parametrize("cap", [1, 2, 3, 4])
def test_a_budget_that_a_cap_makes_impossible_is_widened(cap):
    grid = Grid.of([1 - i / 50 for i in range(51)])
    found = cal.planned(Schedule(Budget.of(0.2)), grid, (Warmup(2), Cap(cap)))
    assert {0, 1, 49} <= set(found.plan.anchors)
    assert max(np.diff(found.plan.anchors)) <= cap + 1
    assert found.predicted_error > 0


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"times":' + "[" * 100_000,
        '{"times": [1, 0.5], "products": [1, 1, 1], "recipe": "", "runs": Infinity}',
        '{"times": [1, 0.5], "products": [1, 1, 1], "recipe": "", "runs": 1e999}',
        '{"times": [1' + "0" * 400 + ', 0.5], "products": [1, 1, 1], "recipe": ""}',
    ],
    ids=["deep", "deep times", "runs Infinity", "runs 1e999", "an integer beyond float64"],
)
def test_a_hostile_file_raises_value_error(text):
    with pytest.raises(ValueError, match="not a Skipstone calibration"):
        Gram.from_json(text)


@pytest.mark.parametrize(
    "data",
    [
        {"products": [-1, 0, -1]},
        {"products": [1e308, 1e308, 1e308]},
        {"times": ["1", "0.5"]},
        {"times": [1e300, -1e300]},
        {"runs": "2"},
    ],
    ids=["negative squares", "overflow", "times strings", "times out of range", "runs a string"],
)
def test_numbers_that_no_recording_gives_are_refused(data):
    with pytest.raises(ValueError, match="not a Skipstone calibration"):
        Gram.from_json(json.dumps({"times": [1, 0.5], "products": [1, 0.5, 1], "recipe": "", **data}))


def published_ucache(grid, threshold, relative):
    total, computed = 0.0, 2

    def foretold(z, state):
        nonlocal total, computed
        level = ind.mean(state["F"])
        value = state["k"] * ind.mean(z - state["z"])
        if relative:
            value /= math.sqrt(level * max(1.6 * state["trend"], 1e-6))
        total += value * (1 + 0.5 * state["skips"])
        progress = computed / grid.steps
        limit = threshold * (0.5 if progress < 0.2 else 1.5 if progress > 0.8 else 1.0)
        if not relative:
            limit *= level
        if total < limit:
            return None, True
        total, computed = 0.0, computed + 1
        return None, False

    return ind.reference(grid, ind.network, 0, foretold)


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("threshold", [0.1, 0.2, 0.5, 1.0])
def test_ucache_scales_as_stable_diffusion_cpp_does(relative, threshold):
    wanted = published_ucache(ind.FLOW, threshold, relative)
    told, _ = ind.played(ind.u_cache(threshold, 1.0, relative, True), ind.FLOW, ind.network)
    assert told.computed == wanted.computed


def test_what_a_guard_computes_begins_the_sum_again():
    method = ind.easy(0.15, guards=(Cap(2),))
    told, _ = ind.played(method, ind.FLOW, ind.network)
    total = 0.0

    def foretold(z, state):
        nonlocal total
        value = state["k"] * ind.mean(z - state["previous"]) / ind.mean(state["F"])
        if state["skips"] >= 2:
            total = 0.0
            return None, False
        total += value
        if total < 0.15:
            return value, True
        total = 0.0
        return value, False

    wanted = ind.reference(ind.FLOW, ind.network, 3, foretold)
    assert told.computed == wanted.computed


SHIFTED = Grid.of([1.0, 0.9997, 0.9992, 0.998, 0.99, 0.9, 0.5, 0.1, 0.0009, 0.0004, 0.0])
LOGS = [
    Linear(at="log-SNR"),
    Taylor(1, "log-SNR"),
    Taylor(2, "log-SNR"),
    Taylor(2, "log-SNR", True),
    Spectrum(0.5, at="log-SNR"),
]


@pytest.mark.parametrize("predictor", LOGS)
def test_weights_stay_of_a_size_at_a_flows_clamped_ends(predictor):
    assert max(map(abs, tay.weights(predictor, SHIFTED, (0, 1, 2), 4).values())) < 100


@pytest.mark.parametrize("predictor", [Taylor(2, "log-SNR", True), Spectrum(at="log-SNR"), Corrected(at="log-SNR")])
def test_of_anchors_at_one_place_the_newest_is_believed(predictor):
    assert tay.weights(predictor, tay.LOW, (3, 4, 5), 6)


@pytest.mark.parametrize(
    "shape", [(1, 16, 9, 60, 104), (1, 16, 21, 60, 104), (1, 16, 13, 90, 160), (1, 4, 128, 152), (1, 4, 96, 90)]
)
def test_a_subsample_sees_every_column(shape):
    value = torch.arange(shape[-1]).expand(shape)
    assert subsample(value).unique().numel() == shape[-1]


@pytest.mark.parametrize("field", ["threshold", "error"])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_every_number_of_a_report_is_json(field, bad):
    report = Report("Name", "", 3, **{field: bad})
    assert json.loads(json.dumps(report.as_dict(), allow_nan=False))[field] is None


def test_without_warmup_the_first_step_is_in_the_plan():
    report = itv.run_of([Interval(0, 4)], 20)
    assert report.planned == [e.step for e in report.evaluations if e.computed]


def test_one_bad_output_does_not_end_the_skipping():
    run = Run(ind.u_cache(1e9, 1.0, True, True), ind.FLOW, "euler")
    for i, sigma in enumerate(ind.FLOW.sigmas[:-1]):
        x = torch.from_numpy(ind.START * sigma)
        run.tick(sigma)
        if run.decide(["a"], run.input_of(x)).compute:
            run.observe("a", x, x * (math.nan if i == 1 else 0.5 + i / 100))
    assert run.close(True).skipped > 10
