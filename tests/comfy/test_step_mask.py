"""Step masks by text, bins or name: a real run computes the steps of the mask, and invalid masks give a readable error."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from skipstone.core.step.policies import StepMask
from skipstone.nodes.easycache import easycache_of, ucache_of
from skipstone.nodes.meancache import method_of
from skipstone.nodes.spectrum import spectrum_of
from skipstone.nodes.stepmask import StepMaskNode, step_mask_of
from skipstone.nodes.taylorseer import taylorseer_of

pytestmark = pytest.mark.filterwarnings("ignore:::(comfy|torchsde)")  # their own, and none of ours

TEXT = "1,1,0,1,0,0,1,0,0,0,1,1"
STEPS = 12
FREE: dict[str, Any] = {"warmup": 0, "start_percent": 0.0, "end_percent": 1.0}
METHODS: dict[str, Any] = {
    "MeanCache": lambda **how: method_of("Custom", **{"budget": 0.5, **FREE, **how}),
    "EasyCache": lambda **how: easycache_of("Custom", **{"threshold": 0.1, **FREE, **how}),
    "UCache": lambda **how: ucache_of("Custom", **{"threshold": 0.5, **FREE, **how}),
    "Spectrum": lambda **how: spectrum_of("Custom", **{"warmup": 0, **how}),
    "TaylorSeer": lambda **how: taylorseer_of("Custom", **{**FREE, **how}),
}
BOTH = ["MeanCache", "EasyCache"]


def ones(text):
    return [i for i, c in enumerate(text.replace(",", "")) if c == "1"]


@pytest.fixture
def run(studio, cached, watched, tiny_flux):
    """One run with a mask: `out, report = run("MeanCache", mask, sampler="heun")`. The report is checked against an observer."""

    def sampled(name, mask, *, widgets=None, **how):
        patched, reports = cached(METHODS[name](step_mask=mask, **(widgets or {})), tiny_flux)
        model, watch = watched(patched)
        out = studio.sample(model, **{"steps": STEPS, "cfg": 1.0, **how})
        watch.agrees_with(reports[0])
        assert torch.isfinite(out).all()
        return out, reports[0]

    return sampled


def computed(report):
    return [e.step for e in report.evaluations if e.computed]


# static


@pytest.mark.parametrize("name", METHODS)
def test_a_static_mask_alone_says_which_steps(run, name):
    _, report = run(name, step_mask_of("mask", TEXT))
    assert computed(report) == report.planned == ones(TEXT)
    assert {e.reason for e in report.evaluations} == {"mask", "last step"}
    assert report.as_dict()["skip_reasons"] == {"mask": TEXT.count("0")}


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("text", ["000000000000", "0", "001000100000"])
def test_the_first_step_and_the_last_are_computed_whatever_it_says(run, name, text):
    """Nothing is known before the first, and nothing could mend the last."""
    _, report = run(name, step_mask_of("mask", text))
    assert computed(report) == sorted({0, *ones(text), STEPS - 1})
    assert [e.reason for e in report.evaluations if e.step in (0, STEPS - 1)] == ["history", "last step"]


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("text", ["111111111111", "1"])
def test_a_mask_of_ones_is_the_unpatched_model(studio, tiny_flux, run, name, text):
    out, report = run(name, step_mask_of("mask", text))
    assert torch.equal(out, studio.sample(tiny_flux, steps=STEPS, cfg=1.0))
    assert report.skipped == 0


@pytest.mark.parametrize("name", METHODS)
def test_guards_hold_with_a_static_mask(run, name):
    """Steps that every method has to compute are computed with any mask."""
    _, report = run(name, step_mask_of("mask", "100000000000"), widgets={"warmup": 3, "max_skips": 4})
    reasons = [e.reason for e in report.evaluations]
    assert reasons[:3] == ["warmup"] * 3
    assert computed(report) == [0, 1, 2, 7, 11]
    assert reasons[7] == "cap"


@pytest.mark.parametrize("sampler", ["heun", "dpm_2", "dpmpp_sde"])
@pytest.mark.parametrize("name", BOTH)
def test_it_holds_for_all_evaluations_of_a_step(run, name, sampler):
    _, report = run(name, step_mask_of("mask", TEXT), sampler=sampler)
    assert len(report.evaluations) > STEPS
    for e in report.evaluations:
        assert e.computed == (e.step in ones(TEXT)), e


@pytest.mark.parametrize("predictor", ["auto", "linear", "average velocity (paper)", "average velocity (released)"])
def test_every_predictor_can_follow_it(run, predictor):
    out, report = run("MeanCache", step_mask_of("mask", TEXT), widgets={"predictor": predictor})
    assert computed(report) == ones(TEXT)
    reuse, _ = run("MeanCache", step_mask_of("mask", TEXT), widgets={"predictor": "reuse"})
    assert not torch.equal(out, reuse)  # the mask selects the steps, the predictor gives the output of a skipped one


def test_the_same_steps_and_predictor_are_the_same_picture_whatever_the_method(run):
    outs = [run(name, step_mask_of("mask", TEXT))[0] for name in ("EasyCache", "UCache")]
    assert torch.equal(*outs)


def test_what_a_mask_has_decided_needs_no_run_to_learn_from(run):
    """No costs are looked at: the first run is none in full."""
    _, report = run("MeanCache", step_mask_of("mask", TEXT), widgets={"calibration": "auto"}, cfg=1.5)
    assert computed(report) == ones(TEXT)
    assert report.notes == []


# dynamic


@pytest.mark.parametrize("name", METHODS)
def test_a_dynamic_mask_computes_its_ones_and_lets_the_method_decide_the_rest(run, name):
    _, report = run(name, step_mask_of("mask", TEXT, policy="dynamic"))
    assert set(ones(TEXT)) <= set(computed(report))
    assert "mask" in {e.reason for e in report.evaluations if e.computed}
    assert "mask" not in {e.reason for e in report.evaluations if not e.computed}
    assert report.skipped > 0


@pytest.mark.parametrize("name", METHODS)
def test_a_dynamic_mask_of_zeros_is_as_good_as_none(run, name):
    out, report = run(name, step_mask_of("mask", "0" * STEPS, policy="dynamic"))
    plain, told = run(name, None)
    assert torch.equal(out, plain)
    assert [e.computed for e in report.evaluations] == [e.computed for e in told.evaluations]


@pytest.mark.parametrize(("threshold", "steps"), [(0.0, [*range(STEPS)]), (3.0, ones(TEXT))])
def test_the_threshold_decides_where_a_dynamic_mask_does_not(run, threshold, steps):
    _, report = run("EasyCache", step_mask_of("mask", TEXT, policy="dynamic"), widgets={"threshold": threshold})
    assert computed(report) == steps


@pytest.mark.parametrize("budget", [0.1, 0.75, 1.0])
def test_the_schedule_is_solved_with_the_steps_of_a_dynamic_mask(run, budget):
    """They count as computed: the budget is spent on what they leave."""
    _, report = run("MeanCache", step_mask_of("mask", TEXT, policy="dynamic"), widgets={"budget": budget})
    assert set(ones(TEXT)) <= set(report.planned)
    assert report.computed == len(report.planned) == max(len(ones(TEXT)), int(budget * STEPS))


@pytest.mark.parametrize("name", BOTH)
def test_one_mask_may_go_into_two_nodes_and_be_used_twice(run, name):
    mask = step_mask_of("mask", TEXT, policy="dynamic")
    outs = [run(n, mask)[0] for n in (name, *BOTH, name)]
    assert torch.equal(outs[0], outs[-1])
    assert mask == step_mask_of("mask", TEXT, policy="dynamic")


# by name

# cache-dit's own numbers of computed steps
COUNTS = {8: (7, 6, 5, 4), 9: (8, 7, 6, 5), 15: (11, 9, 7, 6), 28: (18, 15, 11, 8)}
NAMES = ("slow", "medium", "fast", "ultra")


@pytest.mark.parametrize("steps", [8, 9, 20, 28, 50])
@pytest.mark.parametrize("name", NAMES)
def test_a_mask_by_name(run, name, steps):
    _, report = run("MeanCache", step_mask_of(name), steps=steps)
    told = computed(report)
    if steps in COUNTS:
        assert len(told) == COUNTS[steps][NAMES.index(name)]
    else:  # as many of the steps as of the 28 of the mask that is known, but for what it takes to have the last
        assert len(told) / steps == pytest.approx(COUNTS[28][NAMES.index(name)] / 28, abs=1.6 / steps)
    assert told[0] == 0 and told[-1] == steps - 1
    # denser in the beginning, where everything is decided
    half = sum(s < steps / 2 for s in told)
    assert half >= len(told) - half
    assert told[: steps // 8] == [*range(steps // 8)]


@pytest.mark.parametrize("steps", [6, 9, 12, 20, 30, 50])
def test_a_faster_name_computes_no_more(run, steps):
    computed = [run("EasyCache", step_mask_of(name), steps=steps)[1].computed for name in NAMES]
    assert computed == sorted(computed, reverse=True)
    assert computed[0] > computed[-1]


# stretched


@pytest.mark.parametrize("steps", [6, 24, 31])
@pytest.mark.parametrize("scheduler", ["simple", "karras", "beta"])
def test_a_mask_for_another_number_of_steps_is_stretched(run, steps, scheduler):
    """About the same share of steps is computed, at about the same positions."""
    _, report = run("MeanCache", step_mask_of("mask", "1" * 6 + "0" * 6), steps=steps, scheduler=scheduler)
    told = computed(report)
    assert report.steps == steps
    assert told[-1] == steps - 1
    assert told[:-1] == [*range(len(told) - 1)]
    assert len(told) == pytest.approx(steps / 2 + 1, abs=1)


# what is a mask


@pytest.mark.parametrize("text", ["1,1,0,1", "1101", " 1, 1, 0, 1 ", "1 1\n0\t1", "1,1,,0,1,"])
def test_ways_to_write_one(text):
    assert step_mask_of("mask", text) == StepMask((True, True, False, True))


@pytest.mark.parametrize(
    ("bins", "text"),
    [
        (("4,2,1", "2,3"), "111100110001"),
        (("4 2 1", "2 3"), "111100110001"),
        (("2,1", "1,2"), "110100"),
        (("3", ""), "111"),
        (("0,1", "2"), "001"),
    ],
)
def test_ways_to_count_one(bins, text):
    assert step_mask_of("bins", "", *bins) == step_mask_of("mask", text)


def test_what_is_not_looked_at_may_be_anything():
    assert step_mask_of("fast", "nonsense", "x", "-1") == StepMask(name="fast")
    assert step_mask_of("mask", "10", "x", "-1") == StepMask((True, False))


BAD: dict[str, tuple[dict[str, str], str]] = {
    "nothing": ({"source": "mask", "mask": ""}, "such as 1,1,1,0,0,1"),
    "only commas": ({"source": "mask", "mask": " ,, "}, "such as 1,1,1,0,0,1"),
    "a 2": ({"source": "mask", "mask": "1,0,2"}, "not '1,0,2'"),
    "words": ({"source": "mask", "mask": "yes,no"}, "not 'yes,no'"),
    "semicolons": ({"source": "mask", "mask": "1;0"}, "not '1;0'"),
    "a minus": ({"source": "mask", "mask": "-1"}, "not '-1'"),
    "digits of another script": ({"source": "mask", "mask": "\uff11\uff10"}, "such as 1,1,1,0,0,1"),
    "no end of it": ({"source": "mask", "mask": "1" * 100_000}, "such as 1,1,1,0,0,1"),
    "a line break within words": ({"source": "mask", "mask": "1\nERROR: all is lost"}, "such as"),
    "no bins": ({"source": "bins", "compute_bins": "", "cache_bins": ""}, "compute 4,2,1 and cache 2,3"),
    "bins of words": (
        {"source": "bins", "compute_bins": "four"},
        "compute_bins is a list of step counts, such as",
    ),
    "bins below zero": ({"source": "bins", "compute_bins": "4,-1"}, "not '4,-1'"),
    "bins with a point": ({"source": "bins", "compute_bins": "4", "cache_bins": "1.5"}, "cache_bins is a list"),
    "superscripts": ({"source": "bins", "compute_bins": "4²"}, "compute_bins is a list"),
    "huge bins": ({"source": "bins", "compute_bins": "9" * 5000}, "compute_bins is a list"),
    "too many steps": ({"source": "bins", "compute_bins": "99999,99999", "cache_bins": "1"}, "numbers of steps"),
    "more cache than compute": ({"source": "bins", "compute_bins": "4", "cache_bins": "1,1"}, "take turns"),
    "less cache than compute": ({"source": "bins", "compute_bins": "4,1,1", "cache_bins": "1"}, "take turns"),
    "bins of nothing": ({"source": "bins", "compute_bins": "0", "cache_bins": "0"}, "at least one step"),
    "an unknown name": ({"source": "ludicrous"}, "source is one of slow, medium, fast, ultra, mask, bins"),
    "an unknown policy": ({"policy": "none"}, "policy is one of static, dynamic"),
}


@pytest.mark.parametrize("how", BAD)
def test_what_is_no_mask_is_refused_in_words(how):
    values, said = BAD[how]
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        step_mask_of(**values)
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("how", BAD)
def test_the_node_says_so_before_anything_runs(how):
    values, said = BAD[how]
    defaults = {i.id: i.default for i in StepMaskNode.GET_SCHEMA().inputs}
    told = StepMaskNode.validate_inputs(**{**defaults, **values})
    assert isinstance(told, str)
    assert said in told or how in ("no bins", "bins of words", "superscripts", "huge bins")


@pytest.mark.parametrize("source", [*NAMES, "mask", "bins"])
@pytest.mark.parametrize("policy", ["static", "dynamic"])
def test_the_node_as_it_is_dropped_into_a_graph_makes_a_mask(source, policy):
    defaults = {i.id: i.default for i in StepMaskNode.GET_SCHEMA().inputs}
    values = {**defaults, "source": source, "policy": policy}
    assert StepMaskNode.validate_inputs(**values) is True
    made = StepMaskNode.execute(**values)[0]
    assert made == step_mask_of(**values)
    assert made.policy == policy


def test_a_linked_value_is_not_known_yet():
    """ComfyUI asks before the linked node has run, with None for what comes from there."""
    values = {"source": "mask", "mask": None, "compute_bins": "4", "cache_bins": "", "policy": "static"}
    assert StepMaskNode.validate_inputs(**values) is True
