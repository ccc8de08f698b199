"""The ranges of sigma in which another node changes the network, read from that node's patches.

By a convention of ComfyUI's own nodes (PatchModelAddDownscale, Uni3C, Anima LLLite, BlockSparseAttention), which other packs follow (RAUNet
of comfyui_jankhidiffusion), a patch keeps the bounds as `sigma_start` and `sigma_end`, or `start_sigma` and `end_sigma`: in variables of
its function, or in an object that the function refers to.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from functools import partial
from types import FunctionType, MethodType
from typing import Any, TypeGuard

import torch
from comfy.model_patcher import ModelPatcher

log = logging.getLogger(__name__)

Range = tuple[float, float]  # the first and the last sigma

MOST = 1000  # objects that are looked at
# objects in a row that refer to the next one, such as a patch's owner and its settings; functions do not count
DEEP = 3


def sigma_ranges(patcher: Any, model_options: dict[str, Any]) -> tuple[Range, ...]:
    """The ranges of a MODEL (a comfy ModelPatcher), sampled with these model_options. Guidance functions are left out: they run at every
    evaluation."""
    roots = [
        model_options.get("transformer_options"),
        model_options.get("model_function_wrapper"),
        getattr(patcher, "object_patches", None),
        getattr(patcher, "wrappers", None),
    ]
    try:
        return ranges_in(roots)
    except Exception:  # by an object of another pack
        log.debug("[Skipstone] ranges of sigma cannot be read", exc_info=True)
        return ()


def ranges_in(roots: list[Any]) -> tuple[Range, ...]:
    """The ranges of all patches in dictionaries and lists, each once."""
    found: dict[Range, None] = {}
    seen: dict[int, Any] = {}  # the objects themselves, so that no id is used again
    waiting = deque((root, 0) for root in roots)
    while waiting and len(seen) < MOST:
        value, depth = waiting.popleft()
        if isinstance(value, str | bytes | int | float | None) or id(value) in seen or depth > DEEP:
            continue
        seen[id(value)] = value
        if isinstance(value, dict | list | tuple):
            waiting += [(v, depth) for v in (value.values() if isinstance(value, dict) else value)]
            continue
        names = _names(value)
        found |= dict.fromkeys(_ranges(names))
        # overrides of the attention refer to the one before, as often as there are nodes
        deeper = depth + (not isinstance(value, FunctionType))
        waiting += [(v, deeper) for v in names.values()]
    return tuple(found)


def _names(value: Any) -> dict[str, Any]:
    """The variables, attributes and arguments that a function or an object refers to, by name."""
    if isinstance(value, partial):
        return {"function": value.func, "arguments": value.args, **value.keywords}
    if isinstance(value, MethodType):
        return {"function": value.__func__, "owner": value.__self__}
    if isinstance(value, FunctionType):
        return dict(_closure(value))
    # neither weights nor the models that hold them
    if isinstance(value, type | torch.Tensor | torch.nn.Module | ModelPatcher):
        return {}
    return dict(getattr(value, "__dict__", None) or {})


def _closure(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """The variables of the outer functions that a function refers to."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not assigned yet
            continue


def _ranges(names: dict[str, Any]) -> Iterator[Range]:
    for name, start in names.items():
        if isinstance(name, str) and "sigma" in name and "start" in name:
            end = names.get(name.replace("start", "end"))
            if _number(start) and _number(end):
                yield float(start), float(end)


def _number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
