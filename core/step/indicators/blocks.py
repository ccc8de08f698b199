"""Block-level indicators: the change of the whole stack's output, estimated from the first blocks.

All of them are relative L1 changes, mean|new - old| / mean|old|, of a subsample of at most LIMIT elements. Values stay on the device
until they are read, and all values of an evaluation are read in one transfer.
"""

from __future__ import annotations

import math
from bisect import insort
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ...texts import Text
from ..calibration.block_profile import BlockProfile
from ..context import RunContext
from ..published.coefficients import (
    AUTO,
    MEASURED,
    TEACACHE,
    Network,
    Polynomial,
    Row,
    check_name,
    fits,
    names,
    polynomial,
    row_of,
)
from ..report.messages import OWN_MODEL
from .base import Indicator, IndicatorState
from .reading import Reading, subsample

LIMIT = 65_536  # elements of a hidden state that are looked at

NO_POLYNOMIAL = Text(
    "no_polynomial", "no polynomial is published for this model and none was measured on it: every step is computed"
)
FOREIGN = Text(
    "foreign_polynomial",
    "the polynomial {name} was fitted to an input that the model's blocks do not receive, so its threshold is a rough guess here; "
    "choose auto or measured",
)


def sample(value: Tensor) -> Tensor:
    """At most LIMIT elements of a hidden state: a 1-D float32 copy."""
    return subsample(value, LIMIT)


def change(new: Tensor, old: Tensor) -> Tensor:
    """mean|new - old| / mean|old| as a scalar tensor on their device."""
    return torch.dist(new, old, 1) / torch.linalg.vector_norm(old, 1)


