"""Inner products of a model's derivatives along the schedule, from full runs.

The Gram matrix G[i, j] = <d_i, d_j> (mean over elements, runs and prompts) scores every predictor that is linear in the history: a
displacement error is a combination w of derivatives, and its mean square is w' G w. It is read on another grid by linear
interpolation of the derivatives in t, the share of noise.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..clock import Grid

Array = NDArray[np.float64]
LARGEST = 2000  # evaluations in a file; bounds the work on a hostile one


@dataclass(frozen=True, eq=False)
class Gram:
    """A Gram matrix. Equal and hashed by content, so that a plan solved with it is found again after the file is read anew.

    Parameters
    ----------
    times: falling t of the recorded evaluations, float64, shape (n,).
    products: G relative to the largest mean square, float64, shape (n, n).
    recipe: model, sampler, steps and so on of the recording, for people.
    kept: the recorded value.
    runs: how many runs were averaged.
    """

    times: Array
    products: Array
    recipe: str = ""
    kept: Literal["velocity", "denoised"] = "velocity"
    runs: int = 1

    @cached_property
    def _content(self) -> tuple[str, bytes, bytes]:
        return self.kept, self.times.tobytes(), self.products.tobytes()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Gram) and self._content == other._content

    def __hash__(self) -> int:
        return hash(self._content)

    @classmethod
    def of(
        cls, times: Array, values: Array, recipe: str = "", kept: Literal["velocity", "denoised"] = "velocity"
    ) -> Gram:
        """From one full run: values of shape (n, elements) at the falling times (n,). Raises ValueError unless all are finite."""
        products = values.astype(np.float64) @ values.astype(np.float64).T / values.shape[1]
        if not np.isfinite(products).all():
            raise ValueError("the run's outputs are not finite")
        return cls(np.asarray(times, np.float64), products / max(products.diagonal().max(), 1e-30), recipe, kept)

    def averaged(self, other: Gram) -> Gram:
        """The average of both, weighted by their runs. Raises ValueError unless both have the same times and kept value."""
        if (
            self.kept != other.kept
            or self.times.shape != other.times.shape
            or not np.allclose(self.times, other.times, atol=1e-5)
        ):
            raise ValueError("calibrations of different runs cannot be averaged")
        runs = self.runs + other.runs
        products = (self.products * self.runs + other.products * other.runs) / runs
        return replace(self, products=products, runs=runs)

    @classmethod
    def from_json(cls, text: str) -> Gram:
        """Raises ValueError unless the text was written by `to_json`."""
        try:
            data = json.loads(text)
            times = np.asarray(data["times"], np.float64)
            half = np.asarray(data["products"], np.float64)
            recipe, kept, runs = str(data["recipe"]), data.get("kept", "velocity"), data.get("runs", 1)
            if not isinstance(runs, int) or not all(isinstance(t, int | float) for t in data["times"]):
                raise ValueError("a number is text")
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise ValueError(f"not a Skipstone calibration: {error}") from None
        n = times.size
        if kept not in ("velocity", "denoised") or not 1 <= runs <= 1_000_000 or n > LARGEST:
            raise ValueError("not a Skipstone calibration: a value is out of range")
        if times.ndim != 1 or n < 2 or half.shape != (n * (n + 1) // 2,):
            raise ValueError("not a Skipstone calibration: times and products do not belong together")
        if not (np.isfinite(times).all() and np.isfinite(half).all() and (np.diff(times) < 0).all()):
            raise ValueError("not a Skipstone calibration: its numbers are not finite, or its times do not fall")
        products = np.zeros((n, n))
        products[np.triu_indices(n)] = half
        if times.min() < 0 or times.max() > 1.01 or products.diagonal().min() < 0 or np.abs(half).max() > 1.01:
            raise ValueError("not a Skipstone calibration: its numbers are out of range")
        return cls(times, products + np.triu(products, 1).T, recipe, kept, runs)

    def to_json(self) -> str:
        half = self.products[np.triu_indices(len(self.times))]
        return json.dumps(
            {
                "recipe": self.recipe,
                "kept": self.kept,
                "runs": self.runs,
                "times": [round(float(t), 6) for t in self.times],
                "products": [float(f"{p:.6g}") for p in half],
            }
        )

    def on(self, grid: Grid) -> Array:
        """G between the grid's N steps, shape (N, N)."""
        wanted = grid.times[:-1]
        # weights of linear interpolation in t, clamped at both ends
        place = np.interp(-wanted, -self.times, np.arange(len(self.times), dtype=np.float64))
        low = np.minimum(place.astype(int), len(self.times) - 2)
        mix = place - low
        read = np.zeros((len(wanted), len(self.times)))
        rows = np.arange(len(wanted))
        read[rows, low] = 1 - mix
        read[rows, low + 1] += mix
        return read @ self.products @ read.T


@lru_cache(maxsize=1)
def default() -> Gram:
    """Measured on the demo's small Flux; used until the user's model has costs of its own."""
    return Gram.from_json(Path(__file__).with_name("default_costs.json").read_text("utf-8"))
