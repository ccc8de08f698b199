"""The block hook where other packs change a model's blocks, or the calls of the model: right pictures, nothing left behind, and said."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from torch import nn

from skipstone.patch.blocks.hook import SHAPES
from skipstone.patch.blocks.transformer import LEFT_OUT, ORDER
from skipstone.tests.comfy.block_observer import below, every, insides, untouched

STEPS = 6


class Wrapped(nn.Module):
    """In place of a block."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, *args, **kwargs):
        return self.block(*args, **kwargs)


class Positional(Wrapped):
    """Calls the block in another way than the model does."""

    def forward(self, img, txt, vec, pe, attn_mask=None, transformer_options=None):
        return self.block(img, txt, vec, pe, attn_mask, transformer_options=transformer_options)


class Around(nn.Module):
    """In place of a list of blocks: one that runs them all, or none of them."""

    def __init__(self, blocks):
        super().__init__()
        self.blocks = blocks
        self.runs = True

    def forward(self, img, txt, **kwargs):
        for block in self.blocks if self.runs else ():
            img, txt = block(img=img, txt=txt, **kwargs)
        return img, txt


@pytest.fixture
def own_flux(studio, small_flux):
    """A MODEL that a test may spoil."""
    model = small_flux(depth=2, depth_single_blocks=3)
    studio.sample(model, steps=1)  # loaded, which leaves traces
    return model


def test_blocks_that_another_pack_put_something_around(studio, own_flux, cached):
    plain, (patched, reports) = studio.sample(own_flux, steps=STEPS), cached(every(2), own_flux)
    out = studio.sample(patched, steps=STEPS)
    network = own_flux.model.diffusion_model
    network.double_blocks = nn.ModuleList(Wrapped(b) for b in network.double_blocks)
    network.single_blocks[1] = Wrapped(network.single_blocks[1])
    assert torch.equal(studio.sample(own_flux, steps=STEPS), plain)
    assert torch.equal(studio.sample(patched, steps=STEPS), out)
    assert reports[1].skipped == reports[0].skipped == 2


SPOILT: dict[str, Any] = {
    "twice in the list": lambda n: n.double_blocks.insert(1, n.double_blocks[1]),
    "the first twice in the list": lambda n: n.double_blocks.insert(0, n.double_blocks[0]),
    "the last twice in the list": lambda n: n.single_blocks.append(n.single_blocks[2]),
    "all of them twice": lambda n: n.single_blocks.extend(list(n.single_blocks)),
}


@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize(
    "method", [every(2), every(2, 1, 1), below(1e9)], ids=["static", "last blocks too", "adaptive"]
)
def test_blocks_that_run_twice(studio, own_flux, cached, how, method):
    network = own_flux.model.diffusion_model
    SPOILT[how](network)
    plain = studio.sample(own_flux, steps=STEPS)
    before = insides(own_flux)
    patched, reports = cached(method, own_flux)
    assert torch.equal(studio.sample(patched, steps=STEPS), plain)
    assert [n for n in reports[0].notes if n == ORDER] == [ORDER]
    assert reports[0].skipped == 0
    untouched(before, insides(own_flux))


def coupled(block, img, txt):
    """As Attention Couple: the block runs with two texts, and a mask joins the results."""
    first, second = block(img.clone(), txt.clone()), block(img.clone(), txt.flip(1))
    mask = torch.linspace(0, 1, img.shape[1])[None, :, None]
    return first[0] * mask + second[0] * (1 - mask), first[1]


class Coupled(Wrapped):
    def forward(self, img, txt, **kwargs):
        return coupled(lambda img, txt: self.block(img=img, txt=txt, **kwargs), img, txt)


def with_regions(model, number):
    def couple(args, more):
        def block(img, txt):
            out = more["original_block"]({**args, "img": img, "txt": txt})
            return out["img"], out["txt"]

        img, txt = coupled(block, args["img"], args["txt"])
        return {"img": img, "txt": txt}

    other = model.clone()
    other.set_model_patch_replace(couple, "dit", "double_block", number)
    return other


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(
    "method",
    [every(2), every(2, 1, 1), every(2, 0), below(1e9)],
    ids=["static", "last blocks too", "from the first", "adaptive"],
)
def test_a_block_that_runs_once_for_each_region(studio, own_flux, cached, number, method):
    """It is one of the first, or left out with others: the picture is that of a model whose block does both by itself."""
    patched, reports = cached(method, with_regions(own_flux, number))
    before = insides(own_flux)
    out = studio.sample(patched, steps=STEPS)
    untouched(before, insides(own_flux))
    assert reports[0].skipped > 0 and not reports[0].notes
    blocks = own_flux.model.diffusion_model.double_blocks
    blocks[number] = Coupled(blocks[number])
    assert torch.equal(out, studio.sample(cached(method, own_flux)[0], steps=STEPS))


def during(model, change, undo):
    """A clone of which another pack changes the network for the duration of each call."""
    other = model.clone()

    def wrapper(executor, *args, **kwargs):
        network = executor.class_obj
        change(network)
        try:
            return executor(*args, **kwargs)
        finally:
            undo(network)

    other.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "another pack", wrapper)
    return other


