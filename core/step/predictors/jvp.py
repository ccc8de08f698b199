"""MeanCache's average-velocity predictors (https://arxiv.org/abs/2601.19961), on each slot's own velocities.

The average velocity over [t, s] is u = v(t) + (s - t) JVP. The unknown JVP is replaced by that of the past:
JVP_K = (u(r, t) - v(r)) / (t - r), with r K steps before t and u(r, t) = (z_t - z_r) / (t - r) (MeanFlow identity solved on
[r, t]). K = 1 on an Euler trajectory gives JVP = 0: plain reuse. z_t - z_r is the sum of the slot's own Euler steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..clock import Clock
from ..plan import Plan
from ..trajectory import Trajectory, Weights, added, scaled
from .base import Prediction, Predictor


def jvp(trajectory: Trajectory, start: int, end_sigma: float) -> Weights:
    """JVP over [sigma of entries[start], end_sigma], as weights; empty (zero) on an interval of length 0."""
    entry = trajectory.entries[start]
    length = end_sigma - entry.sigma
    if length == 0:
        return {}
    mean = scaled(trajectory.displacement(start, end_sigma), 1 / length)
    return scaled(added(mean, entry.weights, -1.0), 1 / length)


@dataclass(frozen=True)
class JVP(Predictor):
    """The paper's predictor: the steps of an edge [t, s] add up to (s - t) (v(t) + (s - t) JVP_K).

    span: K in steps, where the plan has none for the edge.
    """

    span: int = 3
    name: str = "jvp"
    need: int = 1
    reads_predictions: bool = True

    @property
    def depth(self) -> int:
        return self.span + 1

    def start(self, plan: Plan) -> _OneShot:
        return _OneShot(plan, self.span)


class _OneShot(Prediction):
    def __init__(self, plan: Plan, span: int) -> None:
        self.plan, self.default = plan, span

    def weights(self, clock: Clock, trajectory: Trajectory) -> Weights:
        at = max(i for i, e in enumerate(trajectory.entries) if e.computed)
        anchor = trajectory.entries[at]
        start = max(at - self.plan.span(clock.step, self.default), 0)
        slope = jvp(trajectory, start, anchor.sigma)
        end = self.plan.end_of_step(clock.step)
        length = end - anchor.sigma
        wanted = added(scaled(anchor.weights, length), slope, length**2)
        moved = trajectory.displacement(at, clock.sigma)
        return scaled(added(wanted, moved, -1.0), 1 / (end - clock.sigma))


@dataclass(frozen=True)
class RecursiveJVP(Predictor):
    """The released code's predictor: v(i) = v(i-1) + JVP_K (sigma_{i+1} - sigma_i), where v(i-1) may be a prediction.

    span: K in evaluations, where the plan has none for the edge.
    """

    span: int = 3
    name: str = "jvp recursive"
    need: int = 1
    reads_predictions: bool = True

    @property
    def depth(self) -> int:
        return self.span + 1

    def start(self, plan: Plan) -> _Recursive:
        return _Recursive(plan, self.span)


class _Recursive(Prediction):
    def __init__(self, plan: Plan, span: int) -> None:
        self.plan, self.default = plan, span

    def weights(self, clock: Clock, trajectory: Trajectory) -> Weights:
        span = self.plan.span(clock.step, self.default)
        start = max(len(trajectory.entries) - span, 0)
        slope = jvp(trajectory, start, clock.sigma)
        return added(trajectory.entries[-1].weights, slope, self.plan.end_of_step(clock.step) - clock.sigma)
