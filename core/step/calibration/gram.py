"""Inner products of a model's derivatives along the schedule, from recorded runs.

The Gram matrix G[i, j] = <d_i, d_j> (mean over elements, runs and prompts) scores every predictor that is linear in the history: a
displacement error is a combination w of derivatives, and its mean square is w' G w.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..clock import Grid

Array = NDArray[np.float64]
Value = Literal["velocity", "denoised"]
LARGEST = 2000  # rows in a file; bounds the work on a hostile one


@dataclass(frozen=True, eq=False)
class Gram:
    """A Gram matrix of n evaluations. Equal and hashed by content, so that a plan solved with it is found again after the file is
    read anew.

    Parameters
    ----------
    times: falling t of the recorded evaluations, float64, shape (n,).
    products: G relative to the largest mean square, float64, shape (passes n, passes n).
    recipe: model, sampler, steps and so on of the recording, for people.
    kept: the recorded value.
    runs: how many runs were averaged.
    passes: 1: the rows are the guided values. 2: first the n conditional values, then the n unconditional ones, from which those of
        any CFG follow.
    """

    times: Array
    products: Array
    recipe: str = ""
    kept: Value = "velocity"
    runs: int = 1
    passes: int = 1

    @cached_property
    def _content(self) -> tuple[str, int, bytes, bytes]:
        return self.kept, self.passes, self.times.tobytes(), self.products.tobytes()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Gram) and self._content == other._content

    def __hash__(self) -> int:
        return hash(self._content)

    @classmethod
    def of(cls, times: Array, values: Array, recipe: str = "", kept: Value = "velocity", passes: int = 1) -> Gram:
        """From one run: values of shape (passes n, elements) at the falling times (n,). Raises ValueError unless all are finite."""
        products = values.astype(np.float64) @ values.astype(np.float64).T / values.shape[1]
        if not np.isfinite(products).all():
            raise ValueError("the run's outputs are not finite")
        products /= max(products.diagonal().max(), 1e-30)
        return cls(np.asarray(times, np.float64), products, recipe, kept, passes=passes)

    def averaged(self, other: Gram) -> Gram:
        """The average of both, weighted by their runs. Raises ValueError unless both have the same times, kept value and passes."""
        if (
            (self.kept, self.passes) != (other.kept, other.passes)
            or self.times.shape != other.times.shape
            or not np.allclose(self.times, other.times, atol=1e-5)
        ):
            raise ValueError("calibrations of different runs cannot be averaged")
        runs = self.runs + other.runs
        products = (self.products * self.runs + other.products * other.runs) / runs
        return replace(self, products=products, runs=runs)

    def guided(self, cfg: float) -> Gram:
        """The Gram matrix of u + cfg (c - u), c and u being the conditional and the unconditional values; itself where it has one pass."""
        if self.passes == 1:
            return self
        n = len(self.times)
        mix = np.hstack((cfg * np.eye(n), (1 - cfg) * np.eye(n)))
        products = mix @ self.products @ mix.T
        return replace(self, products=products / max(products.diagonal().max(), 1e-30), passes=1)

    @classmethod
    def from_json(cls, text: str) -> Gram:
        """Raises ValueError unless the text was written by `to_json`."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not a Skipstone calibration: {error}") from None
        return cls.from_data(data)

    @classmethod
    def from_data(cls, data: Any) -> Gram:
        """From what `as_data` returned, as JSON kept it. Raises ValueError for anything else."""
        try:
            times = np.asarray(data["times"], np.float64)
            half = np.asarray(data["products"], np.float64)
            recipe, kept, runs = str(data["recipe"]), data.get("kept", "velocity"), data.get("runs", 1)
            passes = data.get("passes", 1)
            if not isinstance(runs, int) or not all(isinstance(t, int | float) for t in data["times"]):
                raise ValueError("a number is text")
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError, AttributeError) as error:
            raise ValueError(f"not a Skipstone calibration: {error}") from None
        n = times.size
        if kept not in ("velocity", "denoised") or not 1 <= runs <= 1_000_000 or passes not in (1, 2):
            raise ValueError("not a Skipstone calibration: a value is out of range")
        rows = n * passes
        if times.ndim != 1 or n < 2 or rows > LARGEST or half.shape != (rows * (rows + 1) // 2,):
            raise ValueError("not a Skipstone calibration: times and products do not belong together")
        if not (np.isfinite(times).all() and np.isfinite(half).all() and (np.diff(times) < 0).all()):
            raise ValueError("not a Skipstone calibration: its numbers are not finite, or its times do not fall")
        products = np.zeros((rows, rows))
        products[np.triu_indices(rows)] = half
        if times.min() < 0 or times.max() > 1.01 or products.diagonal().min() < 0 or np.abs(half).max() > 1.01:
            raise ValueError("not a Skipstone calibration: its numbers are out of range")
        return cls(times, products + np.triu(products, 1).T, recipe, kept, runs, int(passes))

    def as_data(self) -> dict[str, Any]:
        """JSON-ready: the upper half of the matrix by rows, in six digits."""
        half = self.products[np.triu_indices(len(self.products))]
        return {
            "recipe": self.recipe,
            "kept": self.kept,
            "runs": self.runs,
            **({"passes": self.passes} if self.passes > 1 else {}),
            "times": [round(float(t), 6) for t in self.times],
            "products": [float(f"{p:.6g}") for p in half],
        }

    def to_json(self) -> str:
        return json.dumps(self.as_data())

    def on(self, grid: Grid) -> Array:
        """`at` the grid's N steps, shape (N, N)."""
        return self.at(grid.times[:-1])

    def at(self, wanted: Array) -> Array:
        """G between `wanted` times of shape (N,), in any order: shape (N, N). Of a Gram matrix of one pass.

        Between two recorded times the values are on the line through both, plus a random deviation, so that they are not taken for
        predictable: a Brownian bridge whose variance in the middle is that of the error of linear interpolation over this gap. Beyond
        the first and the last time they are on the line through the nearest two, with the deviation of linear extrapolation. Both errors
        are -d''/2 times the distances to the two times; d'' is measured as a second divided difference.
        """
        place = np.interp(-wanted, -self.times, np.arange(len(self.times), dtype=np.float64))
        low = np.minimum(place.astype(int), len(self.times) - 2)
        gap = self.times[low] - self.times[low + 1]
        mix = (self.times[low] - wanted) / gap  # below 0 or above 1 beyond the ends
        read = np.zeros((len(wanted), len(self.times)))
        rows = np.arange(len(wanted))
        read[rows, low] = 1 - mix
        read[rows, low + 1] += mix

        outside = np.maximum(np.maximum(-mix, mix - 1), 0)  # distance from the nearest recorded time, in gaps
        bend = np.sqrt(self._bend[low] * self._bend[low + 1]) * gap**2 / 2
        size = np.where(
            outside > 0, bend * outside * (outside + 1), bend / 4
        )  # RMS of the deviation; in the middle of a gap
        inside = np.clip(mix, 0, 1)
        bridge = 4 * np.minimum.outer(inside, inside) * (1 - np.maximum.outer(inside, inside))
        near, far = np.minimum.outer(outside, outside), np.maximum.outer(outside, outside)
        beyond = np.sqrt(near / np.maximum(far, 1e-12)) * np.equal.outer(mix > 1, mix > 1)
        deviation = np.outer(size, size) * np.where(far > 0, beyond, bridge) * np.equal.outer(low, low)
        return np.asarray(read @ self.products @ read.T + deviation)

    @cached_property
    def _bend(self) -> Array:
        """The RMS second derivative of the value by t at each recorded time, shape (n,); the ends have their neighbours'."""
        n, t = len(self.times), self.times
        if n < 3:
            return np.zeros(n)
        before, after = t[:-2] - t[1:-1], t[1:-1] - t[2:]
        second = np.zeros((n - 2, n))
        rows = np.arange(n - 2)
        second[rows, rows] = 2 / (before * (before + after))
        second[rows, rows + 1] = -2 / (before * after)
        second[rows, rows + 2] = 2 / (after * (before + after))
        square = np.einsum("ij,jk,ik->i", second, self.products, second)
        return np.pad(np.sqrt(np.maximum(square, 0)), 1, mode="edge")
