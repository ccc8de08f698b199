"""What one full run of the user's own model teaches the block-level methods: TeaCache's polynomial and MagCache's ratios.

Both are told from the same numbers, three a step, whatever the size of the model.
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
from ..indicators.output import subsample
from ..published.coefficients import Magnitudes, Polynomial

Array = NDArray[np.float64]
LARGEST = 2000  # steps that a file may have; a hostile one is not worked on for long
LIMIT = 65_536  # elements that are looked at, however large the hidden state
DEGREE = 2


def fit(x: Array, y: Array) -> Polynomial:
    """The polynomial through the pairs (x, y), both (n,), n >= 1, all above 0: least squares with coefficients of at least 0.

    Such a polynomial is above 0 and rises with x, so a larger change never counts less; it is held to the range of x. Of degree 2:
    one run has some 10 to 50 pairs that scatter, the published polynomials have one bend where most pairs lie, and a power more
    only follows the scatter. Errors weigh
    1/sqrt(y), half way between absolute ones, which the few large changes of the first steps would settle, and relative ones.
    """
    weight = 1 / np.sqrt(y)
    powers = np.stack([x**k for k in range(DEGREE + 1)], 1) * weight[:, None]
    wanted = y * weight
    best, least = np.zeros(DEGREE + 1), np.inf
    # three coefficients: the best set of those that are not 0 is found by trying all
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
    """Of the n steps of a full run, or of several such averaged. times: their falling t, the share of noise, (n,). For each step but
    the first, (n - 1,): `ratios`, the mean over tokens of the residual's size over that at the step before; `outputs`, the
    residual's relative L1 change since; `inputs`, that of the modulated input, or empty where there was none to be seen.
    recipe: what was recorded, for people. runs: how many were averaged."""

    times: Array
    ratios: Array
    outputs: Array
    inputs: Array
    recipe: str = ""
    runs: int = 1

    @cached_property
    def polynomial(self) -> Polynomial | None:
        """What change of the residual a change of the modulated input foretells; None where that was not seen."""
        seen = (self.inputs > 0) & (self.outputs > 0) if len(self.inputs) else np.zeros(0, bool)
        return fit(self.inputs[seen], self.outputs[seen]) if seen.any() else None

    @cached_property
    def magnitudes(self) -> Magnitudes:
        return Magnitudes.of(self.times, self.ratios)

    def averaged(self, other: BlockProfile) -> BlockProfile:
        """Both together, each weighing as many runs as it has; both at the same times. Raises ValueError otherwise."""
        if self.times.shape != other.times.shape or not np.allclose(self.times, other.times, atol=1e-5):
            raise ValueError("lessons of different runs cannot be averaged")
        if len(self.inputs) != len(other.inputs):
            raise ValueError("one of them has not seen the modulated input")
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
        """Raises ValueError when the text is none of ours."""
        try:
            data = json.loads(text)
            parts = []
            for name in ("times", "ratios", "outputs", "inputs"):
                values = data[name]
                if not isinstance(values, list) or len(values) > LARGEST:
                    raise ValueError("it has no list of numbers, or too long a one")
                if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
                    raise ValueError("it has words for numbers")
                parts.append(np.asarray(values, np.float64))
            recipe, runs = str(data["recipe"]), data.get("runs", 1)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise ValueError(f"no lessons of Skipstone's: {error}") from None
        times, ratios, outputs, inputs = parts
        n = times.size
        if n < 2 or ratios.size != n - 1 or outputs.size != n - 1 or inputs.size not in (0, n - 1):
            raise ValueError("no lessons of Skipstone's: its parts do not belong together")
        if not isinstance(runs, int) or isinstance(runs, bool) or not 1 <= runs <= 1_000_000:
            raise ValueError("no lessons of Skipstone's: it says nothing that can be")
        if not all(np.isfinite(p).all() for p in parts) or not (np.diff(times) < 0).all():
            raise ValueError("no lessons of Skipstone's: its numbers are not finite, or its times do not fall")
        changes = np.concatenate((outputs, inputs))
        if times.min() < 0 or times.max() > 1.01 or not (ratios.min() > 1e-6 and ratios.max() < 1e6):
            raise ValueError("no lessons of Skipstone's: its numbers are out of range")
        if changes.min() < 0 or changes.max() > 1e6:
            raise ValueError("no lessons of Skipstone's: its numbers are out of range")
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
    """Learns from one run that is computed in full. Three numbers of every step are kept where the model computes, and of the last step
    a subsample; nothing is read before `lessons`."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.steps: list[int] = []
        self.rows: list[list[Tensor]] = []
        self.last: list[Tensor | None] = [None, None, None]
        self.spoilt = False

    def spoil(self) -> None:
        """Something was seen that was not what it was taken for: nothing will come of this run."""
        self.spoilt = True
        self.rows.clear()
        self.last = [None, None, None]

    def observe(self, sigma: float, residual: Tensor, modulated: Tensor | None = None, channels: int = -1) -> None:
        """The residual of the blocks that a skip leaves out, and the first block's modulated input: of the same conditioning at every
        step. channels: the dimension of the residual that is no place in the picture. Only looks on the grid count, and of several there
        the first. Neither tensor is kept or written to."""
        step = self.grid.step_of(sigma)
        at = self.grid.sigmas[step]
        if self.spoilt or sigma <= 0 or step in self.steps[-1:] or abs(sigma - at) > SAME_STEP * at:
            return
        # squares of halves overflow
        wide = torch.promote_types(residual.dtype, torch.float32)
        sizes = torch.linalg.vector_norm(residual.detach(), dim=channels, dtype=wide).flatten()
        sizes = sizes[:: max(-(-sizes.numel() // LIMIT), 1)].clone()
        now = [sizes, subsample(residual, LIMIT), None if modulated is None else subsample(modulated, LIMIT)]
        if self.steps:
            if any(
                (a is None) != (b is None) or (a is not None and b is not None and a.shape != b.shape)
                for a, b in zip(now, self.last, strict=True)
            ):
                self.spoil()
                return
            self.rows.append(_compared(now, self.last))
        self.steps.append(step)
        self.last = now

    def lessons(self, recipe: str) -> BlockProfile:
        """Of a whole run, at the price of one host sync. Raises ValueError where a step was not seen, or what was seen is not finite."""
        n = self.grid.steps
        if self.spoilt or not self.grid.falling or self.steps != list(range(n)) or n < 2:
            raise ValueError("not every step was seen in full")
        columns = torch.stack([torch.stack(row) for row in self.rows], 1).cpu().numpy().astype(np.float64)
        if not np.isfinite(columns).all() or not (columns[0] > 0).all():
            raise ValueError("what the blocks gave is not finite")
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
    # what was nothing before, as padding, has no ratio
    ratios = torch.where(before > 0, sizes / before, torch.nan)
    row = [ratios.nanmean(), (residual - was).abs().mean() / was.abs().mean()]
    if modulated is not None and seen is not None:
        row.append((modulated - seen).abs().mean() / seen.abs().mean())
    return row
