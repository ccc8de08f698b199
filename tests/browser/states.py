"""Every state that a node can show, as messages of the server's: reports of runs, and lines of text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from skipstone.core.step.auto.method import FREE, LOOKS, WHY, WHY_FEW
from skipstone.core.step.policies import base, magcache
from skipstone.core.step.reasons import Reason
from skipstone.core.step.report import messages
from skipstone.core.step.report.report import Evaluation, Report
from skipstone.core.texts import Text

LOCALE = Path(__file__).resolve().parents[2] / "locales" / "en" / "main.json"
MESSAGES = json.loads(LOCALE.read_text("utf-8"))["skipstone"]["messages"]
STEPS = 20
ANCHORS = [0, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19]


def report(steps: int = STEPS, done: int | None = None, full: bool = False, **values: Any) -> Report:
    """A run's report, with the anchors above. done: steps that were run; None for all. full: nothing was skipped."""
    done = steps if done is None else done
    learning = values.get("learning", False)
    anchors = [a for a in ANCHORS if a < steps] if steps <= STEPS else [*range(0, steps, 3)]
    made = Report("MeanCache", "Auto, Balanced", steps, "extrapolation", anchors)
    for i in range(done):
        computed = learning or full or i in anchors
        reason = Reason.WARMUP if i < 2 else Reason.LAST_STEP if i == steps - 1 else Reason.SCHEDULE
        made.evaluations.append(Evaluation(i, 1 - i / steps, computed, reason))
    made.seconds, made.computed_seconds, made.share = 1.2 * made.computed, 1.2, 0.02
    made.finished = done == steps
    for name, value in values.items():
        setattr(made, name, value)
    return made


def chosen(steps: int = STEPS, why: str = WHY["euler"]) -> Text:
    """Of Step Cache (Auto). why: one of its reasons."""
    if why in (LOOKS, FREE):
        return messages.method("UCache", 0, steps, why)
    return messages.method("MeanCache", len(ANCHORS), steps, why)


def adaptive() -> Report:
    """Of a method that compares a score with a threshold."""
    made = report()
    made.method, made.variant, made.planned, made.threshold = "UCache", "Auto, Balanced", [], 0.05
    for e in made.evaluations[2:-1]:
        e.score, e.threshold, e.indicator = (0.09 if e.computed else 0.02 + e.step / 1000), 0.05, 0.02
        e.reason = Reason.THRESHOLD
    return made


ADVICE = (
    messages.TO_SKIP_MORE,
    messages.AUTO_TO_SKIP_MORE,
    messages.NO_TARGET,
    messages.MOVING_WINDOWS,
    *messages.REMEDIES.values(),
    *(base.RAISE.of(threshold="0.0125", smallest="0.0137", what=what) for what in (base.CHANGE, "accumulated change")),
    base.NOT_COMPARED,
    base.UNLIKE,
    magcache.WITHOUT_RATIOS,
    magcache.NONE_LEFT,
    magcache.RAISE_ERROR.of(smallest="0.0137", threshold="0.0125"),
)
"""For a run that skipped nothing."""


def reports() -> dict[str, tuple[Report | None, bool]]:
    """By name: the report, None before the first run, and whether it is running."""
    return {
        "empty": (None, False),
        "calibration": (report(done=7, learning=True), True),
        **{
            f"running, {why}": (report(done=9, chosen=chosen(why=why)), True)
            for why in (*WHY.values(), WHY_FEW, LOOKS, FREE)
        },
        "result": (report(chosen=chosen(), decibels=52.0, error=0.01, costs=messages.OWN_MODEL), False),
        "visible": (report(chosen=chosen(), decibels=24.0), False),
        "stopped": (report(done=8, chosen=chosen(), interrupted=True), False),
        "calibration stopped": (
            report(done=8, learning=True, interrupted=True, hint=messages.STOPPED_LEARNING),
            False,
        ),
        "calibrated": (report(learning=True, hint=messages.learned(len(ANCHORS), STEPS)), False),
        "too few steps": (report(4, full=True, hint=messages.too_few(4)), False),
        "nothing skipped": (report(8, full=True, hint=messages.no_room(8)), False),
        "noise": (report(full=True, hint=messages.NOISE), False),
        "adaptive": (adaptive(), False),
        "together": (
            report(chosen=chosen(), together=(11, 20), notes=[messages.together(11, 20)], decibels=52.0),
            False,
        ),
        **{f"advice: {advice.key}": (report(full=True, hint=advice), False) for advice in ADVICE},
        "many steps": (report(200, chosen=chosen(200), decibels=44.0), False),
    }


def text(key: str, **values: Any) -> Text:
    """One of the server's sentences, of code that needs ComfyUI."""
    return Text(key, MESSAGES[key]).of(**values)


def lines() -> dict[str, list[Text]]:
    """Of each kind of node without a timeline, the lines that it can show."""
    blocks = text("blocks", count=12)
    return {
        "SkipstoneCompileModel": [
            text("compiling_since", what=text("block_of", number=3, total=12), seconds="21 s"),
            text("compiled", what=blocks, seconds="63 s"),
            text("compiled_twice", what=blocks, seconds="63 s", again="12 s", why=text("size_changed")),
            text("not_compiled", why=text("needs_compiler")),
        ],
        "SkipstoneCachedTextEncode": [
            text("encoding"),
            text("encoded", seconds="1.2 s"),
            text("from_cache_saved", tiers=[text("tier_disk")], looking="0.6", saved="14 s"),
            text("encoded_not_cached", seconds="1.2 s", reason=text("uncached_patched_function")),
        ],
    }
