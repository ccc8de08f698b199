"""Values in the form in which they are cached: with a tag for the device of each tensor, so that a hit is placed on that device again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, device

from ...core.memo.errors import CorruptEntry, NotCacheable
from . import reasons

Devices = dict[str, device]
"""Devices by tag. Where several tags name one device, the first is used."""


def pack(value: Any, devices: Devices) -> dict[str, Any]:
    """The value with the tag of each of its tensors, for the store. Raises NotCacheable for a tensor on another device."""
    tags: list[str] = []

    def note(tensor: Tensor) -> Tensor:
        tag = next((t for t, d in devices.items() if _is_same(d, tensor.device)), None)
        if tag is None:
            raise NotCacheable(reasons.DEVICE.of(device=str(tensor.device)))
        tags.append(tag)
        return tensor

    return {"value": _mapped(value, note), "places": tags}


def unpack(cached: Any, devices: Devices) -> Any:
    """The value of pack(), each tensor on the device of its tag. Raises CorruptEntry for anything that pack() did not return."""
    if not isinstance(cached, dict) or set(cached) != {"value", "places"} or not isinstance(cached["places"], list):
        raise CorruptEntry("not a value with its devices")
    tags = iter(cached["places"])

    def put(tensor: Tensor) -> Tensor:
        tag = next(tags, None)
        if tag not in devices:
            raise CorruptEntry(f"a tensor on {tag!r}")
        return tensor.to(devices[tag])

    value = _mapped(cached["value"], put)
    if next(tags, None) is not None:
        raise CorruptEntry("more devices than tensors")
    return value


def nbytes(value: Any) -> int:
    """Bytes of all tensors in a nesting of dicts, lists and tuples."""
    sizes: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        sizes.append(tensor.nbytes)
        return tensor

    _mapped(value, note)
    return sum(sizes)


def _is_same(a: device, b: device) -> bool:
    # "cuda" without an index is the current device, and ComfyUI names a single one so
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
