"""UNets: Stable Diffusion 1 and 2, SDXL, Stable Video Diffusion."""

from __future__ import annotations

from .base import Family

FAMILIES = (
    Family(
        "Stable Diffusion 1 and 2, SDXL, SVD (UNets)",
        ("comfy.ldm.modules.diffusionmodules.openaimodel:UNetModel",),
        unet=True,
    ),
)
