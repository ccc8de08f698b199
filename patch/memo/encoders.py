"""VAE and CLIP that remember: an encode node after them gets what was computed before, and nothing is loaded for it.

A patched encoder is of a class below its own, made here, so every node takes it for what it is, and ComfyUI's own ways of
copying one (`clone`, `copy`) keep the memo: a LoRA or clip skip after it is in the key, as one before it is. The encoder
that was given stays as it is.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, TypeVar

import torch

from ...core.memo.errors import CorruptEntry, NotCacheable
from ...core.memo.keys import Key, digest, key
from . import fingerprint
from .device_tags import Places, packed, unpacked
from .fingerprint import HOOKS
from .instance import opened

VAE, TEXT, IMAGE = "vae", "text", "image"
"""Kinds of entries: latents, prompt embeddings, decoded pictures."""

T = TypeVar("T")


class _Unkept(Exception):
    """A value that is right, but for this once."""

    def __init__(self, value: Any, reason: str, seconds: float) -> None:
        super().__init__(reason)
        self.value, self.reason, self.seconds = value, reason, seconds


def memo_vae(vae: Any, decode: bool = False) -> Any:
    """A comfy VAE that remembers what it encodes, and with `decode` also what it decodes. What cannot be one is returned as it is."""
    try:
        made = copy.copy(vae)
        made.__class__ = _vae_class(vae.__class__)
        made.skipstone_decode = decode
        return made
    except (TypeError, AttributeError):
        return _as_it_is(vae)


def memo_clip(clip: Any) -> Any:
    """A comfy CLIP that remembers its prompts. What cannot be one is returned as it is."""
    try:
        made = clip.clone()
        made.__class__ = _clip_class(made.__class__)
        return made
    except (TypeError, AttributeError):
        return _as_it_is(clip)


def _as_it_is(encoder: T) -> T:
    """None, where a checkpoint has no such thing, or another pack's own: who uses it says what is wrong with it."""
    memo = opened()
    if memo is not None and encoder is not None:
        memo.stats.refused(f"an encoder of class {type(encoder).__name__}")
    return encoder


def is_latent(value: Any) -> bool:
    """What a VAE gives, decoded pictures too."""
    return isinstance(value, torch.Tensor)


def is_told(value: Any) -> bool:
    """What encode_from_tokens() tells, as a dict."""
    return type(value) is dict and isinstance(value.get("cond"), torch.Tensor) and "pooled_output" in value


# asking the store


def _remembered(
    patched: Any,
    name: Callable[[], Key],
    compute: Callable[[], Any],
    places: Callable[[], Places],
    fits: Callable[[Any], bool],
    tiles: bool = False,
) -> Any:
    """What compute() returns, from the memo if it is there and fits. name: may raise NotCacheable; then it is computed and not kept.

    What came to be by chance is not kept either, nor what was computed in tiles unless `tiles` says that it has to be.
    """
    memo = opened()
    if memo is None:
        return compute()
    try:
        what, where = name(), places()
    except Exception as reason:  # whatever another version says when it is asked
        memo.stats.refused(
            str(reason) if isinstance(reason, NotCacheable) else f"not understood ({type(reason).__name__})"
        )
        return compute()

    def kept() -> dict[str, Any]:
        started = time.perf_counter()
        value, unfit = _attempt(patched, compute, tiles)
        try:
            if unfit or not fits(value):
                raise NotCacheable(unfit or f"no {'embedding' if what.kind == TEXT else 'tensor'}")
            return packed(value, where)
        except NotCacheable as reason:
            raise _Unkept(value, f"{what.kind}: {reason}", time.perf_counter() - started) from None

    def ours(found: Any) -> Any:
        value = unpacked(found, where)
        if not fits(value):
            raise CorruptEntry("something else than was asked for")
        return value

    try:
        try:
            return ours(memo.compute(what, kept, _interrupted))
        except CorruptEntry as error:
            memo.stats.trouble(
                "memo", f"a value of kind {what.kind} is of another make; it is computed again", str(error)
            )
            return ours(memo.renew(what, kept))
    except _Unkept as computed:
        memo.stats.spent(what.kind, computed.seconds)
        memo.stats.refused(computed.reason)
        return computed.value


def _interrupted() -> None:
    from comfy import model_management

    model_management.throw_exception_if_processing_interrupted()


_now = threading.local()  # tiled: that the encoder fell back on tiles in the call at work


def _attempt(patched: Any, compute: Callable[[], Any], tiles: bool) -> tuple[Any, str]:
    """The value, and why it must not be kept; "" if it may."""
    device = patched.patcher.load_device
    before = _chance(device)
    _now.tiled = False
    value = compute()
    if _chance(device) != before:
        return value, "computed with random numbers"
    return value, "computed in tiles for want of memory" if _now.tiled and not tiles else ""


