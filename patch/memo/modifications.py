"""Code that other packs put in the place of ComfyUI's: functions, methods and classes of its modules that are not its own.

Keys of all kinds include modified_code(), also those that are made before an encoder is loaded. A pack that is installed, updated,
switched off or removed therefore never meets a value that was computed with other code.
"""

from __future__ import annotations

import functools
import re
import sys
import threading
import types
from collections.abc import Iterator, Mapping
from typing import Any

from . import source_code
from .describe import code_of, description

# of ComfyUI's modules: those that only sampling uses. Packs replace much in them, and no encoder runs through them
_SAMPLING = re.compile(
    r"comfy\.(samplers|sampler_helpers|sample|k_diffusion|extra_samplers|controlnet|cldm|t2i_adapter|model_base|model_sampling"
    r"|conds|context_windows|gligen|multigpu|latent_formats)(\..*)?"
    r"|comfy\.ldm\.(?!models\.|modules\.)(?!.*(vae|autoencoder|audio)).*"
)
_ALSO = ("nodes", "node_helpers")
# of some modules only these names decide bits. The rest of model_management says where and when models are loaded, and the rest of
# nodes is sampling
_ONLY = {
    "comfy.model_management": re.compile(r".*(dtype|cast|attention|supports|should_use|force).*"),
    "nodes": re.compile(
        r"(VAE|CLIP|Lora|Checkpoint|unCLIP|ImageOnlyCheckpoint|Dual|Load|Empty|Inpaint|Conditioning).*"
    ),
}
_OBSERVER = "__skipstone_observer__"  # set on functions of ours that only watch: the function that they watch

_lock = threading.Lock()
_seen: (
    tuple[int, list[tuple[Mapping[str, Any], tuple[Any, ...]]], list[tuple[types.FunctionType, types.CodeType]]] | None
) = None
_found: list[tuple[str, Any]] = []  # places, and what lies there


def modified_code() -> list[list[str]]:
    """Places in ComfyUI's modules where other code than its own lies, with a description of that code: [] for a ComfyUI as it comes.

    Raises NotCacheable where that code cannot be described completely.
    """
    return [[place, description(value)] for place, value in _modified()]


def observed(function: Any) -> Any:
    """The function that one of ours watches, or the function itself."""
    while hasattr(function, _OBSERVER):
        function = getattr(function, _OBSERVER)
    return function


def observer(of: Any, function: Any) -> Any:
    """`function` marked as one that runs `of` as it is and only watches it."""
    setattr(function, _OBSERVER, of)
    return functools.wraps(of)(function)


def is_foreign(value: Any) -> bool:
    """Whether a callable or class is neither ComfyUI's own nor an installed package's."""
    value = observed(value)
    if isinstance(value, type):
        # ComfyUI names some of its classes after modules that do not exist
        there = value.__module__ in sys.modules and source_code.origin_of_module(value.__module__) == "other"
        return there or any(is_foreign(v) for v in vars(value).values() if isinstance(v, types.FunctionType))
    if (code := code_of(value)) is not None:
        if isinstance(value, types.MethodType) and is_foreign(type(value.__self__)):
            return True
        return source_code.origin(code.co_filename) == "other"
    if not callable(value) or isinstance(
        value, types.BuiltinFunctionType | types.ModuleType | functools._lru_cache_wrapper
    ):
        return False
    # an object that is called: of another pack's class, or an extension's wrapper
    root = type(value).__module__.partition(".")[0]
    return source_code.origin_of_module(type(value).__module__) == "other" or root == "wrapt"


def _modified() -> list[tuple[str, Any]]:
    global _seen, _found
    with _lock:
        if _seen is None or not _unchanged(_seen):
            spaces = list(_namespaces())
            functions = [
                f for _, space in spaces for f in map(observed, space.values()) if isinstance(f, types.FunctionType)
            ]
            _found = sorted(
                (
                    (f"{place}.{name}", observed(value))
                    for place, space in spaces
                    for name, value in _values(space)
                    if _decides(place, name)
                ),
                key=lambda found: found[0],
            )
            _seen = (
                len(sys.modules),
                [(space, tuple(space.values())) for _, space in spaces],
                [(f, f.__code__) for f in functions],
            )
        return list(_found)


def _unchanged(seen: Any) -> bool:
    """Compares references alone, as this is asked for every key."""
    modules, spaces, functions = seen
    try:
        return (
            len(sys.modules) == modules
            and all(tuple(space.values()) == values for space, values in spaces)
            and all(f.__code__ is code for f, code in functions)
        )
    except Exception:  # values that are no longer the same object, and cannot be compared
        return False


def _values(space: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in space.items():
        if name.startswith("__") and name not in (
            "__call__",
            "__init__",
            "__new__",
            "__getattr__",
            "__torch_function__",
        ):
            continue
        try:
            if is_foreign(value):
                yield name, value
        except Exception:  # an object that says odd things of itself
            yield name, value


def _namespaces() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The modules of ComfyUI that encoders may run through, and the classes in them."""
    for name, module in list(sys.modules.items()):
        if not (name.startswith("comfy.") or name in _ALSO) or _SAMPLING.fullmatch(name):
            continue
        yield name, vars(module)
        for value in list(vars(module).values()):
            if isinstance(value, type) and value.__module__ == name and _decides(name, value.__qualname__):
                yield f"{name}.{value.__qualname__}", vars(value)


def _decides(place: str, name: str) -> bool:
    return place not in _ONLY or _ONLY[place].fullmatch(name) is not None
