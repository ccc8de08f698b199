"""What a run did: plain data, filled as it goes. Text, pictures and JSON are made from it elsewhere."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Evaluation:
    """One call of the model by the sampler."""

    step: int
    sigma: float
    computed: bool
    reason: str


@dataclass
class Report:
    """One run of a sampler. `notes` are sentences for the person who ran it."""

    method: str
    variant: str
    steps: int
    predictor: str = ""
    planned: list[int] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    finished: bool = False

    @property
    def computed(self) -> int:
        return sum(e.computed for e in self.evaluations)

    @property
    def skipped(self) -> int:
        return len(self.evaluations) - self.computed

    def note(self, sentence: str) -> None:
        """Say it once, however often it happens."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def line(self) -> str:
        """One log line."""
        total = len(self.evaluations)
        name = f"{self.method} {self.variant}".strip()
        unit = "" if total == self.steps else f", {total} evaluations"
        if not self.skipped:
            return f"{name}: {self.steps} steps{unit}, all computed"
        share = self.skipped / total
        saved = total / max(self.computed, 1)
        return (
            f"{name}: {self.steps} steps{unit}, {self.computed} computed, {self.skipped} skipped ({share:.0%}), "
            f"{saved:.2f}x fewer evaluations"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: the fields, the counts and the reasons."""
        data = asdict(self)
        data["evaluations"] = len(self.evaluations)
        data["timeline"] = [asdict(e) for e in self.evaluations]
        data["computed"], data["skipped"] = self.computed, self.skipped
        data["reasons"] = dict(Counter(e.reason for e in self.evaluations))
        return data
