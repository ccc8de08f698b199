"""Families that make sound and 3D, and Stable Cascade."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

from .base import Tiny, fill, normal, patcher, supported, words, zeros

Conds = Callable[[Any], tuple[Any, Any]]
TEXT = 24
POOLED = 16


def prompts(positive: int = 7, negative: int = 5, width: int = TEXT, **more: Any) -> Conds:
    return lambda _: (words(positive, width, 1, **more), words(negative, width, 2, **more))


# Stable Audio

SECONDS = 768  # width of the embedding of the duration, which is appended to the tokens of the prompt
DIT = {
    "audio_model": "dit1.0", "cond_token_dim": SECONDS, "project_cond_tokens": True, "embed_dim": 64, "depth": 5, "num_heads": 2,
    "input_concat_dim": 0,
}  # fmt: skip


def conditioner(name: str, largest: int, **more: Any) -> dict[str, Any]:
    from comfy.ldm.audio.embedders import NumberConditioner

    made = NumberConditioner(SECONDS, min_val=0, max_val=largest, **more)
    fill(made)
    return {f"conditioner.conditioners.{name}.{key}": value for key, value in made.state_dict().items()}


def tuned(model: Any) -> Any:
    """The frequencies of the rotary positions, which are in the file, too."""
    freqs = model.model.diffusion_model.transformer.rotary_pos_emb.inv_freq
    freqs.copy_(10000.0 ** -(torch.arange(len(freqs)) / len(freqs)))
    return model


def stable_audio() -> Any:
    import comfy.supported_models

    config = comfy.supported_models.StableAudio(DIT | {"io_channels": 64, "global_cond_dim": 2 * SECONDS})
    return tuned(patcher(config, conditioner("seconds_start", 512) | conditioner("seconds_total", 512)))


def stable_audio_3() -> Any:
    import comfy.supported_models

    config = comfy.supported_models.StableAudio3(
        DIT
        | {
            "io_channels": 256, "global_cond_dim": SECONDS, "timestep_features_type": "expo", "global_cond_type": "adaLN",
            "global_cond_shared_embed": True, "local_add_cond_dim": 257, "num_memory_tokens": 3, "norm_type": "rms_norm",
            "attn_kwargs": {"qk_norm": "rms", "differential": True},
        }
    )  # fmt: skip
    return tuned(patcher(config, conditioner("seconds_total", 384, fourier_features_type="expo")))


# ACE-Step


def ace_step() -> Any:
    import comfy.ldm.ace.model as ace

    # the size of the lyrics encoder does not depend on the configuration
    small = functools.partial(ace.LyricEncoder, output_size=32, attention_heads=2, linear_units=48, num_blocks=1)
    with mock.patch.object(ace, "LyricEncoder", small):
        return supported(
            "ACEStep",
            audio_model="ace",
            num_layers=5,
            attention_head_dim=32,
            num_attention_heads=2,
            text_embedding_dim=TEXT,
            lyric_encoder_vocab_size=50,
            lyric_hidden_size=32,
            ssl_latent_dims=[16, 16],
            mlp_ratio=2.0,
        )


def sung(_: Any) -> tuple[Any, Any]:
    return (
        words(7, TEXT, 1, conditioning_lyrics=torch.arange(1, 10)[None]),
        words(5, TEXT, 2, conditioning_lyrics=torch.arange(20, 26)[None]),
    )


def ace_step_15() -> Any:
    from comfy.ldm.ace.ace_step15 import AceStepConditionGenerationModel

    # before the larger models came, the encoders had the width of the rest
    encoders = {"encoder_hidden_size": 32, "encoder_intermediate_size": 48, "encoder_num_heads": 4}
    known = inspect.signature(AceStepConditionGenerationModel).parameters
    return supported(
        "ACEStep15",
        audio_model="ace1.5",
        hidden_size=32,
        intermediate_size=64,
        text_hidden_dim=TEXT,
        num_dit_layers=5,
        num_lyric_layers=1,
        num_timbre_layers=1,
        num_tokenizer_layers=1,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        fsq_dim=32,
        **{name: value for name, value in encoders.items() if name in known},
    )


def sung_15(_: Any) -> tuple[Any, Any]:
    return (
        words(7, TEXT, 1, conditioning_lyrics=normal(1, 9, TEXT, seed=3)),
        words(5, TEXT, 2, conditioning_lyrics=normal(1, 6, TEXT, seed=4)),
    )


# 3D


def shapes() -> Any:
    return supported(
        "Hunyuan3Dv2",
        image_model="hunyuan3d2",
        context_in_dim=TEXT,
        hidden_size=48,
        mlp_ratio=2.0,
        num_heads=2,
        depth=2,
        depth_single_blocks=3,
        guidance_embed=True,
    )


def shapes_21() -> Any:
    return supported(
        "Hunyuan3Dv2_1",
        image_model="hunyuan3d2_1",
        hidden_size=48,
        context_dim=TEXT,
        depth=5,
        num_heads=2,
        num_moe_layers=2,
        num_experts=3,
        guidance_cond_proj_dim=None,
    )


def picture(tokens: int, **more: Any) -> Conds:
    """What CLIP or DINO sees in a picture, and nothing."""
    return lambda _: (words(tokens, TEXT, 1, **more), [[torch.zeros(1, tokens, TEXT), more]])


def splats() -> Any:
    return supported(
        "TripoSplat",
        image_model="triposplat",
        q_token_length=12,
        model_channels=64,
        cond_channels=TEXT,
        num_blocks=5,
        num_refiner_blocks=1,
        num_head_channels=32,
        mlp_ratio=2,
    )


def splats_and_camera() -> Any:
    from comfy.nested_tensor import NestedTensor

    return NestedTensor([torch.zeros(1, 12, 16), torch.zeros(1, 1, 5)])


# Stable Cascade


def stage_c() -> Any:
    return supported(
        "Stable_Cascade_C",
        stable_cascade_stage="c",
        c_cond=32,
        c_hidden=[32, 32],
        nhead=[2, 2],
        blocks=[[1, 2], [2, 1]],
        c_clip_text=TEXT,
        c_clip_text_pooled=POOLED,
    )


def stage_b() -> Any:
    return supported(
        "Stable_Cascade_B",
        stable_cascade_stage="b",
        c_cond=32,
        c_hidden=[16, 24, 32, 32],
        nhead=[-1, -1, 2, 2],
        blocks=[[1, 1, 2, 1], [1, 2, 1, 1]],
        c_clip=POOLED,
    )


def cascade(**more: Any) -> Conds:
    return lambda _: (
        words(7, TEXT, 1, pooled_output=normal(1, POOLED, seed=3), **more),
        words(5, TEXT, 2, pooled_output=normal(1, POOLED, seed=4), **more),
    )


MODELS = (
    Tiny("StableAudio1", "StableAudio1", stable_audio, prompts(width=SECONDS), zeros(1, 64, 10)),
    Tiny("StableAudio3", "StableAudio3", stable_audio_3, prompts(width=SECONDS), zeros(1, 256, 10)),
    Tiny("ACEStep", "ACEStep", ace_step, sung, zeros(1, 8, 16, 9)),
    Tiny("ACEStep15", "ACEStep15", ace_step_15, sung_15, zeros(1, 64, 11)),
    Tiny("Hunyuan3Dv2", "Hunyuan3Dv2", shapes, picture(7), zeros(1, 64, 12)),
    Tiny("Hunyuan3Dv2_1", "Hunyuan3Dv2_1", shapes_21, picture(7), zeros(1, 64, 12)),
    Tiny(
        "TripoSplat",
        "TripoSplat",
        splats,
        picture(9, reference_latents=[normal(1, 128, 2, 2, seed=3)]),
        splats_and_camera,
    ),
    Tiny("StableCascade_C", "StableCascade_C", stage_c, cascade(), zeros(1, 16, 6, 6)),
    Tiny(
        "StableCascade_B",
        "StableCascade_B",
        stage_b,
        cascade(stable_cascade_prior=normal(1, 16, 6, 6, seed=5)),
        zeros(1, 4, 16, 16),
    ),
)
