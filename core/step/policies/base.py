"""What a policy is: frozen configuration that, started on a run's grid, decides evaluation by evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..clock import Clock, Grid
from ..predictors import Predictor


@dataclass(frozen=True)
class Decision:
    """Compute or skip this evaluation, and why in one word of the report."""

    compute: bool
    reason: str


def COMPUTE(reason: str) -> Decision:
    return Decision(True, reason)


def SKIP(reason: str) -> Decision:
    return Decision(False, reason)


class Policy(Protocol):
    def start(self, grid: Grid, predictor: Predictor) -> Policy:
        """The policy for one run on this grid, with this predictor: a new object if it keeps state, itself if not."""
        ...

    def decide(self, clock: Clock, indicator: float | None = None) -> Decision | None:
        """Compute, skip, or no opinion. Policies are asked in order; the first opinion counts."""
        ...
