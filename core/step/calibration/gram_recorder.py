"""Records a subsample of the computed evaluations' outputs, for a Gram matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..clock import SAME_STEP, Grid
from ..indicators.reading import subsample
from .gram import Gram

MOST = 64  # steps of a run that are recorded: a plan is solved on no more
FEWEST = 4  # recorded steps that a Gram matrix needs
NEAR = 0.4  # share of a step up to which an evaluation below the step's sigma is one of it
ENOUGH = 0.75  # share of the steps that a full run needs where the sampler's sigmas are off the grid
LINEAR = 1e-2  # relative error up to which a guider combines two passes as classifier-free guidance does


class GramRecorder:
    """One run's outputs at the grid's sigmas, on the model's device: about SAMPLE elements of the guided output and of each pass, of at
    most MOST steps.

    Parameters
    ----------
    grid: the run's.
    keeps: "denoised" records D, anything else the velocity (x - D) / sigma.
    cfg: the guidance scale; None where the guider has none.
    parts: lengths of the modalities in a packed latent, which weigh the same.
    """

    def __init__(self, grid: Grid, keeps: str, cfg: float | None = None, parts: Sequence[int] = ()) -> None:
        self.grid = grid
        self.keeps = keeps
        self.cfg = cfg
        self.parts = parts
        self.steps = {int(i) for i in np.linspace(0, grid.steps - 1, min(grid.steps, MOST)).round()}
        self.rows: dict[int, Tensor] = {}
        self.passes: dict[int, tuple[Tensor, Tensor]] = {}  # conditional and unconditional
        self.times: dict[int, float] = {}  # by recorded step, of evaluations off the grid
        self.invalid = False

    def invalidate(self) -> None:
        """An observation was wrong: nothing will be learned from this run."""
        self.invalid = True
        self.rows.clear()
        self.passes.clear()

    def observe_passes(self, sigma: float, x: Tensor, conditional: Tensor, unconditional: Tensor) -> None:
        """The two D of a computed evaluation before they are combined, of x's shape each. The last call of an evaluation counts."""
        step = self._step(sigma)
        if step is not None and conditional.shape == unconditional.shape == x.shape:
            seen = self._sample(x)
            self.passes[step] = self._value(sigma, seen, conditional), self._value(sigma, seen, unconditional)

    def observe(self, sigma: float, x: Tensor, denoised: Tensor) -> None:
        """The guided D at the latent x, of a computed evaluation. The first of each step counts, at the step's sigma or a little below it,
        where Detail Daemon evaluates the model.

        Raises ValueError unless D is one tensor of x's shape: some guiders return several.
        """
        if not isinstance(denoised, Tensor) or denoised.shape != x.shape:
            raise ValueError("the guider returns something else than one tensor of the latent's shape")
        step = self._step(sigma)
        if step is not None:
            self.rows[step] = self._value(sigma, self._sample(x), denoised)
            if abs(sigma - self.grid.sigmas[step]) > SAME_STEP * sigma:
                self.times[step] = sigma if self.grid.flow else sigma / (1 + sigma)

    def _step(self, sigma: float) -> int | None:
        """The step to record this evaluation for; None for one that is not recorded: it is not its step's first."""
        step = self.grid.step_of(sigma)
        if self.invalid or sigma <= 0 or step in self.rows or step not in self.steps:
            return None
        at, after = self.grid.sigmas[step : step + 2]
        return step if at - sigma <= max(NEAR * (at - after), SAME_STEP * at) else None

    def _sample(self, value: Tensor) -> Tensor:
        return subsample(value, parts=self.parts)

    def _value(self, sigma: float, seen: Tensor, denoised: Tensor) -> Tensor:
        """The recorded value. seen: the subsample of the latent."""
        d = self._sample(denoised)
        return d if self.keeps == "denoised" else (seen - d) / sigma

    def gram(self, recipe: str, full: bool = True) -> Gram:
        """The Gram matrix of the run, in one transfer from the device. full: every step was to be computed.

        Raises ValueError where a step of a full run was not observed (off the grid: less than ENOUGH of them), or fewer than FEWEST of
        another run, where the latent's size changed, or a value is not finite.
        """
        seen = sorted(self.rows)
        least = len(self.steps) * (ENOUGH if self.times else 1)
        if not self.grid.falling or self.grid.steps < 2 or (full and len(seen) < least):
            raise ValueError("the sampler did not evaluate the model at every step")
        if not full and len(seen) < FEWEST:
            raise ValueError("too few steps were computed")
        rows = [self.rows[i] for i in seen]
        passes = 1
        if self.cfg is not None and self.cfg != 1 and self.passes.keys() >= set(seen):
            pairs = [self.passes[i] for i in seen]
            rows += [c for c, _ in pairs] + [u for _, u in pairs]
            passes = 2
        if len({row.shape for row in rows}) > 1:
            raise ValueError("the latent's size changed during the run")
        values = torch.stack(rows).cpu().numpy()
        guided = values[: len(seen)]
        if passes == 2 and self.cfg is not None:
            conditional, unconditional = np.split(values[len(seen) :], 2)
            linear = unconditional + self.cfg * (conditional - unconditional)
            if np.linalg.norm(linear - guided) <= LINEAR * np.linalg.norm(guided):
                guided = values[len(seen) :]
            else:
                passes = 1
        times = np.asarray([self.times.get(i, self.grid.times[i]) for i in seen])
        return Gram.of(times, guided, recipe, "denoised" if self.keeps == "denoised" else "velocity", passes)
