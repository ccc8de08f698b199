"""What a predictor is: frozen configuration that, started on a run's plan, turns the track of anchors into a prediction."""

from __future__ import annotations

from typing import Protocol

from ..clock import Clock
from ..plan import Plan
from ..trajectory import Trajectory, Weights


class Prediction(Protocol):
    """A predictor at work in one run, for all its slots."""

    def computed(self, track: Trajectory) -> None:
        """The model has spoken: its output is the track's newest entry."""
        ...

    def weights(self, clock: Clock, track: Trajectory) -> Weights:
        """The output of the current, skipped evaluation as a combination of the track's anchors."""
        ...


class Predictor(Protocol):
    def __hash__(self) -> int: ...

    @property
    def name(self) -> str: ...

    @property
    def depth(self) -> int:
        """How many anchors are kept for it."""
        ...

    @property
    def need(self) -> int:
        """With fewer anchors it cannot predict, and the evaluation is computed."""
        ...

    @property
    def reads_predictions(self) -> bool:
        """Does it look at what was predicted since the anchors? Then what that was made of is kept as well."""
        ...

    def start(self, plan: Plan) -> Prediction: ...
