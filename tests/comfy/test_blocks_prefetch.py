"""The block hook under dynamic VRAM: ComfyUI's loop fetches the weights of each block before its turn. That goes on in order where
blocks are left out, and nothing is left held."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.ops
import pytest
import torch
from torch.nn import Linear, Module

from skipstone.core.step.method import Method
from skipstone.core.step.report.report import Report
from skipstone.patch.blocks.hook import OOM
from skipstone.patch.blocks.transformer import ORDER
from skipstone.patch.families import Family, family_of
from skipstone.patch.step.attach import attach
from skipstone.tests.comfy import zoo
from skipstone.tests.comfy.block_observer import entries, every
from skipstone.tests.comfy.test_families import METHODS

prefetch = pytest.importorskip("comfy.model_prefetch")
aimdo = pytest.importorskip("comfy_aimdo.model_vbar")

MODELS = [m for m in zoo.MODELS if m.name in ("LTXAV", "MiniMaxH3") and hasattr(comfy.model_base, m.base)]
each = pytest.mark.parametrize("tiny", MODELS, ids=str)


def blocks_of(network: Module) -> list[Module]:
    family = family_of(network)
    assert isinstance(family, Family)
    return [block for stack in family.stacks for block in entries(network, stack)]


def layers_of(block: Module) -> list[Any]:
    return [m for m in block.modules() if isinstance(m, Linear)]


@dataclass
class Queue:
    """One call of the network. left: its queue; asked: the blocks that it was popped from for."""

    left: list[Any]
    asked: list[Module | None] = field(default_factory=list)


class DynamicVram:
    """ComfyUI's own queues, on a CPU that passes for a GPU. Of the weights that go through them it only keeps the books: which layers'
    are held there now. They must be those of the block that runs."""

    def __init__(self, network: Module, patch: pytest.MonkeyPatch) -> None:
        self.blocks = blocks_of(network)
        self.queues: list[Queue] = []
        self.held: set[int] = set()  # by index
        self.ran = 0
        self.fetched: list[int] = []  # indices of layers, in order
        for block in self.blocks:
            for layer in layers_of(block):
                layer._v = id(layer)
                layer.register_forward_pre_hook(lambda layer, _, block=block: self._runs(layer, block))
        self.make, self.pop = prefetch.make_prefetch_queue, prefetch.prefetch_queue_pop
        patch.setattr(prefetch, "make_prefetch_queue", self._make)
        patch.setattr(prefetch, "prefetch_queue_pop", self._pop)
        patch.setattr(comfy.ops, "cast_modules_with_vbar", self._fetch)
        patch.setattr(aimdo, "vbar_unpin", self.held.discard)

    def _make(self, blocks: list[Module], device: Any, options: dict[str, Any]) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(comfy.model_management, "NUM_STREAMS", 2)
            queue = self.make(blocks, torch.device("cuda"), {**options, "prefetch_dynamic_vbars": True})
        self.queues.append(Queue(queue))
        return queue

    def _pop(self, queue: list[Any], device: Any, block: Module | None) -> None:
        next(q for q in self.queues if q.left is queue).asked.append(block)
        self.pop(queue, device, block)

    def _fetch(self, layers: list[Any], *_: Any) -> None:
        for layer in layers:
            self.fetched.append(layer._v)
            self.held.add(layer._v)
            layer._prefetch = {"signature": "held"}

    def _runs(self, layer: Any, block: Module) -> None:
        assert hasattr(layer, "_prefetch")
        assert self.held == {m._v for m in layers_of(block)}, "what is held is not the block that runs"
        self.ran += 1

    def emptied(self, queue: Queue) -> bool:
        """Was it popped from for each block in its turn, and once more, and is nothing left in it?"""
        return queue.asked == [*self.blocks, None] and queue.left == [None]

    def check(self) -> None:
        assert not self.held
        assert not any(hasattr(layer, "_prefetch") for block in self.blocks for layer in layers_of(block))


@contextmanager
def dynamic_vram(network: Module) -> Iterator[DynamicVram]:
    """While it lasts. Nothing may be left then that only the end of the node does away with."""
    with pytest.MonkeyPatch.context() as patch:
        vram = DynamicVram(network, patch)
        try:
            yield vram
            vram.check()
        finally:
            prefetch.cleanup_prefetch_queues()


def sampled(tiny: zoo.Tiny, model: Any, conds: Any, method: Method) -> tuple[list[torch.Tensor], Report]:
    reports: list[Report] = []
    with torch.inference_mode():
        out = zoo.sample(tiny, attach(model, method, (reports.append,)), *conds)
    return list(out.unbind()), reports[0]


HOW = {
    "the first block runs": every(2),
    "no block runs": every(2, 0),
    "the last block runs, too": every(2, 1, 1),
    "the first block runs in part": METHODS["TeaCache"](1e9),
}


@pytest.mark.parametrize("how", HOW)
@each
def test_blocks_that_are_left_out_have_their_turn_all_the_same(tiny, how):
    model = tiny.build()
    conds = tiny.conds(model)
    out, _ = sampled(tiny, model, conds, HOW[how])
    with dynamic_vram(model.model.diffusion_model) as vram:
        fetched, report = sampled(tiny, model, conds, HOW[how])
        assert report.skipped
        assert len(vram.queues) >= len(report.evaluations)
        assert all(map(vram.emptied, vram.queues))
        assert vram.ran
    assert all(map(torch.equal, fetched, out))


@each
def test_the_weights_of_blocks_that_are_left_out_are_not_fetched(tiny):
    """But for the first of them, which is there when the decision falls."""
    model = tiny.build()
    conds, network = tiny.conds(model), model.model.diffusion_model
    with dynamic_vram(network) as vram:
        _, report = sampled(tiny, model, conds, every(2))
        calls = len(vram.queues) // len(report.evaluations)
        fetched = [vram.fetched.count(layers_of(block)[0]._v) for block in vram.blocks]
        computed, skipped = report.computed * calls, report.skipped * calls
        assert fetched == [computed + skipped] * 2 + [computed] * (len(vram.blocks) - 2)


class Late:
    """While it lasts a layer raises, once: at the first call of it after the first step."""

    def __init__(self, network: Module, layer: Module) -> None:
        self.sigmas: list[float] = []
        self.raised = False
        self.handles = [
            network.register_forward_pre_hook(self._call, with_kwargs=True),
            layer.register_forward_pre_hook(self._raise),
        ]

    def _call(self, _: Any, args: Any, kwargs: Any) -> None:
        self.sigmas.append(float(kwargs["transformer_options"]["sigmas"][0]))

    def _raise(self, *_: Any) -> None:
        if self.sigmas[-1] < self.sigmas[0] and not self.raised:
            self.raised = True
            raise torch.OutOfMemoryError("no memory, as a test has it")

    def __enter__(self) -> Late:
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self.handles:
            handle.remove()


# which block it is where memory runs out
MEMORY = {
    "before the decision": (every(2), 0),
    "in a skip": (every(2, 1, 1), 3),
    "in a computed step": (every(2), 2),
}


@pytest.mark.parametrize("when", MEMORY)
@each
def test_a_second_try_after_memory_ran_out_begins_with_nothing_held(tiny, when):
    model = tiny.build()
    conds, network = tiny.conds(model), model.model.diffusion_model
    method, block = MEMORY[when]

    def run() -> tuple[list[torch.Tensor], Report]:
        with Late(network, layers_of(blocks_of(network)[block])[0]):
            return sampled(tiny, model, conds, method)

    out, _ = run()
    with dynamic_vram(network) as vram:
        fetched, report = run()
        assert OOM in report.notes
        (given_up,) = [queue for queue in vram.queues if not vram.emptied(queue)]
        assert given_up.asked == vram.blocks[: block + 1]
    assert all(map(torch.equal, fetched, out))


@each
def test_a_second_try_of_a_model_that_another_pack_changed_begins_with_nothing_held(tiny):
    """The last block runs twice, from the second step on: that shows in the midst of a skip."""
    model = tiny.build()
    conds = tiny.conds(model)
    sigmas: list[float] = []

    def twice(given: Any, more: Any) -> Any:
        sigmas.append(float(given["transformer_options"]["sigmas"][0]))
        again = {**given, **more["original_block"](given)} if sigmas[-1] < sigmas[0] else given
        return more["original_block"](again)

    last = len(blocks_of(model.model.diffusion_model)) - 1
    model.set_model_patch_replace(twice, "dit", "double_block", last)
    out, _ = sampled(tiny, model, conds, every(2))
    with dynamic_vram(model.model.diffusion_model) as vram:
        fetched, report = sampled(tiny, model, conds, every(2))
        assert report.notes[0] == ORDER
        assert report.evaluations[1].reason == "model changed"
        (given_up,) = [queue for queue in vram.queues if not vram.emptied(queue)]
        assert given_up.asked == vram.blocks
    assert all(map(torch.equal, fetched, out))