def left_out(network):
    """As a pack that skips layers: the last block is not among them any longer."""
    network.whole = network.single_blocks
    network.single_blocks = network.single_blocks[:-1]


def put_back(network):
    network.single_blocks = network.whole
    del network.whole


def test_a_pack_that_leaves_out_the_last_block_throughout(studio, own_flux, cached):
    """Nothing leaves the blocks, so nothing is kept."""
    other = during(own_flux, left_out, put_back)
    patched, reports = cached(every(2), other)
    assert torch.equal(studio.sample(patched, steps=STEPS), studio.sample(other, steps=STEPS))
    assert reports[0].skipped == 0
    assert LEFT_OUT in reports[0].notes


def test_a_pack_that_begins_to_leave_out_the_last_block_in_mid_run(studio, own_flux, cached):
    """A skip is under way when it shows: the step is computed after all, and none is skipped from there on."""
    calls: list[None] = []

    def change(network):
        calls.append(None)
        if len(calls) > 3:
            left_out(network)

    other = during(own_flux, change, lambda network: hasattr(network, "whole") and put_back(network))
    patched, reports = cached(every(2), other)
    before = insides(own_flux)
    out = studio.sample(patched, steps=8)
    untouched(before, insides(own_flux))
    assert torch.isfinite(out).all()
    assert [e.computed for e in reports[0].evaluations] == [True, False] + [True] * 6
    assert reports[0].evaluations[3].reason == "model changed"
    assert reports[0].notes == [ORDER]


def positional(network):
    network.whole = network.double_blocks
    network.double_blocks = nn.ModuleList(map(Positional, network.double_blocks))


def named_again(network):
    network.double_blocks = network.whole
    del network.whole


def test_a_pack_that_calls_the_blocks_in_its_own_way(studio, own_flux, cached):
    other = during(own_flux, positional, named_again)
    patched, reports = cached(every(2), other)
    assert torch.equal(studio.sample(patched, steps=STEPS), studio.sample(own_flux, steps=STEPS))
    assert reports[0].skipped == 0
    assert ORDER in reports[0].notes


@pytest.mark.parametrize("ours", [every(2), every(2, 1, 1)], ids=["all", "last blocks too"])
def test_a_pack_that_has_a_block_cache_of_its_own(studio, own_flux, cached, ours):
    """One module that runs all blocks, or none of them, stands in place of each list, as WaveSpeed has it."""
    calls: list[None] = []

    def change(network):
        calls.append(None)
        network.whole = network.double_blocks
        network.double_blocks = nn.ModuleList([Around(network.double_blocks)])
        network.double_blocks[0].runs = len(calls) not in (3, 4)

    other = during(own_flux, change, named_again)
    before = insides(own_flux)
    patched, reports = cached(ours, other)
    assert torch.isfinite(studio.sample(patched, steps=8)).all()
    untouched(before, insides(own_flux))
    assert reports[0].finished


def test_a_pack_that_runs_the_model_twice_in_one_call(studio, own_flux, cached):
    def twice(executor, *args, **kwargs):
        return (executor(*args, **kwargs) + executor(*args, **kwargs)) / 2

    other = own_flux.clone()
    other.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "another pack", twice)
    patched, reports = cached(every(2), other)
    assert torch.equal(studio.sample(patched, steps=STEPS), studio.sample(own_flux, steps=STEPS))
    assert reports[0].skipped == 0
    assert ORDER in reports[0].notes


def test_a_pack_that_answers_without_the_model_now_and_then(studio, own_flux, cached):
    """Its evaluations pass for computed, and there is nothing to skip with after them."""
    said: list[Any] = []

    def now_and_then(executor, *args, **kwargs):
        said.append(said[-1] if len(said) == 2 else executor(*args, **kwargs))
        return said[-1].clone()

    other = own_flux.clone()
    other.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "another pack", now_and_then)
    patched, reports = cached(every(2), other)
    assert torch.isfinite(studio.sample(patched, steps=8)).all()
    assert [e.computed for e in reports[0].evaluations] == [True, False, True, True, True, False, True, True]
    assert reports[0].notes == [LEFT_OUT]


@pytest.mark.parametrize("suffix", [0, 1])
def test_tokens_that_come_and_go(studio, own_flux, cached, suffix):
    """Another pack's tokens, in some steps. Where they are kept as well, for the blocks after those that are left out, what was kept does
    not fit: the step is computed after all."""
    calls: list[None] = []

    def more(given):
        calls.append(None)
        if len(calls) > 3:
            given["img"], given["img_ids"] = (torch.cat((given[k], given[k][:, :8]), 1) for k in ("img", "img_ids"))
        return given

    other = own_flux.clone()
    other.set_model_patch(more, "post_input")
    patched, reports = cached(every(2, 1, suffix), other)
    assert torch.isfinite(studio.sample(patched, steps=8)).all()
    told = [e.computed for e in reports[0].evaluations]
    if suffix:
        assert told == [True, False] + [True] * 6
        assert reports[0].notes == [SHAPES]
    else:
        assert told == [True, False] * 3 + [True, True]
        assert reports[0].notes == []
