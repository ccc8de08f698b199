"""Block-level measurements of a full run of the user's own model, for TeaCache's polynomial and MagCache's ratios.

Both are computed from the same three numbers a step.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..clock import SAME_STEP, Grid
from ..indicators.reading import subsample
from ..published.coefficients import Magnitudes, Polynomial

Array = NDArray[np.float64]
LARGEST = 2000  # steps in a file; bounds the work on a hostile one
LIMIT = 65_536  # elements of a hidden state that are looked at
DEGREE = 2


def fit(x: Array, y: Array) -> Polynomial:
    """The least-squares polynomial of degree DEGREE through the pairs (x, y), with non-negative coefficients, clamped to the range of x.

    Non-negative coefficients make it rise with x, so that a larger change of the input never counts less. Errors are weighted by
    1/sqrt(y), between absolute errors, which the large changes of the first steps would dominate, and relative ones.

    x, y: float64, shape (n,), n >= 1, all above 0.
    """
    weight = 1 / np.sqrt(y)
    powers = np.stack([x**k for k in range(DEGREE + 1)], 1) * weight[:, None]
    wanted = y * weight
    best, least = np.zeros(DEGREE + 1), np.inf
    # three coefficients: try every subset of non-zero ones
    for size in range(1, DEGREE + 2):
        for chosen in combinations(range(DEGREE + 1), size):
            some = powers[:, chosen]
            found = np.linalg.lstsq(some, wanted, rcond=None)[0]
            miss = float(np.square(some @ found - wanted).sum())
            if (found >= 0).all() and miss < least - 1e-12:
                best, least = np.zeros(DEGREE + 1), miss
                best[list(chosen)] = found
    return Polynomial(tuple(float(c) for c in best[::-1]), float(x.min()), float(x.max()))


@dataclass(frozen=True, eq=False)
class BlockProfile:
    """The n steps of a full run, or the average of several such runs.

    Parameters
    ----------
    times: falling t, the share of noise, shape (n,).
    ratios: mean over tokens of the residual's norm over that of the previous step, shape (n - 1,).
    outputs: relative L1 change of the residual since the previous step, shape (n - 1,).
    inputs: that of the modulated input, shape (n - 1,), or empty where it was not observed.
    recipe: model, sampler and so on of the recording, for people.
    runs: how many runs were averaged.
    """

    times: Array
    ratios: Array
    outputs: Array
    inputs: Array
    recipe: str = ""
    runs: int = 1

    @cached_property
    def polynomial(self) -> Polynomial | None:
        """The residual's change as a function of the modulated input's; None where that was not observed."""
        seen = (self.inputs > 0) & (self.outputs > 0) if len(self.inputs) else np.zeros(0, bool)
        return fit(self.inputs[seen], self.outputs[seen]) if seen.any() else None

    @cached_property
    def magnitudes(self) -> Magnitudes:
        return Magnitudes.of(self.times, self.ratios)

    def averaged(self, other: BlockProfile) -> BlockProfile:
        """The average of both, weighted by their runs. Raises ValueError unless both have the same times and inputs."""
        if self.times.shape != other.times.shape or not np.allclose(self.times, other.times, atol=1e-5):
            raise ValueError("block profiles of different runs cannot be averaged")
        if len(self.inputs) != len(other.inputs):
            raise ValueError("one of them has no modulated input")
        runs = self.runs + other.runs

        def mean(a: Array, b: Array) -> Array:
            return (a * self.runs + b * other.runs) / runs

        return replace(
            self,
            ratios=mean(self.ratios, other.ratios),
            outputs=mean(self.outputs, other.outputs),
            inputs=mean(self.inputs, other.inputs),
            runs=runs,
        )

    @classmethod
    def from_json(cls, text: str) -> BlockProfile:
        """Raises ValueError unless the text was written by `to_json`."""
        try:
            data = json.loads(text)
            parts = []
            for name in ("times", "ratios", "outputs", "inputs"):
                values = data[name]
                if not isinstance(values, list) or len(values) > LARGEST:
                    raise ValueError("a list of numbers is missing or too long")
                if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
                    raise ValueError("a number is text")
                parts.append(np.asarray(values, np.float64))
            recipe, runs = str(data["recipe"]), data.get("runs", 1)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise ValueError(f"not a Skipstone block profile: {error}") from None
        times, ratios, outputs, inputs = parts
        n = times.size
        if n < 2 or ratios.size != n - 1 or outputs.size != n - 1 or inputs.size not in (0, n - 1):
            raise ValueError("not a Skipstone block profile: its lists have different lengths")
        if not isinstance(runs, int) or isinstance(runs, bool) or not 1 <= runs <= 1_000_000:
            raise ValueError("not a Skipstone block profile: a value is out of range")
        if not all(np.isfinite(p).all() for p in parts) or not (np.diff(times) < 0).all():
            raise ValueError("not a Skipstone block profile: its numbers are not finite, or its times do not fall")
        changes = np.concatenate((outputs, inputs))
        if times.min() < 0 or times.max() > 1.01 or not (ratios.min() > 1e-6 and ratios.max() < 1e6):
            raise ValueError("not a Skipstone block profile: its numbers are out of range")
        if changes.min() < 0 or changes.max() > 1e6:
            raise ValueError("not a Skipstone block profile: its numbers are out of range")
        return cls(times, ratios, outputs, inputs, recipe, runs)

    def to_json(self) -> str:
        def short(values: Array) -> list[float]:
            return [float(f"{v:.6g}") for v in values]

        return json.dumps(
            {
                "recipe": self.recipe,
                "runs": self.runs,
                "times": [round(float(t), 6) for t in self.times],
                "ratios": short(self.ratios),
                "outputs": short(self.outputs),
                "inputs": short(self.inputs),
            }
        )


class BlockProfiler:
    """Measures one run that is computed in full. Keeps three scalars a step and a subsample of the last step on the model's device, and
    reads nothing before `profile`."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.steps: list[int] = []
        self.rows: list[list[Tensor]] = []
        self.last: list[Tensor | None] = [None, None, None]
        self.invalid = False

    def invalidate(self) -> None:
        """An observation was wrong: nothing will be learned from this run."""
        self.invalid = True
        self.rows.clear()
        self.last = [None, None, None]

    def observe(self, sigma: float, residual: Tensor, modulated: Tensor | None = None, channels: int = -1) -> None:
        """One evaluation. Those off the grid, and repeated ones, are ignored. Neither tensor is kept or written to.

        residual: of the blocks that a skip leaves out, of the same conditioning in every step. modulated: the first block's modulated
        input. channels: the residual's channel dimension.
        """
        step = self.grid.step_of(sigma)
        at = self.grid.sigmas[step]
        if self.invalid or sigma <= 0 or step in self.steps[-1:] or abs(sigma - at) > SAME_STEP * at:
            return
        # squares overflow in half precision
        wide = torch.promote_types(residual.dtype, torch.float32)
        sizes = torch.linalg.vector_norm(residual.detach(), dim=channels, dtype=wide).flatten()
        sizes = sizes[:: max(-(-sizes.numel() // LIMIT), 1)].clone()
        now = [sizes, subsample(residual, LIMIT), None if modulated is None else subsample(modulated, LIMIT)]
        if self.steps:
            if any(
                (a is None) != (b is None) or (a is not None and b is not None and a.shape != b.shape)
                for a, b in zip(now, self.last, strict=True)
            ):
                self.invalidate()
                return
            self.rows.append(_compared(now, self.last))
        self.steps.append(step)
        self.last = now

    def profile(self, recipe: str) -> BlockProfile:
        """The profile of a whole run, in one host sync. Raises ValueError where a step was not observed, or a value is not finite."""
        n = self.grid.steps
        if self.invalid or not self.grid.falling or self.steps != list(range(n)) or n < 2:
            raise ValueError("the sampler did not evaluate the model at every step")
        columns = torch.stack([torch.stack(row) for row in self.rows], 1).cpu().numpy().astype(np.float64)
        if not np.isfinite(columns).all() or not (columns[0] > 0).all():
            raise ValueError("the blocks' output is not finite")
        return BlockProfile(
            np.asarray(self.grid.times[:-1]),
            columns[0],
            columns[1],
            columns[2] if len(columns) > 2 else np.zeros(0),
            recipe,
        )


def _compared(now: list[Tensor | None], last: list[Tensor | None]) -> list[Tensor]:
    sizes, residual, modulated = now
    before, was, seen = last
    assert sizes is not None and residual is not None and before is not None and was is not None
    # tokens that were zero, such as padding, have no ratio
    ratios = torch.where(before > 0, sizes / before, torch.nan)
    row = [ratios.nanmean(), (residual - was).abs().mean() / was.abs().mean()]
    if modulated is not None and seen is not None:
        row.append((modulated - seen).abs().mean() / seen.abs().mean())
    return row
