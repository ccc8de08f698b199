"""Every model of the zoo samples in plain ComfyUI, and its family record agrees with what PyTorch hooks observe. The pack's own
hooks are not in use here."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import comfy.model_base
import pytest
import torch

from skipstone.patch import families
from skipstone.patch.families import Family, LeftOut, Stack
from skipstone.patch.families.base import Argument, ModuleInput
from skipstone.tests.comfy import zoo

BASES: dict[str, Any] = {
    name: cls
    for name, cls in vars(comfy.model_base).items()
    if inspect.isclass(cls) and issubclass(cls, comfy.model_base.BaseModel)
}
MODELS = zoo.here(zoo.MODELS)


def pytest_generate_tests(metafunc):
    """All tests of one model after each other, so that no more than one model is kept."""
    if "tiny" in metafunc.fixturenames:
        models = MODELS if metafunc.config.getoption("thorough") else zoo.representatives(MODELS)
        metafunc.parametrize("tiny", models, ids=str, scope="module")


@dataclass
class BlockCall:
    """One block's call: the streams that it took and gave, and copies of them as they were at that moment."""

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
    written: list[str] = field(default_factory=list)  # streams whose values had changed when the call ended


def tensors(value: Any) -> list[torch.Tensor]:
    """A stream (a tensor or a tuple of tensors) as a list."""
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
    """A block's outputs by the record's names of streams."""
    if isinstance(stack.gives, str):
        return {stack.gives: out}
    assert isinstance(out, tuple), type(out)
    assert len(out) == len(stack.gives)
    return {name: value for name, value in zip(stack.gives, out, strict=True) if name}


def changed(streams: dict[str, list[torch.Tensor]], copies: dict[str, list[torch.Tensor]]) -> list[str]:
    return [name for name in streams if not all(map(torch.equal, streams[name], copies[name]))]


class BlockRecorder:
    """PyTorch hooks on a network and its record's blocks."""

    def __init__(self, network: Any, family: Family) -> None:
        self.family, self.calls = family, list[ModelCall]()
        network.register_forward_pre_hook(self.begin, with_kwargs=True)
        network.register_forward_hook(self.end)
        for s, stack in enumerate(family.stacks):
            for b, block in enumerate(blocks_of(network, stack)):
                block.register_forward_pre_hook(functools.partial(self.before, (s, b)), with_kwargs=True)
                block.register_forward_hook(self.after)
        if isinstance(family.modulated, ModuleInput):
            first = blocks_of(network, family.stacks[0])[0]
            first.get_submodule(family.modulated.path).register_forward_pre_hook(self.look)

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
        for block in call.blocks[:-1]:  # on a skip, the pack makes what the last one returns
            for name in changed(block.gave, block.gave_copy):
                call.written.append(f"{name} returned by {block.place}")


@dataclass
class Visit:
    """A model, sampled once while its blocks were recorded. recorder: None where the record has no stacks of blocks."""

    tiny: zoo.Tiny
    model: Any
    conds: tuple[Any, Any]
    family: Family | LeftOut | None
    recorder: BlockRecorder | None
    out: Any

    @property
    def network(self) -> Any:
        return self.model.model.diffusion_model


def sampled(tiny: zoo.Tiny) -> Visit:
    model = tiny.build()
    conds = tiny.conds(model)
    network = model.model.diffusion_model
    family = families.family_of(network)
    recorder = BlockRecorder(network, family) if isinstance(family, Family) and not family.unet else None
    with torch.inference_mode():  # as ComfyUI runs nodes
        out = zoo.sample(tiny, model, *conds)
    return Visit(tiny, model, conds, family, recorder, out)


@pytest.fixture(scope="module")
def visit(tiny) -> Visit:
    return sampled(tiny)


def parts(latent: Any) -> list[torch.Tensor]:
    return list(latent.unbind()) if latent.is_nested else [latent]


def test_a_model_samples(tiny, visit):
    assert type(visit.model.model) is BASES[tiny.base]
    positive, negative = visit.conds
    calls = len(visit.recorder.calls) if visit.recorder else 0
    with torch.inference_mode():
        other = zoo.sample(tiny, visit.model, negative, positive)
    if visit.recorder:
        del visit.recorder.calls[calls:]
    for latent, out, prompted in zip(parts(tiny.latent()), parts(visit.out), parts(other), strict=True):
        assert out.shape[-2:] == latent.shape[-2:]
        assert torch.isfinite(out).all()
        assert out.std() > 0
        assert not torch.allclose(out, prompted, rtol=1e-3, atol=1e-4)
    for name, p in (*visit.network.named_parameters(), *visit.network.named_buffers()):
        assert torch.isfinite(p).all(), name
    for name, p in visit.network.named_parameters():
        assert p.any(), name


