"""Values as they are kept: on the CPU, with a word for where each tensor was, so that it comes back there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, device

from ...core.memo.errors import CorruptEntry, NotCacheable

Places = dict[str, device]
"""Devices by the words that stand for them; the first word of a device counts."""


def packed(value: Any, places: Places) -> dict[str, Any]:
    """A value for the store. Raises NotCacheable for a tensor anywhere else, and for a reference that is no data."""
    words: list[str] = []

    def note(tensor: Tensor) -> Tensor:
        word = next((w for w, d in places.items() if _same(d, tensor.device)), None)
        if word is None:
            raise NotCacheable(f"a tensor on {tensor.device}")
        words.append(word)
        return tensor

    return {"value": _mapped(value, note), "places": words}


def unpacked(kept: Any, places: Places) -> Any:
    """The value again, its tensors where they were. Raises CorruptEntry for what packed() did not make."""
    if not isinstance(kept, dict) or set(kept) != {"value", "places"} or not isinstance(kept["places"], list):
        raise CorruptEntry("not a value with its places")
    words = iter(kept["places"])

    def put(tensor: Tensor) -> Tensor:
        word = next(words, None)
        if word not in places:
            raise CorruptEntry(f"a tensor on {word!r}")
        return tensor.to(places[word])

    value = _mapped(kept["value"], put)
    if next(words, None) is not None:
        raise CorruptEntry("more places than tensors")
    return value


def nbytes(value: Any) -> int:
    """Of the tensors in a value."""
    sizes: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        sizes.append(tensor.nbytes)
        return tensor

    _mapped(value, note)
    return sum(sizes)


def _same(a: device, b: device) -> bool:
    # "cuda" is the current one, which is how ComfyUI names it where there is one
    return a.type == b.type and (a.index is None or b.index is None or a.index == b.index)


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if type(value) is dict:
        return {name: _mapped(v, function) for name, v in value.items()}
    if type(value) is list:
        return [_mapped(v, function) for v in value]
    if type(value) is tuple:
        return tuple(_mapped(v, function) for v in value)
    return value
