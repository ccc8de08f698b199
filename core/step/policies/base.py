"""What a policy is: frozen configuration that, started for a run, decides evaluation by evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from ..calibration.block_profile import BlockProfile
from ..calibration.gram import Gram
from ..clock import Clock, Grid
from ..predictors import Predictor
from ..published.coefficients import Network

Indicator = Callable[[], float | None]
"""Reads the method's indicator for the evaluation at hand, at the price of one host sync; None while too little is known."""


@dataclass(frozen=True)
class Decision:
    """Compute or skip this evaluation, and why in one word of the report."""

    compute: bool
    reason: str


def COMPUTE(reason: str) -> Decision:
    return Decision(True, reason)


def SKIP(reason: str) -> Decision:
    return Decision(False, reason)


@dataclass
class RunContext:
    """What a run's policies are started with. Those asked first say what they will force, so that a solver among the later
    ones spends its budget knowing it.

    forced: for each step, whether it will be computed whatever later policies say. longest: how many evaluations in a row
    may be skipped at most. costs: what full runs of the model taught; lessons: what they taught of its blocks; None where there were
    none. network: what is known of the model (tables.py).
    """

    grid: Grid
    predictor: Predictor
    costs: Gram | None = None
    forced: list[bool] = field(init=False)
    longest: float = math.inf
    network: Network = field(default_factory=dict)
    lessons: BlockProfile | None = None

    def __post_init__(self) -> None:
        self.forced = [False] * self.grid.steps

    def force(self, steps: Iterable[int]) -> None:
        for step in steps:
            if 0 <= step < self.grid.steps:
                self.forced[step] = True


class Policy(Protocol):
    """Frozen configuration, as a method holds it."""

    def start(self, setting: RunContext) -> RunPolicy:
        """The policy for one run: a new object if it keeps state, itself if not."""
        ...


class RunPolicy(Protocol):
    """A policy at work in one run."""

    def decide(self, clock: Clock, indicator: Indicator) -> Decision | None:
        """Compute, skip, or no opinion. Policies are asked in order; the first opinion counts."""
        ...
