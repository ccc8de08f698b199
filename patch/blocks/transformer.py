"""The adapter of transformers: observes blocks in lists by wrapping their `forward` for one call of the network."""

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
from ...core.texts import Text
from ..families import Family, Stack
from ..families.base import Argument, ModuleInput
from ..families.tokens import CallInputs, Span, spans
from . import comfy_compiler
from .base import BlockAdapter, Call, Streams, UnexpectedForward

Forward = Callable[..., Any]

ORDER = Text(
    "block_order",
    "the model does not run its blocks in the expected order, so nothing is skipped: another node may have changed it",
)
LEFT_OUT = Text(
    "block_left_out",
    "a block that has to be observed did not run its own code, because another node skips it or ComfyUI replays it: "
    "those calls of the model are computed",
)
UNSEEN = Text(
    "modulated_unseen",
    "TeaCache's modulated input was not found in this model: it uses the stream that enters the blocks instead",
)


def resolved(root: Any, path: str) -> Any:
    """The nested attribute at a path with dots."""
    for name in path.split("."):
        root = getattr(root, name)
    return root


def blocks_of(network: Any, stack: Stack) -> list[Module]:
    """The blocks of a stack in the network."""
    found = resolved(network, stack.at)
    return list(found.values() if hasattr(found, "values") else found)


NOT_RUN = object()  # marks the output of a block that has not run


