"""What a slot said before: the outputs of its last computed evaluations, own copies, on the device asked for."""

from __future__ import annotations

from collections.abc import Container, Mapping

import torch
from torch import Tensor


def pinned(value: Tensor) -> Tensor | None:
    """Page-locked memory on the host for a CUDA tensor like `value`: copies to and from it do not have the host wait, and stay in order
    with what else the device does. None where there is none to be had, or no need of it."""
    if not value.is_cuda:
        return None
    try:
        return torch.empty_like(value, device="cpu", pin_memory=True)
    except RuntimeError:  # the machine has no more of it
        return None


class History:
    """A slot's anchors: evaluation number -> output, oldest first.

    Values are tensors of any shape, all of one shape and dtype; they belong to the history alone. With `device`
    None they stay where the model computes.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device
        self.anchors: dict[int, Tensor] = {}

    def observe(self, evaluation: int, value: Tensor, keep: Container[int]) -> None:
        """Take `value`, which nobody else may write to, as this evaluation's output; of the older ones stay those in `keep`."""
        older = {
            k: v for k, v in self.anchors.items() if k in keep and v.shape == value.shape and v.dtype == value.dtype
        }
        self.anchors = {**older, evaluation: self._moved(value)}

    def trim(self, keep: Container[int]) -> None:
        """Drop the anchors that are not in `keep`."""
        self.anchors = {k: v for k, v in self.anchors.items() if k in keep}

    def _moved(self, value: Tensor) -> Tensor:
        if self.device is None or self.device == value.device:
            return value
        room = pinned(value) if self.device.type == "cpu" else None
        return value.to(self.device) if room is None else room.copy_(value, non_blocking=True)

    def combine(self, weights: Mapping[int, float], device: torch.device) -> Tensor:
        """The sum of weights[evaluation] * value over the anchors, a new tensor on `device`."""
        total: Tensor | None = None
        for evaluation, weight in weights.items():
            # what comes to the host must have arrived before it is read; a device waits for what goes to it by itself
            value = self.anchors[evaluation].to(device, non_blocking=device.type != "cpu")
            total = value * weight if total is None else total.add_(value, alpha=weight)
        if total is None:
            raise ValueError("a prediction needs at least one anchor")
        return total

    def clear(self) -> None:
        self.anchors.clear()
