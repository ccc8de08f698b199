"""Step masks: the published tables, text and bins from strangers, other numbers of steps, static and dynamic."""

import pytest
import torch

from skipstone.core.step.method import Method
from skipstone.core.step.policies import Budget, Cap, LastStep, Mask, RunContext, Schedule, StepMask, Warmup
from skipstone.core.step.policies.mask import NAMED_BINS, NAMES, from_bins, from_text
from skipstone.core.step.predictors import Linear, Reuse
from skipstone.core.step.run import Run
from skipstone.tests.core.grids import flow, karras


def text(steps):
    return "".join("1" if s else "0" for s in steps)


def computed(method, grid):
    """The steps that an Euler run computes."""
    run = Run(method, grid, "euler")
    x = torch.linspace(-1, 1, 8)
    for sigma, after in zip(grid.sigmas, grid.sigmas[1:], strict=False):
        run.tick(sigma)
        if run.decide(["a"], run.input_of(x)).compute:
            d = 0.5 * torch.cos(x)
            run.observe("a", x, d)
        else:
            d = run.predict("a", x)
        x = x + (after - sigma) * (x - d) / sigma
    return run.close(True)


@pytest.mark.parametrize(
    ("name", "count", "steps"),
    [
        ("slow", 18, "1111111101110011100110010001"),
        ("medium", 15, "1111110110001100011000110001"),
        ("fast", 11, "1111110100010000100000100001"),
        ("ultra", 8, "1111001000001000000100000001"),
    ],
)
def test_the_named_masks_at_28_steps_are_the_published_ones(name, count, steps):
    mask = StepMask(name=name).on(flow(28, 3.0))
    assert text(mask) == steps and sum(mask) == count
    report = computed(Method("Test", "", (Mask(StepMask(name=name)),), Reuse()), flow(28, 3.0))
    assert text(e.computed for e in report.evaluations) == steps


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("medium", "111110101"),
        ("fast", "111101001"),
        ("ultra", "111001001"),
    ],
)
def test_the_named_masks_at_9_steps_are_those_of_z_image_turbo(name, steps):
    report = computed(Method("Test", "", (Mask(StepMask(name=name)),), Reuse()), flow(9, 3.0))
    assert text(e.computed for e in report.evaluations) == steps


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("grid", [flow, lambda n: flow(n, 3.0), karras], ids=["uniform", "shift 3", "karras"])
def test_a_stretched_mask_keeps_its_share_and_both_ends(name, grid, subtests):
    known, method = from_bins(*NAMED_BINS[28][name]), Method("Test", "", (Mask(StepMask(name=name)),), Reuse())
    for steps in (16, 20, 24, 27, 29, 30, 40, 50, 56, 100, 250):
        with subtests.test(steps=steps):
            found = [e.computed for e in computed(method, grid(steps)).evaluations]
            # within one step of the mask, which is several of a longer run
            assert abs(sum(found) - sum(known) * steps / 28) <= max(steps / 28, 1) + 1
            assert found[0] and found[-1]


def test_a_mask_that_is_stretched_by_a_whole_number_keeps_its_places():
    mask = StepMask(from_text("1100101"))
    found = computed(Method("Test", "", (Mask(mask),), Reuse()), flow(14)).evaluations
    # every second step stands where a step of the mask does
    assert text(e.computed for e in found[::2]) == "1100101"


def test_a_mask_of_all_ones_or_all_noughts_stays_so():
    for steps in (1, 2, 7, 28, 100):
        assert all(StepMask((True,) * 28).on(flow(steps)))
        assert not any(StepMask((False,) * 28).on(flow(steps)))


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 9, 12, 15])
def test_a_mask_of_noughts_computes_the_first_step_and_the_last_and_says_why(steps):
    report = computed(Method("Test", "", (Mask(StepMask((False,))),), Reuse()), flow(steps))
    assert [e.step for e in report.evaluations if e.computed] == sorted({0, steps - 1})
    assert all(e.reason == "mask" for e in report.evaluations if not e.computed)


