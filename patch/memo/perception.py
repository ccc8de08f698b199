"""Vision and audio encoders with a memo: what CLIP vision makes of an image and an audio encoder of a waveform, for inputs seen before.

As in encoders.py, a patched encoder is an instance of a subclass of its own class, and the encoder that was given is not changed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from ...core.memo.keys import key
from . import fingerprint
from .device_tags import Devices
from .encoders import content, kept_or_computed, unpatched
from .node_status import NodeStatus, show_on

VISION, AUDIO = "vision", "audio"
"""Kinds of entries: what CLIP vision models and audio encoders give."""

_OUTPUTS = {
    "last_hidden_state", "image_embeds", "penultimate_hidden_states", "all_hidden_states", "mm_projected", "image_sizes",
}  # fmt: skip
_AUDIO = {"encoded_audio", "encoded_audio_all_layers", "audio_samples"}


def memo_clip_vision(encoder: Any, status: NodeStatus | None = None) -> Any:
    """A copy of a comfy ClipVisionModel that keeps what it encodes. An object that cannot be patched is returned as it is. status: of the
    node that asks for it."""
    return _patched(encoder, "encode_image", _encode_image, status)


def memo_audio_encoder(encoder: Any, status: NodeStatus | None = None) -> Any:
    """A copy of a comfy AudioEncoderModel that keeps what it encodes. An object that cannot be patched is returned as it is. status: of
    the node that asks for it."""
    return _patched(encoder, "encode_audio", _encode_audio, status)


def _patched(encoder: Any, method: str, memoized: Callable[..., Any], status: NodeStatus | None) -> Any:
    try:
        made = copy.copy(encoder)
        made.__class__ = _subclass(encoder.__class__, method, memoized)
        show_on(made, status)
        return made
    except (TypeError, AttributeError):
        return unpatched(encoder)


@cache
def _subclass(base: Any, method: str, memoized: Callable[..., Any]) -> Any:
    """A class whose `method` is `memoized(encoder, encode, ...)`, where `encode` is the method of `base`, bound to the encoder."""
    if getattr(base, "skipstone_perception", False):
        return base

    def encode(self: Any, *args: Any, **kwargs: Any) -> Any:
        return memoized(self, partial(getattr(base, method), self), *args, **kwargs)

    return type(f"Memo{base.__name__}", (base,), {"skipstone_perception": True, method: encode})


def _places(encoder: Any) -> Devices:
    from comfy import model_management

    return {
        "intermediate": model_management.intermediate_device(),
        "load": torch.device(encoder.load_device),
        "cpu": torch.device("cpu"),
    }


# CLIP vision


def _encode_image(encoder: Any, encode: Callable[..., Any], image: Any, *args: Any, **kwargs: Any) -> Any:
    told = kept_or_computed(
        encoder,
        lambda: key(VISION, fingerprint.of_model(encoder).digest, content(image), list(args), kwargs),
        lambda: _as_data(encode(image, *args, **kwargs)),
        lambda: _places(encoder),
        lambda value: isinstance(value, _Whole) or _is_vision(value, image),
    )
    return told.value if isinstance(told, _Whole) else _as_output(told)


class _Whole:
    """An output of another form than ComfyUI's, which is given on and not kept."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _as_data(output: Any) -> Any:
    from comfy.clip_vision import Output

    held = dict(vars(output)) if type(output) is Output else {}
    if not held or not set(held) <= _OUTPUTS:
        return _Whole(output)
    held["image_sizes"] = [tuple(size) for size in held["image_sizes"]]
    return held


def _as_output(told: dict[str, Any]) -> Any:
    from comfy.clip_vision import Output

    made = Output()
    for name, value in told.items():
        made[name] = [torch.Size(size) for size in value] if name == "image_sizes" else value
    return made


def _is_vision(value: Any, image: Tensor) -> bool:
    """Whether a value is what _as_data() makes of an output for this batch of images."""
    if type(value) is not dict or not {"last_hidden_state", "image_embeds", "image_sizes"} <= set(value) <= _OUTPUTS:
        return False
    sizes = value["image_sizes"]
    if type(sizes) is not list or not all(type(s) is tuple and all(type(n) is int for n in s) for s in sizes):
        return False
    tensors = {n: v for n, v in value.items() if n != "image_sizes" and not (n == "mm_projected" and v is None)}
    if not all(isinstance(v, Tensor) and v.is_floating_point() for v in tensors.values()):
        return False
    return len(sizes) == value["last_hidden_state"].shape[0] == image.shape[0]


# audio


def _encode_audio(encoder: Any, encode: Callable[..., Any], audio: Any, sample_rate: Any) -> Any:
    return kept_or_computed(
        encoder,
        lambda: key(AUDIO, fingerprint.of_model(encoder).digest, content(audio), sample_rate),
        lambda: encode(audio, sample_rate),
        lambda: _places(encoder),
        _is_audio,
    )


def _is_audio(value: Any) -> bool:
    if type(value) is not dict or set(value) != _AUDIO or type(value["audio_samples"]) is not int:
        return False
    layers = value["encoded_audio_all_layers"]
    tensors = [value["encoded_audio"], *(layers if isinstance(layers, list | tuple) else [layers])]
    return all(isinstance(v, Tensor) and v.is_floating_point() for v in tensors)
