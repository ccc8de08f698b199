"""Similarity of two images: PSNR and SSIM."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# dB, in place of infinity, which JSON has no number for; one bit of a float32 is 144 dB
IDENTICAL = 150.0
WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03


def psnr_of(mse: float) -> float:
    """Peak signal-to-noise ratio in dB for values in 0..1, from their mean squared error: 10 log10(1 / mse), at most IDENTICAL."""
    return IDENTICAL if mse <= 0 else min(-10 * math.log10(mse), IDENTICAL)


def ssim(a: Tensor, b: Tensor) -> float:
    """Structural similarity of two images, shape (H, W, C), values in 0..1; 1 is identical.

    Wang, Bovik, Sheikh and Simoncelli 2004, https://doi.org/10.1109/TIP.2003.819861: an 11 x 11 Gaussian window with sigma 1.5, K1 0.01,
    K2 0.03, averaged over all positions where the window fits and over channels. In smaller images the window is as large as fits.
    """
    x, y = (t.double().movedim(-1, 0)[:, None] for t in (a, b))
    size = min(WINDOW, *(s - (s + 1) % 2 for s in x.shape[-2:]))
    at = torch.arange(size, dtype=torch.float64, device=x.device) - size // 2
    weights = torch.exp(-(at**2) / (2 * SIGMA**2))
    weights /= weights.sum()

    def blurred(t: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(t, weights[None, None, :, None]), weights[None, None, None])

    mean_x, mean_y = blurred(x), blurred(y)
    var_x, var_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
    both = blurred(x * y) - mean_x * mean_y
    c1, c2 = K1**2, K2**2
    likeness = (2 * mean_x * mean_y + c1) * (2 * both + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return float(likeness.mean())


def ssim_text(value: float) -> str:
    """SSIM with four digits, rounded down: images that differ have less than 1."""
    return f"{math.floor(value * 10000) / 10000:.4f}"


@dataclass(frozen=True)
class Pair:
    """An image of each batch, shape (H, W, C), and their similarity."""

    left: Tensor
    right: Tensor
    mse: float
    ssim: float

    @property
    def psnr(self) -> float:
        return psnr_of(self.mse)

    @property
    def identical(self) -> bool:
        return self.mse == 0

    def text(self) -> str:
        return "identical" if self.identical else f"PSNR {self.psnr:.2f} dB, SSIM {ssim_text(self.ssim)}"


@dataclass(frozen=True)
class Comparison:
    """All pairs. psnr: of the mean squared error over all of them, so that an identical pair does not dominate the mean."""

    pairs: list[Pair]

    @property
    def mse(self) -> float:
        return sum(p.mse for p in self.pairs) / len(self.pairs)

    @property
    def psnr(self) -> float:
        return psnr_of(self.mse)

    @property
    def ssim(self) -> float:
        return sum(p.ssim for p in self.pairs) / len(self.pairs)

    @property
    def identical(self) -> bool:
        return self.mse == 0

    @property
    def peak(self) -> float:
        """The 99.9th percentile of the absolute differences."""
        return max(_most((p.left - p.right).abs()) for p in self.pairs)

    def text(self) -> str:
        """One line, and one more for each pair if there are several."""
        if len(self.pairs) == 1:
            return "identical to the bit" if self.identical else self.pairs[0].text()
        whole = f"PSNR {self.psnr:.2f} dB, SSIM {ssim_text(self.ssim)}"
        head = f"{len(self.pairs)} pairs: " + ("all identical to the bit" if self.identical else whole)
        return "\n".join([head, *(f"{i}: {p.text()}" for i, p in enumerate(self.pairs, 1))])


def compared(left: Any, right: Any) -> Comparison:
    """Compare two batches, shape (B, H, W, C), values in 0..1.

    A batch of one is compared with every image of the other. Alpha is ignored, and grey counts as three equal channels.
    Raises ValueError for batches that cannot be compared.
    """
    a, b = _pixels("left", left), _pixels("right", right)
    if a.shape[1:3] != b.shape[1:3]:
        sizes = " and ".join(f"{t.shape[2]} x {t.shape[1]}" for t in (a, b))
        raise ValueError(f"the pictures are of two sizes, {sizes}: scale or crop one of them first")
    if 1 not in (len(a), len(b)) and len(a) != len(b):
        raise ValueError(
            f"left has {len(a)} pictures and right {len(b)}: they need as many as each other, or one of them just one"
        )
    channels, count = max(a.shape[-1], b.shape[-1]), max(len(a), len(b))
    a, b = (t.expand(count, *t.shape[1:3], channels) for t in (a, b))
    return Comparison([_pair(*pair) for pair in zip(a, b, strict=True)])


def _pair(left: Tensor, right: Tensor) -> Pair:
    mse = float((left.double() - right.double()).square().mean())
    return Pair(left, right, mse, 1.0 if mse == 0 else ssim(left, right))


def _pixels(name: str, batch: Any) -> Tensor:
    if not isinstance(batch, Tensor) or batch.ndim != 4 or batch.shape[-1] not in (1, 3, 4) or 0 in batch.shape:
        found = f"a tensor of shape {tuple(batch.shape)}" if isinstance(batch, Tensor) else type(batch).__name__
        raise ValueError(f"{name} takes an IMAGE, (batch, height, width, 1, 3 or 4 channels), not {found}")
    batch = batch[..., :3].float().cpu()
    if not bool(batch.isfinite().all()):
        raise ValueError(f"{name} has pixels that are no numbers (NaN or infinite): something before it went wrong")
    return batch


def _most(differences: Tensor) -> float:
    ordered = differences.flatten().sort().values
    return float(ordered[min(int(len(ordered) * 0.999), len(ordered) - 1)])
