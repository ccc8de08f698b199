"""Sentences about a run that people read: on the node, in Step Report, in the log. They begin in lower case and have no final full stop,
because the log puts a name before them and the node a full stop after them."""

from __future__ import annotations

from collections.abc import Mapping

from ..reasons import Reason

# a run that calibrates

LEARNING = "calibration run: no steps are skipped. The next run is faster"
STOPPED_LEARNING = "stopped before the calibration was complete: nothing was recorded"
UNCALIBRATED = "the predicted similarity is a rough estimate: nothing was measured on this model yet"


def learned(planned: int | None, steps: int) -> str:
    """planned: steps that the next run computes, of `steps`; None where the policy decides during the run."""
    if planned is None:
        return "calibrated. The next run skips steps"
    return f"calibrated. Next run: {planned} of {steps} steps, about {steps / max(planned, 1):.1f}x"


# the predicted difference to the image without skipping, in dB (PSNR)

VISIBLE = 30.0  # below: visible
HARD_TO_SEE = 40.0
INVISIBLE = 50.0
RUINED = 15.0  # dB: lower predictions are not told apart


def outlook(decibels: float) -> str:
    """For a prediction of at least VISIBLE."""
    seen = "not visible" if decibels >= INVISIBLE else "hard to see" if decibels >= HARD_TO_SEE else "slightly visible"
    return f"predicted difference: {seen} (about {decibels:.0f} dB)"


def visible(decibels: float) -> str:
    """For a prediction below VISIBLE. Two lines of a node of default width."""
    similarity = f"{decibels:.0f} dB" if decibels >= RUINED else f"below {RUINED:.0f} dB"
    return f"visible difference likely ({similarity}). Use a slower preset or more steps"


def many_skipped(skipped: int, evaluations: int) -> str:
    return f"{skipped} of {evaluations} skipped: the image may differ visibly. A slower preset is safer"


# several modalities in one latent, and several samplers on one trajectory

APART = 1.5  # times that one modality's error has to be the next one's to be named


def modalities(errors: Mapping[str, float]) -> str:
    """errors: prediction error by name, as a share of the output's size. "" where none stands out."""
    several = sorted(errors.items(), key=lambda pair: -pair[1])
    if len(several) < 2 or several[0][1] < APART * several[1][1]:
        return ""
    (worst, error), *others = several
    rest = ", ".join(f"{name} {one:.1%}" for name, one in others)
    return f"the {worst} is the hardest to predict (error {error:.1%}; {rest}): check it first"


def together(computed: int, evaluations: int) -> str:
    return f"with the sampler before it: {computed} of {evaluations} evaluations computed"


# a run that skips nothing

TO_SKIP_MORE = "to skip more, use a faster preset, a smaller budget, a wider start_percent..end_percent, or more steps"
NO_SCHEDULE = "no steps are skipped, because this sampler's sigmas do not fall from step to step"
NOT_FINITE = "the indicator was not a finite number: those evaluations were computed"
FEW = 12  # steps: shorter runs gain little
TOO_FEW = 6  # steps: in shorter runs presets compute every step


UNKNOWN_PART = "a node runs the model on parts of the latent and does not say which: such evaluations are computed"
NOISE = "the sampler adds noise that the model's output follows: no step can be predicted"
# by the most frequent reason for evaluations that the method had not planned to compute
REMEDIES = {
    Reason.CONDITIONING_CHANGE: (
        "a prompt, ControlNet or hook changes at nearly every step, and such steps are computed. Steps between changes can be skipped"
    ),
    Reason.NEW_CONDITIONING: (
        "the model is run with other conditionings at nearly every step, and nothing is known to predict those from"
    ),
    Reason.NOISE: NOISE,
    Reason.UNKNOWN_PART: UNKNOWN_PART,
}


def nothing_skipped(reasons: str, remedy: str) -> str:
    """reasons: why evaluations were computed, with counts."""
    return f"nothing was skipped: {remedy}. Computed because of: {reasons}"


def too_few(steps: int) -> str:
    return (
        f"{steps} step{'s are' if steps > 1 else ' is'} too few to skip any. Step caches help from about {FEW} steps; Compile Model+ and "
        "the encode cache help here"
    )


def no_room(steps: int) -> str:
    return f"{steps} steps: nothing can be skipped without a visible change"


# Step Cache (Auto)

AUTO_TO_SKIP_MORE = "to skip more, choose a faster mode, a lower target quality, or more steps"
NO_TARGET = "choose a preset, or another sampler"
NO_TARGET_NOISE = "a quality target does not work with ancestral and SDE samplers, because they add noise"
NO_TARGET_ADAPTIVE = "a quality target does not work with samplers that choose their own steps, such as dpm_adaptive"


def method(name: str, planned: int, steps: int, why: str) -> str:
    """planned: steps that will be computed, 0 where the policy decides during the run."""
    count = f", {planned} of {steps} steps" if planned else ""
    return f"method: {name}{count} ({why})"


def target_impossible(speedup: float, computed: int, evaluations: int) -> str:
    return (
        f"target speed-up {speedup:g}x not reached: {computed} of {evaluations} evaluations had to be computed, which allows "
        f"{evaluations / computed:.1f}x. The first steps, the last one, and those where a prompt begins or ends are always computed"
    )


def target_missed(speedup: float, reached: float) -> str:
    return f"target speed-up {speedup:g}x not reached: about {reached:.1f}x, because predicting takes time too"
