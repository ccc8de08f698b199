"""Indicators: cheap numbers that tell how far the output will have moved, read from the network's input before it runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..policies import RunContext


class IndicatorState(Protocol):
    """An indicator at work on one slot. Everything stays on the device until it is read."""

    def look(self, seen: Tensor, moved: bool = True) -> None:
        """What there is to see at a new evaluation: the network's input at output level, the probe (`Blocks.probe`) at block level.
        moved: sigma is not that of the evaluation before."""
        ...

    def computed(self, output: Tensor) -> None:
        """What the network said to what was seen last: velocity or noise; at block level the first stream's residual."""
        ...

    def read(self) -> float | None:
        """The indicator at the evaluation at hand, one host sync; None while too little is known."""
        ...

    def clear(self) -> None: ...


class Indicator(Protocol):
    """An indicator's configuration: frozen data."""

    def start(self, setting: RunContext) -> IndicatorState: ...


SAMPLE = 4096  # elements that are looked at, however large the latent


def subsample(value: Tensor, limit: int = SAMPLE) -> Tensor:
    """At most about `limit` of the tensor's elements, evenly spread, flat, float32; a new tensor on the same device."""
    flat = value.detach().flatten()
    # an odd stride walks through all columns of a latent whose width is a power of two
    stride = max(-(-flat.numel() // limit), 1) | 1
    while stride > 1 and any(math.gcd(stride, n) > 1 for n in value.shape[-2:]):
        stride += 2
    return flat[::stride].to(torch.float32, copy=True)


@dataclass(frozen=True)
class InputChange:
    """EasyCache's indicator (arXiv 2507.02860): the relative change of the output that the input's move foretells.

    k mean|z - z_ref| / mean|F_c|, with z the network's input, F its output (velocity or noise), c the last computed evaluation, c'
    the one before, and k = mean|F_c - F_c'| / mean|z_c - z_c'|. z_ref: "previous" is the input of the evaluation before,
    computed or not, as published; "anchor" is z_c, as in ComfyUI and stable-diffusion.cpp.

    relative: UCache divides by sqrt(mean|F_c| max(1.6 EMA, 1e-6)) instead of mean|F_c|, EMA the running mean (0.8) of
    mean|F_c - F_c'|.
    """

    reference: Literal["previous", "anchor"] = "previous"
    relative: bool = False

    def start(self, setting: RunContext) -> InputChangeState:
        return InputChangeState(self)


class InputChangeState:
    """An InputChange at work on one slot. Everything stays on the device until it is read."""

    def __init__(self, rule: InputChange) -> None:
        self.rule = rule
        self.clear()

    def clear(self) -> None:
        self.input: Tensor | None = None  # of the evaluation at hand
        self.before: Tensor | None = None  # of the evaluation before
        self.anchor: tuple[Tensor, Tensor] | None = None  # input and output of the last computed evaluation
        self.rate: Tensor | None = None  # k
        self.trend: Tensor | None = None  # EMA of the output's change

    def look(self, z: Tensor, moved: bool = True) -> None:
        """The network's input at a new evaluation, any shape."""
        self.before, self.input = self.input, subsample(z)
        if self.before is not None and self.before.shape != self.input.shape:
            self.clear()
            self.input = subsample(z)

    def computed(self, output: Tensor) -> None:
        """What the network said to the input at hand: velocity or noise, of its shape."""
        assert self.input is not None
        said = subsample(output)
        if self.anchor is not None:
            changed = (said - self.anchor[1]).abs().mean()
            self.rate = changed / (self.input - self.anchor[0]).abs().mean()
            if self.trend is None:
                self.trend = changed
            else:
                # begun anew after an output that was not finite, or nothing would be skipped from there on
                self.trend = torch.where(self.trend.isfinite(), 0.8 * self.trend + 0.2 * changed, changed)
        self.anchor = (self.input, said)

    def read(self) -> float | None:
        """The indicator at the evaluation at hand, one host sync; None while no two computed evaluations are known."""
        reference = self.before if self.rule.reference == "previous" else self.anchor and self.anchor[0]
        if self.input is None or reference is None or self.anchor is None or self.rate is None:
            return None
        level = self.anchor[1].abs().mean()
        value = self.rate * (self.input - reference).abs().mean()
        if self.rule.relative:
            assert self.trend is not None
            value = value / (level * (1.6 * self.trend).clamp(min=1e-6)).sqrt()
        else:
            value = value / level
        return float(value)
