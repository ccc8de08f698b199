"""The adapter of UNets: replaces the output of the inner levels, the deep feature of DeepCache (https://arxiv.org/abs/2312.00858).

ComfyUI's UNet runs the layers of each block itself, so for one call of the network the blocks get other layers: one that observes, and on
a skip none that computes. The outer blocks on both sides always run, with the skip connections between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import Upsample
from torch import Tensor
from torch.nn import Module

from ...core.step.indicators.blocks import sample
from ...core.step.method import Blocks
from ..families.tokens import CallInputs
from .base import BlockAdapter, Call


class _Layer(Module):
    """A layer whose output is a function's."""

    def __init__(self, answer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.answer = answer

    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        return self.answer(x)


class _Blank(Upsample):
    """Zeros of the size of the skip connection that they are concatenated with, which ComfyUI passes to layers of this class."""

    def __init__(self) -> None:
        Module.__init__(self)

    def forward(self, x: Tensor, output_shape: Any = None) -> Tensor:
        return x.new_zeros(len(x), 1, *(x.shape if output_shape is None else output_shape)[2:])


class _Counted(SpatialTransformer):
    """The identity: ComfyUI counts layers of this class, and GLIGEN and IPAdapter depend on the count."""

    def __init__(self) -> None:
        Module.__init__(self)

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return x


class UNetAdapter(BlockAdapter):
    """For UNets; see base.BlockAdapter. The first convolution always runs, and `prefix` input blocks after it."""

    def __init__(self, blocks: Blocks) -> None:
        self.prefix = blocks.prefix + 1
        self.suffix = blocks.suffix

    @contextmanager
    def around(self, network: Any, call: Call, inputs: CallInputs, control: Any) -> Iterator[None]:
        downs, ups = list(network.input_blocks), list(network.output_blocks)
        middle = [network.middle_block] if network.middle_block is not None else []
        # the blocks that a skip leaves out; the decision is made after the block before them
        inner = [*downs[self.prefix :], *middle, *ups[: len(ups) - self.suffix]]
        last = inner[-1]
        touched = [downs[0], downs[self.prefix - 1], *inner]
        before = {id(b): b._modules for b in touched}
        start: list[Tensor] = []

        def look(h: Tensor) -> Tensor:
            def see(probe: str) -> Tensor | None:
                if probe == "modulated":
                    return None
                before = start[0] if start[0].shape == h.shape else torch.zeros_like(h)
                before, now = sample(call.indicated(before)), sample(call.indicated(h))
                return now - before if probe == "residual" and self.prefix > 1 else torch.cat((before, now))

            # the deep feature is kept as it is: a residual on a base of zero
            feature = call.enter({"h": h.new_zeros(())}, see)
            if feature is None:
                put(last, [*last, _Layer(leave)])
            else:
                _silence(control, len(ups) - self.suffix)
                for block in inner:
                    counted = [_Counted() for layer in block if isinstance(layer, SpatialTransformer)]
                    put(block, [*counted, _Layer(lambda _: feature["h"]) if block is last else _Blank()])
            return h

        def leave(h: Tensor) -> Tensor:
            call.leave({"h": h}, lambda v: v, channels=1)
            return h

        def begin(h: Tensor) -> Tensor:
            start.append(h)
            return h

        def put(block: Any, layers: list[Any]) -> None:
            vars(block)["_modules"] = {str(i): layer for i, layer in enumerate(layers)}

        try:
            put(downs[0], [*downs[0], _Layer(begin)])
            put(downs[self.prefix - 1], [*downs[self.prefix - 1], _Layer(look)])
            yield
        finally:
            for block in touched:
                vars(block)["_modules"] = before[id(block)]


def _silence(control: Any, ups: int) -> None:
    """Remove a ControlNet's outputs for the skipped blocks, which do not fit their replacements.

    The lists belong to this call, and the UNet pops from them: all of `input` but the next, `middle`, and the first `ups` of `output` to be
    popped.
    """
    if not isinstance(control, dict):
        return
    ins = control.get("input") or []  # the next is for the block that has just run
    control["input"] = [None] * (len(ins) - 1) + ins[-1:]
    control["middle"] = [None] * len(control.get("middle") or ())
    outs = control.get("output") or []
    control["output"] = outs[: max(len(outs) - ups, 0)] + [None] * min(ups, len(outs))
