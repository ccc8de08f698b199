"""How encoders were when their loader returned them, so that one that another node changed in place later is recognized.

ComfyUI holds what a loader returned, and gives it to every node that is linked to it. A node may write to an attribute of the encoder,
and all others see it from then on. Code that was put there is recognized by itself (modifications.py); a plain value, such as a flag of a
module, only by what it was before. The memo learns nothing of a loader from such an encoder.
"""

from __future__ import annotations

import inspect
from typing import Any
from weakref import WeakKeyDictionary

from . import fingerprint
from .describe import CONSTANTS
from .graph_signature import PLAIN
from .modifications import observer

_DEPTH = 3
_loaded: WeakKeyDictionary[Any, object] = WeakKeyDictionary()  # by module


def watch_loaders() -> None:
    """Note what ComfyUI's own loaders of encoders return. May be called again."""
    import nodes

    for name, plain in PLAIN.items():
        kind = nodes.NODE_CLASS_MAPPINGS.get(name)
        if kind is None or plain.follow or not plain.files:
            continue
        new = hasattr(kind, "GET_SCHEMA")  # a class method that returns a NodeOutput
        method = "execute" if new else kind.FUNCTION
        held = inspect.getattr_static(kind, method)
        function = held.__func__ if isinstance(held, classmethod) else held
        if inspect.isfunction(function) and not hasattr(function, "skipstone_notes"):
            setattr(kind, method, classmethod(noting(function)) if new else noting(function))


def noting(function: Any) -> Any:
    """A loader's method that notes the encoders that it returns."""

    def load(self: Any, *args: Any, **kwargs: Any) -> Any:
        returned = function(self, *args, **kwargs)
        values = getattr(returned, "args", returned)
        for value in values if isinstance(values, tuple) else ():
            note(value)
        return returned

    made = observer(function, load)
    made.skipstone_notes = True
    return made


def note(encoder: Any) -> None:
    """Remember how a comfy VAE or CLIP is now. Other objects are ignored."""
    module = _module(encoder)
    if module is not None and (state := _state(encoder, module)) is not None:
        _loaded[module] = state


def is_changed(encoder: Any) -> bool:
    """Whether a comfy VAE or CLIP differs from what its loader returned, but for patches and the settings of clones. False for one whose
    loader was not observed."""
    module = _module(encoder)
    return module is not None and module in _loaded and _loaded[module] != _state(encoder, module)


def _module(encoder: Any) -> Any:
    return getattr(encoder, "first_stage_model", None) or getattr(encoder, "cond_stage_model", None)


def _state(encoder: Any, module: Any) -> object:
    """Compares equal as long as nothing but patches changes; None where that is not known. Keeps nothing alive."""
    try:
        if hasattr(module, "reset_clip_options"):
            module.reset_clip_options()  # as every encoding begins
        if hasattr(encoder, "tokenizer"):  # what a CLIP holds besides belongs to a clone
            return fingerprint.state_of(encoder.patcher, module), _constants(encoder.tokenizer, 0)
        return fingerprint.state_of(encoder.patcher, module), _constants(encoder, 0)
    except Exception:  # whatever another version of ComfyUI or another pack's encoder raises
        return None


def _constants(holder: Any, depth: int) -> object:
    """The plain values of an object, and of objects of ComfyUI's that it holds."""
    told: list[object] = []
    for name, value in sorted(getattr(holder, "__dict__", {}).items()):
        if name in fingerprint.RUNTIME:
            continue
        if type(value) in CONSTANTS:
            told.append((name, value))
        elif type(value) in (list, tuple) and all(type(v) in CONSTANTS for v in value):
            told.append((name, type(value), *value))
        elif type(value) is dict and all(type(v) in CONSTANTS for v in value.values()) and len(value) < 100:
            told.append((name, *sorted(map(repr, value.items()))))
        elif (
            depth < _DEPTH
            and type(value).__module__.startswith("comfy.")
            and name != "patcher"
            and not hasattr(value, "parameters")
        ):
            told.append((name, _constants(value, depth + 1)))
    return told
