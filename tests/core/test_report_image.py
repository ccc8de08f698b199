"""The report as a picture and as text: everything that happened is there, and nothing that did not."""

import math

import numpy as np
import pytest

from skipstone.core.images.drawing import BLUE, GREY, ORANGE, PALE_BLUE, PALE_ORANGE, RED, tensor_of
from skipstone.core.step.reasons import Reason
from skipstone.core.step.report.image import WIDTH, drawn, text_of
from skipstone.core.step.report.report import Evaluation, Report

CHART = (0, 100, WIDTH, 240)  # where it is on the sheet


def run(steps=10, computed=(0, 1, 4, 9), indicators=(), each=1, **more):
    """A finished run; `each`: evaluations in a step."""
    report = Report("MeanCache", "Speed", steps, **{"seconds": 10.0, "finished": True, **more})
    for i in range(steps):
        for _ in range(each):
            told = indicators[i] if i < len(indicators) else None
            report.evaluations.append(
                Evaluation(
                    i,
                    1 - i / steps,
                    i in computed,
                    Reason.WARMUP if i < 2 else Reason.THRESHOLD,
                    told,
                    told,
                    more.get("threshold") if told is not None else None,
                )
            )
    return report


def near(picture, colour):
    """Where a picture has a colour or one hardly different from it, which its edges are: (height, width) of bool."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return np.abs(np.asarray(picture).astype(int) - wanted).sum(-1) < 60


def stretches(picture, colour):
    """How many pieces of a colour stand side by side where it is first met from above."""
    found = near(picture.crop((0, 104, *picture.size)), colour)  # below the head
    row = found[int(found.any(1).argmax()) + 4]
    return int((row[1:] & ~row[:-1]).sum())


def test_every_step_is_a_cell():
    """4 computed and 6 skipped."""
    picture = drawn([("", run())])
    assert (stretches(picture, BLUE), stretches(picture, PALE_ORANGE)) == (4, 6)


def test_what_was_computed_and_what_was_skipped_differ_in_lightness_too():
    def light(colour):
        r, g, b = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    assert light(PALE_ORANGE) - light(BLUE) > 100


@pytest.mark.parametrize("steps", [1, 2, 8, 50, 61, 150, 1000])
def test_any_number_of_steps_fits_the_sheet(steps):
    picture = drawn([("", run(steps, computed=range(0, steps, 2)))])
    assert picture.width == WIDTH
    assert stretches(picture, BLUE) == min(-(-steps // 2), {61: 16, 150: 25, 1000: 30}.get(steps, 50))


@pytest.mark.parametrize("each", [2, 5, 40])
def test_several_evaluations_in_a_step(each):
    one, more = drawn([("", run())]), drawn([("", run(each=each))])
    assert more.width == WIDTH
    assert one.height < more.height < one.height + 150


def test_the_indicator_is_drawn_against_its_threshold():
    told = [None, *[0.05 + 0.01 * i for i in range(9)]]
    with_chart, without = (drawn([("", run(indicators=i, threshold=0.1))]).crop(CHART) for i in (told, ()))
    assert near(with_chart, ORANGE).sum() > 2 * near(without, ORANGE).sum()
    assert near(with_chart, RED).sum() > 200
    assert not near(without, RED).any()


@pytest.mark.parametrize("threshold", [None, 0.0, 0.1, 1e9])
@pytest.mark.parametrize("told", [0.0, 1e-9, 0.3, 1e9, math.inf, math.nan])
def test_any_indicator_and_any_threshold_can_be_drawn(threshold, told):
    assert drawn([("", run(indicators=[told] * 10, threshold=threshold))]).width == WIDTH


def held(values, limits, sums):
    """A run with the indicator values `values`, compared with `limits` as sums or one by one."""
    report = Report("Name", "", len(values), threshold=limits[-1], finished=True)
    total = 0.0
    for i, (value, limit) in enumerate(zip(values, limits, strict=True)):
        total += value
        held = total if sums else value
        computed = held >= limit
        total = 0.0 if computed else total
        report.evaluations.append(Evaluation(i, 1 - i / 20, computed, Reason.THRESHOLD, value, held, limit))
    return report


def test_an_indicator_that_adds_up_is_shown_as_the_sum_that_was_held_against_the_threshold():
    values, limits = [0.1] * 9, [0.25] * 9
    pale = [int(near(drawn([("", held(values, limits, s))]).crop(CHART), PALE_BLUE).sum()) for s in (True, False)]
    assert pale[0] > 10 * pale[1]  # what was there before is paler


def test_a_threshold_that_moves_is_drawn_where_it_was():
    """In the left half high, in the right half low."""
    picture = drawn([("", held([0.1] * 10, [0.4] * 5 + [0.2] * 5, False))]).crop(CHART)
    red = near(picture, RED)
    heights = [int(np.median(np.nonzero(red[20:, part])[0])) for part in (slice(60, 340), slice(370, 660))]
    assert heights[0] < heights[1] - 15


def test_a_run_that_ended_early_says_so():
    report = run(finished=False)
    del report.evaluations[6:]
    assert "stopped after 6 of 10 steps" in text_of(report)
    assert drawn([("", report)]).width == WIDTH


def test_a_run_that_never_began_is_no_error():
    assert drawn([("", Report("MeanCache", "", 0))]).width == WIDTH
    assert text_of(Report("MeanCache", "", 0)).startswith("MeanCache")


def test_runs_are_below_one_another():
    one = drawn([("KSampler 3", run())])
    two = drawn([("KSampler 3", run()), ("KSampler 9", run())])
    assert two.height == pytest.approx(2 * one.height, abs=40)


def test_notes_are_wrapped_and_make_room_for_themselves():
    said = run(notes=["a sentence of some length that tells what happened " * 8])
    assert drawn([("", said)]).height > drawn([("", run())]).height + 60
    assert "what happened" in text_of(said)


def test_where_there_is_no_run_the_sheet_says_why():
    picture = drawn([], "Nothing to report: nothing was sampled.")
    assert picture.width == WIDTH
    assert near(picture, GREY).any()


def test_the_text_tells_what_the_picture_shows():
    report = run(indicators=[0.1] * 10, threshold=0.25, chosen="Balanced, as chosen.", notes=["careful"])
    lines = text_of(report).splitlines()
    assert lines[0] == report.line()
    assert lines[1] == "Balanced, as chosen."
    assert "10.0 s, about 15.0 s saved" in lines
    assert "computed: warmup 2, threshold 2" in lines
    assert "skipped: threshold 6" in lines
    assert any("threshold 0.25" in line for line in lines)
    assert lines[-1] == "careful"


def test_letters_are_told_apart():
    assert len({reason.letter for reason in Reason}) == len(Reason)


def test_a_picture_is_an_image_of_comfyuis():
    image = tensor_of(drawn([("", run())]))
    assert image.shape[0] == 1 and image.shape[2:] == (WIDTH, 3)
    assert float(image.min()) >= 0 and float(image.max()) == 1


def test_advice_is_shown_once():
    risky = run(60, computed=range(0, 60, 10))
    assert risky.advice and text_of(risky).count(risky.advice) == 1
    hinted = run(computed=range(10), hint="raise the threshold", notes=["nothing was skipped: raise the threshold"])
    assert text_of(hinted).count("raise the threshold") == 1


def test_what_was_chosen_and_what_the_next_run_will_do_are_said():
    plain, told = run(), run(chosen="method: MeanCache, 4 of 10 steps", decibels=31.0)
    assert {*text_of(told).split("\n")} - {*text_of(plain).split("\n")} == {told.chosen, told.outlook}
    assert drawn([("", told)]).height > drawn([("", plain)]).height


def test_a_long_legend_takes_two_lines():
    """Every reason in one run."""
    reasons = [*Reason]
    report = Report("MeanCache", "Speed", 3 * len(reasons), finished=True, seconds=1.0)
    report.evaluations = [Evaluation(i, 1 - i / 99, True, reasons[i // 3]) for i in range(3 * len(reasons))]
    few = Report("MeanCache", "Speed", 3 * len(reasons), finished=True, seconds=1.0)
    few.evaluations = [Evaluation(i, 1 - i / 99, True, reasons[0]) for i in range(3 * len(reasons))]
    many, one = drawn([("", report)]), drawn([("", few)])
    assert many.width == one.width == WIDTH and many.height > one.height
