"""The adapter of networks whose class has no record: their blocks are found by structure and observed in the first call of a run.

That call is then made again with the blocks left out and the last one's output put in their place. Only if it returns the same result
to the bit does the record that was made of the observation hold, and evaluations are skipped with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, ModuleDict, ModuleList

from ...core.step.method import Blocks
from ...core.texts import Text
from ..families import Family, Stack
from ..families.tokens import CallInputs
from . import comfy_compiler
from .base import BlockAdapter, Call, Look, Streams
from .transformer import NOT_RUN, Forward, TransformerAdapter, blocks_of, watched

LEAST = 4  # blocks in a list
SHARE = 1 / 3  # of the network's parameters that the list has at least

FOUND = Text(
    "blocks_found",
    "this model ({model}) is not known to Skipstone: its blocks ({blocks}) were found by their structure, and a check in the first "
    "evaluation showed that they can be left out",
)
REFUSED = Text(
    "blocks_refused",
    "this model ({model}) is not known to Skipstone, and its blocks ({blocks}) cannot be left out, so nothing is skipped: {why}. Methods "
    "at output level, such as MeanCache, work with it",
)
NOT_CALLED = Text("blocks_not_called", "it does not call them one after the other, each once")
NO_STREAM = Text("blocks_no_stream", "what a block returns is not found among the next one's arguments")
SIZES = Text("blocks_sizes", "what passes through them changes its size")
DIFFERENT = Text("blocks_different", "leaving them out and putting their output in its place changes the result")

Place = tuple[str | int, bool]
"""An argument of a block's call, and whether it is a tuple of tensors."""


def family_from(network: Module) -> Family | None:
    """A record without streams for the network's largest list of equal blocks; None if it has no list that is large enough."""
    total = sum(p.numel() for p in network.parameters())
    found = [
        (sum(p.numel() for p in blocks.parameters()), path)
        for path, blocks in network.named_modules()
        if _equal(blocks)
    ]
    size, path = max(found, default=(0, ""))
    if size < SHARE * total or not size:
        return None
    return Family(type(network).__name__, (), (Stack(path, (), ""),), inplace=True, batch=None)


def _equal(blocks: Module) -> bool:
    """Is it a list of modules of one class?"""
    if not isinstance(blocks, ModuleList | ModuleDict) or len(blocks) < LEAST:
        return False
    kinds = {type(b) for b in blocks.children()}
    return len(kinds) == 1 and not kinds & {ModuleList, ModuleDict}


class GenericAdapter(BlockAdapter):
    """See base.BlockAdapter. family: what `family_from` found."""

    batch = None

    def __init__(self, family: Family, blocks: Blocks) -> None:
        self.family, self.blocks = family, blocks
        self.verified: TransformerAdapter | None = None
        self.observed: _Observation | None = None

    @contextmanager
    def around(self, network: Any, call: Call, inputs: CallInputs, control: Any) -> Iterator[None]:
        if self.verified is not None:
            with self.verified.around(network, call, inputs, control):
                yield
            return
        self.observed = None
        blocks = blocks_of(network, self.family.stacks[0])
        observed = _Observation(len(blocks) - self.blocks.suffix - 1)
        with watched([(block, _Observer(observed, i)) for i, block in enumerate(blocks)]):
            yield
        if observed.problem or observed.next != len(blocks):
            self._refuse(observed.problem or NOT_CALLED)
        else:
            self.observed = observed

    def rehearsal(
        self, network: Any, call: Call, inputs: CallInputs, control: Any
    ) -> AbstractContextManager[None] | None:
        if self.observed is None:
            return None
        adapter = TransformerAdapter(self.observed.family(self.family), self.blocks)
        return adapter.around(network, _Rehearsal(call, self.observed.kept), inputs, control)

    def rehearsed(self, call: Call, same: bool) -> None:
        assert self.observed is not None
        observed, self.observed = self.observed, None
        if not same:
            self._refuse(DIFFERENT)
            return
        self.verified = TransformerAdapter(observed.family(self.family), self.blocks)
        call.leave(observed.kept, lambda v: v)
        call.note(FOUND.of(model=self.family.name, blocks=self.family.stacks[0].at), warning=False)

    def _refuse(self, why: str) -> None:
        self.problem = REFUSED.of(model=self.family.name, blocks=self.family.stacks[0].at, why=why)


