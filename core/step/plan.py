"""A run's schedule: the steps to compute, and the span of the past that each edge is predicted from."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field

from .clock import Grid


@dataclass(frozen=True)
class Plan:
    """A schedule on a grid.

    Parameters
    ----------
    anchors: the steps to compute, ascending; empty where policies decide as the run goes.
    spans: for an anchor, K of the edge that starts there, in steps (MeanCache's JVP_K).
    slope, gain: the predictor's that the plan was solved for, where the predictor leaves them open.
    """

    grid: Grid
    anchors: tuple[int, ...] = ()
    spans: Mapping[int, int] = field(default_factory=dict)
    slope: float | None = None
    gain: float | None = None

    def end_of_edge(self, step: int) -> float:
        """Sigma of the next planned anchor after `step`; of the next step where nothing is planned."""
        i = bisect_right(self.anchors, step)
        # after the last anchor the edge reaches to the end of the run
        end = self.anchors[i] if i < len(self.anchors) else self.grid.steps if self.anchors else step + 1
        return self.grid.sigmas[min(end, self.grid.steps)]

    def end_of_step(self, step: int) -> float:
        return self.grid.sigmas[min(step + 1, self.grid.steps)]

    def span(self, step: int, default: int) -> int:
        """K of the edge that contains `step`."""
        i = bisect_right(self.anchors, step)
        return self.spans.get(self.anchors[i - 1], default) if i else default
