"""Sentences about a run that people read: on the node, in Step Report, in the log. They begin in lower case and have no final full stop,
because the log puts a name before them and the node a full stop after them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ...texts import Text
from ..reasons import Reason

# a run that calibrates

LEARNING = Text("calibrating", "calibration run: no steps are skipped. The next run is faster")
STOPPED_LEARNING = Text("calibration_stopped", "stopped before the calibration was complete: nothing was recorded")
UNCALIBRATED = Text(
    "uncalibrated", "the predicted similarity is a rough estimate: nothing was measured on this model yet"
)
MEASURED = Text("calibration_saved", "measured and saved. Set calibration to auto to use it")
RECORDED = Text("calibration_recorded", "{hint} (setup: {setup}; runs recorded: {runs})")
NOT_RECORDED = Text("calibration_failed", "the calibration could not be recorded: {error}")
_CALIBRATED = Text("calibrated", "calibrated. The next run skips steps")
_CALIBRATED_TO = Text("calibrated_to", "calibrated. Next run: {planned} of {steps} steps, about {times}x")
OWN_MODEL = Text("own_model", "a run of this model")  # where coefficients come from


def learned(planned: int | None, steps: int) -> Text:
    """planned: steps that the next run computes, of `steps`; None where the policy decides during the run."""
    if planned is None:
        return _CALIBRATED
    return _CALIBRATED_TO.of(planned=planned, steps=steps, times=f"{steps / max(planned, 1):.1f}")


# why a run is not recorded, or a recording cannot be used

ADAPTIVE_STEPS = Text(
    "calibration_adaptive_steps",
    "this sampler chooses its own steps, so a run with it cannot be used for calibration",
)
LONG_PROFILE = Text("calibration_long_profile", "block profiles of more than {most} steps are not recorded")
UNIDENTIFIED = Text("model_unidentified", "the model could not be identified ({error})")
UNUSABLE = Text(
    "calibration_unusable", "the calibration {name} cannot be used ({error}); delete it to record a new one"
)
NOT_KEPT = Text("calibration_not_kept", "the calibration cannot be saved in ComfyUI's user directory ({error})")
BUILT_IN = Text("built_in_costs", "{problem}; built-in costs are used")


# the predicted difference to the image without skipping, in dB (PSNR)

VISIBLE = 30.0  # below: visible
HARD_TO_SEE = 40.0
INVISIBLE = 50.0
RUINED = 15.0  # dB: lower predictions are not told apart

_OUTLOOK = Text("outlook", "predicted difference: {seen} (about {decibels} dB)")
_NOT_VISIBLE = Text("not_visible", "not visible")
_HARD_TO_SEE = Text("hard_to_see", "hard to see")
_SLIGHTLY_VISIBLE = Text("slightly_visible", "slightly visible")
_VISIBLE = Text("visible", "visible difference likely ({decibels} dB). Use a slower preset or more steps")
_RUINED = Text("ruined", "visible difference likely (below {decibels} dB). Use a slower preset or more steps")
_MANY = Text(
    "many_skipped", "{skipped} of {evaluations} skipped: the image may differ visibly. A slower preset is safer"
)


def outlook(decibels: float) -> Text:
    """For a prediction of at least VISIBLE."""
    seen = _NOT_VISIBLE if decibels >= INVISIBLE else _HARD_TO_SEE if decibels >= HARD_TO_SEE else _SLIGHTLY_VISIBLE
    return _OUTLOOK.of(seen=seen, decibels=f"{decibels:.0f}")


def visible(decibels: float) -> Text:
    """For a prediction below VISIBLE. Two lines of a node of default width."""
    return (_VISIBLE if decibels >= RUINED else _RUINED).of(decibels=f"{max(decibels, RUINED):.0f}")


def many_skipped(skipped: int, evaluations: int) -> Text:
    return _MANY.of(skipped=skipped, evaluations=evaluations)


# several modalities in one latent, and several samplers on one trajectory

APART = 1.5  # times that one modality's error has to be the next one's to be named
VIDEO, AUDIO = Text("video", "video"), Text("audio", "audio")
PART = Text("part", "part {number}")
_MODALITY = Text("modality", "{name} {error}")
_WORST = Text("worst_modality", "the {name} is the hardest to predict (error {error}; {others}): check it first")
_TOGETHER = Text("together", "with the sampler before it: {computed} of {evaluations} evaluations computed")


def modalities(errors: Mapping[str, float]) -> Text | None:
    """errors: prediction error by name, as a share of the output's size. None where none stands out."""
    several = sorted(errors.items(), key=lambda pair: -pair[1])
    if len(several) < 2 or several[0][1] < APART * several[1][1]:
        return None
    (worst, error), *others = several
    rest = [_MODALITY.of(name=name, error=f"{one:.1%}") for name, one in others]
    return _WORST.of(name=worst, error=f"{error:.1%}", others=rest)


