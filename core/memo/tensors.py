"""Which tensors are pure data, and their bytes."""

from __future__ import annotations

import torch

from .errors import NotCacheable


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor on the CPU, without its history: the same memory where it is there already.

    Raises NotCacheable for what is more than its elements: quantized, sparse, nested, without storage, a subclass.
    """
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        raise NotCacheable(f"a tensor of class {type(tensor).__name__}")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested or tensor.is_meta:
        raise NotCacheable("a tensor that is sparse, quantized, nested or has no data")
    return tensor.detach().resolve_conj().resolve_neg().cpu()


def raw(tensor: torch.Tensor) -> memoryview:
    """The elements in row-major order, whatever the strides; a view of the tensor's memory where they lie so.

    Raises NotCacheable as plain() does, and where there is no memory for a copy.
    """
    tensor = plain(tensor)
    try:
        return memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    except (RuntimeError, TypeError) as error:
        raise NotCacheable(f"a tensor whose bytes cannot be had ({type(error).__name__})") from error
