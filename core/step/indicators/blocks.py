"""Indicators of block-level methods: what the first blocks say of how far the others will have moved.

All are relative L1 changes, mean|a - b| / mean|b| with b the older, of a subsample. Everything stays on the device until it is
read, and all that is read of an evaluation comes in one transfer.
"""

from __future__ import annotations

import math
from bisect import insort
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..calibration.block_profile import BlockProfile
from ..policies import RunContext
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
from .output import subsample

LIMIT = 65_536  # elements that are looked at, however large the hidden state


NO_POLYNOMIAL = "no polynomial is published for this model, and none was fitted to a run of it: everything is computed"
FOREIGN = (
    "the polynomial {} was fitted to a number that the model's blocks do not get to see: what it makes of theirs is a guess. Take auto "
    "or measured"
)


def sample(value: Tensor) -> Tensor:
    """What of a hidden state is looked at: at most LIMIT of its elements, a copy of its own."""
    return subsample(value, LIMIT)


def change(new: Tensor, old: Tensor) -> Tensor:
    """mean|new - old| / mean|old|, a scalar on their device."""
    return torch.dist(new, old, 1) / torch.linalg.vector_norm(old, 1)


class Changes:
    """The changes from each evaluation to the next, computed or not: scalars that stay on the device until they are read."""

    def __init__(self) -> None:
        self.known: list[float] = []  # those that tell what is typical, smallest first, NaN apart
        self.last = math.nan  # that was read
        self.waiting: list[tuple[Tensor, bool]] = []

    def add(self, change: Tensor, moved: bool) -> None:
        """moved: sigma did, too. Where it did not, as when heun begins a step, the change is nobody's measure."""
        self.waiting.append((change, moved))

    def read(self, *others: Tensor) -> list[float]:
        """Those that were added since the last time, and the values of `others`, in one host sync. Returns the latter."""
        new = [change for change, _ in self.waiting]
        wanted = [*new, *others]
        values: list[float] = torch.stack(wanted).tolist() if len(wanted) > 1 else [float(v) for v in wanted]
        for value, (_, moved) in zip(values, self.waiting, strict=False):
            self.last = value
            if moved and not math.isnan(value):
                insort(self.known, value)
        self.waiting.clear()
        return values[len(new) :]

    @property
    def typical(self) -> float:
        """The run's own measure of change: the (lower) median of the known, NaN apart, and never less than the last.

        So the evaluation right after a computed one is never more than typical, in whatever model, while a few large changes at
        the start do not make typical large. (Where changes only grow, as in our small UNet, a median alone lags behind and hardly
        anything is skipped in the last half; the mean does so too.)
        """
        if not self.known or math.isnan(self.last):
            return self.last
        return max(self.known[(len(self.known) - 1) // 2], self.last)


class Seen:
    """What was seen at the evaluation at hand and at the one before, and the changes so far; another size of it begins anew."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.now: Tensor | None = None
        self.before: Tensor | None = None
        self.changes = Changes()

    def look(self, seen: Tensor, moved: bool = True) -> None:
        now = self.sample(seen)
        if self.now is not None and self.now.shape != now.shape:
            self.clear()
        self.before, self.now = self.now, now
        if self.before is not None:
            self.changes.add(self.change(self.now, self.before), moved)

    def change(self, new: Tensor, old: Tensor) -> Tensor:
        return change(new, old)

    def sample(self, seen: Tensor) -> Tensor:
        return sample(seen)

    def computed(self, output: Tensor) -> None:
        """What the blocks said is of no account here."""


@dataclass(frozen=True)
class FirstBlockChange:
    """First Block Cache's and DBCache's indicator: how far what the first blocks add has moved since the last computed evaluation.

    With it comes `typical`: see there.
    """

    def start(self, setting: RunContext) -> FirstBlockChangeState:
        return FirstBlockChangeState()


class FirstBlockChangeState(Seen):
    """A FirstBlockChange at work on one slot. typical: at the last read; 0 before."""

    typical = 0.0

    def clear(self) -> None:
        super().clear()
        self.anchor: Tensor | None = None

    def computed(self, output: Tensor) -> None:
        self.anchor = self.now

    def read(self) -> float | None:
        if self.now is None or self.before is None or self.anchor is None:
            return None
        # right after a computed evaluation the change since then is the last one, which is known
        moved = self.changes.read(*([] if self.anchor is self.before else [change(self.now, self.anchor)]))
        self.typical = self.changes.typical
        return moved[0] if moved else self.changes.last


@dataclass(frozen=True)
class Modulated:
    """TeaCache's indicator (arXiv 2411.19108): P(x), the change of the output that the modulated input's change x since the evaluation
    before foretells.

    polynomial: AUTO takes the published one for the model at hand, and one fitted to a run of it where none is published;
    MEASURED the fitted one; otherwise a name in teacache.json. Raises ValueError for another.
    """

    polynomial: str = AUTO

    def __post_init__(self) -> None:
        check_name("polynomial", self.polynomial, names(TEACACHE))

    def lacks(self, network: Network, lessons: BlockProfile | None) -> bool:
        """Does it need a full run of the user's own model, and there was none?"""
        return self._chosen(network, lessons)[1] is None

    def _chosen(self, network: Network, lessons: BlockProfile | None) -> tuple[Row | None, Polynomial | None]:
        row = None if self.polynomial == MEASURED else row_of(TEACACHE, self.polynomial, network)
        if row is not None:
            return row, polynomial(row.name)
        return None, lessons.polynomial if lessons else None

    def start(self, setting: RunContext) -> ModulatedState:
        row, chosen = self._chosen(setting.network, setting.lessons)
        if chosen is None:
            return ModulatedState(None, note=NO_POLYNOMIAL)
        if row is None:
            return ModulatedState(chosen, "a run of this model")
        return ModulatedState(chosen, row.name, FOREIGN.format(row.name) if row.data.get("unseen") else "")


class ModulatedState(Seen):
    """A Modulated at work on one slot. source: whose polynomial it is; note: a sentence for the report; typical: P of the typical x."""

    def __init__(self, polynomial: Polynomial | None, source: str = "", note: str = "") -> None:
        super().__init__()
        self.polynomial, self.source, self.note = polynomial, source, note

    def clear(self) -> None:
        super().clear()
        self.typical = 0.0

    def read(self) -> float | None:
        if self.polynomial is None or self.before is None:
            return None
        self.changes.read()
        x = self.changes.last
        if not math.isfinite(x):
            return x
        self.typical = self.polynomial(self.changes.typical)
        return self.polynomial(x)


@dataclass(frozen=True)
class Probed:
    """DiCache's indicator (ICLR 2026): how the hidden state after the first blocks has changed since the evaluation before, dy, or by
    how much more or less than the one that entered them, |dy - dx|.

    It looks at both side by side, in the last dimension (`Blocks.probe` "states"). With it come `typical`, of what adds up, and
    `ratio`: with p what the first blocks add, a and b the last and second-last computed evaluations, mean|p - p_b| / mean|p_a - p_b|,
    held within 1 and `most`, or what `known` has for the model at hand.
    """

    error: Literal["dy", "dy-dx"] = "dy"
    most: float = 1.5
    known: tuple[tuple[Network, float], ...] = ()

    def start(self, setting: RunContext) -> ProbedState:
        most = next((most for facts, most in self.known if fits(facts, setting.network)), self.most)
        return ProbedState(replace(self, most=most))


class ProbedState(Seen):
    """A Probed at work on one slot. What is kept is (2, n): the state that enters the first blocks, and the one that leaves them."""

    def __init__(self, rule: Probed) -> None:
        super().__init__()
        self.rule = rule

    def clear(self) -> None:
        super().clear()
        self.anchors: list[Tensor] = []  # what the first blocks added, at the last two computed evaluations
        self.ratio = 1.0
        self.typical = 0.0

    def sample(self, seen: Tensor) -> Tensor:
        return torch.stack([sample(half) for half in seen.chunk(2, -1)])

    @property
    def added(self) -> Tensor:
        assert self.now is not None
        return self.now[1] - self.now[0]

    def computed(self, output: Tensor) -> None:
        if self.now is not None:
            self.anchors = [*self.anchors[-1:], self.added]

    def change(self, new: Tensor, old: Tensor) -> Tensor:
        error = change(new[1], old[1])
        return (error - change(new[0], old[0])).abs() if self.rule.error == "dy-dx" else error

    def read(self) -> float | None:
        self.ratio = 1.0
        if self.before is None:
            return None
        ratio: list[Tensor] = []
        if len(self.anchors) == 2:
            b, a = self.anchors
            ratio = [(self.added - b).abs().mean() / (a - b).abs().mean()]
        for g in self.changes.read(*ratio):
            if math.isfinite(g):
                self.ratio = min(max(g, 1.0), self.rule.most)
        self.typical = self.changes.typical
        return self.changes.last
