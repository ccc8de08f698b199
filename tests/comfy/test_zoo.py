"""The zoo samples as ComfyUI has it, and the records say of it what plain PyTorch hooks see. None of our own hooks is at work here."""

from __future__ import annotations

import functools
import inspect
import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import comfy.model_base
import pytest
import torch

from skipstone.patch import families
from skipstone.patch.families import Family, LeftOut, Stack
from skipstone.tests.comfy import zoo

BASES = {
    name: cls
    for name, cls in vars(comfy.model_base).items()
    if inspect.isclass(cls) and issubclass(cls, comfy.model_base.BaseModel)
}
MODELS = [m for m in zoo.MODELS if m.base in BASES]


@dataclass
class BlockCall:
    """One block's call: the streams as they came and went, and copies of how they were at that moment."""

    place: tuple[int, int]  # stack, block
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    took: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    took_copy: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    gave: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    gave_copy: dict[str, list[torch.Tensor]] = field(default_factory=dict)


@dataclass
class ModelCall:
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    blocks: list[BlockCall] = field(default_factory=list)
    modulated: list[torch.Tensor] = field(default_factory=list)
    ended: bool = False
    written: list[str] = field(default_factory=list)  # streams that were not at the end what they had been


def tensors(value: Any) -> list[torch.Tensor]:
    """A stream as a list: it is a tensor or a tuple of some."""
    if torch.is_tensor(value):
        return [value]
    assert isinstance(value, tuple), type(value)
    assert all(torch.is_tensor(v) for v in value)
    return list(value)


def blocks_of(network: Any, stack: Stack) -> list[torch.nn.Module]:
    found = network.get_submodule(stack.at)
    return list(found.values() if isinstance(found, torch.nn.ModuleDict) else found)


def argument(call: BlockCall, where: str | int) -> Any:
    return call.kwargs[where] if isinstance(where, str) else call.args[where]


def given(stack: Stack, out: Any) -> dict[str, Any]:
    """What a block returned, by the record's names."""
    if isinstance(stack.gives, str):
        return {stack.gives: out}
    assert isinstance(out, tuple), type(out)
    assert len(out) == len(stack.gives)
    return {name: value for name, value in zip(stack.gives, out, strict=True) if name}


def changed(streams: dict[str, list[torch.Tensor]], copies: dict[str, list[torch.Tensor]]) -> list[str]:
    return [name for name in streams if not all(map(torch.equal, streams[name], copies[name]))]


class Onlooker:
    """PyTorch hooks on a network and its record's blocks."""

    def __init__(self, network: Any, family: Family) -> None:
        self.family, self.calls = family, list[ModelCall]()
        network.register_forward_pre_hook(self.begin, with_kwargs=True)
        network.register_forward_hook(self.end)
        for s, stack in enumerate(family.stacks):
            for b, block in enumerate(blocks_of(network, stack)):
                block.register_forward_pre_hook(functools.partial(self.before, (s, b)), with_kwargs=True)
                block.register_forward_hook(self.after)
        if family.modulated and not family.modulated.startswith("arg:"):
            first = blocks_of(network, family.stacks[0])[0]
            first.get_submodule(family.modulated).register_forward_pre_hook(self.look)

    def begin(self, module, args, kwargs):
        self.calls.append(ModelCall(args, kwargs))

    def before(self, place, module, args, kwargs):
        call = BlockCall(place, args, kwargs)
        for name, where in self.family.stacks[place[0]].takes:
            call.took[name] = tensors(argument(call, where))
            call.took_copy[name] = [t.clone() for t in call.took[name]]
        self.calls[-1].blocks.append(call)

    def after(self, module, args, out):
        call = self.calls[-1].blocks[-1]
        streams = given(self.family.stacks[call.place[0]], out)
        call.gave = {name: tensors(value) for name, value in streams.items() if value is not None}
        call.gave_copy = {name: [t.clone() for t in value] for name, value in call.gave.items()}

    def look(self, module, args):
        self.calls[-1].modulated.append(args[0].clone())

    def end(self, module, args, out):
        call = self.calls[-1]
        call.ended = True
        for block in call.blocks:
            for name in changed(block.took, block.took_copy):
                call.written.append(f"{name} given to {block.place}")
        for block in call.blocks[:-1]:  # what the last one returns is for us to make
            for name in changed(block.gave, block.gave_copy):
                call.written.append(f"{name} returned by {block.place}")


@dataclass
class Visit:
    """A model, sampled once under an onlooker."""

    tiny: zoo.Tiny
    model: Any
    conds: tuple[Any, Any]
    family: Family | LeftOut | None
    onlooker: Onlooker | None
    out: Any

    @property
    def network(self) -> Any:
        return self.model.model.diffusion_model


@functools.cache
def visit(tiny: zoo.Tiny) -> Visit:
    model = tiny.build()
    conds = tiny.conds(model)
    network = model.model.diffusion_model
    family = families.family_of(network)
    onlooker = Onlooker(network, family) if isinstance(family, Family) else None
    with torch.inference_mode():  # as ComfyUI runs nodes
        out = zoo.sample(tiny, model, *conds)
    return Visit(tiny, model, conds, family, onlooker, out)