def test_every_model_has_a_record(subtests):
    """Also those that are not sampled. The network's class is known without making the network."""
    for tiny in MODELS:
        with subtests.test(tiny.name):
            cls, _ = zoo.network_class(tiny.build)
            assert families.family_of(object.__new__(cls)) is not None


def blocks_run_in_order_once_a_call(visit: Visit, family: Family, calls: list[ModelCall]) -> None:
    order = [(s, b) for s, stack in enumerate(family.stacks) for b in range(len(blocks_of(visit.network, stack)))]
    assert len(order) >= 4
    assert len(calls) >= 4
    for call in calls:
        assert [block.place for block in call.blocks] == order


def streams_are_where_the_record_says(visit: Visit, family: Family, calls: list[ModelCall]) -> None:
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


def a_block_takes_what_the_one_before_gave(visit: Visit, family: Family, calls: list[ModelCall]) -> None:
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


def streams_are_written_to_only_where_the_record_says(visit: Visit, family: Family, calls: list[ModelCall]) -> None:
    for call in calls:
        assert call.ended
        assert family.inplace or not call.written


def image_tokens_are_those_that_the_latent_changes(visit: Visit, family: Family, calls: list[ModelCall]) -> None:
    if not family.image.patch:
        return  # all tokens are the image's
    call = calls[0]
    x = call.args[0]
    with torch.inference_mode():
        visit.network(other(x), *call.args[1:], **call.kwargs)
    name = family.stacks[0].takes[0][0]
    again, before = calls.pop().blocks[0].took_copy[name][0], call.blocks[0].took_copy[name][0]
    assert differ(before, again, family.image.dim) == list(picture_tokens(visit.network, family, call))


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


def the_modulated_input_is_computed_before_tokens_meet(visit: Visit, family: Family, calls: list[ModelCall]) -> None:
    """What TeaCache looks at must be known before anything else of the block is: token for token, no attention yet."""
    if not family.modulated:
        return  # nothing for TeaCache to read
    by_sigma = sorted(calls, key=lambda c: float(first(c.args[1]).flatten()[0]))
    if isinstance(family.modulated, Argument):
        where = family.modulated.name
        low, high = (argument(c.blocks[0], where) for c in (by_sigma[0], by_sigma[-1]))
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
            blocks_of(visit.network, family.stacks[0])[0](*args, **kwargs)
    same, other_one = calls.pop().modulated
    assert differ(rows(same), rows(other_one), 0) == [0]


def rows(stream: torch.Tensor) -> torch.Tensor:
    """All tokens one after the other, whatever dimensions they are in: (tokens, width)."""
    return stream.flatten(0, -2)


CHECKS: tuple[Callable[[Visit, Family, list[ModelCall]], None], ...] = (
    blocks_run_in_order_once_a_call,
    streams_are_where_the_record_says,
    a_block_takes_what_the_one_before_gave,
    streams_are_written_to_only_where_the_record_says,
    image_tokens_are_those_that_the_latent_changes,
    the_modulated_input_is_computed_before_tokens_meet,
)


def test_the_record_is_true_of_the_model(visit, subtests):
    if visit.recorder is None:
        pytest.skip("no stacks of blocks: a UNet, or not done at block level")
    for check in CHECKS:
        with subtests.test(check.__name__):
            check(visit, visit.family, visit.recorder.calls)


def test_hidream_o1_collects_keys_and_values_before_it_has_them():
    """As described in Family.state: an empty tuple makes the blocks collect states, and their second output is needed."""
    tiny = next((m for m in MODELS if m.base == "HiDreamO1"), None)
    if tiny is None:
        pytest.skip("this ComfyUI has no HiDream O1")
    seen = sampled(tiny)
    assert isinstance(seen.family, Family) and seen.recorder is not None
    family, calls = seen.family, seen.recorder.calls
    name = family.state_argument
    assert name
    seen.network.clear_kv_cache()
    before = len(calls)
    with torch.inference_mode():
        zoo.sample(tiny, seen.model, *seen.conds)
    collecting = [call.blocks[0].kwargs[name] == () for call in calls[before:]]
    assert collecting == [True] * 2 + [False] * 6


def test_every_model_class_is_in_the_zoo_or_left_out_for_a_reason(subtests):
    for base, cls in sorted(BASES.items()):
        with subtests.test(base):
            here = [m for m in zoo.MODELS if m.base == base]
            if base in zoo.NO_DIFFUSION:
                assert not here
            elif not here:
                network, _ = zoo.network_class(functools.partial(cls, None))
                record = families.family_of(object.__new__(network))
                assert isinstance(record, LeftOut) or (record is not None and base in zoo.CANNOT), (
                    f"{base} (its network: {network}) is neither in tests/comfy/zoo nor left out in patch/families"
                )


def test_names_are_unique():
    names = [m.name for m in zoo.MODELS]
    assert len(names) == len(set(names))
    assert not set(zoo.CANNOT) & {m.base for m in zoo.MODELS}
