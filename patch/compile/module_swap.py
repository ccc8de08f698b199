"""Swaps stand-ins for a model's modules during a call, which run compiled code."""

from __future__ import annotations

import inspect
import logging
import time
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from operator import attrgetter
from typing import Any, Protocol

import torch
from comfy.model_management import is_oom
from torch.nn import Module, ModuleDict, ModuleList
from torch.utils._pytree import tree_leaves, tree_map_only

from ...core.compile_options import EACH_BLOCK, TORCH, Settings
from ...core.texts import Text
from ..families import Family, family_of
from .backends import ByOther, ByTorch, Compiled, of_the_compiler, watched
from .registry import offered

KINDS = 64  # compiled forwards that are kept; a model has few
OWN = 4096  # likewise of those that refer to a model or to other nodes' code, which are dropped with the model
SETTINGS = 4  # per model that are kept

HOOKED = Text("hooked", "other nodes have hooks on parts of the model, so it runs uncompiled")
PATCHED = Text(
    "weights_patched",
    "blocks whose weights are patched at each use, as a LoRA's are where memory is short, run uncompiled",
)
SIZE = Text("size_changed", "the size changed")
State = tuple[tuple[str, Hashable], ...]
log = logging.getLogger(__name__)

# By settings, the module's structure, and state: equal blocks share an entry, also when the model is loaded again.
_KINDS: OrderedDict[Hashable, Compiled] = OrderedDict()


class Node(Protocol):
    """The node whose settings are in use; it reports to the user."""

    def tell(self, sentence: Text) -> None: ...

    def starts(self, number: int, total: int, again: str) -> None:
        """Compilation of block `number` of `total` starts; 1 of 1 is the whole model. again: why, where it was compiled before."""

    def compiled(self, seconds: float, total: int, again: str) -> None:
        """One of `total` blocks was compiled and has run once, which took so long."""

    def failed(self, error: BaseException) -> None:
        """Compilation failed."""


