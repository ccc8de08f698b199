"""Families that make pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .base import Tiny, normal, sample, supported, words, zeros

Conds = Callable[[Any], tuple[Any, Any]]
WIDTH = 32  # of text embeddings


def texts(**both: Any) -> Conds:
    """Seven words and five, and what both conditionings have besides; a function there makes it of the number of words."""
    said = {"pooled_output": None} | both  # every text encoder sets it

    def conds(_: Any) -> tuple[Any, Any]:
        positive, negative = (
            words(n, WIDTH, n, **{key: value(n) if callable(value) else value for key, value in said.items()})
            for n in (7, 5)
        )
        return positive, negative

    return conds


def pooled(width: int) -> Callable[[int], torch.Tensor]:
    return lambda n: normal(1, width, seed=100 + n)


def all_words(n: int) -> torch.Tensor:
    return torch.ones(1, n, dtype=torch.long)


AXES = [8, 8, 8]  # rotary dimensions of a head
FLUX = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 24, "context_in_dim": WIDTH,
    "hidden_size": 48, "mlp_ratio": 2.0, "num_heads": 2, "depth": 2, "depth_single_blocks": 3, "axes_dim": AXES,
    "theta": 10000, "txt_ids_dims": [], "qkv_bias": True, "guidance_embed": True,
}  # fmt: skip
FLUX2 = {
    **FLUX, "image_model": "flux2", "in_channels": 128, "out_channels": 128, "patch_size": 1, "vec_in_dim": None,
    "axes_dim": [6, 6, 6, 6], "theta": 2000, "txt_ids_dims": [3], "qkv_bias": False, "ops_bias": False,
    "global_modulation": True, "mlp_silu_act": True, "default_ref_method": "index", "ref_index_scale": 10.0,
}  # fmt: skip
LONGCAT = {**FLUX, "vec_in_dim": None, "txt_ids_dims": [1, 2], "guidance_embed": False}
CHROMA = {
    "image_model": "chroma", "in_channels": 64, "out_channels": 64, "context_in_dim": WIDTH, "hidden_size": 48,
    "mlp_ratio": 2.0, "num_heads": 2, "depth": 2, "depth_single_blocks": 3, "axes_dim": AXES, "theta": 10000,
    "patch_size": 2, "qkv_bias": True, "in_dim": 64, "out_dim": 48, "hidden_dim": 32, "n_layers": 2, "txt_ids_dims": [],
    "vec_in_dim": None,
}  # fmt: skip
RADIANCE = {
    **CHROMA, "image_model": "chroma_radiance", "in_channels": 3, "out_channels": 3, "patch_size": 4, "nerf_hidden_size": 16,
    "nerf_mlp_ratio": 2, "nerf_depth": 1, "nerf_max_freqs": 4, "nerf_tile_size": 512, "nerf_final_head_type": "conv",
    "nerf_embedder_dtype": torch.float32, "use_x0": False, "use_sequential_txt_ids": True,
}  # fmt: skip
QWEN = {
    "image_model": "qwen_image", "in_channels": 64, "out_channels": 16, "num_layers": 4, "attention_head_dim": 24,
    "num_attention_heads": 2, "joint_attention_dim": WIDTH, "axes_dims_rope": AXES,
}  # fmt: skip
MAGE = {
    "image_model": "mage_flow", "in_channels": 128, "out_channels": 128, "num_layers": 4, "attention_head_dim": 24,
    "num_attention_heads": 2, "joint_attention_dim": WIDTH, "axes_dims_rope": AXES,
}  # fmt: skip
LENS = {
    "image_model": "lens", "in_channels": 128, "out_channels": 32, "num_layers": 4, "attention_head_dim": 24,
    "num_attention_heads": 2, "enc_hidden_dim": WIDTH // 2, "axes_dims_rope": AXES, "selected_layer_index": (5, 11),
}  # fmt: skip
JOY = {
    "image_model": "joyimage", "patch_size": [1, 2, 2], "in_channels": 16, "hidden_size": 48, "num_attention_heads": 2,
    "text_dim": WIDTH, "mlp_width_ratio": 2.0, "num_layers": 4, "rope_dim_list": AXES,
}  # fmt: skip
SD3 = {
    "input_size": None, "in_channels": 16, "depth": 1, "num_blocks": 4, "adm_in_channels": 24, "context_size": WIDTH,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": WIDTH, "out_features": 64}},
    "pos_embed_max_size": 8, "mlp_ratio": 2.0,
}  # fmt: skip
AURA = {
    "in_channels": 4, "out_channels": 4, "dim": 48, "n_layers": 5, "n_double_layers": 2, "n_heads": 2, "global_conddim": 48,
    "cond_seq_dim": WIDTH, "max_seq": 64,
}  # fmt: skip
LUMINA = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 48, "n_layers": 4, "n_refiner_layers": 1, "n_heads": 2,
    "n_kv_heads": 1, "qk_norm": True, "axes_dims": AXES, "axes_lens": [64, 64, 64], "rope_theta": 10000.0,
    "ffn_dim_multiplier": 1.0, "multiple_of": 16, "cap_feat_dim": WIDTH,
}  # fmt: skip
Z_IMAGE = {
    **LUMINA, "dim": 256, "n_heads": 8, "n_kv_heads": 8, "axes_dims": [8, 12, 12], "rope_theta": 256.0,
    "z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 8,
}  # fmt: skip
Z_PIXEL = {
    **Z_IMAGE, "image_model": "zimage_pixel", "patch_size": 4, "in_channels": 3, "decoder_hidden_size": 32,
    "decoder_num_res_blocks": 1, "decoder_max_freqs": 4, "use_x0": True,
}  # fmt: skip
HIDREAM = {
    "image_model": "hidream", "patch_size": 2, "in_channels": 16, "num_layers": 2, "num_single_layers": 3,
    "attention_head_dim": 24, "num_attention_heads": 2, "caption_channels": [WIDTH, 20], "text_emb_dim": 24,
    "num_routed_experts": 2, "num_activated_experts": 1, "axes_dims_rope": AXES, "max_resolution": [16, 16],
    "llama_layers": [0, 1, 2, 3, 3],
}  # fmt: skip
HIDREAM_O1 = {
    "image_model": "hidream_o1",
    "text_config_overrides": {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 24, "rope_dims": [4, 4, 4],
    },
    "vision_config_overrides": {
        "hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "depth": 1, "deepstack_visual_indexes": (),
        "num_position_embeddings": 64,
    },
}  # fmt: skip
OMNIGEN = {
    "image_model": "omnigen2", "hidden_size": 48, "num_layers": 4, "num_refiner_layers": 1, "num_attention_heads": 2,
    "num_kv_heads": 1, "multiple_of": 16, "axes_dim_rope": AXES, "text_feat_dim": WIDTH, "timestep_scale": 1000.0,
}  # fmt: skip
BOOGU = {
    "image_model": "boogu", "hidden_size": 48, "num_layers": 3, "num_double_stream_layers": 2, "num_refiner_layers": 1,
    "num_attention_heads": 2, "num_kv_heads": 1, "multiple_of": 16, "axes_dim_rope": AXES, "instruction_feat_dim": WIDTH,
}  # fmt: skip
KREA = {
    "image_model": "krea2", "features": 64, "tdim": 32, "txtdim": WIDTH // 2, "heads": 4, "kvheads": 2, "multiplier": 2,
    "layers": 4, "txtlayers": 2, "txtheads": 2, "txtkvheads": 2,
}  # fmt: skip
IDEOGRAM = {
    "image_model": "ideogram4", "num_layers": 4, "num_attention_heads": 2, "attention_head_dim": 24, "intermediate_size": 64,
    "adaln_dim": 32, "llm_features_dim": WIDTH, "mrope_section": [4, 4, 4],
}  # fmt: skip
ERNIE = {
    "image_model": "ernie", "hidden_size": 48, "num_attention_heads": 2, "num_layers": 4, "ffn_hidden_size": 64,
    "text_in_dim": WIDTH, "rope_axes_dim": AXES,
}  # fmt: skip
PIXART = {
    "image_model": "pixart_sigma", "hidden_size": 48, "depth": 4, "num_heads": 2, "mlp_ratio": 2.0, "caption_channels": WIDTH,
    "model_max_length": 8,
}  # fmt: skip
HUNYUAN_DIT = {
    "image_model": "hydit", "hidden_size": 64, "depth": 6, "num_heads": 2, "mlp_ratio": 2.0, "text_states_dim": WIDTH,
    "text_states_dim_t5": 16, "text_len": 5, "text_len_t5": 6, "size_cond": True, "use_style_cond": True,
}  # fmt: skip
PIXELDIT = {
    "image_model": "pixeldit_t2i", "num_groups": 2, "hidden_size": 48, "pixel_hidden_size": 8, "pixel_attn_hidden_size": 48,
    "pixel_num_groups": 2, "patch_depth": 4, "pixel_depth": 1, "patch_size": 4, "txt_embed_dim": WIDTH, "txt_max_length": 16,
}  # fmt: skip
PID = {**PIXELDIT, "image_model": "pid", "lq_hidden_dim": 16, "lq_num_res_blocks": 1, "latent_spatial_down_factor": 2}
HUNYUAN_IMAGE = {
    "image_model": "hunyuan_video", "in_channels": 64, "out_channels": 64, "vec_in_dim": None, "context_in_dim": WIDTH,
    "hidden_size": 48, "mlp_ratio": 2.0, "num_heads": 2, "depth": 2, "depth_single_blocks": 3, "axes_dim": [12, 12],
    "theta": 256, "patch_size": [1, 1], "qkv_bias": True, "guidance_embed": True, "byt5": False, "meanflow": True,
    "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False,
}  # fmt: skip
REFINER = {**HUNYUAN_IMAGE, "in_channels": 128, "axes_dim": AXES, "patch_size": [1, 1, 1]}

LATENT = zeros(1, 16, 8, 6)
FLUX2_LATENT = zeros(1, 128, 4, 3)
PIXART_LATENT = zeros(1, 4, 48, 24)  # its positions are not made for less
PIXELS = zeros(1, 3, 16, 12)
O1_PIXELS = zeros(1, 3, 96, 64)
REFERENCES = [normal(1, 16, 4, 6, seed=7), normal(1, 16, 6, 4, seed=8)]
FLUX_TEXTS = {"pooled_output": pooled(24), "guidance": 3.5}


def flux(**conds: Any) -> Conds:
    return texts(**FLUX_TEXTS, **conds)


def qwen_latents(*latents: torch.Tensor) -> list[torch.Tensor]:
    """With a dimension for time."""
    return [z.unsqueeze(2) for z in latents]


def hidream(**more: Any) -> Conds:
    return texts(pooled_output=pooled(24), conditioning_llama3=lambda n: normal(1, 4, n + 1, 20, seed=n), **more)


def hidream_o1(_: Any) -> tuple[Any, Any]:
    """Its text encoder gives token ids, the last of them the place for the time."""
    from comfy.ldm.hidream_o1.model import TMS_TOKEN_ID

    positive, negative = (
        [[torch.zeros(1, 1, 1), {"text_input_ids": torch.tensor([[*range(n), TMS_TOKEN_ID]])}]] for n in (7, 5)
    )
    return positive, negative


def warm_hidream_o1() -> Any:
    """It keeps the texts' keys and values from run to run, and its answers differ by rounding before they are there."""
    model = supported("HiDreamO1", **HIDREAM_O1)
    animal = Tiny("", "HiDreamO1", warm_hidream_o1, hidream_o1, O1_PIXELS)
    sample(animal, model, *hidream_o1(model), steps=1)
    return model