def _chance(device: torch.device) -> list[bytes]:
    """Where torch's random numbers are: drawing one moves it."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    elif device.type != "cpu" and hasattr(getattr(torch, device.type, None), "get_rng_state"):
        states.append(getattr(torch, device.type).get_rng_state())
    return [state.numpy().tobytes() for state in states]


# VAE


def vae_places(vae: Any) -> Places:
    return {"output": torch.device(vae.output_device), "cpu": torch.device("cpu")}


def content(given: Any) -> list[str]:
    """By which what a VAE is given is known. Raises NotCacheable for what is no tensor."""
    if not isinstance(given, torch.Tensor):
        raise NotCacheable(f"a VAE given something of class {type(given).__name__}")
    return [digest(given), given.device.type]


def vae_key(who: str, method: str, given: list[str], *args: Any, **kwargs: Any) -> Key:
    """What the VAE of this identity makes of content: pixels (B, [T,] H, W, C), a waveform, or latents. Raises NotCacheable."""
    return key(IMAGE if method.startswith("decode") else VAE, who, method, given, list(args), kwargs)


@cache
def _vae_class(base: Any) -> Any:
    if hasattr(base, "skipstone_decode"):
        return base

    class MemoVAE(base):
        skipstone_decode = False

        def encode(self, pixel_samples: Any, *args: Any, **kwargs: Any) -> Any:
            return self._skipstone(super().encode, pixel_samples, args, kwargs)

        def encode_tiled(self, pixel_samples: Any, *args: Any, **kwargs: Any) -> Any:
            return self._skipstone(super().encode_tiled, pixel_samples, args, kwargs)

        def decode(self, samples_in: Any, *args: Any, **kwargs: Any) -> Any:
            return self._skipstone(super().decode, samples_in, args, kwargs)

        def decode_tiled(self, samples: Any, *args: Any, **kwargs: Any) -> Any:
            return self._skipstone(super().decode_tiled, samples, args, kwargs)

        def _skipstone(self, function: Any, given: Any, args: Any, kwargs: Any) -> Any:
            method = function.__name__
            if method.startswith("decode") and not self.skipstone_decode:
                return function(given, *args, **kwargs)
            return _remembered(
                self,
                lambda: vae_key(fingerprint.of_vae(self).digest, method, content(given), *args, **kwargs),
                lambda: function(given, *args, **kwargs),
                lambda: vae_places(self),
                is_latent,
                tiles=method.endswith("_tiled"),
            )

    for name in dir(base):  # where encode() and decode() go when memory runs out
        if "code_tiled_" in name and callable(getattr(base, name)):
            setattr(MemoVAE, name, _noting(getattr(base, name)))
    MemoVAE.__name__ = MemoVAE.__qualname__ = f"Memo{base.__name__}"
    return MemoVAE


def _noting(function: Any) -> Any:
    @wraps(function)
    def in_tiles(self: Any, *args: Any, **kwargs: Any) -> Any:
        _now.tiled = True
        return function(self, *args, **kwargs)

    return in_tiles


# CLIP


def clip_places(clip: Any) -> Places:
    from comfy import model_management

    return {
        "intermediate": model_management.intermediate_device(),
        "load": torch.device(clip.patcher.load_device),
        "cpu": torch.device("cpu"),
    }


def text_key(who: str, tokens: Any, pooled: Any) -> Key:
    """What the CLIP of this identity makes of tokens with weights. pooled: False, True or "unprojected". Raises NotCacheable."""
    # whether the pooled output is wanted changes nothing but what is handed over
    return key(TEXT, who, tokens, pooled == "unprojected")


@cache
def _clip_class(base: Any) -> Any:
    if hasattr(base, "skipstone_key"):
        return base

    class MemoCLIP(base):
        def clone(self, *args: Any, **kwargs: Any) -> Any:
            made = super().clone(*args, **kwargs)
            made.__class__ = _clip_class(made.__class__)
            return made

        def encode_from_tokens(self, tokens: Any, return_pooled: Any = False, return_dict: bool = False) -> Any:
            encode = super().encode_from_tokens
            told = _remembered(
                self,
                lambda: self.skipstone_key(tokens, return_pooled),
                lambda: encode(tokens, return_pooled=return_pooled, return_dict=True),
                lambda: clip_places(self),
                is_told,
            )
            if return_dict:
                return told
            return (told["cond"], told["pooled_output"]) if return_pooled else told["cond"]

        def encode_from_tokens_scheduled(self, *args: Any, **kwargs: Any) -> Any:
            # comes back through encode_from_tokens, unless hooks on the CLIP have a schedule
            if self.use_clip_schedule and self.patcher.forced_hooks is not None and (memo := opened()) is not None:
                memo.stats.refused(HOOKS)
            return super().encode_from_tokens_scheduled(*args, **kwargs)

        def skipstone_key(self, tokens: Any, pooled: Any = True) -> Key:
            """Of what encode_from_tokens() makes of these tokens. Raises NotCacheable."""
            if self.apply_hooks_to_conds:
                raise NotCacheable(HOOKS)
            return text_key(fingerprint.of_clip(self).digest, tokens, pooled)

    MemoCLIP.__name__ = MemoCLIP.__qualname__ = f"Memo{base.__name__}"
    return MemoCLIP