class Same:
    """Compares an object by identity."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Same) or type(self.value) is not type(other.value):
            return False
        if isinstance(self.value, types.MethodType):  # created anew at every access
            return self.value.__self__ is other.value.__self__ and self.value.__func__ is other.value.__func__
        return self.value is other.value

    def __hash__(self) -> int:
        return hash(type(self.value))


def token(value: Any, code: bool = False) -> Hashable:
    """A hashable stand-in for a value of transformer_options: the value itself if it is plain, otherwise its class. code: callables are
    compared by identity."""
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return (type(value), value)
    if torch.is_tensor(value):
        return (tuple(value.shape), value.dtype, value.device)
    if isinstance(value, Mapping):
        return tuple((token(k), token(v, code)) for k, v in value.items())
    if isinstance(value, list | tuple):
        return (type(value), *(token(v, code) for v in value))
    kind: type = type(value)
    return Same(value) if code and callable(value) else kind


def _holds(token: Hashable) -> bool:
    """True if it refers to an object."""
    return isinstance(token, Same) or (isinstance(token, tuple) and any(map(_holds, token)))


class ModuleSwapper:
    """Puts stand-ins into one model for the duration of a call."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.node: Node | None = None
        self.state: State | None = None
        self.stand_ins: dict[tuple[int, str], StandIn] = {}
        self.found: tuple[weakref.ref[Module], list[Module]] | None = None
        self.own: OrderedDict[Hashable, Compiled] = OrderedDict()
        self.writes = True  # blocks may write to their arguments
        self.total = 1  # stand-ins of the call

    @contextmanager
    def set(self, node: Node, base: Module, what: str, state: State | None) -> Iterator[None]:
        """Within the context, which is one call of `base` (ComfyUI's BaseModel), stand-ins are in place.

        state: the values that compiled code may treat as constant; None: run uncompiled.
        """
        before, self.node, self.state = (self.node, self.state), node, state
        family = family_of(getattr(base, "diffusion_model", None))
        self.writes = not isinstance(family, Family) or family.inplace or family.unet
        undo: list[tuple[Module, str, Module]] = []
        places = self._places(base, what)
        self.total = len(places)
        try:
            for number, (parent, name) in enumerate(places, 1):
                module = parent._modules.get(name)
                if module is not None and not isinstance(module, StandIn):
                    undo.append((parent, name, module))
                    stand_in = parent._modules[name] = self._stand_in(parent, name, module, parent is base)
                    vars(stand_in)["number"] = number
            yield
        finally:
            for parent, name, module in undo:
                parent._modules[name] = module
            self.node, self.state = before

    def _places(self, base: Module, what: str) -> list[tuple[Module, str]]:
        if what != EACH_BLOCK:
            return [(base, "diffusion_model")]
        return [(blocks, name) for blocks in self.lists(base.diffusion_model) for name in blocks._modules]

    def lists(self, network: Any) -> list[Module]:
        """The lists of blocks: from the family's record, otherwise found by their structure."""
        family = family_of(network)
        if isinstance(family, Family) and family.stacks:
            with suppress(AttributeError):  # another pack may have rebuilt the model
                return [attrgetter(stack.at)(network) for stack in family.stacks]
        if self.found is None or self.found[0]() is not network:
            if isinstance(family, Family) and family.unet:
                levels = [*network.input_blocks, network.middle_block, *network.output_blocks]
                found = [blocks for level in levels if level is not None for blocks in _lists_in(level, 1)]
            else:
                found = list(_lists_in(network, 3))
            self.found = weakref.ref(network), found
        return self.found[1]

    def _stand_in(self, parent: Module, name: str, module: Module, whole: bool) -> StandIn:
        place = (id(parent), name)
        known = self.stand_ins.get(place)
        if known is None or known.original is not module:
            known = self.stand_ins[place] = StandIn(module, self, whole)
        return known

    def compiled(self, stand_in: StandIn, state: State) -> Compiled:
        """The compiled forward of a stand-in for calls with this state."""
        make: Callable[[], Compiled] = partial(ByTorch, self.settings)
        key: Hashable = (self.settings, stand_in.structure, state)
        kept, most = (self.own, OWN) if _holds(state) else (_KINDS, KINDS)
        if self.settings.compiler != TORCH:
            make = partial(ByOther, self.settings, offered()[self.settings.compiler].load)
            key, kept, most = (Same(stand_in), state), self.own, OWN
        if key not in kept:
            kept[key] = make()
        kept.move_to_end(key)
        while len(kept) > most:
            kept.popitem(last=False)
        return kept[key]


_STAGES: weakref.WeakKeyDictionary[Module, dict[Settings, ModuleSwapper]] = weakref.WeakKeyDictionary()


def stage_of(base: Module, settings: Settings) -> ModuleSwapper:
    """One per model and settings, for the model's lifetime."""
    stages = _STAGES.setdefault(base, {})
    if settings not in stages:
        while len(stages) >= SETTINGS:  # the user is trying settings
            del stages[next(iter(stages))]
        stages[settings] = ModuleSwapper(settings)
    return stages[settings]


def _lists_in(module: Module, least: int) -> Iterator[Module]:
    """The outermost lists of at least `least` modules of one class that have submodules."""
    for child in module.children():
        if isinstance(child, ModuleList | ModuleDict):
            blocks = list(child.children())
            alike = len(blocks) >= least and len({*map(type, blocks)}) == 1
            if alike and not isinstance(blocks[0], ModuleList | ModuleDict) and list(blocks[0].children()):
                yield child
                continue
        yield from _lists_in(child, least)


