"""A run's past evaluations as weights over anchors.

The output of a predictor that is linear in the history is a weighted sum of anchors. All slots share the decisions, so they share the
weights: these are computed once an evaluation on the host, and each slot applies them to its own tensors. Calibration applies the same
weights to a Gram matrix instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

SAME = 1e-4  # relative: samplers recompute the next sigma and differ by rounding
Weights = dict[int, float]  # evaluation number of an anchor -> coefficient


def added(a: Mapping[int, float], b: Mapping[int, float], scale: float = 1.0) -> Weights:
    """a + scale * b without zero weights: an anchor of weight 0 need not be kept."""
    total = dict(a)
    for k, w in b.items():
        total[k] = total.get(k, 0.0) + scale * w
    return {k: w for k, w in total.items() if w != 0}


def scaled(a: Mapping[int, float], scale: float) -> Weights:
    return {k: w * scale for k, w in a.items()}


def lagrange(sigma: float, nodes: Mapping[int, float]) -> Weights:
    """Weights of the polynomial through the values at `nodes` (evaluation -> sigma, all different), evaluated at `sigma`."""
    weights = {}
    for j, at in nodes.items():
        w = 1.0
        for k, other in nodes.items():
            if k != j:
                w *= (sigma - other) / (at - other)
        weights[j] = w
    return weights


@dataclass(frozen=True)
class Evaluated:
    """One evaluation: its number, its sigma, its output as weights over anchors, and whether the model computed it."""

    evaluation: int
    sigma: float
    weights: Weights
    computed: bool


@dataclass
class Trajectory:
    """The last evaluations of a run, oldest first.

    anchors: computed ones, at most. predictions: also those predicted between them, which keeps every anchor that they are made of.
    """

    anchors: int
    predictions: bool = True
    entries: list[Evaluated] = field(default_factory=list)

    def computed(self, evaluation: int, sigma: float) -> None:
        self._append(Evaluated(evaluation, sigma, {evaluation: 1.0}, True))
        kept = [i for i, e in enumerate(self.entries) if e.computed]
        if len(kept) > self.anchors:
            del self.entries[: kept[-self.anchors]]

    def predicted(self, evaluation: int, sigma: float, weights: Weights) -> None:
        if self.predictions:
            self._append(Evaluated(evaluation, sigma, weights, False))

    def _append(self, entry: Evaluated) -> None:
        # heun evaluates twice at one sigma, where no slope is defined: keep one of the two, computed rather than predicted, else the newer
        if self.entries and abs(self.entries[-1].sigma - entry.sigma) <= SAME * entry.sigma:
            if self.entries[-1].computed and not entry.computed:
                return
            self.entries.pop()
        self.entries.append(entry)

    @property
    def nodes(self) -> dict[int, float]:
        """The anchors: evaluation -> sigma, oldest first."""
        return {e.evaluation: e.sigma for e in self.entries if e.computed}

    @property
    def needed(self) -> set[int]:
        """Anchors that a prediction may use: those in `entries`, and those that predicted entries are made of."""
        return {k for e in self.entries for k in e.weights}

    def displacement(self, start: int, end_sigma: float) -> Weights:
        """The displacement by Euler steps from entries[start] to `end_sigma`, as weights: the sum of (change of sigma) * output."""
        moved: Weights = {}
        tail = [e for e in self.entries[start:] if e.sigma > end_sigma]
        ends = [e.sigma for e in tail[1:]] + [end_sigma]
        for entry, end in zip(tail, ends, strict=True):
            moved = added(moved, entry.weights, end - entry.sigma)
        return moved

    def clear(self) -> None:
        self.entries.clear()
