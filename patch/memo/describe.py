"""Complete descriptions of Python values, for digests: two values with one description compute the same.

Functions are described by their code, closure, defaults and attributes, methods also by the object they are bound to, objects by
class and all attributes, private ones and slots included. Code that is ComfyUI's own or an installed package's, and lies where its
module defines it, is described by its name alone: the source is part of every key (source_code.py). Other packs' code is described
with the digest of the whole pack and with the globals that it reads.

A value that cannot be described completely raises NotCacheable: objects that keep state outside of Python, code that reads files, the
environment or globals by a name that is only known at run time.
"""

from __future__ import annotations

import builtins
import dis
import enum
import functools
import logging
import sys
import threading
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy
import torch
from torch import Tensor

from ...core.memo.errors import NotCacheable
from ...core.memo.keys import digest
from ...core.memo.reasons import CLASS, TENSOR_CLASS
from . import reasons, source_code

CONSTANTS = (type(None), bool, int, float, str, bytes)
LIMIT = 50_000  # values in one description
_DEPTH = 60

_DYNAMIC = {"eval", "exec", "compile", "open", "globals", "locals", "vars", "input", "__import__"}  # builtins
_OUTSIDE = {"environ", "getenv"}  # attributes
# of a class: what Python writes there by itself
_BOOKKEEPING = {
    "__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__annotations__", "__annotate__", "__annotate_func__",
    "__annotations_cache__", "__abstractmethods__", "_abc_impl", "__parameters__", "__orig_bases__", "__firstlineno__",
    "__static_attributes__", "__dataclass_fields__", "__dataclass_params__", "__match_args__", "__signature__", "__hash__",
}  # fmt: skip
_LOCKS = (type(threading.Lock()), type(threading.RLock()))
_DESCRIPTORS = (
    types.MemberDescriptorType,
    types.GetSetDescriptorType,
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
)
_BUILTIN_BASES = (dict, list, tuple, set, frozenset, str, int, float, bytes)


def description(value: Any, parts: Mapping[int, str] = types.MappingProxyType({})) -> str:
    """A digest of `value`, equal only for values that compute the same.

    parts: names by id() for objects that are described elsewhere, such as the modules of an encoder; they stand for themselves.
    Raises NotCacheable, with a short reason, for what cannot be described completely.
    """
    return digest(_Description(parts).of(value))


def code_of(value: Any) -> types.CodeType | None:
    """The code that a callable runs in the end: below decorators that say what they wrap, partials, methods and properties."""
    for _ in range(_DEPTH):
        if isinstance(value, types.FunctionType) and not hasattr(value, "__wrapped__"):
            return value.__code__
        if isinstance(value, staticmethod | classmethod | types.MethodType):
            value = value.__func__
        elif isinstance(value, functools.partial | functools.partialmethod):
            value = value.func
        elif isinstance(value, property):
            value = value.fget
        elif isinstance(value, functools.cached_property):
            value = value.func
        elif hasattr(value, "__wrapped__"):
            value = value.__wrapped__
        else:
            return None
    return None


def lies_where_defined(thing: Any) -> bool:
    """Whether a function or class is what its module has under its name, and its code is from that module's file."""
    found: Any = sys.modules.get(str(thing.__module__))
    file = getattr(found, "__file__", None)
    for name in str(thing.__qualname__).split("."):
        found = getattr(found, name, None)
    if found is not thing:
        return False
    code = getattr(thing, "__code__", None)
    return code is None or code.co_filename == file


