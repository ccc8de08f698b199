"""Output-level indicator: the change of the output, estimated from the change of the network's input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..context import RunContext
from .base import Indicator, IndicatorState
from .reading import Reading, subsample


@dataclass(frozen=True)
class InputChange(Indicator):
    """EasyCache's indicator (Zhou et al. 2025, https://arxiv.org/abs/2507.02860): k mean|z - z_ref| / mean|F_c|.

    z is the network's input, F its output (velocity or noise), c the last computed evaluation and c' the one before it;
    k = mean|F_c - F_c'| / mean|z_c - z_c'|.

    Parameters
    ----------
    reference: z_ref. "previous": the input of the previous evaluation, computed or not, as published. "anchor": z_c, as in
        ComfyUI and stable-diffusion.cpp.
    relative: divide by sqrt(mean|F_c| max(1.6 EMA, 1e-6)) in place of mean|F_c|, where EMA is the running mean (factor 0.8) of
        mean|F_c - F_c'|. UCache of stable-diffusion.cpp.
    """

    reference: Literal["previous", "anchor"] = "previous"
    relative: bool = False

    def start(self, context: RunContext) -> InputChangeState:
        return InputChangeState(self, context.parts)


class InputChangeState(IndicatorState):
    """InputChange in one run."""

    def __init__(self, config: InputChange, parts: Sequence[int] = ()) -> None:
        self.config = config
        self.parts = parts
        self.clear()

    def clear(self) -> None:
        self.input: Tensor | None = None  # of the current evaluation
        self.previous: Tensor | None = None  # of the previous evaluation
        self.anchor: tuple[Tensor, Tensor] | None = None  # input and output of the last computed evaluation
        self.rate: Tensor | None = None  # k
        self.trend: Tensor | None = None  # EMA of the output's change

    def observe_input(self, seen: Tensor, sigma_changed: bool = True) -> None:
        self.previous, self.input = self.input, subsample(seen, parts=self.parts)
        if self.previous is not None and self.previous.shape != self.input.shape:
            self.clear()
            self.input = subsample(seen, parts=self.parts)

    def observe_output(self, output: Tensor) -> None:
        assert self.input is not None
        sample = subsample(output, parts=self.parts)
        if self.anchor is not None:
            change = (sample - self.anchor[1]).abs().mean()
            self.rate = change / (self.input - self.anchor[0]).abs().mean()
            if self.trend is None:
                self.trend = change
            else:
                # restart after a non-finite output: a NaN in the running mean would stay for the rest of the run
                self.trend = torch.where(self.trend.isfinite(), 0.8 * self.trend + 0.2 * change, change)
        self.anchor = (self.input, sample)

    def read(self) -> Reading | None:
        reference = self.previous if self.config.reference == "previous" else self.anchor and self.anchor[0]
        if self.input is None or reference is None or self.anchor is None or self.rate is None:
            return None
        size = self.anchor[1].abs().mean()
        value = self.rate * (self.input - reference).abs().mean()
        if self.config.relative:
            assert self.trend is not None
            value = value / (size * (1.6 * self.trend).clamp(min=1e-6)).sqrt()
        else:
            value = value / size
        return Reading(float(value))