def recorded(tiny: zoo.Tiny) -> tuple[Visit, Family, list[ModelCall]]:
    seen = visit(tiny)
    if not isinstance(seen.family, Family):
        pytest.skip("not done at block level")
    if seen.family.unet:
        pytest.skip("a UNet: no stacks")
    assert seen.onlooker is not None
    return seen, seen.family, seen.onlooker.calls


def parts(latent: Any) -> list[torch.Tensor]:
    return list(latent.unbind()) if latent.is_nested else [latent]


each = pytest.mark.parametrize("tiny", MODELS, ids=str)


@each
def test_it_samples(tiny):
    seen = visit(tiny)
    assert type(seen.model.model) is BASES[tiny.base]
    positive, negative = seen.conds
    with torch.inference_mode():
        other = zoo.sample(tiny, seen.model, negative, positive)
    for latent, out, prompted in zip(parts(tiny.latent()), parts(seen.out), parts(other), strict=True):
        assert out.shape[-2:] == latent.shape[-2:]
        assert torch.isfinite(out).all()
        assert out.std() > 0
        assert not torch.allclose(out, prompted, rtol=1e-3, atol=1e-4)


@each
def test_its_weights_are_all_there(tiny):
    for name, p in (*visit(tiny).network.named_parameters(), *visit(tiny).network.named_buffers()):
        assert torch.isfinite(p).all(), name
    for name, p in visit(tiny).network.named_parameters():
        assert p.any(), name


@each
def test_its_class_has_a_record(tiny):
    assert visit(tiny).family is not None


@each
def test_blocks_are_visited_in_order_once_a_call(tiny):
    seen, family, calls = recorded(tiny)
    order = [(s, b) for s, stack in enumerate(family.stacks) for b in range(len(blocks_of(seen.network, stack)))]
    assert len(order) >= 4
    assert len(calls) >= 4
    for call in calls:
        assert [block.place for block in call.blocks] == order


@each
def test_streams_are_where_the_record_says(tiny):
    _, family, calls = recorded(tiny)
    for call in calls:
        for block in call.blocks:
            names = {name for name, _ in family.stacks[block.place[0]].takes}
            if block is call.blocks[-1]:
                names -= set(family.dead)
            assert names <= set(block.gave)
            for name in names:
                assert shapes(block.gave_copy[name]) == shapes(block.took_copy[name])
                if family.batch is not None:
                    assert {t.shape[family.batch] for t in block.gave[name]} == {len(first(call.args[0]))}


def shapes(streams: list[torch.Tensor]) -> list[torch.Size]:
    return [t.shape for t in streams]


@each
def test_a_block_takes_what_the_one_before_gave(tiny):
    _, family, calls = recorded(tiny)
    for before, after in (pair for call in calls for pair in pairwise(call.blocks)):
        stack = family.stacks[after.place[0]]
        if before.place[0] == after.place[0] or not stack.joins:
            for name, _ in stack.takes:
                assert shapes(before.gave_copy[name]) == shapes(after.took_copy[name])
        else:
            gave = {name: before.gave_copy[name][0] for name in stack.joins}
            taken = after.took_copy[stack.takes[0][0]][0]
            took = dict(zip(stack.joins, taken.split([t.shape[1] for t in gave.values()], 1), strict=True))
            own = family.stacks[before.place[0]].takes[0][0]
            assert torch.equal(took[own], gave[own])
            # the loop may have put something else in the place of the last text tokens (HiDream)
            assert all(0 not in differ(took[name], gave[name]) for name in gave)


@each
def test_who_writes_to_streams_is_known(tiny):
    _, family, calls = recorded(tiny)
    for call in calls:
        assert call.ended
        assert family.inplace or not call.written


@each
def test_the_pictures_tokens_are_those_that_the_latent_changes(tiny):
    seen, family, calls = recorded(tiny)
    if not family.image.patch:
        pytest.skip("all tokens count")
    call = calls[0]
    x = call.args[0]
    with torch.inference_mode():
        seen.network(other(x), *call.args[1:], **call.kwargs)
    name = family.stacks[0].takes[0][0]
    again, before = calls.pop().blocks[0].took_copy[name][0], call.blocks[0].took_copy[name][0]
    assert differ(before, again, family.image.dim) == list(picture_tokens(seen.network, family, call))


