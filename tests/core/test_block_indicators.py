"""What block-level methods look at, against plain numpy: the values, when they are known, and what it costs to read them."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from skipstone.core.step.clock import Clock, Grid
from skipstone.core.step.indicators.blocks import FirstBlockChange, Modulated, Probed
from skipstone.core.step.indicators.reading import Reading
from skipstone.core.step.method import Blocks, Method
from skipstone.core.step.plan import Plan
from skipstone.core.step.policies import Accumulator, Cap, RunContext, Threshold, Total, Warmup
from skipstone.core.step.predictors import ProbeAligned, Reuse
from skipstone.core.step.published.coefficients import MEASURED, TEACACHE, Polynomial, names, polynomial, row_of
from skipstone.core.step.run import Run
from skipstone.core.step.trajectory import Trajectory

GRID = Grid.of([1 - i / 20 for i in range(21)])
SETTING = RunContext(GRID, Reuse())
FLUX = {"image_model": "flux", "hidden_size": 3072, "vec_in_dim": 768}


def walk(steps, seed=0, size=500, pace=0.1):
    """Tensors that drift, one an evaluation."""
    draw = np.random.default_rng(seed)
    value, ways = draw.standard_normal(size), []
    for _ in range(steps):
        value = value + pace * draw.standard_normal(size)
        ways.append(value.copy())
    return ways


def relative(new, old):
    return np.abs(new - old).mean() / np.abs(old).mean()


def watching(run):
    """The indicator at work, which the methods here have."""
    assert run.indicator is not None
    return run.indicator


def played(method, seen, grid=GRID, **known):
    """What a Run around a method does when the hook shows it `seen`, one an evaluation. Returns who was computed, and the report."""
    run = Run(method, grid, "euler", **known)
    computed = []
    for sigma, value in zip(grid.sigmas, seen, strict=False):
        run.tick(sigma)
        decision = run.decide(["a"], torch.from_numpy(value))
        computed.append(decision.compute)
        if decision.compute:
            residual = torch.ones(3)
            run.keep("a", residual)
            watching(run).observe_output(residual)
        else:
            run.recall("a", torch.device("cpu"))
    return computed, run.close(True)


def method(policy, indicator, *guards, predictor=None, probe="residual"):
    return Method("Test", "", (*guards, policy), predictor or Reuse(), indicator=indicator, blocks=Blocks(probe=probe))


def first_block(seen, threshold, warmup):
    """Skip while the distance to what was seen at the last computed step is below the threshold; nothing adds up."""
    anchor: np.ndarray | None = None
    computed: list[bool] = []
    values: list[float | None] = []
    for i, now in enumerate(seen):
        value = None if anchor is None else relative(now, anchor)
        skip = warmup <= i < len(seen) - 1 and value is not None and value < threshold
        computed.append(not skip)
        values.append(value if warmup <= i < len(seen) - 1 else None)
        if not skip:
            anchor = now
    return computed, values


@pytest.mark.parametrize("threshold", [0.0, 0.12, 0.2, 0.3, 1e9])
@pytest.mark.parametrize("warmup", [1, 4])
def test_first_block_cache_is_what_is_published(threshold, warmup):
    seen = walk(GRID.steps)
    wanted, values = first_block(seen, threshold, warmup)
    computed, report = played(method(Threshold(threshold), FirstBlockChange(), Warmup(warmup)), seen)
    assert computed == wanted
    assert report.threshold == threshold
    for told, value in zip(report.evaluations, values, strict=True):
        assert (told.indicator is None) == (value is None)
        assert value is None or told.indicator == pytest.approx(value, rel=1e-5)


def test_a_threshold_that_is_not_met_says_how_near_it_came():
    seen = walk(GRID.steps)
    _, report = played(method(Threshold(0.01), FirstBlockChange(), Warmup(2)), seen)
    least = min(relative(b, a) for a, b in pairwise(seen[1:-1]))
    assert f"raise the threshold (0.01); smallest change: {least:.3g}" in report.notes[0]


def test_a_threshold_that_was_never_asked_says_so():
    _, report = played(method(Threshold(0.1), FirstBlockChange(), Warmup(99)), walk(GRID.steps))
    assert "never compared" in report.notes[0]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("pace", [0.003, 0.1, 0.8])
def test_the_typical_change_fires_on_any_model_and_does_not_depend_on_its_scale(scale, pace):
    seen = [scale * s for s in walk(GRID.steps, pace=pace)]
    computed, report = played(method(Threshold(typical=1.5), FirstBlockChange(), Warmup(3)), seen)
    assert report.skipped >= (GRID.steps - 4) // 2 - 1  # the one after a computed one is always skipped
    assert (
        computed == played(method(Threshold(typical=1.5), FirstBlockChange(), Warmup(3)), [s / scale for s in seen])[0]
    )


@pytest.mark.parametrize("policy", [Threshold(typical=3.2), Accumulator(typical=3.2)])
def test_where_every_evaluation_is_unlike_the_one_before_nothing_is_skipped(policy):
    """As with a sampler that draws new noise at each step: large changes are typical there, and no reason to skip."""
    draw = np.random.default_rng(0)
    seen = [draw.standard_normal(500) for _ in range(GRID.steps)]
    _, report = played(method(policy, FirstBlockChange(), Warmup(3)), seen)
    assert report.skipped == 0 and "changes by more than its own size" in report.advice


def test_the_typical_change_fires_where_changes_only_grow():
    """The median of the past would lag behind them."""
    seen = [np.cumsum(np.full(100, 1.3**i)) for i in range(GRID.steps)]
    assert played(method(Threshold(typical=1.5), FirstBlockChange(), Warmup(3)), seen)[1].skipped > 5


def test_the_typical_change_is_the_median_so_far_and_at_least_the_latest():
    seen = walk(9, pace=0.3)
    work = FirstBlockChange().start(SETTING)
    changes = []
    for i, value in enumerate(seen):
        work.observe_input(torch.from_numpy(value))
        if i:
            changes.append(relative(value, seen[i - 1]))
            reading = work.read()
            # of an even number, the lower one in the middle
            middle = sorted(changes)[(len(changes) - 1) // 2]
            assert (reading.typical if reading else changes[-1]) == pytest.approx(max(middle, changes[-1]), rel=1e-5)
        work.observe_output(torch.ones(1))


def test_a_look_at_the_same_sigma_again_tells_nothing_of_what_is_typical():
    """As heun does at the begin of every step."""
    seen = walk(6, pace=0.3)
    plain, twice = FirstBlockChange().start(SETTING), FirstBlockChange().start(SETTING)
    for i, value in enumerate(torch.from_numpy(v) for v in seen):
        for work, again in ((plain, False), (twice, False), (twice, True)):
            work.observe_input(value * 1.001 if again else value, not again)
            reading = work.read()
        plain.observe_output(value)
        twice.observe_output(value)
        if i:
            assert reading is not None and reading.typical == pytest.approx(sorted(twice.changes.known)[(i - 1) // 2])
            assert sorted(twice.changes.known) == pytest.approx(sorted(plain.changes.known), rel=0.01)


def test_more_typical_changes_skip_more():
    skipped = [
        played(method(Threshold(typical=t), FirstBlockChange(), Warmup(3)), walk(GRID.steps))[1].skipped
        for t in (0.5, 1.5, 3.0, 6.0)
    ]
    assert skipped == sorted(skipped) and skipped[0] < skipped[-1]


def test_the_report_says_the_threshold_that_was_found():
    _, report = played(method(Threshold(typical=2.0), FirstBlockChange(), Warmup(3)), walk(GRID.steps))
    asked = [e.indicator for e in report.evaluations if e.indicator is not None]
    assert report.threshold is not None
    assert min(asked) < report.threshold < 4 * max(asked)


def teacache(seen, p, threshold, warmup):
    """x: change since the step before, computed or not; P(x) adds up until it reaches the threshold."""
    total, computed = 0.0, []
    for i, now in enumerate(seen):
        skip = False
        if warmup <= i < len(seen) - 1:
            total += p(relative(now, seen[i - 1]))
            skip = total < threshold
        if not skip:
            total = 0.0
        computed.append(not skip)
    return computed


@pytest.mark.parametrize("threshold", [0.25, 0.6, 1.2])
def test_teacache_is_what_is_published(threshold):
    seen = walk(GRID.steps, pace=0.05)
    wanted = teacache(seen, polynomial("Flux"), threshold, 2)
    computed, report = played(method(Accumulator(threshold), Modulated("Flux"), Warmup(2), probe="modulated"), seen)
    assert computed == wanted
    assert report.skipped and report.computed > 3
    x = [relative(b, a) for a, b in pairwise(seen[1:])]
    told = [e.indicator for e in report.evaluations if e.indicator is not None]
    assert told == pytest.approx([polynomial("Flux")(v) for v in x[: len(told)]], rel=1e-4)


def test_what_adds_up_begins_anew_where_a_guard_computes():
    """The reference goes on adding in its window's outside and never sets it back there."""
    seen = [np.full(50, 1 + 0.02 * i) for i in range(GRID.steps)]
    guards = (Warmup(2), Cap(1))
    computed, _ = played(method(Accumulator(0.5), Modulated("Flux"), *guards, probe="modulated"), seen)
    assert computed == [True, True] + [False, True] * 8 + [False, True]


