"""The interface between the block hook and the adapters: what an adapter reports of a call of the network, and what it is told."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ...core.step.method import Blocks
from ..families import Family
from ..families.tokens import CallInputs

Streams = dict[str, Tensor]
"""The streams through the blocks by name, the image's first. Conditionings that run together share a tensor."""

Look = Callable[[str], Tensor | None]
"""The indicator's input before the skipped blocks, for a value of Blocks.probe; None where there is none."""


class UnexpectedForward(Exception):
    """The model's forward did not follow its family record during a skip. The message is a sentence for the report."""


class Call(Protocol):
    """One call of the network, as adapters see it."""

    def enter(self, base: Streams, look: Look, copy: bool = False) -> Streams | None:
        """The first skipped block is about to run.

        base: the streams that the skipped blocks' residual is added to. look: reads the indicator's input. copy: the model may write
        to `base`.

        Returns None if the blocks are to run; otherwise the output of the last skipped block. Raises UnexpectedForward if the streams'
        shapes differ from the recorded ones.
        """
        ...

    def leave(self, streams: Mapping[str, Tensor], image: Callable[[Tensor], Tensor], channels: int = -1) -> None:
        """The last skipped block has run.

        streams: its output. image: cuts the image's own part out of the first stream. channels: that stream's channel dimension.
        """
        ...

    def cancel(self) -> None:
        """Keep nothing of this call."""
        ...

    def indicated(self, value: Tensor) -> Tensor:
        """The part of a stream that belongs to the indicator's conditioning."""
        ...

    def note(self, sentence: str, warning: bool = True) -> None:
        """Add a sentence to the report."""
        ...

    @property
    def pending(self) -> bool:
        """`enter` was called and `leave` is still to come."""
        ...

    @property
    def first_evaluation(self) -> bool: ...

    @property
    def has_indicator(self) -> bool: ...

    @property
    def wants_modulated(self) -> bool:
        """Whether the first block's modulated input is needed in this call."""
        ...


class BlockAdapter:
    """Observes the input and the output of the skipped blocks in one family's networks.

    batch: the streams' dimension along which a call's conditionings are batched; None where they cannot be separated.
    problem: why nothing can be skipped in this network, a sentence, known after a call of it; "" where it can.
    """

    batch: int | None = 0
    problem: str = ""

    def around(self, network: Any, call: Call, inputs: CallInputs, control: Any) -> AbstractContextManager[None]:
        """For one call of the network: report block inputs and outputs to `call`, and return its prediction instead when it gives one.

        network: the diffusion model. control: ComfyUI's ControlNet outputs for this call. Raises UnexpectedForward if a skip cannot be
        completed.
        """
        raise NotImplementedError

    def rehearsal(
        self, network: Any, call: Call, inputs: CallInputs, control: Any
    ) -> AbstractContextManager[None] | None:
        """After a call: a context in which the same call, made again, has to return the same result; None if nothing has to be checked.
        `rehearsed` is to be called with the outcome."""
        return None

    def rehearsed(self, call: Call, same: bool) -> None:
        """same: the call made again returned the same result."""


@dataclass(frozen=True)
class BlockSupport:
    """A method's access to the blocks of one network.

    Parameters
    ----------
    family: the network's record.
    adapter: observes its blocks.
    blocks: which blocks always run, and the probe, fitted to the network.
    total: number of blocks.
    share: of the blocks' parameters that run on a skip.
    token: latent elements per token.
    width: elements of a token.
    """

    family: Family
    adapter: BlockAdapter
    blocks: Blocks
    total: int
    share: float
    token: int
    width: int

    @property
    def text(self) -> str:
        return f"Fn {self.blocks.prefix}, Bn {self.blocks.suffix}"

    def residual(self, shape: Sequence[int], text: int) -> int:
        """Estimated number of elements of one conditioning's residual.

        shape: of the latent, (B, C, ...). text: number of text tokens.
        """
        tokens = max(math.prod(shape[2:]) // self.token, 1)
        # nothing reads the text after the last block; with a suffix, later blocks do
        return shape[0] * (tokens if self.family.unet or not self.blocks.suffix else tokens + text) * self.width
