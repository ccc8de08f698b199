"""Numbers published for models: TeaCache's polynomials (teacache.json), MagCache's magnitude ratios (magcache.json), and how a model is
known to be one of theirs.

A model is known by ComfyUI's own description of it, the `unet_config` that it made from the weights, and by "reference": True where
a picture is given beside the latent. A row says which facts of it must be so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..clock import Grid

Network = Mapping[str, object]
"""What is known of the model at hand, see above; nothing where nothing is."""

AUTO, MEASURED = "auto", "measured"


def fits(wanted: Network, network: Network) -> bool:
    """Is every wanted fact so? None wants one that is None or not there."""
    return all(network.get(key) == value for key, value in wanted.items())


def check_name(what: str, name: str, known: Iterable[str]) -> None:
    """Raises ValueError unless `name` is AUTO, MEASURED or known."""
    choices = [AUTO, MEASURED, *known]
    if name not in choices:
        raise ValueError(f"{what} is one of {', '.join(choices)}, not {name!r}")


@dataclass(frozen=True)
class Polynomial:
    """P(x): what change of the output a change x of the indicator foretells. coefficients: highest first. Held to [low, high], outside
    of which the fit says nothing, and never below x / 2: where a polynomial says 0 or less no change would ever add up, and
    everything would be skipped."""

    coefficients: tuple[float, ...]
    low: float = 0.0
    high: float = math.inf

    def __call__(self, x: float) -> float:
        at = min(max(x, self.low), self.high)
        value = 0.0
        for c in self.coefficients:
            value = value * at + c
        return max(value, x / 2)

    @classmethod
    def published(cls, coefficients: Iterable[float]) -> Polynomial:
        """With the range that it can be believed in, as nobody has published those that they were fitted on: the first stretch of 0..1
        where 0 <= P <= 1, since an output cannot change by more than all of itself; and where that ends with P falling, it ends at P's
        last maximum, since a larger change of the input is no smaller one of the output."""
        coefficients = tuple(coefficients)
        x = np.linspace(0, 1, 10_001)
        y = np.polyval(coefficients, x)
        good = (y >= 0) & (y <= 1)
        first = int(good.argmax())
        end = first + int((~good[first:]).argmax() or good[first:].sum())
        rising = np.flatnonzero(np.diff(y[first:end]) > 0)
        last = first + int(rising[-1]) + 1 if len(rising) else end - 1
        return cls(coefficients, float(x[first]), float(x[last]))


@dataclass(frozen=True, eq=False)
class Magnitudes:
    """How the residual's size goes along the schedule: `logs`, its logarithm at the falling `times` (t, the share of noise), both (n,).
    The ratio between any two steps of any schedule is the difference of the logs at their times."""

    times: NDArray[np.float64]
    logs: NDArray[np.float64]

    @classmethod
    def of(cls, times: Iterable[float], ratios: Iterable[float]) -> Magnitudes:
        """ratios: of the residual's size at each time but the first to that at the time before."""
        logs = np.concatenate(([0.0], np.cumsum(np.log(np.fromiter(ratios, np.float64)))))
        return cls(np.fromiter(times, np.float64), logs)

    def ratios(self, grid: Grid) -> NDArray[np.float64]:
        """Of each of the grid's steps to the one before, shape (N,), the first 1. Below the last time the last slope goes on."""
        t = grid.times[:-1]
        logs = np.interp(-t, -self.times, self.logs)
        slope = (self.logs[-1] - self.logs[-2]) / (self.times[-1] - self.times[-2])
        logs += np.minimum(t - self.times[-1], 0) * slope
        return np.exp(np.diff(logs, prepend=logs[:1]))


@dataclass(frozen=True)
class Row:
    """network: the facts a model of this row has; none where it is only taken by name. steps: of the run it was measured on."""

    name: str
    network: Network
    steps: int
    data: dict[str, Any]


@lru_cache(maxsize=4)
def rows(file: str) -> tuple[Row, ...]:
    told = json.loads(Path(__file__).with_name(file).read_text("utf-8"))
    return tuple(Row(r["name"], r.get("for", {}), r.get("steps", 0), r) for r in told["models"])


TEACACHE, MAGCACHE = "teacache.json", "magcache.json"


def names(file: str) -> list[str]:
    return [row.name for row in rows(file)]


def row_of(file: str, name: str, network: Network, steps: int = 0) -> Row | None:
    """By its name; for AUTO the first one that the model fits, of several such the one measured at the nearest number of steps."""
    if name != AUTO:
        return next((row for row in rows(file) if row.name == name), None)
    found = [row for row in rows(file) if row.network and fits(row.network, network)]
    if found and steps:
        alike = [row for row in found if row.network == found[0].network]
        return min(alike, key=lambda row: abs(math.log(row.steps / steps)))
    return found[0] if found else None


@lru_cache(maxsize=64)
def polynomial(name: str) -> Polynomial:
    row = row_of(TEACACHE, name, {})
    assert row is not None
    return Polynomial.published(row.data["coefficients"])


@lru_cache(maxsize=64)
def magnitudes(name: str) -> Magnitudes:
    row = row_of(MAGCACHE, name, {})
    assert row is not None
    t = 1 - np.arange(row.steps) / row.steps
    shift = row.data["shift"]
    return Magnitudes.of(shift * t / (1 + (shift - 1) * t), row.data["ratios"])