class Visit(Protocol):
    """The observer of one block. Excluded from torch.compile: differs per block and step.

    quiet: `before` is not called. ends: `after` is called.
    """

    quiet: bool
    ends: bool

    def before(self, own: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The block is called. Returns its output, or NOT_RUN to have it run."""
        ...

    def after(self, result: Any) -> None:
        """The block has run."""
        ...


class ForwardWrapper:
    """Replaces a block's `forward`. One per block for the block's lifetime, so that compiled code around it sees the same object in every
    run."""

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


_WRAPPERS: weakref.WeakKeyDictionary[Module, ForwardWrapper] = weakref.WeakKeyDictionary()


@contextmanager
def watched(blocks: list[tuple[Module, Visit]]) -> Iterator[None]:
    """Within the context, each block's visit observes its calls."""
    before: list[tuple[Module, ForwardWrapper, Any, Visit | None, Forward | None]] = []
    try:
        for block, visit in blocks:
            mine = vars(block)
            wrapper = _WRAPPERS.get(block) or _WRAPPERS.setdefault(block, ForwardWrapper())
            before.append((block, wrapper, mine.get("forward"), wrapper.visit, wrapper.own))
            # another run may sample within a call of the same network
            wrapper.own = wrapper.own or block.forward
            wrapper.visit = visit
            mine["forward"] = wrapper
        yield
    finally:
        for block, wrapper, forward, former, own in reversed(before):
            if forward is None:
                vars(block).pop("forward", None)
            else:
                vars(block)["forward"] = forward
            wrapper.visit, wrapper.own = former, own


class _Stopped(Exception):
    """Leaves a block whose output is not needed."""


class TransformerAdapter(BlockAdapter):
    """For families whose records have stacks; see base.BlockAdapter."""

    def __init__(self, family: Family, blocks: Blocks) -> None:
        self.family = family
        self.blocks = blocks
        self.batch = family.batch

    @contextmanager
    def around(self, network: Any, call: Call, inputs: CallInputs, control: Any) -> Iterator[None]:
        if self.family.state_option in inputs.options:
            yield
            return
        stacks = [(k, block) for k, stack in enumerate(self.family.stacks) for block in blocks_of(network, stack)]
        if len({block for _, block in stacks}) < len(stacks):  # one runs several times
            call.note(ORDER)
            yield
            return
        traversal = BlockTraversal(self, network, call, stacks, inputs)
        try:
            with watched(list(zip((block for _, block in stacks), traversal.visits, strict=True))):
                yield
        finally:
            # visits refer to the traversal: in a cycle the prediction would stay on the device until the garbage collector runs
            traversal.visits.clear()
        if traversal.given is not None and traversal.next <= traversal.last:
            raise UnexpectedForward(ORDER)
        if not traversal.entered or call.pending:
            call.note(LEFT_OUT)


class BlockTraversal:
    """One call of the network through its blocks, at positions 0 .. N-1 over all stacks.

    A skip leaves out blocks `first` to `last`: they return their input, and the last of them returns the prediction.
    """

    def __init__(
        self,
        adapter: TransformerAdapter,
        network: Any,
        call: Call,
        stacks: list[tuple[int, Module]],
        inputs: CallInputs,
    ) -> None:
        stack_of = [k for k, _ in stacks]
        self.blocks = [block for _, block in stacks]
        self.family, self.probe, self.network = adapter.family, adapter.blocks.probe, network
        self.call = call
        self.stack_of = stack_of
        self.suffix = adapter.blocks.suffix
        self.first, self.last = adapter.blocks.prefix, len(stack_of) - self.suffix - 1
        self.inputs = inputs
        self.visits = [_Visit(self, i) for i in range(len(stack_of))]
        self.next = 0
        self.unexpected = False
        self.entered = False
        self.idle = False  # all blocks run in this call: Family.state_argument
        self.prefilling = False  # the visit is one of Family.prefill
        self.prefilled = False  # one of this call was
        self.start: Tensor | None = None  # a sample of block 0's input, where the indicator needs it
        self.spans: list[Span] = []  # by stack: the image's tokens in its first stream
        self.alone = False  # the residual is kept of these tokens only
        self.given: Streams | None = None  # on a skip: the output of block `last`

    def before(self, position: int, own: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See Visit."""
        stack = self.family.stacks[self.stack_of[position]]
        self.prefilling = self._prefills(stack, args, kwargs)
        if self.prefilling:
            self.prefilled = True
            return NOT_RUN
        # other packs run a block once for each region of a picture; only what the last one returns is kept
        again = position == self.next - 1 and position < self.last
        if position < self.next and not again:
            self._give_up()
        self.next = position + 1
        if position == 0 and self.family.state_argument:
            collecting = kwargs.get(self.family.state_argument) == ()
            self.idle = self.entered = self.call.first_evaluation or collecting
        if self.unexpected or self.idle or (self.given is None and position not in (0, self.first)):
            return NOT_RUN
        try:
            taken = _taken(stack, args, kwargs)
        except LookupError:
            self._give_up()
            return NOT_RUN
        if position == 0 and not again:
            self._begin(taken, kwargs.get("transformer_options") or self.inputs.options)
        if position == self.first and not again:
            self.entered = True
            ran = self._enter(taken, own, args, kwargs)
            if ran is not NOT_RUN:
                if position == self.last:
                    self.after(position, ran)
                return ran
        if self.given is None or not self.first <= position <= self.last:
            return NOT_RUN
        if position == self.first and self.suffix:
            # models write between blocks to a block's output, and the blocks after `last` read the original input
            taken = {n: v.clone() for n, v in taken.items()}
        if position == self.last:
            with comfy_compiler.paused():
                taken = self._with(taken, self.stack_of[position])
        return _given(stack, taken)

    def after(self, position: int, result: Any) -> None:
        """See Visit."""
        if not (self.unexpected or self.idle or self.prefilling):
            k = self.stack_of[position]
            streams, name = _returned(self.family.stacks[k], result), self._image_stream(k)
            if self.alone:
                streams[name] = self._image(streams[name], k)
            self.call.leave(streams, lambda v: v if self.alone else self._image(v, k))

    def _prefills(self, stack: Stack, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """True for a block's call that Family.prefill describes."""
        if self.family.prefill is None:
            return False
        try:
            tokens = next(iter(_taken(stack, args, kwargs).values())).shape[self.family.image.dim]
            return bool(_argument(self.family.prefill.name, args, kwargs) == tokens)
        except LookupError:
            return False

    def _give_up(self) -> None:
        if self.given is not None:
            raise UnexpectedForward(ORDER)
        self.unexpected = self.entered = True
        self.call.cancel()
        self.call.note(ORDER)

    def _begin(self, taken: Streams, options: Mapping[str, Any]) -> None:
        dim = self.family.image.dim
        lengths = {n: v.shape[dim] for n, v in taken.items() if v.ndim > dim}
        partly = self.family.image.where != "all" or any(stack.joins for stack in self.family.stacks)
        if partly and next(iter(taken)) in lengths:
            inputs = CallInputs(self.inputs.shape, self.inputs.keywords, options)
            self.spans = list(spans(self.family, self.network, lengths, inputs))
        if self.probe in ("residual", "states") and self.call.has_indicator:
            with comfy_compiler.paused():
                self.start = self._sample(next(iter(taken.values())), self.stack_of[0])

    def _enter(self, taken: Streams, own: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Decide whether the blocks from `first` on run. Returns the output of `first` if it had to run for that, else NOT_RUN."""
        here, end = self.stack_of[self.first], self.stack_of[self.last]
        base, name = self._kept(taken, here, end), next(iter(taken))

        def decide(modulated: Tensor | None) -> bool:
            """True for a skip."""

            def look(probe: str) -> Tensor | None:
                if probe == "modulated":
                    value = self._modulated(modulated, taken[name])
                    return None if value is None else self.call.indicated(value)
                now, before = self._sample(taken[name], here), self.start
                if before is None:  # another node skipped the first block
                    return now
                return now - before if probe == "residual" else torch.cat((before, now))

            self.given = self.call.enter(base, look, copy=self.family.inplace and (here == end or self.alone))
            if self.given is not None:
                for visit in self.visits[self.first : self.last]:
                    visit.quiet = False
                if not self.prefilled:  # else they run, on the other tokens
                    comfy_compiler.leave_out(self.blocks[self.first + 1 : self.last + 1])
            return self.given is not None

        source = self.family.modulated
        if not self.call.wants_modulated or self.first > 0 or source is None:
            decide(None)
        elif isinstance(source, Argument):
            decide(args[source.name] if isinstance(source.name, int) else kwargs.get(source.name))
        else:
            return self._within(source, own, args, kwargs, decide)
        return NOT_RUN

    def _within(
        self,
        source: ModuleInput,
        own: Forward,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        decide: Callable[[Tensor | None], bool],
    ) -> Any:
        """Run the first block up to its modulated input, and to its end unless that leads to a skip."""
        seen: list[Tensor] = []

        def stop(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            if not seen:
                seen.append(given[0] if given else next(iter(named.values())))
                if decide(seen[0]):
                    raise _Stopped

        own = getattr(own, "_torchdynamo_orig_callable", own)  # compiled code calls no hooks
        try:
            part = resolved(getattr(own, "__self__", None), source.path)
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
        if self.family.inplace:  # the block may have written to its input
            self.call.cancel()
        return NOT_RUN if skip else result

    def _modulated(self, value: Tensor | None, stream: Tensor) -> Tensor | None:
        """The image's part of the modulated input, where it has tokens."""
        if self.first > 0:
            return None
        if not torch.is_tensor(value):
            if self.probe == "modulated":
                self.call.note(UNSEEN)
            value = stream
        dim = self.family.image.dim
        return self._image(value, 0) if value.ndim > dim and value.shape[dim] == stream.shape[dim] else value

    def _kept(self, streams: Streams, here: int, end: int) -> Streams:
        """The streams of stack `here`, as those of stack `end`, that are read after block `last`."""
        # blocks of the suffix read all tokens
        self.alone = bool(self.spans) and self.family.image.alone and self.suffix == 0
        joining = [stack for stack in self.family.stacks[here + 1 : end + 1] if stack.joins]
        if self.alone:
            image = self._image(streams[self._image_stream(here)], here)
            streams = {**({} if joining else streams), self._image_stream(end): image}
        else:
            for stack in joining:
                streams = {stack.takes[0][0]: torch.cat([streams[n] for n in stack.joins], 1)}
        left = self.family.same + (() if self.suffix else self.family.dead)
        return {n: v for n, v in streams.items() if n.partition(".")[0] not in left}

    def _with(self, taken: Streams, stack: int) -> Streams:
        """The output of block `last` on a skip: its input with the prediction in it."""
        assert self.given is not None
        given = dict(self.given)
        if self.alone:
            name, dim = self._image_stream(stack), self.family.image.dim
            before, _, after = taken[name].tensor_split(self.spans[stack], dim)
            given[name] = torch.cat((before, given[name], after), dim)
        return taken | given

    def _image_stream(self, stack: int) -> str:
        """The name of the image's stream."""
        return self.family.stacks[stack].takes[0][0]

    def _sample(self, value: Tensor, stack: int) -> Tensor:
        """The indicator's sample of a stack's first stream: a copy."""
        return sample(self._image(self.call.indicated(value), stack))

    def _image(self, value: Tensor, stack: int) -> Tensor:
        if not self.spans:
            return value
        start, end = self.spans[stack]
        return value.narrow(self.family.image.dim, start, end - start)


class _Visit:
    """The traversal's visit to the block at `position`."""

    def __init__(self, traversal: BlockTraversal, position: int) -> None:
        self.traversal, self.position = traversal, position
        self.quiet = position not in (0, traversal.first, traversal.last)
        self.ends = position == traversal.last

    @torch.compiler.disable
    def before(self, own: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.traversal.before(self.position, own, args, kwargs)

    @torch.compiler.disable
    def after(self, result: Any) -> None:
        self.traversal.after(self.position, result)


def _flat(name: str, value: Any) -> Streams:
    """A stream as named tensors: a tuple has several."""
    if isinstance(value, tuple | list):
        return {f"{name}.{i}": v for i, v in enumerate(value)}
    return {name: value}


def _taken(stack: Stack, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Streams:
    """The streams in a block's call."""
    streams: Streams = {}
    for name, place in stack.takes:
        streams |= _flat(name, _argument(place, args, kwargs))
    return streams


def _argument(place: int | str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """An argument of a block's call. Raises LookupError if it is missing."""
    return args[place] if isinstance(place, int) else kwargs[place]


def _returned(stack: Stack, result: Any) -> Streams:
    """The streams in a block's output."""
    if isinstance(stack.gives, str):
        return _flat(stack.gives, result)
    streams: Streams = {}
    for name, value in zip(stack.gives, result, strict=False):
        if name and value is not None:
            streams |= _flat(name, value)
    return streams


def _given(stack: Stack, streams: Streams) -> Any:
    """A block's output with these streams in it."""

    def value(name: str) -> Any:
        if f"{name}.0" in streams:
            return tuple(streams[f"{name}.{i}"] for i in range(sum(n.startswith(f"{name}.") for n in streams)))
        return streams.get(name)

    return value(stack.gives) if isinstance(stack.gives, str) else tuple(value(n) for n in stack.gives)
