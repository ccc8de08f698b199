"""A run's schedule, once it is known: which steps will be computed, and with what span of the past each edge is predicted."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field

from .clock import Grid


@dataclass(frozen=True)
class Plan:
    """`anchors`: the steps to compute, ascending, or empty where a policy decides as it goes. `spans`: K of the edge that
    starts at an anchor. `slope`: what the plan was solved for, where the predictor leaves that to it."""

    grid: Grid
    anchors: tuple[int, ...] = ()
    spans: Mapping[int, int] = field(default_factory=dict)
    slope: float | None = None

    def end_of_edge(self, step: int) -> float:
        """Sigma of the next planned anchor after `step`; of the next step where nothing is planned."""
        i = bisect_right(self.anchors, step)
        end = self.anchors[i] if i < len(self.anchors) else step + 1
        return self.grid.sigmas[min(end, self.grid.steps)]

    def end_of_step(self, step: int) -> float:
        return self.grid.sigmas[min(step + 1, self.grid.steps)]

    def span(self, step: int, default: int) -> int:
        """K of the edge that `step` lies on."""
        i = bisect_right(self.anchors, step)
        return self.spans.get(self.anchors[i - 1], default) if i else default