class Changes:
    """The changes between consecutive evaluations, computed or not. They stay on the device until `read`."""

    def __init__(self) -> None:
        self.known: list[float] = []  # for the median: ascending, without NaN
        self.last = math.nan  # the newest that was read
        self.pending: list[tuple[Tensor, bool]] = []

    def add(self, change: Tensor, sigma_changed: bool) -> None:
        """A scalar. Where sigma did not change between the two evaluations, it does not count towards the median."""
        self.pending.append((change, sigma_changed))

    def read(self, *others: Tensor) -> list[float]:
        """Read all pending changes and the scalars `others` in one host sync; returns the values of `others`."""
        new = [change for change, _ in self.pending]
        wanted = [*new, *others]
        values: list[float] = torch.stack(wanted).tolist() if len(wanted) > 1 else [float(v) for v in wanted]
        for value, (_, sigma_changed) in zip(values, self.pending, strict=False):
            self.last = value
            if sigma_changed and not math.isnan(value):
                insort(self.known, value)
        self.pending.clear()
        return values[len(new) :]

    @property
    def typical(self) -> float:
        """The lower median of the run's changes so far, and never less than the newest.

        The maximum keeps the evaluation after a computed one at or below 1 in this unit on every model; the median keeps a few large
        changes at the start from raising the unit for the whole run.
        """
        if not self.known or math.isnan(self.last):
            return self.last
        return max(self.known[(len(self.known) - 1) // 2], self.last)


class ProbeState(IndicatorState):
    """The probe at the current and the previous evaluation, and its changes so far. A new shape clears all."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.current: Tensor | None = None
        self.previous: Tensor | None = None
        self.changes = Changes()

    def observe_input(self, seen: Tensor, sigma_changed: bool = True) -> None:
        current = self.sample(seen)
        if self.current is not None and self.current.shape != current.shape:
            self.clear()
        self.previous, self.current = self.current, current
        if self.previous is not None:
            self.changes.add(self.change(self.current, self.previous), sigma_changed)

    def observe_output(self, output: Tensor) -> None:
        pass  # the probe alone is compared

    def change(self, new: Tensor, old: Tensor) -> Tensor:
        return change(new, old)

    def sample(self, seen: Tensor) -> Tensor:
        return sample(seen)


@dataclass(frozen=True)
class FirstBlockChange(Indicator):
    """First Block Cache's and DBCache's indicator: the change of the first blocks' residual since the last computed evaluation.

    Source: ParaAttention, https://github.com/chengzeyi/ParaAttention; cache-dit, https://github.com/vipshop/cache-dit.
    """

    def start(self, context: RunContext) -> FirstBlockChangeState:
        return FirstBlockChangeState()


class FirstBlockChangeState(ProbeState):
    """FirstBlockChange in one run."""

    def clear(self) -> None:
        super().clear()
        self.anchor: Tensor | None = None

    def observe_output(self, output: Tensor) -> None:
        self.anchor = self.current

    def read(self) -> Reading | None:
        if self.current is None or self.previous is None or self.anchor is None:
            return None
        # directly after a computed evaluation the change since then is the newest of `changes`
        since = [] if self.anchor is self.previous else [change(self.current, self.anchor)]
        values = self.changes.read(*since)
        since_anchor = values[0] if values else self.changes.last
        return Reading(since_anchor, self.changes.typical, change=since_anchor)


@dataclass(frozen=True)
class Modulated(Indicator):
    """TeaCache's indicator (Liu et al. 2024, https://arxiv.org/abs/2411.19108): P(x), with x the change of the first block's modulated
    input since the previous evaluation and P a polynomial fitted per model.

    Parameters
    ----------
    polynomial: AUTO: the one published for the model, else the one measured on it. MEASURED: the measured one. Otherwise a name in
        published/teacache.json. Raises ValueError for another name.
    """

    polynomial: str = AUTO

    def __post_init__(self) -> None:
        check_name("polynomial", self.polynomial, names(TEACACHE))

    def requires_profile(self, network: Network, profile: BlockProfile | None) -> bool:
        return self._choose(network, profile)[1] is None

    def _choose(self, network: Network, profile: BlockProfile | None) -> tuple[Row | None, Polynomial | None]:
        row = None if self.polynomial == MEASURED else row_of(TEACACHE, self.polynomial, network)
        if row is not None:
            return row, polynomial(row.name)
        return None, profile.polynomial if profile else None

    def start(self, context: RunContext) -> ModulatedState:
        row, chosen = self._choose(context.network, context.block_profile)
        if chosen is None:
            return ModulatedState(None, note=NO_POLYNOMIAL)
        if row is None:
            return ModulatedState(chosen, OWN_MODEL)
        return ModulatedState(chosen, row.name, FOREIGN.of(name=row.name) if row.data.get("unseen") else "")


class ModulatedState(ProbeState):
    """Modulated in one run."""

    def __init__(self, polynomial: Polynomial | None, source: str = "", note: str = "") -> None:
        super().__init__()
        self.polynomial, self.source, self.note = polynomial, source, note

    def read(self) -> Reading | None:
        if self.polynomial is None or self.previous is None:
            return None
        self.changes.read()
        x = self.changes.last
        if not math.isfinite(x):
            return Reading(x)
        return Reading(self.polynomial(x), self.polynomial(self.changes.typical), change=x)


@dataclass(frozen=True)
class Probed(Indicator):
    """DiCache's indicator (Bu et al. 2025, https://arxiv.org/abs/2508.17356), on the hidden states x before and y after the first blocks.

    The two arrive side by side in the last dimension (`Blocks.probe` "states"). `Reading.ratio` is mean|p - p_b| / mean|p_a - p_b|, with
    p the first blocks' residual and a, b the last and second-last computed evaluations.

    Parameters
    ----------
    error: "dy": the change of y since the previous evaluation. "dy-dx": its absolute difference from the change of x.
    max_ratio: `ratio` is clamped to [1, max_ratio].
    per_model: (facts, max_ratio) pairs; the first whose facts the model has replaces `max_ratio`.
    """

    error: Literal["dy", "dy-dx"] = "dy"
    max_ratio: float = 1.5
    per_model: tuple[tuple[Network, float], ...] = ()

    def start(self, context: RunContext) -> ProbedState:
        most = next((most for facts, most in self.per_model if fits(facts, context.network)), self.max_ratio)
        return ProbedState(replace(self, max_ratio=most))


class ProbedState(ProbeState):
    """Probed in one run. Samples are (2, n): the state before the first blocks, and the one after them."""

    def __init__(self, config: Probed) -> None:
        super().__init__()
        self.config = config

    def clear(self) -> None:
        super().clear()
        self.anchors: list[Tensor] = []  # the first blocks' residual at the last two computed evaluations

    def sample(self, seen: Tensor) -> Tensor:
        return torch.stack([sample(half) for half in seen.chunk(2, -1)])

    @property
    def residual(self) -> Tensor:
        assert self.current is not None
        return self.current[1] - self.current[0]

    def observe_output(self, output: Tensor) -> None:
        if self.current is not None:
            self.anchors = [*self.anchors[-1:], self.residual]

    def change(self, new: Tensor, old: Tensor) -> Tensor:
        after = change(new[1], old[1])
        return (after - change(new[0], old[0])).abs() if self.config.error == "dy-dx" else after

    def read(self) -> Reading | None:
        if self.previous is None:
            return None
        wanted: list[Tensor] = []
        if len(self.anchors) == 2:
            b, a = self.anchors
            wanted = [(self.residual - b).abs().mean() / (a - b).abs().mean()]
        ratio = 1.0
        for value in self.changes.read(*wanted):
            if math.isfinite(value):
                ratio = min(max(value, 1.0), self.config.max_ratio)
        return Reading(self.changes.last, self.changes.typical, ratio, self.changes.last)