def hunyuan_dit(_: Any) -> tuple[Any, Any]:
    """The lengths of both texts are fixed, and masks say what of them is padding."""

    def text(n: int) -> Any:
        return words(
            5,
            WIDTH,
            seed=n,
            attention_mask=torch.tensor([[1] * (n - 2) + [0] * (7 - n)]),
            conditioning_mt5xl=normal(1, 6, 16, seed=n),
            attention_mask_mt5xl=torch.tensor([[1] * (n - 1) + [0] * (7 - n)]),
        )

    return text(7), text(5)


def radiance() -> Any:
    """Its parameters have none that may be left out, and older versions know fewer."""
    from comfy.ldm.chroma_radiance.model import ChromaRadianceParams

    known = ("image_model", *ChromaRadianceParams.__dataclass_fields__)
    return supported("ChromaRadiance", **{key: value for key, value in RADIANCE.items() if key in known})


def tiny(name: str, kind: str, config: dict[str, Any], conds: Conds, latent: Callable[[], Any]) -> Tiny:
    """name: "Base" or "Base (variant)"; kind: the class in comfy.supported_models."""
    return Tiny(name, name.partition(" ")[0], lambda: supported(kind, **config), conds, latent)


MODELS: tuple[Tiny, ...] = (
    tiny("Flux", "Flux", FLUX, flux(), LATENT),
    tiny("Flux (schnell)", "FluxSchnell", {**FLUX, "guidance_embed": False}, flux(), LATENT),
    tiny("Flux (Kontext)", "Flux", FLUX, flux(reference_latents=REFERENCES), LATENT),
    tiny(
        "Flux (Fill)",
        "FluxInpaint",
        {**FLUX, "in_channels": 96},
        flux(concat_latent_image=normal(1, 16, 8, 6), concat_mask=torch.ones(1, 1, 64, 48)),
        LATENT,
    ),
    tiny("LongCatImage", "LongCatImage", LONGCAT, texts(), LATENT),
    tiny("Flux2", "Flux2", FLUX2, texts(guidance=3.5), FLUX2_LATENT),
    tiny(
        "Flux2 (references)",
        "Flux2",
        {**FLUX2, "guidance_embed": False},
        texts(reference_latents=[normal(1, 128, 2, 3)], reference_latents_method="index_timestep_zero"),
        FLUX2_LATENT,
    ),
    tiny("Chroma", "Chroma", CHROMA, texts(), LATENT),
    Tiny("ChromaRadiance", "ChromaRadiance", radiance, texts(), PIXELS),
    tiny("QwenImage", "QwenImage", QWEN, texts(), LATENT),
    tiny("QwenImage (Edit)", "QwenImage", QWEN, texts(reference_latents=qwen_latents(*REFERENCES)), LATENT),
    tiny(
        "QwenImage (Edit 2511)",
        "QwenImage",
        {**QWEN, "default_ref_method": "index_timestep_zero"},
        texts(reference_latents=qwen_latents(*REFERENCES)),
        LATENT,
    ),
    tiny("MageFlow", "MageFlow", MAGE, texts(), FLUX2_LATENT),
    tiny("MageFlow (references)", "MageFlow", MAGE, texts(reference_latents=[normal(1, 128, 2, 3)]), FLUX2_LATENT),
    tiny("Lens", "Lens", LENS, texts(attention_mask=all_words), FLUX2_LATENT),
    tiny("JoyImage", "JoyImage", JOY, texts(), LATENT),
    tiny("JoyImage (references)", "JoyImage", JOY, texts(reference_latents=qwen_latents(*REFERENCES)), LATENT),
    tiny("SD3", "SD3", SD3, texts(pooled_output=pooled(24)), LATENT),
    tiny(
        "SD3 (3.5 medium)",
        "SD3",
        {**SD3, "x_block_self_attn_layers": [0, 1], "qk_norm": "rms"},
        texts(pooled_output=pooled(24)),
        LATENT,
    ),
    tiny("AuraFlow", "AuraFlow", AURA, texts(), zeros(1, 4, 8, 6)),
    tiny("Lumina2", "Lumina2", LUMINA, texts(attention_mask=all_words), LATENT),
    tiny("Lumina2 (Z-Image)", "ZImage", Z_IMAGE, texts(), LATENT),
    tiny(  # without refiners, where the picture's tokens meet the references' before the first block
        "Lumina2 (Z-Image, references)",
        "ZImage",
        {**Z_IMAGE, "n_refiner_layers": 0},
        texts(reference_latents=REFERENCES),
        zeros(1, 16, 8, 8),
    ),
    tiny("ZImagePixelSpace", "ZImagePixelSpace", Z_PIXEL, texts(), PIXELS),
    tiny("HiDream", "HiDream", HIDREAM, hidream(), LATENT),
    tiny("HiDream (E1)", "HiDream", HIDREAM, hidream(concat_latent_image=normal(1, 16, 8, 6)), LATENT),
    Tiny("HiDreamO1", "HiDreamO1", warm_hidream_o1, hidream_o1, O1_PIXELS),
    tiny("Omnigen2", "Omnigen2", OMNIGEN, texts(attention_mask=all_words), LATENT),
    tiny(
        "Omnigen2 (references)",
        "Omnigen2",
        OMNIGEN,
        texts(attention_mask=all_words, reference_latents=REFERENCES),
        LATENT,
    ),
    tiny("Boogu", "Boogu", BOOGU, texts(attention_mask=all_words), LATENT),
    tiny("Boogu (references)", "Boogu", BOOGU, texts(attention_mask=all_words, reference_latents=REFERENCES), LATENT),
    tiny("Krea2", "Krea2", KREA, texts(), LATENT),
    tiny(
        "Krea2 (references)",
        "Krea2",
        KREA,
        texts(reference_latents=qwen_latents(*REFERENCES), reference_latents_method="index_timestep_zero"),
        LATENT,
    ),
    tiny("Ideogram4", "Ideogram4", IDEOGRAM, texts(), FLUX2_LATENT),
    tiny("ErnieImage", "ErnieImage", ERNIE, texts(), FLUX2_LATENT),
    tiny("PixArt", "PixArtSigma", {**PIXART, "micro_condition": False}, texts(), PIXART_LATENT),
    tiny("PixArt (alpha)", "PixArtAlpha", PIXART, texts(width=192, height=384), PIXART_LATENT),
    tiny("HunyuanDiT", "HunyuanDiT", HUNYUAN_DIT, hunyuan_dit, zeros(1, 4, 8, 6)),
    tiny("PixelDiTT2I", "PixelDiTT2I", PIXELDIT, texts(), PIXELS),
    tiny("PiD", "PiD", PID, texts(lq_latent=normal(1, 16, 4, 3), degrade_sigma=torch.tensor([0.1])), PIXELS),
    tiny("HunyuanImage21", "HunyuanImage21", HUNYUAN_IMAGE, texts(), zeros(1, 64, 4, 3)),
    tiny("HunyuanImage21Refiner", "HunyuanImage21Refiner", REFINER, texts(), zeros(1, 64, 2, 4, 3)),
)
