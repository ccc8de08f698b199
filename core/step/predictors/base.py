"""Base classes of predictors: frozen configuration that, started for a run's plan, turns anchors into a prediction."""

from __future__ import annotations

from dataclasses import dataclass

from ..clock import Clock, Coordinate
from ..indicators.reading import Reading
from ..plan import Plan
from ..trajectory import Trajectory, Weights


@dataclass(frozen=True)
class Line:
    """Predictions within an edge are the last anchor's value plus `slope` times the increment of the line through the last two anchors in
    the coordinate `at`. Edge costs of such predictors have a closed form."""

    slope: float
    at: Coordinate


class Prediction:
    """A predictor in one run, for all its slots."""

    def computed(self, trajectory: Trajectory) -> None:
        """An evaluation was computed: it is the trajectory's newest entry."""

    def indicated(self, reading: Reading) -> None:
        """The indicator was read in the current evaluation."""

    def weights(self, clock: Clock, trajectory: Trajectory) -> Weights:
        """The output of the current, skipped evaluation as a linear combination of the trajectory's anchors."""
        raise NotImplementedError


class Predictor(Prediction):
    """A predictor's configuration: hashable, so that a plan solved for it is found again. One without state is its own Prediction."""

    name: str
    need: int = 1  # with fewer anchors the evaluation is computed
    reads_predictions: bool = False  # it uses predicted entries, so the anchors that these are made of are kept as well

    @property
    def depth(self) -> int:
        """Number of anchors that are kept for it."""
        return 1

    def start(self, plan: Plan) -> Prediction:
        """The predictor for one run: a new object if it keeps state, itself if not."""
        return self

    @property
    def line(self) -> Line | None:
        """For a predictor that extrapolates a line, apart from corrections; None for others."""
        return None

    @property
    def correction(self) -> float:
        """The share of an edge's error that is corrected on the next one."""
        return 0.0

    @property
    def candidates(self) -> tuple[Predictor, ...]:
        """The configurations that a plan may be solved for; their lines have one coordinate. The best one's `line` and `correction` are in
        the plan."""
        return (self,)
