"""What a slot said before: the outputs of its last computed evaluations, own copies, on the device asked for."""

from __future__ import annotations

from collections.abc import Container, Mapping

import torch
from torch import Tensor


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
        self.anchors = {**older, evaluation: value if self.device is None else value.to(self.device)}

    def combine(self, weights: Mapping[int, float], device: torch.device) -> Tensor:
        """The sum of weights[evaluation] * value over the anchors, a new tensor on `device`."""
        total: Tensor | None = None
        for evaluation, weight in weights.items():
            value = self.anchors[evaluation].to(device)
            total = value * weight if total is None else total.add_(value, alpha=weight)
        if total is None:
            raise ValueError("a prediction needs at least one anchor")
        return total

    def clear(self) -> None:
        self.anchors.clear()
