"""Spectrum's forecast (https://arxiv.org/abs/2603.01623): ridge regression on Chebyshev polynomials, blended with a line."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.polynomial import chebyshev

from ..clock import Clock, Coordinate
from ..trajectory import Trajectory, Weights, added, lagrange, scaled
from .base import Predictor
from .linear import newest, placed


@dataclass(frozen=True)
class Spectrum(Predictor):
    """w * Chebyshev + (1 - w) * line through the last two anchors. Weights are solved in float64 on the host.

    Raises ValueError for values out of range.

    Parameters
    ----------
    w: share of the Chebyshev part, 0..1.
    m: its degree, 1..12.
    lam: ridge on all coefficients but the constant one. The reference code penalises that one too, which predicts a constant signal at 73
        to 94% of its size.
    keep: anchors used at most.
    half: extrapolate the line by half an anchor distance at every position, h + (h - h') / 2, as stable-diffusion.cpp does.
    at: the coordinate, scaled to -1..1 over the run's grid.
    """

    w: float = 1.0
    m: int = 4
    lam: float = 0.1
    keep: int = 100
    half: bool = False
    at: Coordinate = "index"
    name: str = "spectrum"
    need: int = 1
    reads_predictions: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.w <= 1:
            raise ValueError(f"w is the share of the Chebyshev part, 0 to 1, not {self.w}")
        if not 1 <= self.m <= 12:
            raise ValueError(f"m is the degree of the Chebyshev part, 1 to 12, not {self.m}")
        if not 0 < self.lam < math.inf:
            raise ValueError(f"lam is a ridge, above 0, not {self.lam}")

    @property
    def depth(self) -> int:
        return max(self.keep, self.m + 1)

    def weights(self, clock: Clock, trajectory: Trajectory) -> Weights:
        nodes, here = placed(clock, trajectory, self.at)
        last = newest(nodes, 2)
        if self.half and len(last) == 2:
            old, new = last
            line: Weights = {new: 1.5, old: -0.5}
        else:
            line = lagrange(here, last)
        place = clock.grid.along(self.at)
        high, low = place(clock.grid.sigmas[0]), place(clock.grid.sigmas[-1])
        times = (2 * (np.array([*nodes.values(), here]) - high) / (low - high)) - 1
        basis = chebyshev.chebvander(times, self.m)
        past, now = basis[:-1], basis[-1]
        ridge = self.lam * np.eye(self.m + 1)
        ridge[0, 0] = 0.0
        fitted = np.linalg.lstsq(past.T @ past + ridge, past.T, rcond=None)[0]
        weights = {k: float(v) for k, v in zip(nodes, now @ fitted, strict=True)}
        return added(scaled(weights, self.w), line, 1 - self.w)
