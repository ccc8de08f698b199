"""DiCache's prediction (ICLR 2026): the line through the last two anchors, as far along as the probe says."""

from __future__ import annotations

from dataclasses import dataclass

from ..clock import Clock
from ..plan import Plan
from ..trajectory import Trajectory, Weights
from .linear import newest


@dataclass(frozen=True)
class ProbeAligned:
    """R_b + g (R_a - R_b), a the last anchor and b the one before, g = `Clock.ratio`: how far the probe has moved from b, in
    moves from b to a. With one anchor, or where the policy decided without a look at the probe, the last one again."""

    name: str = "probe-aligned"
    depth: int = 2
    need: int = 1
    reads_predictions: bool = False

    def start(self, plan: Plan) -> ProbeAligned:
        return self

    def computed(self, track: Trajectory) -> None:
        pass

    def weights(self, clock: Clock, track: Trajectory) -> Weights:
        *older, last = newest(track.nodes, 2)
        g = clock.ratio
        return {last: g, older[0]: 1 - g} if older and g != 1 else {last: 1.0}
