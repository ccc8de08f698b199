"""Base classes of policies: frozen configuration that, started for a run, decides evaluation by evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...texts import Text
from ..calibration.block_profile import BlockProfile
from ..clock import Clock
from ..context import RunContext
from ..indicators.reading import Reading
from ..plan import Plan
from ..published.coefficients import Network
from ..reasons import Reason

LARGEST = 1.25  # relative change beyond which an evaluation is unlike the one before, however usual such changes are in the run
UNLIKE = Text("unlike", "the output changes by more than its own size: none can be predicted")
NOT_COMPARED = Text(
    "threshold_not_compared",
    "the threshold was never compared: lower warmup or add steps",
)
RAISE = Text(
    "threshold_too_low",
    "raise the threshold ({threshold}); smallest {what}: {smallest}",
)
CHANGE = Text("change", "change")

ReadIndicator = Callable[[], Reading | None]
"""Reads the method's indicator for the current evaluation, in one host sync; None while too little is known."""


@dataclass(frozen=True)
class Decision:
    """Compute or skip this evaluation, and why."""

    compute: bool
    reason: Reason


def COMPUTE(reason: Reason) -> Decision:
    return Decision(True, reason)


def SKIP(reason: Reason) -> Decision:
    return Decision(False, reason)


@dataclass(frozen=True)
class Comparison:
    """An adaptive policy's comparison in one evaluation: it skips while `score` is below `threshold`."""

    score: float
    threshold: float


class RunPolicy:
    """A policy in one run. All but `decide` have defaults."""

    plan: Plan | None = None  # the steps to compute, where they are known before the run
    predicted_error: float | None = None  # of the plan, as a share of the run's displacement
    source: str = ""  # whose costs, coefficients or ratios are used, for the report
    note: str = ""  # a sentence for the report
    compared: Comparison | None = None  # the last comparison, of policies that hold an indicator against a threshold
    threshold: float | None = None  # the one in force, of such policies

    def decide(self, clock: Clock, indicator: ReadIndicator) -> Decision | None:
        """Compute, skip, or None for no opinion. Policies are asked in order; the first opinion counts."""
        raise NotImplementedError

    def advice(self) -> str:
        """The remedy for a run in which nothing was skipped; "" for the general one."""
        return ""


class Policy(RunPolicy):
    """A policy's configuration, as a method holds it. A policy without state is its own RunPolicy."""

    def start(self, context: RunContext) -> RunPolicy:
        """The policy for one run: a new object if it keeps state, itself if not."""
        return self

    def requires_profile(self, network: Network, profile: BlockProfile | None) -> bool:
        """True if a block profile of the user's own model is required and missing."""
        return False


class AdaptiveState(RunPolicy):
    """A policy in one run that skips while a score is below a threshold. Remembers the smallest score for the advice."""

    name: str = CHANGE  # of the score, for people

    def __init__(self, threshold: float) -> None:
        self.threshold: float = threshold
        self.smallest: Comparison | None = None
        self.unlike = False  # an evaluation was computed because its change was above LARGEST

    def compare_typical(self, score: float, threshold: float, change: float) -> Decision:
        """Of a threshold in typical changes, whose unit has no meaning of its own. change: see Reading."""
        decision = self.compare(score, threshold)
        if decision.compute or change <= LARGEST:
            return decision
        self.unlike = True
        return COMPUTE(Reason.THRESHOLD)

    def compare(self, score: float, threshold: float) -> Decision:
        self.compared = Comparison(score, threshold)
        if self.smallest is None or score < self.smallest.score:
            self.smallest = self.compared
        return SKIP(Reason.THRESHOLD) if score < threshold else COMPUTE(Reason.THRESHOLD)

    def advice(self) -> str:
        if self.unlike:
            return UNLIKE
        if self.smallest is None:
            return NOT_COMPARED
        threshold, score = self.smallest.threshold, self.smallest.score
        return RAISE.of(threshold=f"{threshold:.3g}", smallest=f"{score:.3g}", what=self.name)


def check_threshold(*values: float) -> None:
    """Raises ValueError unless all are at least 0."""
    for value in values:
        if not value >= 0:
            raise ValueError(f"the threshold is at least 0 (which computes everything), not {value}")
