"""The demo model's latent space: a fixed linear map of 8 x 8 pixel patches to 16 channels.

A PCA with partial whitening, so that a latent exists before any autoencoder is trained; the TAESD-type
VAE then learns to invert it. Latents here are in the model's space (what ComfyUI's Flux sees): about unit variance.
"""

from __future__ import annotations

from pathlib import Path

import torch
from objects import Painter, random_scenes
from safetensors.torch import load_file, save_file
from torch import Tensor

PATCH = 8
CHANNELS = 16
FILE = Path(__file__).resolve().parent / "latents.safetensors"
WHITENING = 0.6  # 0 keeps the PCA's own scale, 1 makes all channels equally strong


def _patches(pictures: Tensor) -> Tensor:
    """(B, 3, H, W) in 0..1 to (B, H/8, W/8, 192) in -1..1."""
    b, c, h, w = pictures.shape
    cells = (pictures * 2 - 1).reshape(b, c, h // PATCH, PATCH, w // PATCH, PATCH)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(b, h // PATCH, w // PATCH, -1)


class LatentMap:
    """pictures (B, 3, H, W) in 0..1 -> latents (B, 16, H/8, W/8), float32. Kept in a file: every model shares one map."""

    def __init__(self, file: Path = FILE) -> None:
        state = load_file(file)
        self.mean, self.axes = state["mean"], state["axes"]

    def __call__(self, pictures: Tensor) -> Tensor:
        return ((_patches(pictures) - self.mean) @ self.axes).permute(0, 3, 1, 2).contiguous()


def fit(file: Path = FILE) -> None:
    """Fit the map to 768 pictures of the data set, and write it."""
    generator = torch.Generator().manual_seed(0)
    rows = _patches(Painter().draw(random_scenes(768, generator), generator)).reshape(-1, 3 * PATCH * PATCH)
    mean = rows.mean(0)
    _, strength, axes = torch.linalg.svd(rows - mean, full_matrices=False)
    std = strength[:CHANNELS] / len(rows) ** 0.5
    scaled = std ** (1 - WHITENING)
    kept = float((strength[:CHANNELS] ** 2).sum() / (strength**2).sum())
    print(f"{kept:.2%} of the variance kept")
    save_file(
        {"mean": mean, "axes": (axes[:CHANNELS].T / std**WHITENING / scaled.pow(2).mean().sqrt()).contiguous()}, file
    )


if __name__ == "__main__":
    fit()
