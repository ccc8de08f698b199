"""Learning a model's costs while it runs in full: a subsample of every evaluation's output, and the Gram matrix of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..clock import SAME_STEP, Grid
from ..indicators.output import subsample
from .gram import Gram


class Recorder:
    """One run's outputs at the grid's sigmas, at most SAMPLE elements each, where the model computes."""

    def __init__(self, grid: Grid, kept: str) -> None:
        self.grid = grid
        self.kept = kept
        self.rows: dict[int, Tensor] = {}
        self.spoilt = False

    def spoil(self) -> None:
        """Something was recorded that was not what it was taken for: nothing will come of this run."""
        self.spoilt = True
        self.rows.clear()

    def observe(self, sigma: float, x: Tensor, denoised: Tensor) -> None:
        """The guided D at x, as the sampler gets it. Only looks on the grid count, and of several there the first."""
        step = self.grid.step_of(sigma)
        if (
            self.spoilt
            or sigma <= 0
            or step in self.rows
            or abs(sigma - self.grid.sigmas[step]) > SAME_STEP * self.grid.sigmas[step]
        ):
            return
        d = subsample(denoised)
        self.rows[step] = d if self.kept == "denoised" else (subsample(x) - d) / sigma

    def gram(self, recipe: str) -> Gram:
        """Of a whole run. Raises ValueError where a step was not seen, or what was seen is not finite."""
        if not self.grid.falling or sorted(self.rows) != list(range(self.grid.steps)) or self.grid.steps < 2:
            raise ValueError("not every step was seen in full")
        values = torch.stack([self.rows[i] for i in range(self.grid.steps)]).cpu().numpy()
        return Gram.of(
            np.asarray(self.grid.times[:-1]), values, recipe, "denoised" if self.kept == "denoised" else "velocity"
        )