@pytest.mark.parametrize("name", names(TEACACHE))
def test_every_polynomial_is_sane_wherever_it_is_asked(name):
    p = polynomial(name)
    x = np.linspace(0, 3, 601)
    y = np.array([p(v) for v in x])
    assert (y >= x / 2).all()  # or no change would ever add up
    assert (y <= np.maximum(1.0, x)).all()
    inside = (x >= p.low) & (x <= p.high)
    published = np.polyval(p.coefficients, x[inside])
    assert (np.abs(y[inside] - np.maximum(published, x[inside] / 2)) < 1e-9).all()
    assert p.high > p.low >= 0
    # most of it is as published
    grid = np.linspace(p.low, p.high, 101)
    assert np.isclose([p(v) for v in grid], np.polyval(p.coefficients, grid)).mean() > 0.8


def test_faults_of_the_published_polynomials_are_gone():
    """Outside the range of the fit, the polynomials grow without bound or give negative changes."""
    for name, x in (("Flux", 0.5), ("Flux Kontext", 0.3), ("HiDream full", 0.1), ("Wan 2.1 t2v 14B", 0.0)):
        row = row_of(TEACACHE, name, {})
        assert row is not None
        assert not 0 <= np.polyval(row.data["coefficients"], x) <= 1
        assert 0 <= polynomial(name)(x) <= 1