def together(computed: int, evaluations: int) -> Text:
    return _TOGETHER.of(computed=computed, evaluations=evaluations)


# a run that skips nothing

TO_SKIP_MORE = Text(
    "to_skip_more",
    "to skip more, use a faster preset, a smaller budget, or more steps",
)
NO_SCHEDULE = Text("no_schedule", "no steps are skipped, because this sampler's sigmas do not fall from step to step")
NOT_FINITE = Text("indicator_not_finite", "the indicator was not a finite number: those evaluations were computed")
OUTPUT_NOT_FINITE = Text("output_not_finite", "the model's output was not finite: no evaluation was predicted from it")
FEW = 12  # steps: shorter runs gain little
TOO_FEW = 6  # steps: in shorter runs presets compute every step


UNKNOWN_PART = Text(
    "unknown_part",
    "parts of the latent that a node does not name are computed",
)
NOISE = Text("noise", "the output follows the sampler's noise: no step can be predicted")
MOVING_WINDOWS = Text("moving_windows", "context windows that move cannot be predicted; static ones can")
OFTEN = 0.4  # share of the evaluations from which on a reason counts as one for nearly every step
# by the most frequent reason for evaluations that the method had not planned to compute
REMEDIES: dict[Reason, Text] = {
    Reason.CONDITIONING_CHANGE: Text(
        "conditioning_changes",
        "a prompt, ControlNet or hook changes at nearly every step",
    ),
    Reason.NEW_CONDITIONING: Text(
        "new_conditionings",
        "other conditionings at nearly every step: nothing to predict from",
    ),
    Reason.NOISE: NOISE,
    Reason.UNKNOWN_PART: UNKNOWN_PART,
}
_REASONS = {reason: Text(f"reason_{reason.name.lower()}", str(reason)) for reason in Reason}
_COUNTED = Text("reason_counted", "{reason} ({count})")
_NOTHING_SKIPPED = Text("nothing_skipped", "nothing was skipped: {remedy}. Computed because of: {reasons}")
_TOO_FEW = Text(
    "too_few_steps",
    "{steps} steps are too few to skip any ({few} or more gain): bypass this node",
)
_ONE_STEP = Text(
    "one_step",
    "1 step is too few to skip any ({few} or more gain): bypass this node",
)
_NO_ROOM = Text("no_room", "{steps} steps: nothing can be skipped without a visible change")


def nothing_skipped(reasons: Iterable[tuple[Reason, int]], remedy: str) -> Text:
    """reasons: why evaluations were computed, with counts."""
    counted = [_COUNTED.of(reason=_REASONS[reason], count=count) for reason, count in reasons]
    return _NOTHING_SKIPPED.of(remedy=remedy, reasons=counted)


def too_few(steps: int) -> Text:
    return _TOO_FEW.of(steps=steps, few=FEW) if steps > 1 else _ONE_STEP.of(few=FEW)


def no_room(steps: int) -> Text:
    return _NO_ROOM.of(steps=steps)


# Step Cache (Auto)

AUTO_TO_SKIP_MORE = Text("auto_to_skip_more", "to skip more, use a faster mode, a lower target, or more steps")
NO_TARGET = Text("no_target", "choose a preset, or another sampler")
NO_TARGET_NOISE = Text(
    "no_target_noise",
    "a quality target does not work with ancestral and SDE samplers, because they add noise",
)
NO_TARGET_ADAPTIVE = Text(
    "no_target_adaptive",
    "a quality target does not work with samplers that choose their own steps, such as dpm_adaptive",
)
_METHOD = Text("method", "method: {name} ({why})")
_METHOD_PLANNED = Text("method_planned", "method: {name}, {planned} of {steps} steps ({why})")
_TARGET_IMPOSSIBLE = Text(
    "target_impossible",
    "target speed-up {target}x not reached: {computed} of {evaluations} evaluations had to be computed, which allows {possible}x. The "
    "first steps, the last one, and those where a prompt begins or ends are always computed",
)
_TARGET_MISSED = Text(
    "target_missed", "target speed-up {target}x not reached: about {reached}x, because predicting takes time too"
)


def method(name: str, planned: int, steps: int, why: str) -> Text:
    """planned: steps that will be computed, 0 where the policy decides during the run."""
    return (
        _METHOD_PLANNED.of(name=name, planned=planned, steps=steps, why=why)
        if planned
        else _METHOD.of(name=name, why=why)
    )


def target_impossible(speedup: float, computed: int, evaluations: int) -> Text:
    return _TARGET_IMPOSSIBLE.of(
        target=f"{speedup:g}", computed=computed, evaluations=evaluations, possible=f"{evaluations / computed:.1f}"
    )


def target_missed(speedup: float, reached: float) -> Text:
    return _TARGET_MISSED.of(target=f"{speedup:g}", reached=f"{reached:.1f}")
