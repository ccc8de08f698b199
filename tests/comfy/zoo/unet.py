"""UNets: Stable Diffusion of all kinds, and what was made of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .base import Tiny, normal, patcher, words, zeros

TEXT = 24
POOLED = 16
PICTURE = (1, 4, 8, 8)
FRAMES = (3, 4, 8, 8)  # of one video


def unet(kind: str, weights: dict[str, Any] | None = None, model_type: str = "", **more: Any) -> Callable[[], Any]:
    """Five input blocks and five output blocks on two levels; transformers on the lower one, which alone is as wide as the 64
    channels of a head that most of them have."""
    config = {
        "image_size": 32, "use_checkpoint": False, "legacy": False, "use_spatial_transformer": True, "in_channels": 4,
        "out_channels": 4, "model_channels": 32, "num_res_blocks": [2, 1], "channel_mult": [1, 2], "context_dim": TEXT,
        "transformer_depth": [0, 0, 1], "transformer_depth_output": [0, 0, 0, 1, 1], "transformer_depth_middle": 1,
        "use_linear_in_transformer": True, "adm_in_channels": None, "use_temporal_attention": False,
        "use_temporal_resblock": False,
    }  # fmt: skip
    config.update(more)
    if config["adm_in_channels"]:
        config["num_classes"] = "sequential"

    def made() -> Any:
        import comfy.model_base
        import comfy.supported_models

        made = getattr(comfy.supported_models, kind)(config)
        if model_type:
            kept = getattr(comfy.model_base.ModelType, model_type)
            made.model_type = lambda *_: kept
        with torch.no_grad():  # as nodes run: some classes write to their parameters when they are made
            return patcher(made, weights)

    return made


SD1: dict[str, Any] = {
    "use_linear_in_transformer": False, "transformer_depth": [1, 1, 1], "transformer_depth_output": [1, 1, 1, 1, 1]
}  # fmt: skip
VIDEO: dict[str, Any] = {
    "in_channels": 8, "use_temporal_attention": True, "use_temporal_resblock": True, "extra_ff_mix_layer": True,
    "use_spatial_context": True, "merge_strategy": "learned_with_images", "merge_factor": 0.0, "video_kernel_size": [3, 1, 1],
    "disable_temporal_crossattention": False,
}  # fmt: skip
FOUR_LEVELS: dict[str, Any] = {
    "in_channels": 7, "num_res_blocks": [1, 1, 1, 1], "channel_mult": [1, 2, 2, 4], "transformer_depth": [0, 1, 1, 1],
    "transformer_depth_output": [0, 0, 1, 1, 1, 1, 1, 1],
}  # fmt: skip
SDXL = POOLED + 6 * 256  # of the vector: the prompt's, and of each of six numbers
PROJECTED = {"cc_projection.weight": normal(768, TEXT, seed=9) / 5, "cc_projection.bias": normal(768, seed=10)}


def prompts(positive: int = 7, negative: int = 5, **more: Any) -> Callable[[Any], tuple[Any, Any]]:
    return lambda _: (
        words(positive, TEXT, 1, pooled_output=normal(1, POOLED, seed=3), **more),
        words(negative, TEXT, 2, pooled_output=normal(1, POOLED, seed=4), **more),
    )


def shown(**more: Any) -> Callable[[Any], tuple[Any, Any]]:
    """As nodes condition on a picture: what CLIP sees in it, and its latent, of which the negative has nothing."""
    latent = normal(1, 4, 8, 8, seed=5)
    return lambda _: (
        words(1, TEXT, 1, concat_latent_image=latent, **more),
        [[torch.zeros(1, 1, TEXT), {"concat_latent_image": torch.zeros_like(latent), **more}]],
    )


MODELS = (
    Tiny("BaseModel (SD 1)", "BaseModel", unet("SD15", **SD1), prompts(), zeros(*PICTURE)),
    Tiny(
        "BaseModel (SD 1 inpainting)", "BaseModel", unet("SD15", **SD1, in_channels=9), prompts(6, 3), zeros(*PICTURE)
    ),
    Tiny("BaseModel (SD 2)", "BaseModel", unet("SD20", model_type="V_PREDICTION"), prompts(), zeros(*PICTURE)),
    Tiny("SD21UNCLIP", "SD21UNCLIP", unet("SD21UnclipL", adm_in_channels=1536), prompts(), zeros(*PICTURE)),
    Tiny(
        "SDXLRefiner", "SDXLRefiner", unet("SDXLRefiner", adm_in_channels=POOLED + 5 * 256), prompts(), zeros(*PICTURE)
    ),
    Tiny("SDXL", "SDXL", unet("SDXL", adm_in_channels=SDXL), prompts(6, 3), zeros(*PICTURE)),
    Tiny(
        "SDXL (SSD-1B, of the middle only a convolution)",
        "SDXL",
        unet("SSD1B", adm_in_channels=SDXL, transformer_depth_middle=-1),
        prompts(),
        zeros(*PICTURE),
    ),
    Tiny(
        "SDXL (KOALA, without a middle)",
        "SDXL",
        unet("KOALA_1B", adm_in_channels=SDXL, transformer_depth_middle=-2),
        prompts(),
        zeros(*PICTURE),
    ),
    Tiny(
        "SDXL (EDM, v-prediction)",
        "SDXL",
        unet("SDXL", {"edm_vpred.sigma_max": torch.tensor(120.0)}, adm_in_channels=SDXL),
        prompts(),
        zeros(*PICTURE),
    ),
    Tiny("SVD_img2vid", "SVD_img2vid", unet("SVD_img2vid", adm_in_channels=768, **VIDEO), shown(fps=7), zeros(*FRAMES)),
    Tiny("SV3D_u", "SV3D_u", unet("SV3D_u", adm_in_channels=256, **VIDEO), shown(), zeros(*FRAMES)),
    Tiny(
        "SV3D_p",
        "SV3D_p",
        unet("SV3D_p", adm_in_channels=1280, **VIDEO),
        shown(elevation=[10.0, 10.0, 10.0], azimuth=[0.0, 120.0, 240.0]),
        zeros(*FRAMES),
    ),
    Tiny(
        "Stable_Zero123",
        "Stable_Zero123",
        unet("Stable_Zero123", PROJECTED, **(SD1 | {"in_channels": 8, "context_dim": 768})),
        shown(),
        zeros(*PICTURE),
    ),
    Tiny(
        "SD_X4Upscaler",
        "SD_X4Upscaler",
        unet("SD_X4Upscaler", **FOUR_LEVELS),
        prompts(concat_image=normal(1, 3, 8, 8, seed=6), noise_augmentation=0.1),
        zeros(*PICTURE),
    ),
    Tiny(
        "SD15_instructpix2pix",
        "SD15_instructpix2pix",
        unet("SD15_instructpix2pix", **SD1, in_channels=8),
        prompts(concat_latent_image=normal(1, 4, 8, 8, seed=7)),
        zeros(*PICTURE),
    ),
    Tiny(
        "SDXL_instructpix2pix",
        "SDXL_instructpix2pix",
        unet("SDXL_instructpix2pix", in_channels=8, adm_in_channels=SDXL),
        prompts(concat_latent_image=normal(1, 4, 8, 8, seed=8)),
        zeros(*PICTURE),
    ),
    Tiny("Lotus", "Lotus", unet("LotusD", adm_in_channels=4), prompts(), zeros(*PICTURE)),
)
