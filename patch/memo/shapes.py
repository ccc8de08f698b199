"""Whether a value has the form that was asked for. An entry may come from a store that others write to, so every hit is checked."""

from __future__ import annotations

import threading
from typing import Any

import torch

# what ComfyUI 0.30's text encoders return beside the embedding, and what the cached encode nodes add to a conditioning
KEYS = {
    "pooled_output", "attention_mask", "attention_mask_mt5xl", "conditioning_mt5xl", "conditioning_byt5small", "conditioning_llama3",
    "conditioning_lyrics", "audio_codes", "unprocessed_ltxav_embeds", "num_layers_stacked", "deepstack_embeds", "visual_pos_masks",
    "minimax_token_tags", "t5xxl_ids", "t5xxl_weights", "guidance", "width", "height", "crop_w", "crop_h", "target_width",
    "target_height", "aesthetic_score", "reference_latents", "concat_latent_image", "concat_mask", "cross_attn_controlnet",
    "pooled_output_controlnet",
}  # fmt: skip

_lock = threading.Lock()
_seen: set[str] = set()  # keys that text encoders of this process gave


def note_embedding(told: Any) -> None:
    """Remember the keys of what a text encoder computed here; a kept value may have them from now on."""
    if isinstance(told, dict):
        with _lock:
            _seen.update(name for name in told if isinstance(name, str) and name != "hooks")


def is_embedding(value: Any) -> bool:
    """Whether a value is what encode_from_tokens() returns as a dict: `cond` (B, tokens, C), `pooled_output` (B, C) or None, extras."""
    if type(value) is not dict or "pooled_output" not in value or not set(value) <= KEYS | _seen | {"cond"}:
        return False
    pooled = value["pooled_output"]
    return _is_float(value.get("cond"), (2, 3, 4)) and (pooled is None or _is_float(pooled, (1, 2, 3)))


def is_latent(value: Any, vae: Any, given: torch.Tensor) -> bool:
    """Whether a value is what `vae` gives for the pixels or waveform `given`: its data type, dimensions, channels and batch."""
    if not isinstance(value, torch.Tensor) or value.dtype != vae.vae_output_dtype():
        return False
    if getattr(vae, "format_encoded", None) is not None:
        return True  # a form of the VAE's own
    dims, channels = getattr(vae, "latent_dim", None), getattr(vae, "latent_channels", None)
    if not isinstance(dims, int) or not isinstance(channels, int):
        return True
    if value.ndim != dims + 2 or value.shape[1] != channels:
        return False
    return dims != 2 or given.ndim != 4 or value.shape[0] == given.shape[0]


def is_image(value: Any, vae: Any) -> bool:
    """Whether a value is what `vae` decodes to: a floating point tensor with as many channels as it has outputs."""
    if not isinstance(value, torch.Tensor) or value.dtype != vae.vae_output_dtype():
        return False
    channels = getattr(vae, "output_channels", None)
    return not isinstance(channels, int) or channels in (value.shape[-1], value.shape[1] if value.ndim > 1 else 0)


def form_of(latent: torch.Tensor) -> list[Any]:
    """The common form of one VAE's latents: data type, number of dimensions, channels."""
    return [str(latent.dtype), latent.ndim, latent.shape[1] if latent.ndim > 1 else 0]


def _is_float(value: Any, dims: tuple[int, ...]) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim in dims
