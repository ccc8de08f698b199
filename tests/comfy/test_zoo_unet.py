"""The facts about UNets that their block hook relies on, observed with PyTorch hooks. The pack's own hooks are not in use here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from skipstone.patch.families import Family, family_of
from skipstone.tests.comfy import zoo
from skipstone.tests.comfy.zoo import unet


@dataclass
class Call:
    """What one call of a UNet was given, and what it said."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    said: torch.Tensor


@dataclass
class Visit:
    """A UNet, sampled once. visits: for each of its calls, the layers (part, block, layer) in the order in which they ran."""

    network: Any
    calls: list[Call]
    visits: list[list[tuple[str, int, int]]]


Blocks = list[list[torch.nn.Module]]


def parts(network: Any) -> dict[str, Blocks]:
    """The layers in each block of a UNet's three parts."""
    middle = [] if network.middle_block is None else [list(network.middle_block)]
    return {
        "input": [list(b) for b in network.input_blocks],
        "middle": middle,
        "output": [list(b) for b in network.output_blocks],
    }


@pytest.fixture(scope="module")
def seen(tiny) -> Visit:
    model = tiny.build()
    network = model.model.diffusion_model
    visit = Visit(network, [], [])

    def begin(module, args, kwargs):
        visit.visits.append([])

    def end(module, args, kwargs, said):
        options = {k: v for k, v in kwargs["transformer_options"].items() if k not in ("wrappers", "callbacks")}
        visit.calls.append(Call(args, {**kwargs, "transformer_options": options}, said))

    handles = [
        network.register_forward_pre_hook(begin, with_kwargs=True),
        network.register_forward_hook(end, with_kwargs=True),
    ]
    for place, layer in layers(parts(network)):
        handles.append(layer.register_forward_hook(lambda *_, place=place: visit.visits[-1].append(place)))
    with torch.inference_mode():
        zoo.sample(tiny, model, *tiny.conds(model))
    for handle in handles:
        handle.remove()
    return visit


def layers(all_parts: dict[str, Blocks]) -> Iterator[tuple[tuple[str, int, int], torch.nn.Module]]:
    for part, blocks in all_parts.items():
        for b, block in enumerate(blocks):
            for i, layer in enumerate(block):
                yield (part, b, i), layer


UNETS = zoo.here(unet.MODELS)


def pytest_generate_tests(metafunc):
    """All tests of one UNet after each other, so that no more than one is kept."""
    if "tiny" in metafunc.fixturenames:
        models = UNETS if metafunc.config.getoption("thorough") else zoo.unet_representatives(UNETS)
        metafunc.parametrize("tiny", models, ids=str, scope="module")


# how many input blocks and how many output blocks run on a skip; the fourth input block is the one that halves the size
outer = pytest.mark.parametrize(("first", "last"), [(1, 0), (2, 2), (4, 1), (4, 4)])


def test_its_record_says_that_it_is_one(seen):
    family = family_of(seen.network)
    assert isinstance(family, Family)
    assert family.unet


def test_every_layer_runs_once_a_call_in_order(seen):
    order = [place for place, _ in layers(parts(seen.network))]
    assert len(seen.visits) >= 4
    assert all(v == order for v in seen.visits)


def test_each_output_block_is_given_what_the_input_block_opposite_gave(seen):
    ins, outs = (parts(seen.network)[p] for p in ("input", "output"))
    assert len(ins) == len(outs) >= 4
    gave: dict[int, torch.Tensor] = {}
    took: dict[int, torch.Tensor] = {}
    handles = [b[-1].register_forward_hook(lambda m, a, out, i=i: gave.update({i: out})) for i, b in enumerate(ins)]
    handles += [b[0].register_forward_pre_hook(lambda m, a, i=i: took.update({i: a[0]})) for i, b in enumerate(outs)]
    again(seen)
    for handle in handles:
        handle.remove()
    for i, skip in gave.items():
        assert torch.equal(took[len(outs) - 1 - i][:, -skip.shape[1] :], skip)


def again(seen: Visit) -> torch.Tensor:
    call = seen.calls[0]
    with torch.inference_mode():
        return seen.network(*call.args, **call.kwargs)


@dataclass
class Between:
    """The blocks between, some of which are opposite to blocks that run. deep: what the last of them gives. sizes: height and width
    that what each of them gives needs to have, so that it can be joined with the skip connection of the next."""

    blocks: Blocks
    deep: torch.Tensor
    sizes: list[torch.Size]

    @contextmanager
    def left_out(self, deep: torch.Tensor) -> Iterator[None]:
        """None of these layers runs: their outputs are placeholders, except for that of the last."""
        for block, size in zip(self.blocks, self.sizes, strict=True):
            for layer in block:
                vars(layer)["forward"] = lambda x, *_, size=size, **__: x.new_zeros(len(x), 1, *size)
        vars(self.blocks[-1][-1])["forward"] = lambda *_, **__: deep
        try:
            yield
        finally:
            for block in self.blocks:
                for layer in block:
                    del vars(layer)["forward"]


def between(seen: Visit, first: int, last: int) -> Between:
    """What is left out when so many input blocks and so many output blocks run."""
    all_parts = parts(seen.network)
    ins, outs = all_parts["input"], all_parts["output"]
    blocks = [*ins[first:], *all_parts["middle"], *outs[: len(outs) - last]]
    found: list[torch.Tensor] = []
    skips: list[torch.Tensor] = []
    handles = [b[-1].register_forward_hook(lambda m, a, out: skips.append(out)) for b in ins]
    handles.append(blocks[-1][-1].register_forward_hook(lambda m, a, out: found.append(out)))
    again(seen)
    for handle in handles:
        handle.remove()
    kept = [s.shape[2:] for s in skips[:first]]
    below = kept[-1]  # the size in which everything goes on
    down = [below] * (len(blocks) - (len(outs) - last))
    joined = [*kept, *[below] * (len(ins) - first)]  # by input block: the skip connections as they are then
    up = [joined[max(len(outs) - 2 - i, 0)] for i in range(len(outs) - last)]
    return Between(blocks, found[0], [*down, *up])


@outer
def test_nothing_of_the_blocks_between_is_needed_but_what_the_last_of_them_gives(seen, first, last):
    inner, before = between(seen, first, last), seen.calls[0].said
    with inner.left_out(inner.deep):
        assert torch.equal(again(seen), before)
    other = inner.deep + torch.randn(inner.deep.shape, generator=torch.Generator().manual_seed(0))
    handle = inner.blocks[-1][-1].register_forward_hook(lambda *_: other)
    expected = again(seen)  # all layers run
    handle.remove()
    with inner.left_out(other):
        said = again(seen)
    assert torch.equal(said, expected)
    assert not torch.allclose(said, before)
    assert torch.equal(again(seen), before)


def test_an_output_block_needs_the_input_block_opposite(seen):
    """Of the last blocks no more may run than of the first."""
    inner = between(seen, 1, 2)
    with inner.left_out(inner.deep), pytest.raises(RuntimeError):  # channels that are not there
        again(seen)


def test_what_a_block_gives_is_written_to_by_nobody(seen):
    """The last layers' outputs are as they were when the call is over: what they go into is a new tensor."""
    gave: list[tuple[torch.Tensor, torch.Tensor]] = []
    handles = [
        block[-1].register_forward_hook(lambda m, a, out: gave.append((out, out.clone())))
        for blocks in parts(seen.network).values()
        for block in blocks
    ]
    again(seen)
    for handle in handles:
        handle.remove()
    assert len(gave) >= 8
    assert all(torch.equal(out, copy) for out, copy in gave)
