"""MeanCache's average-velocity predictors (arXiv 2601.19961), on the slot's own velocities.

The average velocity over [t, s] is u = v(t) + (s - t) JVP, and the unknown JVP is replaced by that of the past:
JVP_K = (u(r, t) - v(r)) / (t - r), with r K steps before t and u(r, t) = (z_t - z_r) / (t - r) (MeanFlow identity solved on
[r, t]). K = 1 on an Euler trajectory gives JVP = 0: plain reuse. z_t - z_r is the sum of the slot's own Euler steps, so that
each conditioning has its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..clock import Clock
from ..plan import Plan
from ..trajectory import Trajectory, Weights, added, scaled


def jvp(track: Trajectory, start: int, end_sigma: float) -> Weights:
    """JVP over [sigma of entries[start], end_sigma], as weights; nothing (0) on an interval of no length."""
    entry = track.entries[start]
    length = end_sigma - entry.sigma
    if length == 0:
        return {}
    mean = scaled(track.displacement(start, end_sigma), 1 / length)
    return scaled(added(mean, entry.weights, -1.0), 1 / length)


@dataclass(frozen=True)
class JVP:
    """As in the paper, in one shot: the steps of an edge [t, s] add up to (s - t) (v(t) + (s - t) JVP_K), v(t) and JVP_K known at t."""

    span: int = 3
    name: str = "jvp"
    need: int = 1
    reads_predictions: bool = True

    @property
    def depth(self) -> int:
        return self.span + 1

    def start(self, plan: Plan) -> _OneShot:
        return _OneShot(plan, self.span)


class _OneShot:
    def __init__(self, plan: Plan, span: int) -> None:
        self.plan, self.default = plan, span

    def computed(self, track: Trajectory) -> None:
        pass

    def weights(self, clock: Clock, track: Trajectory) -> Weights:
        at = max(i for i, e in enumerate(track.entries) if e.computed)
        anchor = track.entries[at]
        start = max(at - self.plan.span(clock.step, self.default), 0)
        slope = jvp(track, start, anchor.sigma)
        end = self.plan.end_of_step(clock.step)
        length = end - anchor.sigma
        wanted = added(scaled(anchor.weights, length), slope, length**2)
        moved = track.displacement(at, clock.sigma)
        return scaled(added(wanted, moved, -1.0), 1 / (end - clock.sigma))


@dataclass(frozen=True)
class RecursiveJVP:
    """As released by the authors: v(i) = v(i-1) + JVP_K (sigma_{i+1} - sigma_i), on top of what was predicted before, K in evaluations."""

    span: int = 3
    name: str = "jvp recursive"
    need: int = 1
    reads_predictions: bool = True

    @property
    def depth(self) -> int:
        return self.span + 1

    def start(self, plan: Plan) -> _Recursive:
        return _Recursive(plan, self.span)


class _Recursive:
    def __init__(self, plan: Plan, span: int) -> None:
        self.plan, self.default = plan, span

    def computed(self, track: Trajectory) -> None:
        pass

    def weights(self, clock: Clock, track: Trajectory) -> Weights:
        span = self.plan.span(clock.step, self.default)
        start = max(len(track.entries) - span, 0)
        slope = jvp(track, start, clock.sigma)
        return added(track.entries[-1].weights, slope, self.plan.end_of_step(clock.step) - clock.sigma)
