"""One set of slots in a run: its past evaluations, its prediction and its indicator."""

from __future__ import annotations

import math
from collections.abc import Hashable

from .indicators.base import IndicatorState
from .plan import Plan
from .predictors import Predictor
from .predictors.base import Prediction
from .trajectory import Trajectory

Slot = Hashable


class Track:
    """Samplers ask about one set of slots at every evaluation. Some, such as FlowEdit's, ask about two sets in turn: each has a track."""

    prediction: Prediction
    trajectory: Trajectory

    def __init__(self, predictor: Predictor, plan: Plan, indicator: IndicatorState | None) -> None:
        self.predict_with(predictor, plan)
        self.indicator = indicator
        self.indicated_slot: Slot | None = None  # the slot that the indicator follows
        self.sigma = math.nan  # of its last evaluation
        self.new_slot = False  # a slot appeared where a skip had been decided: the next evaluation is computed

    def predict_with(self, predictor: Predictor, plan: Plan) -> None:
        """Predict with this from here on, without a past."""
        self.prediction = predictor.start(plan)
        self.trajectory = Trajectory(max(predictor.depth, 1), predictor.reads_predictions)

    def forget(self) -> None:
        """Drop what was observed so far."""
        self.trajectory.clear()
        if self.indicator:
            self.indicator.clear()
