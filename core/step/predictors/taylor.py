"""TaylorSeer's extrapolation (https://arxiv.org/abs/2503.06923)."""

from __future__ import annotations

from dataclasses import dataclass
from math import factorial

from ..clock import Clock, Coordinate
from ..trajectory import Trajectory, Weights, added, scaled
from .base import Predictor
from .linear import newest, placed, read


@dataclass(frozen=True)
class Taylor(Predictor):
    """The polynomial through the last order + 1 anchors; of lower degree while there are fewer.

    Raises ValueError for an order outside 0..3.

    Parameters
    ----------
    order: its degree, 0..3.
    at: the coordinate.
    published: use the reference code's recursion, D_{k+1} = (D_k(c) - D_k(c')) / (c - c') and the sum of D_k e^k / k!. From order 2 on it
        differs from the interpolating polynomial where anchors are not evenly spaced.
    """

    order: int = 1
    at: Coordinate = "sigma"
    published: bool = False
    name: str = "taylor"
    need: int = 1
    reads_predictions: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.order <= 3:
            raise ValueError(f"the order of a Taylor prediction is 0 to 3, not {self.order}")

    @property
    def depth(self) -> int:
        return self.order + 1

    def weights(self, clock: Clock, trajectory: Trajectory) -> Weights:
        if not self.published:
            return read(clock, trajectory, self.order + 1, self.at)
        every, here = placed(clock, trajectory, self.at)
        nodes = list(newest(every, self.order + 1).items())
        levels: list[Weights] = [{k: 1.0} for k, _ in nodes]
        total: Weights = {}
        e = here - nodes[-1][1]
        for k in range(len(nodes)):
            total = added(total, levels[-1], e**k / factorial(k))
            places = [u for _, u in nodes[k:]]
            levels = [
                scaled(added(now, old, -1.0), 1 / (v - u))
                for old, now, u, v in zip(levels, levels[1:], places, places[1:], strict=False)
            ]
        return total
