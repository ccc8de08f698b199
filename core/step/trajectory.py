"""A run's past in weights: what every evaluation's output was, as a combination of anchors.

Predictors that are linear in the history need no tensors to think with. The decisions are the same for all slots, so
the weights are too: they are worked out once an evaluation, on the host, and each slot applies them to its own
anchors. Calibration asks the same code what a predictor would have said, with a Gram matrix in place of tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

SAME = 1e-4  # of a sigma: samplers work out the next step's sigma anew, and arrive beside it by a rounding error
Weights = dict[int, float]  # evaluation number of an anchor -> coefficient


def added(a: Mapping[int, float], b: Mapping[int, float], scale: float = 1.0) -> Weights:
    """a + scale * b, without what cancels: an anchor that no longer counts need not be kept."""
    total = dict(a)
    for k, w in b.items():
        total[k] = total.get(k, 0.0) + scale * w
    return {k: w for k, w in total.items() if w != 0}


def scaled(a: Mapping[int, float], scale: float) -> Weights:
    return {k: w * scale for k, w in a.items()}


def lagrange(sigma: float, nodes: Mapping[int, float]) -> Weights:
    """Weights of the polynomial through the values at nodes (evaluation -> sigma, all different), read at `sigma`."""
    weights = {}
    for j, at in nodes.items():
        w = 1.0
        for k, other in nodes.items():
            if k != j:
                w *= (sigma - other) / (at - other)
        weights[j] = w
    return weights


@dataclass(frozen=True)
class Entry:
    """One evaluation: its number, its sigma, its output in weights over anchors, and whether the model said it."""

    evaluation: int
    sigma: float
    weights: Weights
    computed: bool


@dataclass
class Trajectory:
    """The last entries of a run, oldest first: at most `anchors` computed ones, and what was predicted between them, where
    `predictions` are of use: every anchor that they were made of has to be kept for them."""

    anchors: int
    predictions: bool = True
    entries: list[Entry] = field(default_factory=list)

    def computed(self, evaluation: int, sigma: float) -> None:
        self._append(Entry(evaluation, sigma, {evaluation: 1.0}, True))
        kept = [i for i, e in enumerate(self.entries) if e.computed]
        if len(kept) > self.anchors:
            del self.entries[: kept[-self.anchors]]

    def predicted(self, evaluation: int, sigma: float, weights: Weights) -> None:
        if self.predictions:
            self._append(Entry(evaluation, sigma, weights, False))

    def _append(self, entry: Entry) -> None:
        # at a repeated sigma (Heun's second look at the same time) one value stays, the model's own and the newest:
        # no slope can be drawn between two
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
        """The anchors that may still be asked for: those kept, and those that kept predictions were made of."""
        return {k for e in self.entries for k in e.weights}

    def displacement(self, start: int, end_sigma: float) -> Weights:
        """How far Euler steps carried the latent from entries[start] to `end_sigma`, as weights: the sum of (change of sigma) * output."""
        moved: Weights = {}
        tail = [e for e in self.entries[start:] if e.sigma > end_sigma]
        ends = [e.sigma for e in tail[1:]] + [end_sigma]
        for entry, end in zip(tail, ends, strict=True):
            moved = added(moved, entry.weights, end - entry.sigma)
        return moved

    def clear(self) -> None:
        self.entries.clear()
