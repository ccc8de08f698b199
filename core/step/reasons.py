"""Why an evaluation was computed or skipped: one list for the run, the report's picture and the front end."""

from __future__ import annotations

from enum import Enum


class Reason(str, Enum):
    """The value is the text in reports and JSON; `letter` marks the evaluation's cell in pictures."""

    letter: str

    def __new__(cls, text: str, letter: str) -> Reason:
        member = str.__new__(cls, text)
        member._value_ = text
        member.letter = letter
        return member

    def __str__(self) -> str:
        return str(self.value)

    # asked for by a policy
    WARMUP = "warmup", "W"
    LAST_STEP = "last step", "L"
    WINDOW = "window", "O"
    SCHEDULE = "schedule", "S"
    INTERVAL = "interval", "I"
    THRESHOLD = "threshold", "T"
    RATIO = "ratio", "R"
    MASK = "mask", "M"
    CAP = "cap", "C"
    TOTAL = "total", "A"
    CONDITIONING_CHANGE = "conditioning change", "E"
    TARGET = "quality target", "Q"  # no prediction of the error exists for this sampler
    CALIBRATION = "calibration", "K"
    METHOD = "method", "D"  # no policy had an opinion

    # found by the run
    NEW_CONDITIONING = "new conditioning", "N"
    HISTORY = "history", "H"  # too few anchors to predict from
    OFF_SCHEDULE = "no place on the schedule", "P"
    NOT_FINITE = "not finite", "F"
    MEMORY = "memory", "Y"  # skipping ran out of memory
    NOISE = "noise that the output follows", "X"  # found at a sampler of another pack
    UNKNOWN_PART = "unknown part of the latent", "U"
    MODEL_CHANGED = "model changed", "G"  # the forward did not match its family record
