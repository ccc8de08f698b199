"""Where a run is: the sampler's sigma grid, and the place of the current evaluation on it."""

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
END = 1e-3  # nearest to pure signal or pure noise that a log-SNR is told apart
SAME_STEP = 1e-3  # of a sigma: an evaluation at a step of the grid, not between two
ON_GRID = 1e-3  # of a step: SDE samplers and float32 move a grid's sigma by that little


@dataclass(frozen=True)
class Grid:
    """The sampler's falling sigmas, N + 1 of them for N steps, and ComfyUI's map from percent to sigma.

    `flow`: sigma is itself the share of noise in the latent, 0..1; else noise grows with it (eps, v, EDM). A grid that
    does not fall (restarts, hand-made lists) is kept as it is and says so with `falling`: no place on it is certain, so
    nothing is skipped there.
    """

    sigmas: tuple[float, ...]
    flow: bool = True
    percent_to_sigma: Callable[[float], float] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(
        cls, sigmas: Sequence[float], flow: bool = True, percent_to_sigma: Callable[[float], float] | None = None
    ) -> Grid:
        return cls(tuple(float(s) for s in sigmas), flow, percent_to_sigma)

    @property
    def times(self) -> NDArray[np.float64]:
        """The share of noise at every sigma, t in 0..1, shape (N + 1,): what schedules of different models have in common."""
        sigmas = np.asarray(self.sigmas, np.float64)
        return sigmas if self.flow else sigmas / (1 + sigmas)

    def along(self, coordinate: Coordinate) -> Callable[[float], float]:
        """What predictors extrapolate in, as a function of sigma: sigma itself, the share of noise, half the log of
        noise over signal power (kept finite at a flow's ends), or the place on the grid in steps. "auto": sigma where it
        is a share of noise, log-SNR elsewhere."""
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

    @cached_property
    def falling(self) -> bool:
        return all(a > b >= 0 for a, b in zip(self.sigmas, self.sigmas[1:], strict=False))

    @cached_property
    def _rising(self) -> list[float]:
        return [-s for s in self.sigmas[: self.steps]]

    def step_of(self, sigma: float) -> int:
        """The step i with sigma_i >= sigma > sigma_{i+1}; a sigma just off a grid point counts as on it."""
        i = bisect_left(self._rising, -sigma)
        if i < self.steps:
            gap = self.sigmas[i] - self.sigmas[i + 1]
            if sigma - self.sigmas[i] > ON_GRID * gap and i > 0:
                i -= 1
            return i
        return self.steps - 1

    def sigma_at(self, percent: float) -> float:
        """Sigma at a fraction of ComfyUI's timestep range (not of the steps), as ControlNet's start and end percent."""
        if percent <= 0:
            return math.inf
        if percent >= 1:
            return -math.inf
        if self.percent_to_sigma is not None:
            return float(self.percent_to_sigma(percent))
        return (1 - percent) * self.sigmas[0]


class Clock:
    """The current evaluation: its number, its sigma, its step, and how the run came there. Filled by `Run`."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.evaluation = -1
        self.sigma = math.nan
        self.step = -1
        self.before = -1  # the step of the evaluation before
        self.rose = False
        self.moved = True  # sigma did, since the evaluation before: heun begins a step where it ended the last one
        self.skips = 0  # skipped evaluations since the anchor
        self.skipped = 0  # in the whole run
        self.ratio = 1.0  # how far the probe moved, in moves from the last anchor but one to the last: see ProbeAligned
        self.typical = 0.0  # change of the indicator from one evaluation to the next: see Threshold

    def tick(self, sigma: float) -> None:
        """A new evaluation by the sampler at this sigma. Nothing is counted: the step comes from sigma."""
        self.rose = sigma > self.sigma * (1 + 1e-6)  # false for the first, whose predecessor is nan
        self.moved = not math.isclose(sigma, self.sigma, rel_tol=1e-6)
        self.evaluation += 1
        self.ratio = 1.0  # until the indicator is asked
        self.sigma = sigma
        self.before = self.step
        self.step = self.grid.step_of(sigma)

    def passed(self, computed: bool) -> None:
        self.skips = 0 if computed else self.skips + 1
        self.skipped += not computed

    def arrived(self, steps: Container[int]) -> bool:
        """Is one of `steps` the step at hand, or one that the sampler, with larger steps of its own, stepped over on its way here?"""
        return any(i in steps for i in range(min(self.before + 1, self.step), self.step + 1))

    @property
    def last_step(self) -> bool:
        return self.step >= self.grid.steps - 1