class _Description:
    def __init__(self, parts: Mapping[int, str]) -> None:
        self._parts = parts
        self._known: dict[int, Any] = {}
        self._alive: list[Any] = []  # an id is another object's once its own is gone
        self._path: list[int] = []
        self._count = 0

    def of(self, value: Any) -> Any:
        """As plain data, for digest()."""
        kind = type(value)
        if kind in CONSTANTS:
            return value
        if id(value) in self._parts:
            return ["part", self._parts[id(value)]]
        if id(value) in self._known:
            return self._known[id(value)]
        if id(value) in self._path:  # a cycle: how far back it goes tells the same of equal structures
            return ["cycle", len(self._path) - self._path.index(id(value))]
        self._count += 1
        if self._count > LIMIT or len(self._path) > _DEPTH:
            raise NotCacheable(reasons.TOO_MUCH_BELONGS.of(name=kind.__name__))
        self._path.append(id(value))
        try:
            told = digest(kind.__name__, self._told(value, kind))
        finally:
            self._path.pop()
        self._known[id(value)] = told
        self._alive.append(value)
        return told

    def _told(self, value: Any, kind: type) -> Any:
        if kind in (
            complex,
            range,
            slice,
            torch.dtype,
            torch.layout,
            torch.memory_format,
            types.EllipsisType,
            types.NotImplementedType,
        ):
            return repr(value)
        if kind is torch.device:
            return value.type  # which of several equal devices it is changes no bits
        if isinstance(value, torch.nn.Module):
            return self._module(value)
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, numpy.ndarray | numpy.generic):
            return self._array(value)
        if isinstance(value, enum.Enum):
            return [self._class(kind), value.name, self.of(value.value)]
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, types.ModuleType):
            return self._python_module(value)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            return [self.of(value.__func__), self.of(value.__self__)]
        if isinstance(value, staticmethod | classmethod):
            return self.of(value.__func__)
        if kind is property:
            return [self.of(value.fget), self.of(value.fset), self.of(value.fdel)]
        if kind in (functools.partial, functools.partialmethod):
            return [self.of(value.func), self.of(value.args), self.of(value.keywords)]
        if kind is functools._lru_cache_wrapper:
            return self.of(value.__wrapped__)
        if isinstance(value, types.BuiltinFunctionType):
            return self._builtin(value)
        if isinstance(value, _DESCRIPTORS):
            return str(value.__qualname__)
        if kind is types.CellType:
            return self._cell(value)
        if isinstance(value, logging.Logger):
            return value.name
        if isinstance(value, _LOCKS):
            return []
        return self._object(value, kind)

    # containers and objects

    def _object(self, value: Any, kind: type) -> Any:
        held: list[Any] = []
        known = isinstance(value, _BUILTIN_BASES)
        if isinstance(value, dict):
            held = [[self.of(k), self.of(v)] for k, v in value.items()]
            if isinstance(value, defaultdict):
                held.append(self.of(value.default_factory))
        elif isinstance(value, set | frozenset):
            held = sorted(str(self.of(v)) + type(v).__name__ for v in value)
        elif isinstance(value, list | tuple | deque):
            held, known = [self.of(v) for v in value], True
        elif known:
            held = [repr(value)]
        if kind in (*_BUILTIN_BASES, OrderedDict, defaultdict, deque, torch.Size):
            return held
        if not known and _has_hidden_state(kind):
            raise NotCacheable(reasons.OPAQUE.of(name=kind.__name__))
        return [self._class(kind), held, self._attributes(value)]

    def _attributes(self, value: Any) -> list[Any]:
        """Of an object: its __dict__ and its slots."""
        names = dict(vars(value)) if hasattr(value, "__dict__") else {}
        for base in type(value).__mro__:
            for name, slot in vars(base).items():
                if isinstance(slot, types.MemberDescriptorType) and hasattr(value, name):
                    names.setdefault(name, getattr(value, name))
        return [[str(name), self.of(names[name])] for name in sorted(names, key=str)]

    def _module(self, value: torch.nn.Module) -> Any:
        """A network outside of the encoder, as a list or a closure may hold one: its class, attributes and weights."""
        return [self._class(type(value)), self._attributes(value)]

    def _tensor(self, value: Tensor) -> Any:
        if type(value) not in (Tensor, torch.nn.Parameter):
            raise NotCacheable(TENSOR_CLASS.of(name=type(value).__name__))
        return [str(value.dtype), list(value.shape), digest(value.detach())]

    def _array(self, value: Any) -> Any:
        array = numpy.asarray(value)
        if array.dtype.hasobject or type(value).__module__.partition(".")[0] != "numpy":
            raise NotCacheable(CLASS.of(name=type(value).__name__))
        return [str(array.dtype), list(array.shape), array.tobytes()]

    def _cell(self, value: types.CellType) -> Any:
        try:
            held = value.cell_contents
        except ValueError:
            return "empty"
        return self.of(held)

    # code

    def _function(self, function: types.FunctionType) -> Any:
        own = [function.__closure__, function.__defaults__, function.__kwdefaults__]
        held = [self.of(part) for part in (*own, dict(vars(function)))]
        whose = source_code.origin(function.__code__.co_filename)
        if whose != "other":
            if lies_where_defined(function):
                return [_name(function), held]
            return [_name(function), _code(function.__code__), held]
        pack = source_code.pack_digest(function.__code__.co_filename)
        return [_name(function), pack, _code(function.__code__), held, self._globals(function)]

    def _globals(self, function: types.FunctionType) -> list[Any]:
        """The globals of its module that a function of another pack reads."""
        read, imported, attributes = _names(function.__code__)
        if outside := (attributes | read) & _OUTSIDE:
            raise NotCacheable(reasons.CODE_READS.of(name=sorted(outside)[0]))
        for name in imported:
            if source_code.origin_of_module(name.partition(".")[0]) == "other":
                raise NotCacheable(reasons.CODE_IMPORTS)
        told = []
        for name in sorted(read):
            if name in function.__globals__:
                value = function.__globals__[name]
                told.append([name, self.of(value)])
                if isinstance(value, types.ModuleType) and source_code.origin_of_module(value.__name__) == "other":
                    known = sorted(attributes & set(vars(value)))
                    told.append([[a, self.of(getattr(value, a))] for a in known])
            elif name in _DYNAMIC:
                raise NotCacheable(reasons.CODE_CALLS.of(name=name))
            elif not hasattr(builtins, name):
                told.append([name, "missing"])
        return told

    def _class(self, kind: type) -> Any:
        """A class by its name where its source tells the rest, else by all that it holds."""
        if kind.__module__ == "builtins":
            return _name(kind)
        whose = source_code.origin_of_module(kind.__module__)
        if whose != "other" and lies_where_defined(kind):
            return [_name(kind), source_code.version_of(kind.__module__) if whose == "installed" else ""]
        if self._path[-1] != id(kind):
            return self.of(kind)  # which comes back here
        told = [[str(name), self.of(v)] for name, v in vars(kind).items() if name not in _BOOKKEEPING]
        return [
            _name(kind),
            whose,
            [self.of(base) for base in kind.__bases__ if base is not object],
            sorted(told, key=lambda t: t[0]),
        ]

    def _python_module(self, module: types.ModuleType) -> Any:
        return [module.__name__, source_code.source_of(module.__name__)]

    def _builtin(self, value: types.BuiltinFunctionType) -> Any:
        owner = getattr(value, "__self__", None)
        if owner is None or isinstance(owner, types.ModuleType | type):
            return [_name(value), _name(owner) if isinstance(owner, type) else ""]
        return [_name(value), self.of(owner)]


