"""Families that make video, with or without sound."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from .base import Tiny, normal, patcher, supported, words, zeros

Conds = Callable[[Any], tuple[Any, Any]]
TEXT = 24  # width of the text tokens of most models here


def prompts(width: int = TEXT, lengths: tuple[int, int] = (7, 5), **more: Any) -> Conds:
    """A positive and a negative prompt; `more` is what nodes attach to both."""
    return lambda _: (words(lengths[0], width, 1, **more), words(lengths[1], width, 2, **more))


def pooled(width: int, vector: int, **more: Any) -> Conds:
    return lambda _: (
        words(7, width, 1, pooled_output=normal(1, vector, seed=3), **more),
        words(5, width, 2, pooled_output=normal(1, vector, seed=4), **more),
    )


def masked(width: int, **more: Any) -> Conds:
    """Prompts of text encoders that tell which tokens are padding."""
    return lambda _: (
        words(7, width, 1, attention_mask=torch.tensor([[1] * 6 + [0]]), **more),
        words(5, width, 2, attention_mask=torch.tensor([[1] * 4 + [0]]), **more),
    )


def seen(tokens: int, width: int) -> Any:
    """What CLIPVisionEncode gives."""
    state = normal(1, tokens, width, seed=5)
    return SimpleNamespace(penultimate_hidden_states=state, last_hidden_state=state)


def pair(*shapes: tuple[int, ...]) -> Callable[[], Any]:
    """An empty latent of video and sound."""

    def made() -> Any:
        from comfy.nested_tensor import NestedTensor

        return NestedTensor([torch.zeros(s) for s in shapes])

    return made


# what has no width to choose in its configuration


def rebuilt(kind: str, change: Callable[[Any], None], **unet_config: Any) -> Any:
    """A MODEL some of whose layers are put in again at another size before they are given weights."""
    import comfy.supported_models

    config = getattr(comfy.supported_models, kind)(unet_config)
    made = config.get_model

    def smaller(*args: Any, **more: Any) -> Any:
        model = made(*args, **more)
        change(model.diffusion_model)
        return model

    config.get_model = smaller
    return patcher(config)


def humo() -> Any:
    """Speech as 16 numbers where Whisper has 1280."""

    def change(network: Any) -> None:
        network.audio_proj = type(network.audio_proj)(
            seq_len=8, blocks=5, channels=16, intermediate_dim=32, output_dim=1536, operations=layers()
        )

    return rebuilt("WAN21_HuMo", change, **{**WAN_CONFIG, "model_type": "humo"})


def animate() -> Any:
    """Its motion encoder looks at faces of 512 by 512 with nine convolutions; here at 4 by 4 with the first and the last."""

    def change(network: Any) -> None:
        encoder = network.motion_encoder.enc.net_app
        first, last = encoder.convs[0], encoder.convs[-1]
        encoder.convs = torch.nn.ModuleList([first, type(last)(32, 512, 4, bias=False, operations=layers())])

    return rebuilt("WAN22_Animate", change, **{**WAN_CONFIG, "model_type": "animate", "num_layers": 5})


def anima() -> Any:
    """Its adapter between text encoders is 1024 wide."""

    def change(network: Any) -> None:
        network.llm_adapter = type(network.llm_adapter)(
            TEXT, TEXT, TEXT, num_layers=1, num_heads=2, operations=layers()
        )

    return rebuilt("Anima", change, image_model="anima", **COSMOS)


def layers() -> Any:
    import comfy.ops

    return comfy.ops.manual_cast


# Wan

VIDEO = (1, 16, 3, 6, 4)
CLIP = (1, 16, 3, 7, 4)  # of odd height: the model pads it


WAN_CONFIG = {
    "image_model": "wan2.1", "model_type": "t2v", "patch_size": (1, 2, 2), "dim": 48, "ffn_dim": 64, "freq_dim": 32,
    "text_dim": TEXT, "num_heads": 2, "num_layers": 4, "in_dim": 16, "out_dim": 16,
}  # fmt: skip


def wan(kind: str, **more: Any) -> Callable[[], Any]:
    return lambda: supported(kind, **{**WAN_CONFIG, **more})


def first_frame(channels: int = 16, size: tuple[int, ...] = VIDEO[2:]) -> dict[str, Any]:
    """What WanImageToVideo attaches: a picture in the first frame, and the mask of that frame."""
    image = torch.zeros(1, channels, *size)
    image[:, :, :1] = normal(1, channels, 1, *size[1:], seed=6)
    mask = torch.ones(1, 1, *size)
    mask[:, :, :1] = 0
    return {"concat_latent_image": image, "concat_mask": mask}


WAN = (
    Tiny("WAN21", "WAN21", wan("WAN21_T2V"), prompts(), zeros(*CLIP)),
    Tiny(
        "WAN21 (i2v)",
        "WAN21",
        wan("WAN21_I2V", model_type="i2v", in_dim=36),
        prompts(**first_frame(), clip_vision_output=seen(257, 1280)),
        zeros(*VIDEO),
    ),
    Tiny(
        "WAN21 (Fun, with a reference)",
        "WAN21",
        wan("WAN21_FunControl2V", model_type="i2v", in_dim=48, in_dim_ref_conv=16),
        prompts(concat_latent_image=normal(1, 32, *VIDEO[2:]), reference_latents=[normal(1, 16, 1, 6, 4, seed=7)]),
        zeros(*VIDEO),
    ),
    Tiny(
        "WAN21 (with references in context)",
        "WAN21",
        wan("WAN21_T2V"),
        prompts(context_latents=[normal(1, 16, 1, 6, 4, seed=7), normal(1, 16, 2, 4, 4, seed=8)]),
        zeros(*CLIP),
    ),
    Tiny("WAN21_CausalAR", "WAN21_CausalAR", wan("WAN21_CausalAR_T2V"), prompts(), zeros(*VIDEO)),
    Tiny(
        "WAN21_Vace",
        "WAN21_Vace",
        wan("WAN21_Vace", model_type="vace", vace_layers=2, vace_in_dim=96),
        prompts(
            vace_frames=[normal(1, 32, *VIDEO[2:], seed=7)],
            vace_mask=[torch.ones(1, 64, *VIDEO[2:])],
            vace_strength=[0.8],
        ),
        zeros(*VIDEO),
    ),
    Tiny(
        "WAN21_Camera",
        "WAN21_Camera",
        wan("WAN21_Camera", model_type="camera", in_dim=32),
        prompts(
            camera_conditions=normal(1, 24, 3, 48, 32, seed=7),
            concat_latent_image=first_frame()["concat_latent_image"],
            clip_vision_output=seen(257, 1280),
        ),
        zeros(*VIDEO),
    ),
    Tiny(
        "WAN21_HuMo",
        "WAN21_HuMo",
        humo,
        prompts(audio_embed=normal(1, 3, 8, 5, 16, seed=7), reference_latents=[normal(1, 16, 1, 6, 4, seed=8)]),
        zeros(*VIDEO),
    ),
    Tiny(
        "WAN22_S2V",
        "WAN22_S2V",
        wan("WAN22_S2V", model_type="s2v", audio_dim=32, audio_inject_layers=[0, 2]),
        prompts(
            audio_embed=normal(1, 25, 32, 12, seed=7),
            reference_latents=[normal(1, 16, 1, 8, 8, seed=8)],
            control_video=normal(1, 16, 3, 8, 8, seed=9),
            reference_motion=normal(1, 16, 19, 8, 8, seed=10),
        ),
        zeros(1, 16, 3, 8, 8),
    ),
    Tiny(
        "WAN22",
        "WAN22",
        wan("WAN22_T2V", in_dim=48, out_dim=48),
        prompts(),
        zeros(1, 48, 3, 6, 4),
    ),
    Tiny("WAN21_FlowRVS", "WAN21_FlowRVS", wan("WAN21_FlowRVS", model_type="flow_rvs"), prompts(), zeros(*VIDEO)),
    Tiny(
        "WAN21_SCAIL",
        "WAN21_SCAIL",
        wan("WAN21_SCAIL", model_type="scail", in_dim=20),
        prompts(
            reference_latents=[normal(1, 16, 1, 6, 4, seed=7)],
            pose_video_latent=normal(1, 16, 3, 4, 2, seed=8),
            clip_vision_output=seen(257, 1280),
        ),
        zeros(*VIDEO),
    ),
    Tiny(
        "WAN21_SCAIL2",
        "WAN21_SCAIL2",
        wan("WAN21_SCAIL2", model_type="scail2", in_dim=20),
        prompts(
            reference_latents=[normal(1, 16, 1, 6, 4, seed=7)],
            pose_video_latent=normal(1, 16, 3, 4, 2, seed=8),
            driving_mask_28ch=torch.ones(1, 3, 28, 4, 2),
            ref_mask_28ch=torch.ones(1, 4, 28, 6, 4),
            clip_vision_output=seen(257, 1280),
        ),
        zeros(*VIDEO),
    ),
    Tiny(
        "WAN22_WanDancer",
        "WAN22_WanDancer",
        wan("WAN22_WanDancer", model_type="wandancer", in_dim=36, audio_inject_layers=[0, 2]),
        prompts(
            **first_frame(size=(2, 8, 8)),
            audio_embed=normal(1, 16, 35, seed=7),
            clip_vision_output=seen(257, 1280),
            clip_vision_output_ref=seen(257, 1280),
        ),
        zeros(1, 16, 2, 8, 8),
    ),
)


# HunyuanVideo


def hunyuan(kind: str, **more: Any) -> Callable[[], Any]:
    small = {
        "image_model": "hunyuan_video", "in_channels": 16, "out_channels": 16, "patch_size": [1, 2, 2], "vec_in_dim": 20,
        "context_in_dim": TEXT, "hidden_size": 48, "mlp_ratio": 2.0, "num_heads": 2, "depth": 2, "depth_single_blocks": 3,
        "axes_dim": [8, 8, 8], "theta": 256, "qkv_bias": True, "guidance_embed": True, "byt5": False, "meanflow": False,
        "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False,
    }  # fmt: skip
    return lambda: supported(kind, **{**small, **more})


HUNYUAN15 = {
    "out_channels": 32, "patch_size": [1, 1, 1], "vec_in_dim": None, "depth": 4, "depth_single_blocks": 0,
    "guidance_embed": False, "byt5": True, "use_cond_type_embedding": True, "vision_in_dim": 20,
}  # fmt: skip

HUNYUAN = (
    Tiny("HunyuanVideo", "HunyuanVideo", hunyuan("HunyuanVideo"), pooled(TEXT, 20, guidance=6.0), zeros(*VIDEO)),
    Tiny(
        "HunyuanVideo (first frame replaced)",
        "HunyuanVideo",
        hunyuan("HunyuanVideo"),
        pooled(TEXT, 20, guidance=6.0, guiding_frame_index=0),
        zeros(*VIDEO),
    ),
    Tiny(
        "HunyuanVideo (with a reference)",
        "HunyuanVideo",
        hunyuan("HunyuanVideo"),
        pooled(TEXT, 20, guidance=6.0, ref_latent=normal(1, 16, 1, 6, 4, seed=7)),
        zeros(*VIDEO),
    ),
    Tiny(
        "HunyuanVideoI2V",
        "HunyuanVideoI2V",
        hunyuan("HunyuanVideoI2V", in_channels=33),
        pooled(TEXT, 20, guidance=6.0, **first_frame()),
        zeros(*VIDEO),
    ),
    Tiny(
        "HunyuanVideoSkyreelsI2V",
        "HunyuanVideoSkyreelsI2V",
        hunyuan("HunyuanVideoSkyreelsI2V", in_channels=32),
        pooled(TEXT, 20, guidance=6.0, **first_frame()),
        zeros(*VIDEO),
    ),
    Tiny(
        "HunyuanVideo15",
        "HunyuanVideo15",
        hunyuan("HunyuanVideo15", in_channels=65, **HUNYUAN15),
        prompts(
            pooled_output=None,
            conditioning_byt5small=normal(1, 4, 1472, seed=7),
            clip_vision_output=seen(6, 20),
            **first_frame(32, (2, 4, 3)),
        ),
        zeros(1, 32, 2, 4, 3),
    ),
    Tiny(
        "HunyuanVideo15_SR_Distilled",
        "HunyuanVideo15_SR_Distilled",
        hunyuan("HunyuanVideo15_SR_Distilled", in_channels=98, meanflow=True, meanflow_sum=True, **HUNYUAN15),
        prompts(pooled_output=None, concat_latent_image=normal(1, 66, 2, 4, 3, seed=7)),
        zeros(1, 32, 2, 4, 3),
    ),
)

# LTX

LTX = {
    "attention_head_dim": 24, "num_attention_heads": 2, "cross_attention_dim": 48, "caption_channels": TEXT, "num_layers": 4,
}  # fmt: skip
LTXAV = {
    "audio_attention_head_dim": 16, "audio_num_attention_heads": 2, "audio_cross_attention_dim": 32,
    "connector_attention_head_dim": 12, "connector_num_attention_heads": 2, "connector_num_layers": 1,
}  # fmt: skip

LIGHTRICKS = (
    Tiny("LTXV", "LTXV", lambda: supported("LTXV", image_model="ltxv", **LTX), masked(TEXT), zeros(1, 128, 2, 4, 3)),
    Tiny(
        "LTXAV",
        "LTXAV",
        lambda: supported("LTXAV", image_model="ltxav", **LTX, **LTXAV),
        prompts(2 * TEXT),
        pair((1, 128, 2, 4, 3), (1, 8, 5, 16)),
    ),
)

# Cosmos

COSMOS = {
    "max_img_h": 24, "max_img_w": 24, "max_frames": 8, "in_channels": 16, "out_channels": 16, "patch_spatial": 2,
    "patch_temporal": 1, "model_channels": 48, "num_blocks": 4, "num_heads": 2, "crossattn_emb_channels": TEXT,
    "concat_padding_mask": True, "pos_emb_cls": "rope3d", "pos_emb_learnable": False, "pos_emb_interpolation": "crop",
    "use_adaln_lora": True, "adaln_lora_dim": 16,
}  # fmt: skip
COSMOS1 = {
    "image_model": "cosmos", "block_config": "FA-CA-MLP", "block_x_format": "THWBD", "affline_emb_norm": True,
    "extra_per_block_abs_pos_emb": True, "extra_per_block_abs_pos_emb_type": "learnable",
}  # fmt: skip


def anima_words(_: Any) -> tuple[Any, Any]:
    """Text of two encoders: states of one, token numbers and weights of the other."""

    def said(tokens: int, seed: int) -> Any:
        numbers = torch.arange(tokens) * 7 + seed
        return words(tokens + 2, TEXT, seed, t5xxl_ids=numbers.int(), t5xxl_weights=torch.ones(tokens))

    return said(7, 1), said(5, 2)


NVIDIA = (
    Tiny("CosmosVideo", "CosmosVideo", lambda: supported("CosmosT2V", **COSMOS, **COSMOS1), prompts(), zeros(*VIDEO)),
    Tiny(
        "CosmosVideo (i2v)",
        "CosmosVideo",
        lambda: supported("CosmosI2V", **{**COSMOS, "in_channels": 17}, **COSMOS1),
        prompts(lengths=(6, 6)),  # both in one call
        zeros(*VIDEO),
    ),
    Tiny(
        "CosmosPredict2",
        "CosmosPredict2",
        lambda: supported("CosmosT2IPredict2", image_model="cosmos_predict2", **COSMOS),
        prompts(),
        zeros(*CLIP),
    ),
    Tiny(
        "Anima",
        "Anima",
        anima,
        anima_words,
        zeros(1, 16, 1, 6, 4),
    ),
)

# the others

KANDINSKY = {
    "image_model": "kandinsky5", "in_text_dim": TEXT, "in_text_dim2": 20, "time_dim": 32, "model_dim": 48, "ff_dim": 64,
    "num_text_blocks": 1, "num_visual_blocks": 4, "axes_dims": (8, 8, 8),
}  # fmt: skip
MOCHI = {
    "image_model": "mochi_preview", "in_channels": 12, "hidden_size_x": 48, "hidden_size_y": 32, "depth": 4, "num_heads": 2,
    "mlp_ratio_x": 12288 / 48, "use_t5": True, "t5_feat_dim": 32, "qk_norm": True, "qkv_bias": False, "out_bias": True,
    "patch_size": 2, "learn_sigma": False,
}  # fmt: skip
COGVIDEO = {
    "image_model": "cogvideox", "num_attention_heads": 2, "attention_head_dim": 16, "time_embed_dim": 32,
    "text_embed_dim": TEXT, "num_layers": 4,
}  # fmt: skip
SEEDVR = {
    "image_model": "seedvr2", "norm_eps": 1e-5, "num_layers": 4, "mlp_type": "swiglu", "vid_dim": 48, "txt_in_dim": TEXT,
    "heads": 2, "head_dim": 24, "mm_layers": 2, "rope_dim": 24, "vid_out_norm": True,
}  # fmt: skip
MINIMAX = {
    "image_model": "minimax_h3", "hidden_size": 64, "num_layers": 4, "token_refiner_num_layers": 1,
    "num_attention_heads": 2, "attention_head_dim": 32, "ffn_hidden_size": 64, "text_dim": TEXT, "timestep_input_dim": 32,
    "time_embed_hidden_size": 32, "time_embed_dim": 32, "rope_inv_freq_len": 4,
}  # fmt: skip


def seedvr() -> Any:
    model = supported("SeedVR2", **SEEDVR)
    network = model.model.diffusion_model
    for seed, name in enumerate(("positive_conditioning", "negative_conditioning")):
        network.register_buffer(name, normal(*getattr(network, name).shape, seed=seed))
    return model


def minimax() -> Any:
    model = supported("MiniMaxH3", **MINIMAX)
    model.model.diffusion_model.rope.inv_freq.copy_(0.1 ** torch.arange(4))
    return model


OTHERS = (
    Tiny("GenmoMochi", "GenmoMochi", lambda: supported("GenmoMochi", **MOCHI), masked(32), zeros(1, 12, 2, 6, 4)),
    Tiny(
        "CogVideoX",
        "CogVideoX",
        lambda: supported("CogVideoX_T2V", **COGVIDEO, use_rotary_positional_embeddings=True),
        prompts(),
        zeros(*CLIP),
    ),
    Tiny(
        "CogVideoX (1.5, i2v)",
        "CogVideoX",
        lambda: supported(
            "CogVideoX_I2V",
            **COGVIDEO,
            use_rotary_positional_embeddings=True,
            patch_size_t=2,
            in_channels=32,
            ofs_embed_dim=32,
        ),
        prompts(concat_latent_image=normal(1, 16, 4, 6, 4, seed=7)),
        zeros(1, 16, 4, 6, 4),
    ),
    Tiny(
        "Kandinsky5",
        "Kandinsky5",
        lambda: supported("Kandinsky5", **KANDINSKY, visual_embed_dim=33 * 4),
        pooled(TEXT, 20),
        zeros(*VIDEO),
    ),
    Tiny(
        "Kandinsky5Image",
        "Kandinsky5Image",
        lambda: supported("Kandinsky5Image", **KANDINSKY, visual_embed_dim=16 * 4),
        pooled(TEXT, 20),
        zeros(1, 16, 6, 4),
    ),
    Tiny(
        "SeedVR2",
        "SeedVR2",
        seedvr,
        prompts(condition=normal(1, 17, 2, 6, 4, seed=7)),
        zeros(1, 16, 2, 6, 4),
    ),
    Tiny(
        "SeedVR2 (two in a call)",
        "SeedVR2",
        seedvr,
        prompts(lengths=(6, 6), condition=normal(1, 17, 2, 6, 4, seed=7)),
        zeros(1, 16, 2, 6, 4),
    ),
    Tiny("MiniMaxH3", "MiniMaxH3", minimax, prompts(), pair((1, 24, 2, 5, 4), (1, 32, 2, 5))),
)

MODELS: tuple[Tiny, ...] = (
    *WAN,
    Tiny(
        "WAN22_Animate",
        "WAN22_Animate",
        animate,
        prompts(
            face_video_pixels=normal(1, 3, 8, 4, 4, seed=7),
            pose_video_latent=normal(1, 16, 2, 6, 4, seed=8),
            clip_vision_output=seen(257, 1280),
        ),
        zeros(*VIDEO),
    ),
    *HUNYUAN,
    *LIGHTRICKS,
    *NVIDIA,
    *OTHERS,
)