def test_the_polynomial_is_chosen_by_what_the_model_is():
    def told(network, name="auto"):
        work = Modulated(name).start(RunContext(GRID, Reuse(), network=network))
        return work.source or work.note

    assert "Flux Kontext" in told({**FLUX, "reference": True})
    assert told({**FLUX, "reference": False}) == "Flux"
    assert "Wan 2.1 t2v 1.3B" in told({"image_model": "wan2.1", "model_type": "t2v", "dim": 1536, "in_dim": 16})
    assert "Wan 2.1 t2v 14B" in told({"image_model": "wan2.1", "model_type": "t2v", "dim": 5120, "in_dim": 16})
    assert "none was measured" in told({"image_model": "wan2.1", "model_type": "t2v", "dim": 3072, "in_dim": 48})
    assert "none was measured" in told({"image_model": "flux", "hidden_size": 3072, "vec_in_dim": None})  # LongCat
    assert "none was measured" in told({"image_model": "qwen_image"})
    assert "none was measured" in told({})
    assert told({}, "Mochi") == "Mochi"
    assert "none was measured" in told(FLUX, MEASURED)


@pytest.mark.parametrize("kind", ["teacache", "dicache"])
@pytest.mark.parametrize("pace", [0.003, 0.3])
def test_typical_changes_that_add_up_fire_on_any_model(kind, pace):
    indicator, probe = WORKS[kind]
    seen = [s.reshape(1, -1, 4) for s in walk(GRID.steps, pace=pace)]
    for typical, row in ((1.2, 1), (2.2, 2), (3.2, 3)):
        computed, report = played(method(Accumulator(typical=typical), indicator, Warmup(3), probe=probe), seen)
        text = "".join("c" if c else "s" for c in computed)
        assert "s" * row in text
        assert report.skipped >= (GRID.steps - 4) // 2 - 1
        assert report.threshold is not None and report.threshold > 0


def test_without_a_polynomial_everything_is_computed_and_that_is_said():
    computed, report = played(
        method(Accumulator(9.0), Modulated(), Warmup(1), probe="modulated"), walk(GRID.steps), network={}
    )
    assert all(computed)
    assert "no polynomial is published for this model" in report.notes[0]


def test_an_unknown_polynomial_is_refused():
    with pytest.raises(ValueError, match="polynomial is one of auto, measured, Flux Kontext"):
        Modulated("tomorrow")


