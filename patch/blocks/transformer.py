"""Seeing what enters and leaves blocks that stand in lists: their `forward` is watched for the duration of one call of the network."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import Module

from ...core.step.indicators.blocks import sample
from ...core.step.method import Blocks
from ..families import Family, Stack
from ..families.tokens import Given, Span, spans
from .hook import Call, Streams, UnexpectedForward

Forward = Callable[..., Any]

ORDER = "the model does not run its blocks one after the other as its kind does, and nothing is skipped: has another node changed it?"
LEFT_OUT = "another node leaves out a block at which something is to be seen: calls of the model in which it does so are computed"
UNSEEN = "what TeaCache looks at was not to be seen in this model: it goes by the whole stream that enters the blocks instead"


def resolved(root: Any, path: str) -> Any:
    """The attribute of an attribute ... that a path with dots names."""
    for name in path.split("."):
        root = getattr(root, name)
    return root


def blocks_of(network: Any, stack: Stack) -> list[Module]:
    """The blocks of a stack as they stand in the network now."""
    found = resolved(network, stack.at)
    return list(found.values() if hasattr(found, "values") else found)


NOT_RUN = object()  # what a block gave that has not run


class Visit(Protocol):
    """What happens at one block. Neither is ever compiled, whatever is around it: it is another thing in each block and step.

    quiet: there is nothing to do at this block: `before` is not called. ends: `after` is called, too.
    """

    quiet: bool
    ends: bool

    def before(self, own: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The block is called. Returns what it is to give; NOT_RUN: it is to run."""
        ...

    def after(self, result: Any) -> None:
        """It has run."""
        ...


class ForwardWrapper:
    """Stands in for a block's `forward`. There is one for each block for as long as the block lives, so that compiled code around it
    finds the same object in every run."""

    def __init__(self) -> None:
        self.visit: Visit | None = None
        self.own: Forward | None = None

    @torch.compiler.disable(recursive=False)
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        visit, own = self.visit, self.own
        assert visit is not None and own is not None
        if visit.quiet:
            return own(*args, **kwargs)
        result = visit.before(own, args, kwargs)
        if result is NOT_RUN:
            result = own(*args, **kwargs)
            if visit.ends:
                visit.after(result)
        return result


_GATES: weakref.WeakKeyDictionary[Module, ForwardWrapper] = weakref.WeakKeyDictionary()


@contextmanager
def watched(blocks: list[tuple[Module, Visit]]) -> Iterator[None]:
    """While it lasts, a call of one of the blocks is a visit to it."""
    before: list[tuple[Module, ForwardWrapper, Any, Visit | None, Forward | None]] = []
    try:
        for block, visit in blocks:
            mine = vars(block)
            gate = _GATES.get(block) or _GATES.setdefault(block, ForwardWrapper())
            before.append((block, gate, mine.get("forward"), gate.visit, gate.own))
            # somebody may sample from within a call of the same network
            gate.own = gate.own or block.forward
            gate.visit = visit
            mine["forward"] = gate
        yield
    finally:
        for block, gate, forward, former, own in reversed(before):
            if forward is None:
                vars(block).pop("forward", None)
            else:
                vars(block)["forward"] = forward
            gate.visit, gate.own = former, own


class _Stopped(Exception):
    """Leaves a block that need not go on."""


class StackSeam:
    """For families whose records have stacks; see blocks.BlockAdapter."""

    def __init__(self, family: Family, blocks: Blocks) -> None:
        self.family = family
        self.blocks = blocks
        self.batch = family.batch

    @contextmanager
    def around(self, network: Any, call: Call, given: Given, control: Any) -> Iterator[None]:
        if self.family.state in given.options:
            yield
            return
        stacks = [(k, block) for k, stack in enumerate(self.family.stacks) for block in blocks_of(network, stack)]
        if len({block for _, block in stacks}) < len(stacks):  # one runs several times
            call.hook.run.report.note(ORDER)
            yield
            return
        passage = BlockTraversal(self, network, call, [k for k, _ in stacks], given)
        try:
            with watched(list(zip((block for _, block in stacks), passage.visits, strict=True))):
                yield
        finally:
            # a visit refers to the traversal: in a cycle what was predicted would live on until the garbage collector runs,
            # which knows nothing of device memory
            passage.visits.clear()
        if passage.given is not None and passage.next <= passage.last:
            raise UnexpectedForward(ORDER)
        if not passage.entered or call.base is not None:
            call.hook.run.report.note(LEFT_OUT)


