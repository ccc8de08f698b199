"""Muon for the CPU: momentum whose matrices are made orthogonal before they are subtracted (Jordan et al. 2024).

https://kellerjordan.github.io/posts/muon/. PyTorch's own torch.optim.Muon computes in bfloat16, which CPUs without
AVX512-BF16 do ten times slower than float32.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

A, B, C = 3.4445, -4.7750, 2.0315  # the quintic's coefficients, from the page above


def orthogonal(x: Tensor, iterations: int = 5) -> Tensor:
    """About the nearest semi-orthogonal matrix of x (rows, columns): Newton-Schulz iterations, singular values 0.7 to 1.2."""
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """For weights of two dimensions and of convolutions (rows: output channels).

    lr is of AdamW's size: updates are scaled to an RMS of 0.2, https://arxiv.org/abs/2502.16982.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                flat = p.grad.lerp(state["momentum"], group["momentum"]).flatten(1)
                update = orthogonal(flat).view(p.shape)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * 0.2 * max(flat.shape) ** 0.5)
