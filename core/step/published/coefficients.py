"""Published numbers per model: TeaCache's polynomials (teacache.json) and MagCache's magnitude ratios (magcache.json).

A row lists the facts that a model must have: entries of the `unet_config` that ComfyUI detects from the weights, and "reference": True for
a model that is given a picture beside the latent.
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
"""Facts about a model, see above."""

AUTO, MEASURED = "auto", "measured"


def fits(wanted: Network, network: Network) -> bool:
    """True if the model has every wanted fact. A wanted None matches a fact that is None or missing."""
    return all(network.get(key) == value for key, value in wanted.items())


def check_name(what: str, name: str, known: Iterable[str]) -> None:
    """Raises ValueError unless `name` is AUTO, MEASURED or known."""
    choices = [AUTO, MEASURED, *known]
    if name not in choices:
        raise ValueError(f"{what} is one of {', '.join(choices)}, not {name!r}")


@dataclass(frozen=True)
class Polynomial:
    """P(x): the expected change of the output for a change x of the indicator.

    x is clamped to [low, high], the range of the fit. P is at least x / 2: where a polynomial is 0 or negative, changes would never
    accumulate and every step would be skipped.

    coefficients: highest power first.
    """

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
        """A published polynomial with a plausible range, since the ranges of the fits are not published.

        The first interval of 0..1 where 0 <= P <= 1; where P falls at its end, up to P's last maximum.
        """
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
    """The residual's size along the schedule. The ratio between two steps of any schedule is exp of the difference of their logs.

    times: falling t, the share of noise, shape (n,). logs: logarithm of the size at each time, shape (n,).
    """

    times: NDArray[np.float64]
    logs: NDArray[np.float64]

    @classmethod
    def of(cls, times: Iterable[float], ratios: Iterable[float]) -> Magnitudes:
        """ratios: of the residual's size at each time but the first to the previous one, shape (n - 1,)."""
        logs = np.concatenate(([0.0], np.cumsum(np.log(np.fromiter(ratios, np.float64)))))
        return cls(np.fromiter(times, np.float64), logs)

    def ratios(self, grid: Grid) -> NDArray[np.float64]:
        """The ratios between the grid's N steps and their predecessors, shape (N,); the first is 1. Log-linear below the last time."""
        t = grid.times[:-1]
        logs = np.interp(-t, -self.times, self.logs)
        slope = (self.logs[-1] - self.logs[-2]) / (self.times[-1] - self.times[-2])
        logs += np.minimum(t - self.times[-1], 0) * slope
        return np.exp(np.diff(logs, prepend=logs[:1]))


@dataclass(frozen=True)
class Row:
    """network: the facts that a model of this row has; empty for a row that is only chosen by name. steps: of the measured run."""

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
    """The row of this name; for AUTO the first that fits the model, and of several alike the one with the nearest number of steps."""
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
