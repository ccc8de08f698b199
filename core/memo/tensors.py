"""Which tensors are pure data, and their bytes."""

from __future__ import annotations

from typing import Any

import torch

from . import reasons
from .errors import NotCacheable


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor on the CPU, without its history: the same memory where it is there already.

    Raises NotCacheable for what is more than its elements: quantized, sparse, nested, without storage, a subclass.
    """
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        raise NotCacheable(reasons.TENSOR_CLASS.of(name=type(tensor).__name__))
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested or tensor.is_meta:
        raise NotCacheable(reasons.NO_PLAIN_TENSOR)
    return tensor.detach().resolve_conj().resolve_neg().cpu()


def is_finite(value: Any) -> bool:
    """Whether no tensor in a nesting of lists, tuples and dicts holds NaN or an infinity."""
    if isinstance(value, torch.Tensor):
        if not value.is_floating_point() and not value.is_complex():
            return True
        # one-byte types have no isfinite()
        return bool(torch.isfinite(value if value.element_size() > 1 else value.to(torch.float32)).all())
    if isinstance(value, dict):
        return all(map(is_finite, value.values()))
    return all(map(is_finite, value)) if isinstance(value, list | tuple) else True


def raw(tensor: torch.Tensor) -> memoryview:
    """The elements in row-major order, whatever the strides; a view of the tensor's memory where they lie so.

    Raises NotCacheable as plain() does, and where there is no memory for a copy.
    """
    tensor = plain(tensor)
    try:
        return memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    except (RuntimeError, TypeError) as error:
        raise NotCacheable(reasons.NO_TENSOR_BYTES.of(error=type(error).__name__)) from error
