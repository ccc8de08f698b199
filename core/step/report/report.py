"""What a run did: plain data, filled as it goes. Text, pictures and JSON are made from it elsewhere."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from ..reasons import Reason
from . import messages
from .messages import VISIBLE

PERCENTILES = (5, 25, 50, 75, 95)
MANY = 0.75  # share of skipped evaluations: `make bench-quality`, methods without a plan fall to 29 to 33 dB beyond it


@dataclass
class Evaluation:
    """One call of the model by the sampler.

    Parameters
    ----------
    indicator: the reading's value; None where the indicator was not read.
    score, threshold: what an adaptive policy compared: it computes where score >= threshold.
    """

    step: int
    sigma: float
    computed: bool
    reason: Reason
    indicator: float | None = None
    score: float | None = None
    threshold: float | None = None


@dataclass
class Report:
    """One run of a sampler. `notes` are sentences for the person who ran it; `warnings` are those of them that report a fault.

    chosen: what was chosen for the run and why, in one sentence, where a node chose for the person. threshold: what an adaptive
    policy's accumulated indicator was held against. error: the error that a solved schedule was expected to make, as a share of
    the whole run's displacement; costs: the recipe of the costs that it was told from, or whose polynomial or ratios were used.
    seconds: from the first evaluation to the end; deciding: of that, in policies and predictors, on the host, without what it waited
    for the device. computed_seconds: of a computed evaluation, measured on the device; 0 where it was not. share: of a computed
    evaluation's work, what a skipped one still takes: of the blocks, and by time once that is known (see timing.py). decibels: what
    `error` is taken to keep the picture within of the full run's, where it was told from costs learned of the user's own model.
    learning: computed in full, to learn from it. hint: what to do about a run that skipped nothing, or what comes of one that was
    learned from.
    """

    method: str
    variant: str
    steps: int
    predictor: str = ""
    planned: list[int] = field(default_factory=list)
    threshold: float | None = None
    error: float | None = None
    costs: str = ""
    evaluations: list[Evaluation] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0
    deciding: float = 0.0
    computed_seconds: float = 0.0
    share: float = 0.0
    chosen: str = ""
    decibels: float | None = None
    learning: bool = False
    hint: str = ""
    finished: bool = False

    @property
    def computed(self) -> int:
        return sum(e.computed for e in self.evaluations)

    @property
    def skipped(self) -> int:
        return len(self.evaluations) - self.computed

    @property
    def saved(self) -> float:
        """Seconds that the skipped evaluations would have taken more, at the price of those computed: an estimate."""
        full = self.computed_seconds
        if not full:
            full = max(self.seconds - self.deciding, 0.0) / max(self.computed + self.share * self.skipped, 1)
        return self.skipped * (1 - self.share) * full

    @property
    def speedup(self) -> float:
        """How many times as long the run would have taken without skipping: an estimate, see `saved`."""
        return (self.seconds + self.saved) / self.seconds if self.seconds > 0 else 1.0

    @property
    def percentiles(self) -> dict[int, float]:
        """Of what the indicator said, percent -> value; empty where it was never asked."""
        values = sorted(e.indicator for e in self.evaluations if e.indicator is not None and math.isfinite(e.indicator))
        return {p: values[round(p / 100 * (len(values) - 1))] for p in PERCENTILES} if values else {}

    @property
    def risk(self) -> str:
        """Why the quality of what was skipped is at risk, and what to do, in one sentence; "" where nothing tells that it is."""
        if self.decibels is not None:
            if not self.skipped or self.decibels >= VISIBLE:
                return ""
            return messages.visible(self.decibels)
        if self.finished and self.skipped > MANY * len(self.evaluations):
            return messages.many_skipped(self.skipped, len(self.evaluations))
        return ""

    @property
    def outlook(self) -> str:
        """How far the image is predicted to be from the one without skipping, in one sentence; "" where nothing predicts it, and
        where `risk` says it."""
        if self.decibels is None or not self.skipped or self.decibels < VISIBLE:
            return ""
        return messages.outlook(self.decibels)

    @property
    def advice(self) -> str:
        """One sentence for the person who ran it: why quality is at risk, what would have had something skipped, or what is being
        learned and what comes of it. "" where all is well."""
        return self.risk or self.hint or (messages.LEARNING if self.learning and not self.finished else "")

    def note(self, sentence: str, warning: bool = True) -> None:
        """Add a sentence to the notes, once, however often it happens. warning: it is logged as one."""
        if sentence not in self.notes:
            self.notes.append(sentence)
            if warning:
                self.warnings.append(sentence)

    def line(self) -> str:
        """One log line, as `MeanCache Balanced: 50 steps, 20 computed, 30 skipped (60%), 2.4x`."""
        total = len(self.evaluations)
        name = f"{self.method} {self.variant}".strip()
        unit = "" if total == self.steps else f", {total} evaluations"
        if not self.skipped:
            return f"{name}: {self.steps} steps{unit}, all computed"
        share = self.skipped / total
        return (
            f"{name}: {self.steps} steps{unit}, {self.computed} computed, {self.skipped} skipped ({share:.0%}), "
            f"{self.speedup:.1f}x"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: the fields, the counts, the reasons and the estimates. What is not finite is None."""
        data = asdict(self)
        data["timeline"] = [e | {"reason": str(e["reason"])} for e in data["evaluations"]]
        data["evaluations"] = len(self.evaluations)
        data["computed"], data["skipped"] = self.computed, self.skipped
        data["reasons"] = dict(Counter(str(e.reason) for e in self.evaluations))
        data["skip_reasons"] = dict(Counter(str(e.reason) for e in self.evaluations if not e.computed))
        data["percentiles"] = {str(p): v for p, v in self.percentiles.items()}
        data["saved"], data["speedup"] = self.saved, self.speedup
        data["risk"], data["advice"], data["outlook"] = self.risk, self.advice, self.outlook
        return {k: _finite(v) for k, v in data.items()}


def _finite(value: Any) -> Any:
    """JSON knows no infinity and no NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list) else value
