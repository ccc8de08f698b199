"""Reuse, linear extrapolation, and linear extrapolation with a correction after each anchor."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..clock import Clock, Coordinate
from ..plan import Plan
from ..trajectory import Trajectory, Weights, added, lagrange, scaled
from .base import Line, Prediction, Predictor

SLOPES, SLOPE = (0.0, 0.5, 0.65, 0.8, 1.0), 0.65  # candidates of Corrected, and the one without a plan
GAINS, GAIN = (0.0, 0.5, 1.0, 1.4), 1.0
SPREAD = 0.1  # assumed standard deviation of the data, in Corrected


def newest(nodes: dict[int, float], n: int) -> dict[int, float]:
    return dict(list(nodes.items())[-n:])


def placed(clock: Clock, trajectory: Trajectory, at: Coordinate) -> tuple[dict[int, float], float]:
    """The anchors' positions in the coordinate `at` (evaluation -> position, oldest first), and that of the clock's sigma.

    Of anchors at one position, such as log-SNR's clamped ends, the newest is returned.
    """
    place = clock.grid.along(at)
    anchors = {place(sigma): k for k, sigma in trajectory.nodes.items()}
    return {k: u for u, k in anchors.items()}, place(clock.sigma)


def read(clock: Clock, trajectory: Trajectory, anchors: int, at: Coordinate) -> Weights:
    """The polynomial through the last `anchors` anchors in the coordinate `at`, evaluated at the clock's sigma."""
    nodes, here = placed(clock, trajectory, at)
    return lagrange(here, newest(nodes, anchors))


def extrapolated(clock: Clock, trajectory: Trajectory, line: Line) -> Weights:
    """The last anchor's value plus `slope` times the increment of the line through the last two anchors."""
    constant, linear = (read(clock, trajectory, anchors, line.at) for anchors in (1, 2))
    return added(scaled(constant, 1 - line.slope), linear, line.slope)


def spread(sigma: float, flow: bool) -> float:
    """The latent's standard deviation for data of standard deviation SPREAD, by which errors shrink."""
    return math.hypot(SPREAD * (1 - sigma if flow else 1.0), max(sigma, 0.0))


@dataclass(frozen=True)
class Reuse(Predictor):
    """The last anchor's output."""

    name: str = "reuse"
    depth: int = 1
    need: int = 1
    reads_predictions: bool = False

    @property
    def line(self) -> Line:
        return Line(0.0, "sigma")

    def weights(self, clock: Clock, trajectory: Trajectory) -> Weights:
        return read(clock, trajectory, 1, "sigma")


@dataclass(frozen=True)
class Linear(Predictor):
    """The line through the last two anchors in the coordinate `at`. slope: factor on its increment; 0 is reuse."""

    slope: float = 1.0
    at: Coordinate = "sigma"
    name: str = "linear"
    depth: int = 2
    need: int = 1
    reads_predictions: bool = False

    @property
    def line(self) -> Line:
        return Line(self.slope, self.at)

    def weights(self, clock: Clock, trajectory: Trajectory) -> Weights:
        return extrapolated(clock, trajectory, self.line)


@dataclass(frozen=True)
class Corrected(Predictor):
    """Damped linear extrapolation with the correction of a predictor-corrector method.

    When an anchor closes an edge, interpolation between the edge's two anchors gives the displacement that the skipped Euler steps should
    have made. The difference from the displacement that they made is added over the next edge (P-E-C mode of the Adams-Bashforth-Moulton
    pair on the coarse grid: Hairer, Norsett & Wanner, Solving ODEs I, III.1). This assumes a sampler that adds (change of sigma) * output,
    as Euler's does. Before it is corrected, an error shrinks by itself: for normal data of standard deviation SPREAD,
    dx/dsigma = (x - D) / sigma scales it with the standard deviation of x. Only the remainder at the next edge's end is added.

    Parameters
    ----------
    slope: factor on the line's increment; a slope of 1 overshoots where the velocity bends. None: the one of SLOPES that gives the best
        plan, or SLOPE without a plan.
    gain: factor on the correction. Above 1 it makes up for errors that shrink less than is assumed. None: the one of GAINS that gives the
        best plan, or GAIN without a plan.
    at: the line's coordinate.
    """

    slope: float | None = None
    gain: float | None = None
    at: Coordinate = "auto"
    name: str = "corrected"
    depth: int = 4
    need: int = 1
    reads_predictions: bool = True

    @property
    def line(self) -> Line:
        """Without the correction, which a plan's simulation counts."""
        return Line(SLOPE if self.slope is None else self.slope, self.at)

    @property
    def correction(self) -> float:
        return GAIN if self.gain is None else self.gain

    @property
    def candidates(self) -> tuple[Corrected, ...]:
        """One for each slope and gain that are open."""
        slopes = SLOPES if self.slope is None else (self.slope,)
        gains = GAINS if self.gain is None else (self.gain,)
        return tuple(replace(self, slope=s, gain=g) for s in slopes for g in gains)

    def start(self, plan: Plan) -> _Correcting:
        return _Correcting(plan, self)


class _Correcting(Prediction):
    def __init__(self, plan: Plan, config: Corrected) -> None:
        self.plan, self.config = plan, config
        slope = next(s for s in (config.slope, plan.slope, SLOPE) if s is not None)
        self.line = Line(slope, config.at)
        self.place = plan.grid.along(config.at)
        self.gain = next(g for g in (config.gain, plan.gain, GAIN) if g is not None)
        self.owed: Weights = {}  # displacement still to be added
        self.rate: Weights = {}  # of it, per unit of sigma on this edge
        self.first_of_edge = True  # no step of this edge has been predicted yet

    def computed(self, trajectory: Trajectory) -> None:
        self.first_of_edge = True
        anchors = [i for i, e in enumerate(trajectory.entries) if e.computed]
        if len(anchors) < 2:
            self.owed = {}
            return
        start, end = anchors[-2], anchors[-1]
        nodes = {k: self.place(sigma) for k, sigma in newest(trajectory.nodes, 2).items()}
        for entry, after in zip(trajectory.entries[start + 1 : end], trajectory.entries[start + 2 :], strict=False):
            # the correction on this edge was intended, so it is no error of the edge
            predicted = added(entry.weights, self.rate, -1.0)
            error = added(lagrange(self.place(entry.sigma), nodes), predicted, -1.0)
            self.owed = added(self.owed, error, after.sigma - entry.sigma)

    def weights(self, clock: Clock, trajectory: Trajectory) -> Weights:
        if self.first_of_edge:
            self.first_of_edge = False
            # where an anchor was dropped since, the displacement can no longer be computed
            known = self.owed if self.owed.keys() <= trajectory.needed else {}
            end = self.plan.end_of_edge(clock.step)
            flow, anchor = self.plan.grid.flow, next(reversed(trajectory.nodes.values()))
            left = self.gain * spread(end, flow) / spread(anchor, flow)
            length = end - clock.sigma
            self.rate = {k: w * left / length for k, w in known.items()} if length else {}
            self.owed = {}
        return added(extrapolated(clock, trajectory, self.line), self.rate)