def dicache(states, threshold, warmup, minus, most=1.5):
    """The relative change of the probe's state adds up; what is predicted is R_b + g (R_a - R_b)."""
    total, computed, ratios = 0.0, [], []
    anchors: list[np.ndarray] = []
    for i, (before, after) in enumerate(states):
        p, skip, g = after - before, False, None
        if warmup <= i < len(states) - 1:
            old = states[i - 1]
            error = relative(after, old[1])
            total += abs(error - relative(before, old[0])) if minus else error
            skip = total < threshold
            if len(anchors) == 2:
                g = np.abs(p - anchors[0]).mean() / np.abs(anchors[1] - anchors[0]).mean()
                g = min(max(g, 1.0), most)
        if not skip:
            total, anchors = 0.0, [*anchors[-1:], p]
        computed.append(not skip)
        ratios.append(g if skip else None)
    return computed, ratios


@pytest.mark.parametrize("minus", [False, True])
def test_dicache_is_what_is_published(minus):
    states = list(zip(walk(GRID.steps, 1), walk(GRID.steps, 2, pace=0.2), strict=True))
    wanted, ratios = dicache(states, 0.4, 3, minus)
    assert 0 < sum(wanted) < GRID.steps and any(r not in (None, 1.0, 1.5) for r in ratios)
    rule = method(
        Accumulator(0.4),
        Probed("dy-dx" if minus else "dy"),
        Warmup(3),
        predictor=ProbeAligned(),
        probe="states",
    )
    run = Run(rule, GRID, "euler")
    for i, (before, after) in enumerate(states):
        run.tick(GRID.sigmas[i])
        seen = torch.from_numpy(np.concatenate((before.reshape(1, -1, 5), after.reshape(1, -1, 5)), -1))
        compute = run.decide(["a"], seen).compute
        assert compute == wanted[i]
        if compute:
            run.keep("a", torch.tensor([float(i)]))
            watching(run).observe_output(torch.ones(1))
            continue
        a, b = sorted(run.trajectory.nodes)[-1], sorted(run.trajectory.nodes)[-2]
        assert float(run.recall("a", torch.device("cpu"))) == pytest.approx(b + ratios[i] * (a - b), rel=1e-4)


def test_a_probe_that_was_not_asked_predicts_reuse():
    clock, track = Clock(GRID), Trajectory(2)
    prediction = ProbeAligned().start(Plan(GRID))
    for i in (0, 1):
        clock.tick(GRID.sigmas[i])
        track.computed(i, GRID.sigmas[i])
    clock.tick(GRID.sigmas[2])
    assert prediction.weights(clock, track) == {1: 1.0}
    prediction.indicated(Reading(0.1, ratio=1.25))
    assert prediction.weights(clock, track) == {0: -0.25, 1: 1.25}
    clock.tick(GRID.sigmas[3])  # a reading counts for its own evaluation alone
    assert prediction.weights(clock, track) == {1: 1.0}


def test_a_probe_that_stands_still_gives_no_ratio():
    work = Probed().start(SETTING)
    still = torch.ones(1, 10, 4)
    for _ in range(3):
        work.observe_input(still)
        work.observe_output(still)
    work.observe_input(still)
    assert work.read() == Reading(0.0, 0.0, 1.0)


WORKS: dict[str, tuple[Any, Any]] = {
    "first block": (FirstBlockChange(), "residual"),
    "teacache": (Modulated("Flux"), "modulated"),
    "dicache": (Probed(), "states"),
}


@pytest.mark.parametrize("kind", WORKS)
def test_a_number_that_is_none_means_compute(kind):
    indicator, probe = WORKS[kind]
    seen = [s.reshape(1, -1, 4) for s in walk(GRID.steps)]
    seen[8][...] = math.nan
    policy = Threshold(9.0) if kind == "first block" else Accumulator(9e9)
    computed, report = played(method(policy, indicator, Warmup(2), probe=probe), seen)
    assert computed[8] and report.evaluations[8].reason == "not finite"
    assert any("not a finite number" in note for note in report.notes)
    assert not all(computed[10:-1])  # it is over when the model has spoken twice again


@pytest.mark.parametrize("kind", WORKS)
def test_a_change_of_size_begins_anew(kind):
    indicator, probe = WORKS[kind]
    seen = [s.reshape(1, -1, 4) for s in walk(GRID.steps)]
    seen[8:] = [s[:, :90] for s in seen[8:]]
    policy = Threshold(9.0) if kind == "first block" else Accumulator(9e9)
    computed, report = played(method(policy, indicator, Warmup(2), probe=probe), seen)
    assert [i for i, c in enumerate(computed) if c] == [0, 1, 8, 19]
    assert report.evaluations[8].reason == "history"


