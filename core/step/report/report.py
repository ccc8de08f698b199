"""A run's report: plain data, filled while the run goes on. Text and images are made from it elsewhere."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from ...texts import translatable
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
    """One run of a sampler.

    Parameters
    ----------
    method, variant: for people: the method, and its preset.
    steps: of the grid.
    predictor: its name.
    planned: the steps to compute, where they were planned.
    threshold: of an adaptive policy.
    error: predicted error of a solved schedule, as a share of the run's displacement.
    costs: recipe of the costs, or the model whose polynomial or ratios were used.
    evaluations: one entry a call of the model.
    notes: sentences for the user. warnings: those of them that report a fault.
    seconds: from the first evaluation to the end.
    deciding: seconds of that in policies and predictors on the host, without waiting for the device.
    computed_seconds: median time of a computed evaluation on the device; 0 where it was not measured.
    share: a skipped evaluation's work over a computed one's: by blocks, and by time once it was measured (timing.py).
    decibels: PSNR against the full run that a typical picture with this `error` has, with costs of the user's own model.
    chosen: Step Cache (Auto)'s choice in one sentence.
    learning: computed in full, because the run was recorded.
    modalities: of a packed latent: prediction error as a share of the output's size, by name.
    together: evaluations computed and evaluations in all of the samplers that share this run's trajectory, in the order of the prompt; None
        for a run that is a trajectory by itself.
    hint: advice for a run that skipped nothing, or the result of a recording.
    finished: without an error or an interrupt. interrupted: ended by one.
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
    modalities: dict[str, float] = field(default_factory=dict)
    together: tuple[int, int] | None = None
    hint: str = ""
    finished: bool = False
    interrupted: bool = False

    @property
    def computed(self) -> int:
        return sum(e.computed for e in self.evaluations)

    @property
    def skipped(self) -> int:
        return len(self.evaluations) - self.computed

    @property
    def saved(self) -> float:
        """Estimated seconds saved: the skipped evaluations at the price of computed ones."""
        full = self.computed_seconds
        if not full:
            full = max(self.seconds - self.deciding, 0.0) / max(self.computed + self.share * self.skipped, 1)
        return self.skipped * (1 - self.share) * full

    @property
    def speedup(self) -> float:
        """Estimated duration without skipping over the run's duration."""
        return (self.seconds + self.saved) / self.seconds if self.seconds > 0 else 1.0

    @property
    def percentiles(self) -> dict[int, float]:
        """Percentiles of the indicator, percent -> value; empty where it was never read."""
        values = sorted(e.indicator for e in self.evaluations if e.indicator is not None and math.isfinite(e.indicator))
        return {p: values[round(p / 100 * (len(values) - 1))] for p in PERCENTILES} if values else {}

    @property
    def risk(self) -> str:
        """One sentence if a visible difference is likely, with a remedy; "" otherwise."""
        if self.decibels is not None:
            if not self.skipped or self.decibels >= VISIBLE:
                return ""
            return messages.visible(self.decibels)
        if self.finished and self.skipped > MANY * len(self.evaluations):
            return messages.many_skipped(self.skipped, len(self.evaluations))
        return ""

    @property
    def outlook(self) -> str:
        """The predicted difference from the image without skipping, in one sentence; "" without a prediction, and where `risk` has it."""
        if self.decibels is None or not self.skipped or self.decibels < VISIBLE:
            return ""
        return messages.outlook(self.decibels)

    @property
    def advice(self) -> str:
        """One sentence for the user: a likely visible difference, a remedy for a run that skipped nothing, or the state of a recording; ""
        otherwise."""
        return self.risk or self.hint or (messages.LEARNING if self.learning and not self.finished else "")

    def note(self, sentence: str, warning: bool = True) -> None:
        """Add a sentence to the notes unless it is there. warning: it is logged as a warning."""
        if sentence not in self.notes:
            self.notes.append(sentence)
            if warning:
                self.warnings.append(sentence)

    def line(self) -> str:
        """One log line, as `MeanCache Balanced: 50 steps, 20 computed, 30 skipped (60%), 2.4x`."""
        total = len(self.evaluations)
        name = f"{self.method} {self.variant}".strip()
        if self.interrupted:
            step = self.evaluations[-1].step + 1 if self.evaluations else 0
            return (
                f"{name}: interrupted at step {step} of {self.steps}, {self.computed} computed, {self.skipped} skipped"
            )
        unit = "" if total == self.steps else f", {total} evaluations"
        if not self.skipped:
            return f"{name}: {self.steps} step{'' if self.steps == 1 else 's'}{unit}, all computed"
        share = self.skipped / total
        return (
            f"{name}: {self.steps} steps{unit}, {self.computed} computed, {self.skipped} skipped ({share:.0%}), "
            f"{self.speedup:.1f}x"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: the fields, counts, reasons and estimates. Values that are not finite are None. `texts`: the sentences among
        them with key and values, for translation (Text.as_dict)."""
        data = asdict(self)
        data["timeline"] = [e | {"reason": str(e["reason"])} for e in data["evaluations"]]
        data["evaluations"] = len(self.evaluations)
        data["computed"], data["skipped"] = self.computed, self.skipped
        data["reasons"] = dict(Counter(str(e.reason) for e in self.evaluations))
        data["skip_reasons"] = dict(Counter(str(e.reason) for e in self.evaluations if not e.computed))
        data["percentiles"] = {str(p): v for p, v in self.percentiles.items()}
        data["saved"], data["speedup"] = self.saved, self.speedup
        data["risk"], data["advice"], data["outlook"] = self.risk, self.advice, self.outlook
        said = (self.chosen, self.hint, self.risk, self.advice, self.outlook, self.costs, *self.notes)
        return {**{k: _finite(v) for k, v in data.items()}, "texts": translatable(said)}


def _finite(value: Any) -> Any:
    """JSON has no infinity and no NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list) else value