def picture_tokens(network: Any, family: Family, call: ModelCall) -> range:
    """As the record has it: which tokens of the first stream are the picture's."""
    image, first_block = family.image, call.blocks[0]
    tokens = first_block.took[family.stacks[0].takes[0][0]][0].shape[image.dim]
    if not image.patch:
        assert image.where == "all"
        return range(tokens)
    patch = getattr(network, image.patch) if isinstance(image.patch, str) else image.patch
    sizes = [patch, patch] if isinstance(patch, int) else list(patch)
    count = math.prod(math.ceil(n / p) for n, p in zip(first(call.args[0]).shape[-len(sizes) :], sizes, strict=True))
    multiple = (getattr(network, image.pads) if image.pads else None) or 1
    count = math.ceil(count / multiple) * multiple
    begin = {"all": 0, "head": 0}.get(image.where, tokens - count)
    if image.where == "img_slice":
        begin, _ = first_block.kwargs["transformer_options"].get("img_slice", (begin, tokens))
    if (ahead := call.kwargs.get(image.after)) is not None:
        begin = math.prod(math.ceil(n / p) for n, p in zip(ahead.shape[:1:-1], sizes[::-1], strict=False))
    assert 0 <= begin < begin + count <= tokens
    assert image.where != "all" or count == tokens
    return range(begin, begin + count)


def differ(a: torch.Tensor, b: torch.Tensor, dim: int = 1) -> list[int]:
    """Which tokens are not the same."""
    return (a != b).movedim(dim, 0).flatten(1).any(1).nonzero().flatten().tolist()


def first(x: Any) -> torch.Tensor:
    """The latent, or of several the picture's."""
    return x if torch.is_tensor(x) else x[0]


def other(x: Any) -> Any:
    """Another latent of the same kind, every element of the picture changed."""
    return x + 1 if torch.is_tensor(x) else type(x)((x[0] + 1, *x[1:]))


@each
def test_the_modulated_input_is_there_before_tokens_meet(tiny):
    """What TeaCache looks at must be known before anything else of the block is: token for token, no attention yet."""
    seen, family, calls = recorded(tiny)
    if not family.modulated:
        pytest.skip("nothing there that TeaCache could look at")
    by_sigma = sorted(calls, key=lambda c: float(first(c.args[1]).flatten()[0]))
    if family.modulated.startswith("arg:"):
        where = family.modulated.removeprefix("arg:")
        low, high = (
            argument(c.blocks[0], int(where) if where.isdigit() else where) for c in (by_sigma[0], by_sigma[-1])
        )
        assert not all(map(torch.equal, tensors(low), tensors(high)))
        return
    call = calls[0]
    assert len(call.modulated) == 1
    name, at = family.stacks[0].takes[0]
    stream = call.blocks[0].took_copy[name]
    assert rows(call.modulated[0]).shape == rows(stream[0]).shape
    # the first block twice more, then with one token changed
    calls.append(ModelCall((), {}))
    for nudge in (0, 1):
        nudged = stream[0].clone(memory_format=torch.contiguous_format)
        rows(nudged)[0] += nudge
        value = (nudged, *stream[1:]) if len(stream) > 1 else nudged
        args, kwargs = list(call.blocks[0].args), dict(call.blocks[0].kwargs)
        if isinstance(at, str):
            kwargs[at] = value
        else:
            args[at] = value
        with torch.inference_mode():
            blocks_of(seen.network, family.stacks[0])[0](*args, **kwargs)
    same, other_one = calls.pop().modulated
    assert differ(rows(same), rows(other_one), 0) == [0]


def rows(stream: torch.Tensor) -> torch.Tensor:
    """All tokens one after the other, whatever dimensions they are in: (tokens, width)."""
    return stream.flatten(0, -2)


def test_hidream_o1_collects_keys_and_values_before_it_has_them():
    """What Family.state says of it: its blocks are told so by an empty tuple, and what they give besides the stream is needed."""
    tiny = next((m for m in MODELS if m.base == "HiDreamO1"), None)
    if tiny is None:
        pytest.skip("this ComfyUI has no HiDream O1")
    seen, family, calls = recorded(tiny)
    kind, _, name = family.state.partition(":")
    assert kind == "arg"
    seen.network.clear_kv_cache()
    before = len(calls)
    with torch.inference_mode():
        zoo.sample(tiny, seen.model, *seen.conds)
    collecting = [call.blocks[0].kwargs[name] == () for call in calls[before:]]
    assert collecting == [True] * 2 + [False] * 6


class _Found(Exception):
    pass


def network_of(base: Any) -> Any:
    """The diffusion model's class of a BaseModel, without making one: what its __init__ hands to BaseModel's."""

    def tell(self, model_config, model_type=None, device=None, unet_model=None):
        raise _Found(unet_model)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(_Found) as found:
        patch.setattr(comfy.model_base.BaseModel, "__init__", tell)
        base(None)
    return found.value.args[0]


@pytest.mark.parametrize("base", sorted(BASES))
def test_every_model_class_is_here_or_it_is_said_why_not(base):
    here = [m for m in zoo.MODELS if m.base == base]
    if base in zoo.NO_DIFFUSION:
        assert not here
        return
    if here:
        return
    network = network_of(BASES[base])
    record = families.family_of(object.__new__(network)) if network is not None else None
    assert isinstance(record, LeftOut) or (record is not None and base in zoo.CANNOT), (
        f"{base} (its network: {network}) is neither in tests/comfy/zoo nor left out in patch/families"
    )


def test_names_are_unique():
    names = [m.name for m in zoo.MODELS]
    assert len(names) == len(set(names))
    assert not set(zoo.CANNOT) & {m.base for m in zoo.MODELS}
