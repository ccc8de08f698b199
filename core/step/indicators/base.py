"""Indicators: cheap numbers that estimate how far the output has moved, read before the network (or most of it) runs."""

from __future__ import annotations

from torch import Tensor

from ..calibration.block_profile import BlockProfile
from ..context import RunContext
from ..published.coefficients import Network
from .reading import Reading


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
