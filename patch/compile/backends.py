"""Compiled forwards: a module's forward, run through a compiler."""

from __future__ import annotations

import itertools
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch._dynamo
import torch._inductor
from torch.nn import Module

from ...core.compile_options import Settings

# Guards on transformer_options that are kept: code of other nodes may read these
GUARDED = ("cond_or_uncond", "patches", "patches_replace", "wrappers", "optimized_attention_override")

_NUMBERS = itertools.count()
_watching = threading.local()


@contextmanager
def watched(starts: Callable[[], None]) -> Iterator[None]:
    """Within the context, call `starts` when torch.compile begins to compile in this thread. No-op where torch cannot tell."""
    with suppress(AttributeError):  # private in torch, which also drops all callbacks at times
        handler = torch._dynamo.callback.callback_handler
        if _begins not in handler.start_callbacks:
            handler.register_start_callback(_begins)
    before, _watching.starts = getattr(_watching, "starts", None), starts
    try:
        yield
    finally:
        _watching.starts = before


def _begins(about: Any) -> None:
    starts = getattr(_watching, "starts", None)
    if starts is not None and getattr(getattr(about, "callback_trigger", None), "name", "") == "DYNAMO":
        starts()


class Compiled:
    """A compiled forward. proven: it has run without an error. failed: the error that it stopped with. shapes: those of the tensors that
    it was compiled for."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.proven = False
        self.failed: BaseException | None = None
        self.shapes: set[tuple[torch.Size, ...]] = set()

    def run(self, module: Module, place: int | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """module.forward(*args, **kwargs), compiled if necessary. place: position of transformer_options in `args`; None if not there."""
        raise NotImplementedError


class ByTorch(Compiled):
    """By torch.compile, shared by modules of the same structure: weights are arguments of the code, not constants in it."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.compiled: dict[Callable[..., Any], Callable[..., Any]] = {}

    def run(self, module: Module, place: int | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # _guarded recognises guards by the name transformer_options
        if "transformer_options" in kwargs:
            rest = {k: v for k, v in kwargs.items() if k != "transformer_options"}
            return self._of(_by_name)(module, kwargs["transformer_options"], args, rest)
        if place is not None and len(args) > place:
            return self._of(_by_place)(module, args[:place], args[place], args[place + 1 :], kwargs)
        return self._of(_without)(module, args, kwargs)

    def _of(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if function not in self.compiled:
            self.compiled[function] = self._compile(function)
        return self.compiled[function]

    def _compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        chosen = self.settings
        options: dict[str, Any] = dict(chosen.options)
        if chosen.backend == "inductor":  # torch takes either a mode or options
            options = torch._inductor.list_mode_options(chosen.mode, chosen.dynamic) | options
        # torch stores compiled variants with a function's code object and limits their number: a code object per kind of module keeps
        # those of different kinds apart
        code = function.__code__
        own = types.FunctionType(code.replace(co_name=f"{code.co_name}_{next(_NUMBERS)}"), function.__globals__)
        return torch.compile(
            own,
            backend=chosen.backend,
            fullgraph=chosen.fullgraph,
            dynamic=chosen.dynamic,
            options={**options, "guard_filter_fn": _guarded},
        )


def _by_name(module: Any, transformer_options: Any, args: Any, kwargs: Any) -> Any:
    return module.forward(*args, transformer_options=transformer_options, **kwargs)


def _by_place(module: Any, before: Any, transformer_options: Any, after: Any, kwargs: Any) -> Any:
    return module.forward(*before, transformer_options, *after, **kwargs)


def _without(module: Any, args: Any, kwargs: Any) -> Any:
    return module.forward(*args, **kwargs)


def _guarded(entries: Any) -> list[bool]:
    """Drops most guards on transformer_options, which would fail at every step."""
    return [
        "transformer_options" not in e.name or any(f"transformer_options['{key}']" in e.name for key in GUARDED)
        for e in entries
    ]


class ByOther(Compiled):
    """By a compiler of another package, which `load` returns; one per module."""

    def __init__(self, settings: Settings, load: Callable[[], Callable[..., Callable[..., Any]]]) -> None:
        super().__init__(settings)
        self.load = load
        self.compiled: Callable[..., Any] | None = None

    def run(self, module: Module, place: int | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.compiled is None:
            chosen = self.settings
            self.compiled = self.load()(
                module,
                mode=chosen.mode,
                backend=chosen.backend,
                fullgraph=chosen.fullgraph,
                dynamic=chosen.dynamic,
                options=dict(chosen.options),
            )
        return self.compiled(*args, **kwargs)


def of_the_compiler(error: BaseException) -> bool:
    """True for an error of torch's compiler itself."""
    return isinstance(error, torch._dynamo.exc.TorchDynamoException) or type(error).__module__.startswith(
        "torch._inductor"
    )
