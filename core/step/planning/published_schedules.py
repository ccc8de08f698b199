"""Schedules released with MeanCache (https://github.com/UnicomAI/MeanCache, 50 steps): anchors, and the span K of each edge.

K: 0 for adjacent anchors (not used), 1 for reuse, k for JVP_k. Runs with another number of steps or another shift use the anchors at the
same share of noise; `shift` is that of the release's flow schedule (ComfyUI's default for the model).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..clock import Grid
from ..plan import Plan

STEPS = 50


@dataclass(frozen=True)
class PublishedSchedule:
    anchors: tuple[int, ...]
    spans: tuple[int, ...]
    shift: float

    def plan(self, grid: Grid) -> Plan:
        """The schedule on a run's grid: as released at 50 steps, otherwise each anchor at the step with the nearest share of noise."""
        if grid.steps == STEPS:
            placed = list(self.anchors)
        else:
            t = 1 - np.arange(STEPS) / STEPS
            t = self.shift * t / (1 + (self.shift - 1) * t)
            placed = [int(np.abs(grid.times[:-1] - t[a]).argmin()) for a in self.anchors]
        spans = {b: k for b, k in zip(placed, self.spans, strict=False) if k > 0}
        last = {grid.steps - 1} if grid.ends else set()
        return Plan(grid, tuple(sorted({0, *placed} | last)), spans)


def _released(shift: float, head: int, rest: str, spans: str) -> PublishedSchedule:
    """head: number of adjacent anchors from step 0. rest: the other anchors. spans: K of the edges after the head."""
    anchors = (*range(head), *(int(a) for a in rest.split()))
    ks = (*(0 for _ in range(head - 1)), *(int(k) for k in spans.split()))
    assert len(ks) == len(anchors) - 1
    return PublishedSchedule(anchors, ks, shift)


Z_IMAGE, QWEN = 3.0, 3.158  # Qwen-Image: exp(1.15), as ComfyUI gives its logarithm
PUBLISHED_SCHEDULES: dict[str, PublishedSchedule] = {
    "Z-Image 25": _released(
        Z_IMAGE, 7, "8 10 11 12 13 15 16 17 18 20 22 29 37 42 45 47 48 49", "2 2 0 0 0 2 0 0 0 5 5 1 1 1 5 5 0 0"
    ),
    "Z-Image 20": _released(Z_IMAGE, 5, "6 8 10 12 14 16 18 20 22 30 38 43 46 48 49", "2 2 2 2 2 5 4 5 5 1 1 1 5 2 0"),
    "Z-Image 17": _released(Z_IMAGE, 5, "6 8 10 12 14 19 27 35 43 46 48 49", "2 2 2 2 2 1 1 1 1 5 2 0"),
    "Z-Image 15": _released(Z_IMAGE, 4, "5 7 10 12 17 25 33 41 45 48 49", "2 2 2 2 1 1 1 1 5 4 0"),
    "Z-Image 13": _released(Z_IMAGE, 4, "5 9 15 22 29 36 43 47 49", "2 1 1 1 1 1 1 5 2"),
    "Qwen-Image 25": _released(QWEN, 17, "24 32 40 43 45 47 48 49", "1 1 1 5 5 5 0 0"),
    "Qwen-Image 17": _released(QWEN, 9, "10 17 24 31 38 45 48 49", "2 1 1 1 1 1 4 0"),
    "Qwen-Image 10": _released(QWEN, 2, "3 7 14 21 28 35 42 49", "2 1 1 1 1 1 1 4"),
    "Qwen-Image-2512 25": _released(QWEN, 16, "23 31 37 44 45 46 47 48 49", "2 2 2 1 1 1 5 5 0"),
    "Qwen-Image-2512 17": _released(QWEN, 10, "11 19 27 35 43 47 49", "2 1 1 1 1 5 5"),
    "Qwen-Image-2512 10": _released(QWEN, 1, "2 4 7 14 21 28 35 42 49", "1 3 1 1 1 1 1 1 4"),
}
