"""Indicators: cheap numbers that estimate how far the output has moved, read before the network (or most of it) runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..calibration.block_profile import BlockProfile
    from ..context import RunContext
    from ..published.coefficients import Network

SAMPLE = 4096  # elements of a latent that are looked at


@dataclass(frozen=True)
class Reading:
    """An indicator's answer for one evaluation.

    Parameters
    ----------
    value: the estimated change of the output. May be inf or NaN: the evaluation is then computed.
    typical: the run's median change between consecutive evaluations, in the unit of `value`; 0 where the indicator has none.
    ratio: the probe's movement since the second-last anchor over its movement between the last two anchors, see ProbeAligned.
    """

    value: float
    typical: float = 0.0
    ratio: float = 1.0


class IndicatorState:
    """An indicator in one run. It follows one slot; tensors stay on their device until `read`."""

    source: str = ""  # whose coefficients are used, for the report
    note: str = ""  # a sentence for the report

    def observe_input(self, seen: Tensor, sigma_changed: bool = True) -> None:
        """A new evaluation: the network's input (output level), or what `Blocks.probe` names (block level), of any shape.

        sigma_changed: False where the evaluation repeats the previous one's sigma, as heun's do.
        """
        raise NotImplementedError

    def observe_output(self, output: Tensor) -> None:
        """The network's answer to the last input: velocity or noise; at block level the first stream's residual."""
        raise NotImplementedError

    def read(self) -> Reading | None:
        """The indicator at the current evaluation, in one host sync; None while too little is known."""
        raise NotImplementedError

    def clear(self) -> None:
        """Forget all observations."""
        raise NotImplementedError


class Indicator:
    """An indicator's configuration: frozen data."""

    def start(self, context: RunContext) -> IndicatorState:
        raise NotImplementedError

    def requires_profile(self, network: Network, profile: BlockProfile | None) -> bool:
        """True if a block profile of the user's own model is required and missing."""
        return False


def subsample(value: Tensor, limit: int = SAMPLE) -> Tensor:
    """About `limit` evenly spaced elements of a tensor of any shape: 1-D, float32, a copy on the same device."""
    flat = value.detach().flatten()
    # a stride that shares no factor with the last two dimensions visits every row and column
    stride = max(-(-flat.numel() // limit), 1) | 1
    while stride > 1 and any(math.gcd(stride, n) > 1 for n in value.shape[-2:]):
        stride += 2
    return flat[::stride].to(torch.float32, copy=True)
