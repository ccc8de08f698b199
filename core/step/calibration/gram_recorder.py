"""Records a subsample of every evaluation's output while the model runs in full, for a Gram matrix."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..clock import SAME_STEP, Grid
from ..indicators.reading import subsample
from .gram import Gram


class GramRecorder:
    """One run's outputs at the grid's sigmas, SAMPLE elements each, on the model's device.

    keeps: "denoised" records D, anything else the velocity (x - D) / sigma.
    """

    def __init__(self, grid: Grid, keeps: str) -> None:
        self.grid = grid
        self.keeps = keeps
        self.rows: dict[int, Tensor] = {}
        self.invalid = False

    def invalidate(self) -> None:
        """An observation was wrong: nothing will be learned from this run."""
        self.invalid = True
        self.rows.clear()

    def observe(self, sigma: float, x: Tensor, denoised: Tensor) -> None:
        """The guided D at the latent x. Evaluations off the grid, and repeated ones, are ignored.

        Raises ValueError unless D is one tensor of x's shape: some guiders return several.
        """
        if not isinstance(denoised, Tensor) or denoised.shape != x.shape:
            raise ValueError("the guider returns something else than one tensor of the latent's shape")
        step = self.grid.step_of(sigma)
        if (
            self.invalid
            or sigma <= 0
            or step in self.rows
            or abs(sigma - self.grid.sigmas[step]) > SAME_STEP * self.grid.sigmas[step]
        ):
            return
        d = subsample(denoised)
        self.rows[step] = d if self.keeps == "denoised" else (subsample(x) - d) / sigma

    def gram(self, recipe: str) -> Gram:
        """The Gram matrix of a whole run.

        Raises ValueError where a step was not observed, the latent's size changed, or a value is not finite.
        """
        if not self.grid.falling or sorted(self.rows) != list(range(self.grid.steps)) or self.grid.steps < 2:
            raise ValueError("the sampler did not evaluate the model at every step")
        rows = [self.rows[i] for i in range(self.grid.steps)]
        if len({row.shape for row in rows}) > 1:
            raise ValueError("the latent's size changed during the run")
        values = torch.stack(rows).cpu().numpy()
        return Gram.of(
            np.asarray(self.grid.times[:-1]), values, recipe, "denoised" if self.keeps == "denoised" else "velocity"
        )