class BlockTraversal:
    """One call of the network on its way through its blocks, which have positions 0 .. N-1 over all stacks.

    A skip leaves out those from `first` to `last`: they give what they are given, and the last of them what was predicted.
    """

    def __init__(self, seam: StackSeam, network: Any, call: Call, stack_of: list[int], given: Given) -> None:
        self.family, self.probe, self.network = seam.family, seam.blocks.probe, network
        self.call = call
        self.stack_of = stack_of
        self.suffix = seam.blocks.suffix
        self.first, self.last = seam.blocks.prefix, len(stack_of) - self.suffix - 1
        self.asked = given
        self.visits = [_Visit(self, i) for i in range(len(stack_of))]
        self.next = 0
        self.lost = False
        self.entered = False
        self.idle = False  # the model wants all of its blocks in this call: Family.state
        self.start: Tensor | None = None  # a sample of what entered block 0, where the indicator needs it
        self.spans: list[Span] = []  # by stack: where in its first stream the picture's tokens are
        self.alone = False  # the residual is kept of these only
        self.given: Streams | None = None  # on a skip: what block `last` gives

    def before(self, position: int, own: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See Visit."""
        stack = self.family.stacks[self.stack_of[position]]
        if position < self.next:
            self._lose()
        self.next = position + 1
        if position == 0 and self.family.state.startswith("arg:"):
            first = self.call.hook.run.clock.evaluation == 0
            self.idle = self.entered = first or kwargs.get(self.family.state.removeprefix("arg:")) == ()
        if self.lost or self.idle or (self.given is None and position not in (0, self.first)):
            return NOT_RUN
        try:
            taken = _taken(stack, args, kwargs)
        except LookupError:
            self._lose()
            return NOT_RUN
        if position == 0:
            self._begin(taken, kwargs.get("transformer_options") or self.asked.options)
        if position == self.first:
            self.entered = True
            ran = self._enter(taken, own, args, kwargs)
            if ran is not NOT_RUN:
                if position == self.last:
                    self.after(position, ran)
                return ran
        if self.given is None or not self.first <= position <= self.last:
            return NOT_RUN
        if position == self.first and self.suffix:
            # models write between blocks to what a block gave, and may need what it was given: the blocks after `last` do
            taken = {n: v.clone() for n, v in taken.items()}
        return _given(stack, self._with(taken, self.stack_of[position]) if position == self.last else taken)

    def after(self, position: int, result: Any) -> None:
        """See Visit."""
        if not (self.lost or self.idle):
            k = self.stack_of[position]
            streams, name = _returned(self.family.stacks[k], result), self._picture(k)
            if self.alone:
                streams[name] = self._image(streams[name], k)
            self.call.leave(streams, lambda v: v if self.alone else self._image(v, k))

    def _lose(self) -> None:
        if self.given is not None:
            raise UnexpectedForward(ORDER)
        self.lost = self.entered = True
        self.call.base = None
        self.call.hook.run.report.note(ORDER)

    def _begin(self, taken: Streams, options: Mapping[str, Any]) -> None:
        dim = self.family.image.dim
        lengths = {n: v.shape[dim] for n, v in taken.items() if v.ndim > dim}
        partly = self.family.image.where != "all" or any(stack.joins for stack in self.family.stacks)
        if partly and next(iter(taken)) in lengths:
            asked = Given(self.asked.shape, self.asked.keywords, options)
            self.spans = list(spans(self.family, self.network, lengths, asked))
        if self.probe in ("residual", "states") and self.call.hook.run.indicator is not None:
            self.start = self._sample(next(iter(taken.values())), self.stack_of[0])

    def _enter(self, taken: Streams, own: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Has it decided whether the blocks from `first` on run. Returns what `first` gave where it had to run to see, else NOT_RUN."""
        here, end = self.stack_of[self.first], self.stack_of[self.last]
        base, name = self._kept(taken, here, end), next(iter(taken))

        def decide(modulated: Tensor | None) -> bool:
            """Is it a skip?"""

            def look(probe: str) -> Tensor | None:
                if probe == "modulated":
                    value = self._modulated(modulated, taken[name])
                    return None if value is None else self.call.watched(value)
                now, before = self._sample(taken[name], here), self.start
                if before is None:  # the first block was left out by another node
                    return now
                return now - before if probe == "residual" else torch.cat((before, now))

            self.given = self.call.enter(base, look, copy=self.family.inplace and (here == end or self.alone))
            if self.given is not None:
                for visit in self.visits[self.first : self.last]:
                    visit.quiet = False
            return self.given is not None

        what, hook = self.family.modulated, self.call.hook
        asked = hook.run.decision is None and (hook.profiler or (self.probe == "modulated" and hook.run.indicator))
        if not asked or self.first > 0 or not what:
            decide(None)
        elif what.startswith("arg:"):
            place = what[4:]
            decide(args[int(place)] if place.isdigit() else kwargs.get(place))
        else:
            return self._within(own, args, kwargs, decide)
        return NOT_RUN

    def _within(
        self, own: Forward, args: tuple[Any, ...], kwargs: dict[str, Any], decide: Callable[[Tensor | None], bool]
    ) -> Any:
        """Runs the first block as far as it takes to see its modulated input, and to its end if that is not a skip."""
        seen: list[Tensor] = []

        def stop(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            if not seen:
                seen.append(given[0] if given else next(iter(named.values())))
                if decide(seen[0]):
                    raise _Stopped

        own = getattr(own, "_torchdynamo_orig_callable", own)  # nobody looks into compiled code
        try:
            part = resolved(getattr(own, "__self__", None), self.family.modulated)
        except AttributeError:
            decide(None)
            return NOT_RUN
        handle = part.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            result = own(*args, **kwargs)
        except _Stopped:
            return NOT_RUN
        finally:
            handle.remove()
        if seen:
            return result
        skip = decide(None)
        if self.family.inplace:  # the block may have written to what it was given
            self.call.base = None
        return NOT_RUN if skip else result

    def _modulated(self, value: Tensor | None, stream: Tensor) -> Tensor | None:
        """What of the modulated input belongs to the picture, where that can be told."""
        if self.first > 0:
            return None
        if not torch.is_tensor(value):
            if self.probe == "modulated":
                self.call.hook.run.report.note(UNSEEN)
            value = stream
        dim = self.family.image.dim
        return self._image(value, 0) if value.ndim > dim and value.shape[dim] == stream.shape[dim] else value

    def _kept(self, streams: Streams, here: int, end: int) -> Streams:
        """Of the streams of stack `here`, as those of stack `end`, what is read after block `last`."""
        # blocks after it would read everything
        self.alone = bool(self.spans) and self.family.image.alone and self.suffix == 0
        joining = [stack for stack in self.family.stacks[here + 1 : end + 1] if stack.joins]
        if self.alone:
            picture = self._image(streams[self._picture(here)], here)
            streams = {**({} if joining else streams), self._picture(end): picture}
        else:
            for stack in joining:
                streams = {stack.takes[0][0]: torch.cat([streams[n] for n in stack.joins], 1)}
        left = self.family.same + (() if self.suffix else self.family.dead)
        return {n: v for n, v in streams.items() if n.partition(".")[0] not in left}

    def _with(self, taken: Streams, stack: int) -> Streams:
        """What block `last` gives on a skip: what was predicted, in the place of what it is given."""
        assert self.given is not None
        given = dict(self.given)
        if self.alone:
            name, dim = self._picture(stack), self.family.image.dim
            before, _, after = taken[name].tensor_split(self.spans[stack], dim)
            given[name] = torch.cat((before, given[name], after), dim)
        return taken | given

    def _picture(self, stack: int) -> str:
        """The stream that the picture is in; of one that is several tensors, all."""
        return self.family.stacks[stack].takes[0][0]

    def _sample(self, value: Tensor, stack: int) -> Tensor:
        """Of a stack's first stream, what the indicator looks at: a copy."""
        return sample(self._image(self.call.watched(value), stack))

    def _image(self, value: Tensor, stack: int) -> Tensor:
        if not self.spans:
            return value
        start, end = self.spans[stack]
        return value.narrow(self.family.image.dim, start, end - start)


class _Visit:
    """A passage comes by the block at `position`."""

    def __init__(self, passage: BlockTraversal, position: int) -> None:
        self.passage, self.position = passage, position
        self.quiet = position not in (0, passage.first, passage.last)
        self.ends = position == passage.last

    @torch.compiler.disable
    def before(self, own: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.passage.before(self.position, own, args, kwargs)

    @torch.compiler.disable
    def after(self, result: Any) -> None:
        self.passage.after(self.position, result)


def _flat(name: str, value: Any) -> Streams:
    """A stream as tensors: one that is a tuple has several."""
    if isinstance(value, tuple | list):
        return {f"{name}.{i}": v for i, v in enumerate(value)}
    return {name: value}


def _taken(stack: Stack, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Streams:
    """The streams in a block's call."""
    streams: Streams = {}
    for name, place in stack.takes:
        streams |= _flat(name, args[place] if isinstance(place, int) else kwargs[place])
    return streams


def _returned(stack: Stack, result: Any) -> Streams:
    """The streams in what a block returned."""
    if isinstance(stack.gives, str):
        return _flat(stack.gives, result)
    streams: Streams = {}
    for name, value in zip(stack.gives, result, strict=False):
        if name and value is not None:
            streams |= _flat(name, value)
    return streams


def _given(stack: Stack, streams: Streams) -> Any:
    """What a block would return with these streams in it."""

    def value(name: str) -> Any:
        if f"{name}.0" in streams:
            return tuple(streams[f"{name}.{i}"] for i in range(sum(n.startswith(f"{name}.") for n in streams)))
        return streams.get(name)

    return value(stack.gives) if isinstance(stack.gives, str) else tuple(value(n) for n in stack.gives)