class StandIn(Module):
    """Replaces a module for the duration of a call and runs it compiled.

    Attribute access goes to the module: parameters, submodules and hooks are the module's. Only `forward` is its own; it can be set and
    deleted, as on a module.
    """

    original: Module
    stage: ModuleSwapper
    structure: Hashable  # modules of equal structure share compiled code
    parts: tuple[Module, ...]
    place: int | None
    number: int  # 1-based, of the stand-ins of a call
    last: tuple[State | None, Any]  # the last state, and the compiled forward for it

    def __init__(self, original: Module, stage: ModuleSwapper, whole: bool) -> None:
        super().__init__()
        mine = vars(self)
        mine.update({name: vars(original)[name] for name in mine if name in vars(original)})
        mine.pop("training", None)
        mine["original"], mine["stage"], mine["whole"] = original, stage, whole
        mine["parts"] = tuple(original.modules())[1:]
        shapes = tuple((n, tuple(p.shape)) for n, p in original.named_parameters())
        mine["structure"] = (type(original), tuple(map(type, self.parts)), shapes)
        mine["place"] = _place_of_options(original)
        mine["number"], mine["last"] = 1, (None, None)

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # some networks use isinstance on their blocks
        return type(self.original)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["original"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "forward":
            vars(self)[name] = value
        else:
            setattr(self.original, name, value)

    def __delattr__(self, name: str) -> None:
        if name == "forward" and name in vars(self):
            del vars(self)[name]
        else:
            delattr(self.original, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        node, state = self.stage.node, self.stage.state
        if node is None or state is None or self._observed(node):
            return self.original.forward(*args, **kwargs)
        if self.last[0] is not state:
            vars(self)["last"] = (state, self.stage.compiled(self, state))
        compiled: Compiled = self.last[1]
        if compiled.failed is not None:
            node.failed(compiled.failed)
            return self.original.forward(*args, **kwargs)
        kept, started, total = (args, kwargs), time.perf_counter(), self.stage.total
        again: list[str] = []  # why it is compiled, at the first time ""

        def starts() -> None:
            if not again:
                again.append(_reason(compiled, args, kwargs))
                node.starts(self.number, total, again[0])

        if not compiled.proven:
            starts()
            if self.stage.writes:
                kept = _copied(args, kwargs)
        try:
            with watched(starts):
                result = compiled.run(self.original, self.place, args, kwargs)
        except Exception as error:
            if is_oom(error) or (compiled.proven and not of_the_compiler(error)):
                raise
            result = self.original.forward(*kept[0], **kept[1])  # raises the error again if it is not the compiler's
            compiled.failed = error
            node.failed(error)
            log.debug("[Skipstone] the compiler's error", exc_info=error)
        else:
            if again:
                node.compiled(time.perf_counter() - started, total, again[0])
            compiled.proven = True
        return result

    def _observed(self, node: Node) -> bool:
        """True if a submodule has hooks, which compiled code ignores, or weight functions, which compile every block separately."""
        for part in self.parts:
            mine = vars(part)
            if mine["_forward_pre_hooks"] or mine["_forward_hooks"]:
                if self.whole:
                    node.tell(HOOKED)
                return True
            if not self.whole and (mine.get("weight_function") or mine.get("bias_function")):
                node.tell(PATCHED)
                return True
        return False


def _place_of_options(module: Module) -> int | None:
    """The position of transformer_options among the arguments of a module's forward; None if it has none."""
    try:
        names = [*inspect.signature(module.forward).parameters]
    except (TypeError, ValueError):
        return None
    return names.index("transformer_options") if "transformer_options" in names else None


def _reason(compiled: Compiled, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Why a forward is compiled for these arguments; "" at the first time, and where torch's reason is none that a user knows of."""
    rest = {k: v for k, v in kwargs.items() if k != "transformer_options"}
    shapes = tuple(leaf.shape for leaf in tree_leaves((args, rest)) if isinstance(leaf, torch.Tensor))
    other = bool(compiled.shapes) and shapes not in compiled.shapes
    compiled.shapes.add(shapes)
    return SIZE if other else ""


def _copied(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Copies of the arguments for a second try: blocks may write to their inputs before they fail."""
    options = {k: v for k, v in kwargs.items() if k == "transformer_options"}
    rest = {k: v for k, v in kwargs.items() if k not in options}
    args, rest = tree_map_only(torch.Tensor, torch.clone, (args, rest))
    return args, rest | options