@pytest.mark.parametrize("said", ["1,1,0,1", "1101", " 1, 1,\t0 ,1\n", "1 1 0 1", "1,,1,0,1,"])
def test_a_mask_is_read_from_text(said):
    assert from_text(said) == (True, True, False, True)


@pytest.mark.parametrize(
    "said",
    [
        "", " ", ",", "2", "1,0,2", "1;0", "true", "-1", "1.0", "0x1", "\uff11\uff10", "\u0661", "1\x000", "1\u200b0", "1e3",
        "__import__('os')", "../mask", "[1, 0]", "1" * 10_001, "x" * 1_000_000, "\ud800",
    ],
)  # fmt: skip
def test_text_that_is_no_mask_is_refused_in_a_sentence(said):
    with pytest.raises(ValueError, match="list of 1") as refused:
        from_text(said)
    assert len(str(refused.value)) < 500


def test_bins_take_turns():
    assert text(from_bins((4, 1), (2,))) == "1111001"
    assert text(from_bins((4, 1), (2, 3))) == "1111001000"
    assert text(from_bins((0, 2), (1,))) == "011"
    assert text(from_bins((3,), ())) == "111"


@pytest.mark.parametrize(
    ("compute", "cache"),
    [
        ((), ()),
        ((), (1,)),
        ((1,), (1, 1)),
        ((1, 1, 1), (1,)),
        ((-1,), ()),
        ((1, 1), (-5,)),
        ((10**9,), ()),
        ((1, 1), (10**30,)),
        ((5000, 5000), (1,)),
        ((10**9, -(10**9)), (1,)),
    ],
)
def test_bins_that_are_none_are_refused(compute, cache):
    with pytest.raises(ValueError, match="bins"):
        from_bins(compute, cache)


def test_a_mask_without_a_step_is_refused():
    with pytest.raises(ValueError, match="at least one step"):
        StepMask(from_bins((0,), ()))


@pytest.mark.parametrize("name", ["Slow", "fastest", "../slow", "28", " "])
def test_an_unknown_name_says_which_there_are(name):
    with pytest.raises(ValueError, match="slow, medium, fast, ultra"):
        StepMask(name=name)


def test_a_static_mask_decides_alone():
    mask = StepMask(from_text("11100100"))
    # the cap that comes later has no say, a guard that comes earlier has
    report = computed(Method("Test", "", (Mask(mask), Cap(1)), Reuse()), flow(8))
    assert text(e.computed for e in report.evaluations) == "11100101"
    assert report.planned == [0, 1, 2, 5, 7]
    assert {e.reason for e in report.evaluations if not e.computed} == {"mask"}
    report = computed(Method("Test", "", (Cap(1), Mask(mask)), Reuse()), flow(8))
    assert text(e.computed for e in report.evaluations) == "11101101"


def test_a_dynamic_mask_leaves_its_noughts_to_the_method():
    mask = StepMask(from_text("11100100"), policy="dynamic")
    report = computed(Method("Test", "", (Mask(mask), Cap(1)), Reuse()), flow(8))
    assert text(e.computed for e in report.evaluations) == "11101101"
    assert [e.reason for e in report.evaluations if e.computed] == ["mask", "mask", "mask", "cap", "mask", "last step"]


def test_a_solver_behind_a_dynamic_mask_spends_its_budget_knowing_it():
    context = RunContext(flow(20), Linear())
    mask = StepMask(tuple(i in (0, 1, 9, 10) for i in range(20)), policy="dynamic")
    for policy in (LastStep(), Warmup(2), Mask(mask)):
        policy.start(context)
    plan = Schedule(Budget.of(0.4)).start(context).plan
    assert plan is not None
    assert {0, 1, 9, 10, 19} <= set(plan.anchors) and len(plan.anchors) == 8
