"""DiCache's predictor (Bu et al. 2025, https://arxiv.org/abs/2508.17356): a line through two anchors, as far as the probe has moved."""

from __future__ import annotations

from dataclasses import dataclass

from ..clock import Clock
from ..indicators.reading import Reading
from ..plan import Plan
from ..trajectory import Trajectory, Weights
from .base import Prediction, Predictor
from .linear import newest


@dataclass(frozen=True)
class ProbeAligned(Predictor):
    """R_b + g (R_a - R_b), with a the last anchor, b the one before it and g = `Reading.ratio`.

    With one anchor, or where the policy decided without the indicator, the last anchor's output.
    """

    name: str = "probe-aligned"
    depth: int = 2
    need: int = 1
    reads_predictions: bool = False

    def start(self, plan: Plan) -> _ProbeAligned:
        return _ProbeAligned()


class _ProbeAligned(Prediction):
    def __init__(self) -> None:
        self.ratio = 1.0

    def indicated(self, reading: Reading) -> None:
        self.ratio = reading.ratio

    def computed(self, trajectory: Trajectory) -> None:
        self.ratio = 1.0

    def weights(self, clock: Clock, trajectory: Trajectory) -> Weights:
        ratio, self.ratio = self.ratio, 1.0
        *older, last = newest(trajectory.nodes, 2)
        return {last: ratio, older[0]: 1 - ratio} if older and ratio != 1 else {last: 1.0}