class _Observation:
    """Of one call of the network, in which all blocks run. last: the position of the last block that a skip leaves out."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.next = 0
        self.problem = ""
        self.places: tuple[Place, ...] = ()  # of the streams, the largest first
        self.gives: tuple[int, ...] = ()  # their positions in a block's output; () where that is the one stream
        self.said: Any = None  # the output of the block before
        self.entered: dict[Place, tuple[torch.Size, ...]] = {}  # shapes of what a block is given
        self.kept: Streams = {}  # the output of block `last`

    def before(self, position: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.problem:
            return
        if position != self.next:
            self.problem = NOT_CALLED
            return
        self.next += 1
        given = _tensors(args, kwargs)
        if position:
            self._follow(given)
        self.entered = {place: _shapes(value) for place, value in given.items()}

    def after(self, position: int, result: Any) -> None:
        if self.problem:
            return
        if self.next != position + 1:
            self.problem = NOT_CALLED
        self.said = result
        if position == self.last and not self.places:
            self.problem = NO_STREAM
        elif position == self.last:
            with comfy_compiler.paused():
                self.kept = self._streams(result)

    def _follow(self, given: Mapping[Place, Any]) -> None:
        """Find the streams: where the output of the block before is among the arguments of this one."""
        whole = next((place for place, value in given.items() if _is(value, self.said)), None)
        parts = self.said if isinstance(self.said, tuple | list) and whole is None else [self.said]
        found: dict[int, Place] = {}
        for match in (_is, _alike):  # the loop may have added something to a stream
            for i, part in enumerate(parts):
                place = next((p for p, v in given.items() if p not in found.values() and match(v, part)), None)
                if i not in found and place is not None:
                    found[i] = place
        order = sorted(found, key=lambda i: -sum(s.numel() for s in _shapes(parts[i])))
        places = tuple(found[i] for i in order)
        gives = tuple(order) if parts is self.said else ()
        if not places or (self.places and (set(places), set(gives)) != (set(self.places), set(self.gives))):
            self.problem = NO_STREAM
            return
        if not self.places:
            self.places, self.gives = places, gives
        self._same_sizes()

    def _parts(self, said: Any) -> list[Any]:
        """The streams in a block's output, in the order of `places`."""
        return [said[i] for i in self.gives] if self.gives else [said]

    def _same_sizes(self) -> None:
        """The output of the block before has the sizes of what that block was given."""
        parts = zip(self.places, self._parts(self.said), strict=True)
        if any(_shapes(part) != self.entered.get(place) for place, part in parts):
            self.problem = SIZES

    def _streams(self, said: Any) -> Streams:
        """Copies of the streams in a block's output. The last block of a model may not return all of them."""
        streams: Streams = {}
        for k, part in enumerate(self._parts(said)):
            several = part if isinstance(part, tuple | list) else [part]
            names = [f"s{k}.{i}" for i in range(len(several))] if several is part else [f"s{k}"]
            streams |= {n: v.clone() for n, v in zip(names, several, strict=True) if v is not None}
        return streams

    def family(self, found: Family) -> Family:
        """The record, with the streams."""
        names = [f"s{k}" for k in range(len(self.places))]
        takes = tuple((n, place) for n, (place, _) in zip(names, self.places, strict=True))
        at = dict(zip(self.gives, names, strict=False))
        gives = tuple(at.get(i, "") for i in range(len(self.said))) if at else names[0]
        returned = {n.partition(".")[0] for n in self.kept}
        stack = replace(found.stacks[0], takes=takes, gives=gives)
        return replace(found, stacks=(stack,), dead=tuple(n for n in names if n not in returned))


class _Observer:
    """See transformer.Visit: of one block, which always runs."""

    quiet = False
    ends = True

    def __init__(self, observation: _Observation, position: int) -> None:
        self.observation, self.position = observation, position

    @torch.compiler.disable
    def before(self, own: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.observation.before(self.position, args, kwargs)
        return NOT_RUN

    @torch.compiler.disable
    def after(self, result: Any) -> None:
        self.observation.after(self.position, result)


class _Rehearsal:
    """See base.Call: the observed call made again, in which the blocks are left out. What `call` has to know of it is reported to it."""

    pending = False
    first_evaluation = False
    wants_modulated = False

    def __init__(self, call: Call, kept: Streams) -> None:
        self.call, self.kept = call, kept
        self.has_indicator = call.has_indicator

    def enter(self, base: Streams, look: Look, copy: bool = False) -> Streams | None:
        self.call.enter(base, look, copy=True)
        with comfy_compiler.paused():
            return {name: value.clone() for name, value in self.kept.items()}

    def leave(self, streams: Mapping[str, Tensor], image: Callable[[Tensor], Tensor], channels: int = -1) -> None: ...

    def cancel(self) -> None:
        self.call.cancel()

    def indicated(self, value: Tensor) -> Tensor:
        return self.call.indicated(value)

    def note(self, sentence: str, warning: bool = True) -> None:
        self.call.note(sentence, warning)


def _tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[Place, Any]:
    """The arguments that are tensors of tokens, or tuples of them."""
    given: dict[Place, Any] = {}
    named: list[tuple[str | int, Any]] = [*enumerate(args), *kwargs.items()]
    for name, value in named:
        if _tokens(value):
            given[name, False] = value
        elif isinstance(value, tuple | list) and value and all(map(_tokens, value)):
            given[name, True] = value
    return given


def _tokens(value: Any) -> bool:
    return torch.is_tensor(value) and value.ndim > 1 and value.is_floating_point()


def _is(value: Any, part: Any) -> bool:
    """Are they the same tensor, or tuples of the same tensors?"""
    if isinstance(value, tuple | list) and isinstance(part, tuple | list):
        return len(value) == len(part) and all(a is b for a, b in zip(value, part, strict=True))
    return value is part


def _alike(value: Any, part: Any) -> bool:
    """Are they tensors of the same shape and dtype?"""
    both = torch.is_tensor(value) and torch.is_tensor(part)
    return both and value.shape == part.shape and value.dtype == part.dtype


def _shapes(value: Any) -> tuple[torch.Size, ...]:
    return tuple(v.shape for v in (value if isinstance(value, tuple | list) else (value,)) if torch.is_tensor(v))