@pytest.mark.parametrize("kind", WORKS)
def test_the_host_waits_once_an_evaluation_at_most(kind):
    """Of tensors of several numbers, reading them is counted as one for each."""
    indicator, probe = WORKS[kind]
    seen = [torch.from_numpy(s.reshape(1, -1, 4)) for s in walk(GRID.steps)]
    run = Run(method(Accumulator(0.3), indicator, Warmup(2), probe=probe), GRID, "euler")
    with Reads() as reads:
        for sigma, value in zip(GRID.sigmas, seen, strict=False):
            run.tick(sigma)
            for _ in range(2):
                compute = run.decide(["a"], value).compute
            if compute:
                run.keep("a", torch.ones(3))
                watching(run).observe_output(torch.ones(3))
    report = run.close(True)
    assert report.skipped
    assert reads.count == sum(e.indicator is not None for e in report.evaluations)


class Reads:
    """Counts reads of a tensor by the host, of one number or several at once."""

    def __enter__(self):
        self.count = 0
        self.kept = {name: getattr(torch.Tensor, name) for name in ("tolist", "item", "__float__", "__bool__")}

        def counting(name):
            def counted(tensor, *args):
                self.count += 1
                return self.kept[name](tensor, *args)

            return counted

        for name in self.kept:
            setattr(torch.Tensor, name, counting(name))
        return self

    def __exit__(self, *_):
        for name, function in self.kept.items():
            setattr(torch.Tensor, name, function)


@pytest.mark.parametrize("kind", WORKS)
def test_what_is_seen_is_neither_kept_nor_written_to(kind):
    indicator, _ = WORKS[kind]
    work = indicator.start(SETTING)
    seen = [torch.from_numpy(s.reshape(1, -1, 4)) for s in walk(4)]
    told = []
    for value in seen:
        before = value.clone()
        work.observe_input(value)
        work.observe_output(value)
        assert torch.equal(value, before)
        value.fill_(7.0)  # by the next block, say
        told.append(work.read())
    again = indicator.start(SETTING)
    for value in [torch.from_numpy(s.reshape(1, -1, 4)) for s in walk(4)]:
        again.observe_input(value)
        again.observe_output(value)
    assert again.read() == told[-1]


def test_of_a_large_hidden_state_only_a_sample_is_kept():
    work = FirstBlockChange().start(SETTING)
    work.observe_input(torch.ones(1, 5000, 300, dtype=torch.float16))
    assert work.current is not None and work.current.numel() <= 65_536


@pytest.mark.parametrize("most", [1, 3, 100])
def test_at_most_so_many_are_skipped_in_a_whole_run(most):
    computed, report = played(method(Threshold(9.0), FirstBlockChange(), Warmup(2), Total(most)), walk(GRID.steps))
    assert report.skipped == min(most, GRID.steps - 3)
    assert computed[2 : 2 + report.skipped] == [False] * report.skipped
    assert report.evaluations[-2].reason == ("threshold" if most == 100 else "total")


def test_a_total_of_0_is_no_limit():
    assert played(method(Threshold(9.0), FirstBlockChange(), Warmup(2), Total(0)), walk(GRID.steps))[1].skipped == 17


def test_skips_that_another_policy_looked_past_are_counted():
    """An event in between is decided before the total is asked."""
    run_events = {"events": (4, 6)}
    computed, _ = played(
        method(Threshold(9.0), FirstBlockChange(), Warmup(2), Total(4)), walk(GRID.steps), **run_events
    )
    assert [i for i, c in enumerate(computed) if not c] == [2, 3, 5, 7]


@pytest.mark.parametrize("bad", [-1e-9, math.nan, -math.inf])
def test_a_threshold_below_0_is_refused(bad):
    with pytest.raises(ValueError, match="threshold is at least 0"):
        Threshold(bad)
    with pytest.raises(ValueError, match="threshold is at least 0"):
        Threshold(typical=bad)


def test_a_polynomial_by_hand():
    p = Polynomial((2.0, 0.0, 1.0), 0.1, 0.5)
    assert p(0.3) == pytest.approx(1.18)
    assert p(0.0) == pytest.approx(1.02)
    assert p(0.7) == pytest.approx(1.5)
    assert p(40.0) == 20.0
    assert Polynomial((-1.0,))(0.4) == 0.2
