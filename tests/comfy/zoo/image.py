"""Families that make pictures."""

from __future__ import annotations

from typing import Any

from .base import Tiny, normal, supported, words, zeros

FLUX = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 24, "context_in_dim": 32,
    "hidden_size": 48, "mlp_ratio": 2.0, "num_heads": 2, "depth": 2, "depth_single_blocks": 3, "axes_dim": [8, 8, 8],
    "theta": 10000, "txt_ids_dims": [], "qkv_bias": True, "guidance_embed": True,
}  # fmt: skip


def flux_words(_: Any) -> tuple[Any, Any]:
    return (
        words(7, 32, 1, pooled_output=normal(1, 24, seed=2), guidance=3.5),
        words(5, 32, 3, pooled_output=normal(1, 24, seed=4), guidance=3.5),
    )


MODELS: tuple[Tiny, ...] = (Tiny("Flux", "Flux", lambda: supported("Flux", **FLUX), flux_words, zeros(1, 16, 8, 6)),)
