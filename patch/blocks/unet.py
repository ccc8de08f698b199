"""Seeing what the inner levels of a UNet give: the deep feature of DeepCache (arXiv 2312.00858).

ComfyUI's UNet runs the layers in each of its blocks itself. So the blocks are given other layers for the duration of one call of
the network: one that looks on, and on a skip none that computes. The outer blocks on both sides run always, and with them the skip
connections between them.
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
from ..families.tokens import Given
from .hook import Call


class _Layer(Module):
    """A layer that asks somebody."""

    def __init__(self, answer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.answer = answer

    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        return self.answer(x)


class _Blank(Upsample):
    """Gives nothing, of the size of the skip connection that it is to be joined with: ComfyUI tells that to layers of this class."""

    def __init__(self) -> None:
        Module.__init__(self)

    def forward(self, x: Tensor, output_shape: Any = None) -> Tensor:
        return x.new_zeros(len(x), 1, *(x.shape if output_shape is None else output_shape)[2:])


class _Counted(SpatialTransformer):
    """Does nothing: ComfyUI counts layers of this class, and GLIGEN and IPAdapter go by the count."""

    def __init__(self) -> None:
        Module.__init__(self)

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return x


class UNetSeam:
    """For UNets; see blocks.BlockAdapter. The first convolution always runs, and `prefix` input blocks after it."""

    batch: int | None = 0

    def __init__(self, blocks: Blocks) -> None:
        self.prefix = blocks.prefix + 1
        self.suffix = blocks.suffix

    @contextmanager
    def around(self, network: Any, call: Call, given: Given, control: Any) -> Iterator[None]:
        downs, ups = list(network.input_blocks), list(network.output_blocks)
        middle = [network.middle_block] if network.middle_block is not None else []
        # those that a skip leaves out; the decision falls when the block before them is done
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
                before, now = sample(call.watched(before)), sample(call.watched(h))
                return now - before if probe == "residual" and self.prefix > 1 else torch.cat((before, now))

            # the deep feature is kept as it is: it is added to nothing
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
    """What a ControlNet has for blocks that are left out does not fit what stands there instead. The lists are the call's own, and are
    popped from as the UNet goes: what is left of `input`, but the next, and `middle` is for them, and of `output` the first `ups` to
    be popped."""
    if not isinstance(control, dict):
        return
    ins = control.get("input") or []  # the next is for the block whose layers have just run
    control["input"] = [None] * (len(ins) - 1) + ins[-1:]
    control["middle"] = [None] * len(control.get("middle") or ())
    outs = control.get("output") or []
    control["output"] = outs[: max(len(outs) - ups, 0)] + [None] * min(ups, len(outs))