def _has_hidden_state(kind: type) -> bool:
    """Whether instances hold more than a __dict__, slots and a list of weak references: state of an extension's own."""
    slots = sum(isinstance(v, types.MemberDescriptorType) for base in kind.__mro__ for v in vars(base).values())
    pointers = slots + (kind.__dictoffset__ > 0) + (kind.__weakrefoffset__ > 0)
    return kind.__basicsize__ > object.__basicsize__ + 8 * pointers


@functools.lru_cache(maxsize=4096)
def _code(code: types.CodeType) -> list[Any]:
    """Instructions and constants, those of inner functions too."""
    constants = [_code(c) if isinstance(c, types.CodeType) else _constant(c) for c in code.co_consts]
    names = [list(names) for names in (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)]
    return [code.co_code, names, code.co_flags, code.co_argcount, code.co_kwonlyargcount, constants]


def _constant(value: Any) -> Any:
    if isinstance(value, frozenset):
        return ["frozenset", *sorted(map(repr, value))]
    return value if type(value) in CONSTANTS else repr(value)


@functools.lru_cache(maxsize=4096)
def _names(code: types.CodeType) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Names that code reads as globals, imports, and reads as attributes; inner functions' too."""
    read, imported, attributes = set[str](), set[str](), set[str]()
    for inner in _with_inner(code):
        for step in dis.get_instructions(inner):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
                read.add(str(step.argval))
            elif step.opname == "IMPORT_NAME":
                imported.add(str(step.argval))
            elif step.opname.startswith(("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR")):
                attributes.add(str(step.argval))
    return frozenset(read), frozenset(imported), frozenset(attributes)


def _with_inner(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _with_inner(constant)


def _name(thing: Any) -> str:
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', getattr(thing, '__name__', ''))}"
