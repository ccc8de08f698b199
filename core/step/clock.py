"""The sampler's sigma grid, and the current evaluation's position on it."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Coordinate = Literal["sigma", "time", "log-SNR", "index", "auto"]
END = 1e-3  # clamp on sigma; keeps log-SNR finite
SAME_STEP = 1e-3  # relative: an evaluation this close to a sigma of the grid is at that step
ON_GRID = 1e-3  # share of a step: SDE samplers and float32 rounding shift sigmas by less
BEGINS = 1.5  # steps below the highest sigma up to which a grid begins a trajectory: ddim_uniform begins one step below


@dataclass(frozen=True)
class Grid:
    """The sampler's sigmas: a trajectory from the model's highest sigma to zero, or a part of one.

    On a grid that does not fall (restarts, hand-made lists) the position of a sigma is ambiguous: `falling` is False, and nothing is
    skipped.

    Parameters
    ----------
    sigmas: N + 1 values for N steps.
    flow: sigma is the share of noise in the latent, 0..1; otherwise noise grows with sigma (eps, v, EDM).
    percent_to_sigma: ComfyUI's map; None for the linear one of a flow.
    highest: the model's highest sigma; None: the grid's first.
    ended: whether the grid ends a trajectory; None: if its last sigma is zero. Some samplers end at the last one above it.
    """

    sigmas: tuple[float, ...]
    flow: bool = True
    percent_to_sigma: Callable[[float], float] | None = field(default=None, compare=False, repr=False)
    highest: float | None = None
    ended: bool | None = None

    @classmethod
    def of(
        cls,
        sigmas: Sequence[float],
        flow: bool = True,
        percent_to_sigma: Callable[[float], float] | None = None,
        highest: float | None = None,
        ended: bool | None = None,
    ) -> Grid:
        return cls(tuple(float(s) for s in sigmas), flow, percent_to_sigma, highest, ended)

    @property
    def times(self) -> NDArray[np.float64]:
        """The share of noise at every sigma, t in 0..1, shape (N + 1,): comparable between models."""
        sigmas = np.asarray(self.sigmas, np.float64)
        return sigmas if self.flow else sigmas / (1 + sigmas)

    def along(self, coordinate: Coordinate) -> Callable[[float], float]:
        """The coordinate that predictors extrapolate in, as a function of sigma.

        "sigma"; "time": the share of noise; "log-SNR": half the log of noise power over signal power; "index": the position on the grid
        in steps; "auto": sigma in flow models, log-SNR in others.
        """
        if coordinate == "auto":
            coordinate = "sigma" if self.flow else "log-SNR"
        if coordinate == "index":
            rising = [-s for s in self.sigmas]
            return lambda sigma: float(np.interp(-sigma, rising, range(len(rising))))
        if coordinate == "log-SNR":
            if self.flow:
                return lambda sigma: math.log((s := min(max(sigma, END), 1 - END)) / (1 - s))
            return lambda sigma: math.log(max(sigma, END))
        if coordinate == "time" and not self.flow:
            return lambda sigma: sigma / (1 + sigma)
        return lambda sigma: sigma

    @property
    def steps(self) -> int:
        return max(len(self.sigmas) - 1, 0)

    @property
    def ends(self) -> bool:
        """Whether the grid ends a trajectory, as it does at sigma zero."""
        return (not self.sigmas or self.sigmas[-1] == 0) if self.ended is None else self.ended

    @cached_property
    def begins(self) -> bool:
        """Whether the grid begins a trajectory. False where a sampler goes on from another one's latent, or from a picture."""
        if self.highest is None or not self.steps or self.sigmas[0] >= self.highest:
            return True
        start = self.percent_of(self.sigmas[0])
        end = 1.0 if self.ends else self.percent_of(self.sigmas[-1])
        return start * self.steps <= BEGINS * (end - start)

    @cached_property
    def whole(self) -> tuple[float, float]:
        """The first step's index in the trajectory that the grid is a part of, and the trajectory's number of steps: estimated from the
        part of ComfyUI's timestep range that the grid covers."""
        if self.begins and self.ends:
            return 0.0, float(self.steps)
        start = 0.0 if self.begins else self.percent_of(self.sigmas[0])
        end = 1.0 if self.ends else self.percent_of(self.sigmas[-1])
        total = self.steps / max(end - start, 1e-3)
        return start * total, total

    def percent_of(self, sigma: float) -> float:
        """The fraction of ComfyUI's timestep range at a sigma: the inverse of `sigma_at`, by bisection."""
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if self.sigma_at(middle) > sigma else (low, middle)
        return (low + high) / 2

    @cached_property
    def falling(self) -> bool:
        return all(a > b >= 0 for a, b in zip(self.sigmas, self.sigmas[1:], strict=False))

    @cached_property
    def _rising(self) -> list[float]:
        return [-s for s in self.sigmas[: self.steps]]

    def step_of(self, sigma: float) -> int:
        """The step i with sigma_i >= sigma > sigma_{i+1}; a sigma within ON_GRID of a grid point counts as on it."""
        i = bisect_left(self._rising, -sigma)
        if i < self.steps:
            gap = self.sigmas[i] - self.sigmas[i + 1]
            if sigma - self.sigmas[i] > ON_GRID * gap and i > 0:
                i -= 1
            return i
        return self.steps - 1

    def sigma_at(self, percent: float) -> float:
        """Sigma at a fraction of ComfyUI's timestep range (not of the steps): the unit of ControlNet's start and end percent."""
        if percent <= 0:
            return math.inf
        if percent >= 1:
            return -math.inf
        if self.percent_to_sigma is not None:
            return float(self.percent_to_sigma(percent))
        return (1 - percent) * (self.sigmas[0] if self.highest is None else self.highest)


class Clock:
    """The current evaluation: its number, sigma and step, and the number of skips before it. Advanced by `Run`."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.evaluation = -1
        self.sigma = math.nan
        self.step = -1
        self.previous_step = -1
        self.sigma_rose = False
        self.skips = 0  # evaluations skipped since the last computed one
        self.skipped = 0  # in the whole run

    def tick(self, sigma: float) -> None:
        """The sampler begins an evaluation at this sigma. The step follows from sigma, not from the number of calls."""
        self.sigma_rose = sigma > self.sigma * (1 + 1e-6)  # False for the first evaluation, whose predecessor is NaN
        self.evaluation += 1
        self.sigma = sigma
        self.previous_step = self.step
        self.step = self.grid.step_of(sigma)

    def record(self, computed: bool) -> None:
        """The current evaluation is over."""
        self.skips = 0 if computed else self.skips + 1
        self.skipped += not computed

    def reached(self, steps: Container[int]) -> bool:
        """True if one of `steps` is the current step, or lies between the previous evaluation's step and it: a sampler may take
        larger steps than the grid's."""
        return any(i in steps for i in range(min(self.previous_step + 1, self.step), self.step + 1))

    @property
    def last_step(self) -> bool:
        return self.step >= self.grid.steps - 1
