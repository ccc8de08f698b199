"""VAE and CLIP with a memo: an encode node after them gets what was computed before, and nothing is loaded for it.

A patched encoder is an instance of a subclass, made here, of its own class. Every node takes it for what it is, and ComfyUI's ways of
copying one (`clone`, `copy`) keep the memo: a LoRA or clip skip after it is part of the key, as one before it is. The encoder that was
given is not changed.
"""

from __future__ import annotations

import copy
import inspect
import time
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch

from ...core.memo.errors import CorruptEntry, NotCacheable
from ...core.memo.keys import Key, digest, key
from ...core.memo.reasons import kind_name, of_kind
from ...core.texts import Text, said
from . import fingerprint, reasons
from .device_tags import Devices, pack, unpack
from .instance import opened
from .node_status import NodeStatus, show_on, status_of
from .observation import Observation, notes_tiles
from .shapes import is_embedding, is_image, is_latent, note_embedding

VAE, TEXT, IMAGE, GENERATED = "vae", "text", "image", "generated"
"""Kinds of entries: latents, prompt embeddings, decoded pictures, tokens that a language model generated."""

_OTHER_ENTRY = Text("entry_does_not_fit", "an entry of kind {kind} does not fit; it is computed again")
T = TypeVar("T")


class _NotKept(Exception):
    """A value that was computed and must not be kept."""

    def __init__(self, value: Any, reason: str, seconds: float) -> None:
        super().__init__(reason)
        self.value, self.reason, self.seconds = value, reason, seconds


def memo_vae(vae: Any, decode: bool = False, status: NodeStatus | None = None) -> Any:
    """A copy of a comfy VAE that keeps what it encodes, and with `decode` also what it decodes. status: of the node that asks for it.

    An object that cannot be patched, such as None, is returned as it is.
    """
    try:
        made = copy.copy(vae)
        made.__class__ = _vae_class(vae.__class__)
        made.skipstone_decode = decode
        show_on(made, status)
        return made
    except (TypeError, AttributeError):
        return unpatched(vae)


def memo_clip(clip: Any, status: NodeStatus | None = None) -> Any:
    """A clone of a comfy CLIP that keeps the embeddings of its prompts, and the texts that it generates. An object that cannot be patched
    is returned as it is. status: of the node that asks for it."""
    try:
        made = clip.clone()
        made.__class__ = _clip_class(made.__class__)
        show_on(made, status)
        return made
    except (TypeError, AttributeError):
        return unpatched(clip)


def unpatched(encoder: T) -> T:
    """The encoder itself, noted in the statistics: an object of another pack, or None, where a checkpoint has no such encoder. The node
    that uses it says what is wrong with it."""
    memo = opened()
    if memo is not None and encoder is not None:
        memo.stats.refused(reasons.ENCODER_CLASS.of(name=type(encoder).__name__))
    return encoder


# asking the store


def kept_or_computed(
    patched: Any,
    name: Callable[[], Key],
    compute: Callable[[], Any],
    places: Callable[[], Devices],
    fits: Callable[[Any], bool],
    tiles: bool = False,
) -> Any:
    """The value of name() from the memo, if it is there and fits; else what compute() returns, which is then kept.

    name: may raise NotCacheable; the value is then computed and not kept. fits: whether a value has the form that the encoder gives.
    tiles: whether the caller asked for tiles. Values that depend on random numbers, or that were computed in tiles because memory ran
    out, are not kept.
    """
    memo = opened()
    if memo is None:
        return compute()
    status = status_of(patched) or NodeStatus("")
    started = time.perf_counter()
    try:
        asked, where = name(), places()
    except Exception as error:  # whatever another version of ComfyUI raises
        unknown = reasons.NOT_UNDERSTOOD.of(error=type(error).__name__)
        reason = said(error) if isinstance(error, NotCacheable) else unknown
        memo.stats.refused(reason)
        value = compute()
        status.computed(time.perf_counter() - started, reason)
        return value

    def kept() -> dict[str, Any]:
        status.starts()
        started = time.perf_counter()
        watched = Observation(patched.patcher.load_device)
        value = compute()
        try:
            watched.check(tiles)
            if not fits(value):
                raise NotCacheable(reasons.OTHER_FORM)
            packed = pack(value, where)
        except NotCacheable as reason:
            raise _NotKept(value, of_kind(asked.kind, reason), time.perf_counter() - started) from None
        status.computed(time.perf_counter() - started)
        return packed

    def restored(found: Any) -> Any:
        value = unpack(found, where)
        if not fits(value):
            raise CorruptEntry("not of the form that this encoder gives")
        return value

    try:
        try:
            return restored(memo.compute(asked, kept, _check_interrupted, status.found))
        except CorruptEntry as error:
            memo.stats.trouble("memo", _OTHER_ENTRY.of(kind=kind_name(asked.kind)), str(error))
            return restored(memo.renew(asked, kept))
    except _NotKept as computed:
        memo.stats.spent(asked.kind, computed.seconds)
        memo.stats.refused(computed.reason)
        status.computed(computed.seconds, computed.reason)
        return computed.value


def _check_interrupted() -> None:
    from comfy import model_management

    model_management.throw_exception_if_processing_interrupted()


# VAE


def vae_places(vae: Any) -> Devices:
    return {"output": torch.device(vae.output_device), "cpu": torch.device("cpu")}


def content(given: Any) -> list[Any]:
    """The identity of a VAE's input: elements, kind of device, and memory layout, as kernels may round by layout.

    Raises NotCacheable for anything but a tensor.
    """
    if not isinstance(given, torch.Tensor):
        raise NotCacheable(reasons.VAE_INPUT.of(name=type(given).__name__))
    told: list[Any] = [digest(given), given.device.type]
    if not given.is_contiguous():
        told.append([stride for stride, size in zip(given.stride(), given.shape, strict=True) if size > 1])
    return told


def vae_key(identity: str, method: str, given: list[Any], *args: Any, **kwargs: Any) -> Key:
    """The key of what a VAE makes of `given`, see content(). Raises NotCacheable for arguments that are no plain data."""
    return key(IMAGE if method.startswith("decode") else VAE, identity, method, given, list(args), kwargs)


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
            decodes = method.startswith("decode")
            if decodes and not self.skipstone_decode:
                return function(given, *args, **kwargs)
            return kept_or_computed(
                self,
                lambda: vae_key(fingerprint.of_vae(self).digest, method, content(given), *args, **kwargs),
                lambda: function(given, *args, **kwargs),
                lambda: vae_places(self),
                lambda value: is_image(value, self) if decodes else is_latent(value, self, given),
                tiles=method.endswith("_tiled"),
            )

    notes_tiles(MemoVAE)
    MemoVAE.__name__ = MemoVAE.__qualname__ = f"Memo{base.__name__}"
    return MemoVAE


# CLIP


def clip_places(clip: Any) -> Devices:
    from comfy import model_management

    return {
        "intermediate": model_management.intermediate_device(),
        "load": torch.device(clip.patcher.load_device),
        "cpu": torch.device("cpu"),
    }


def text_key(identity: str, tokens: Any, pooled: Any) -> Key:
    """The key of what a CLIP makes of tokens with weights. pooled: False, True or "unprojected". Raises NotCacheable."""
    # whether the pooled output is returned changes nothing in it
    return key(TEXT, identity, tokens, pooled == "unprojected")


def generated_key(identity: str, tokens: Any, generate: Any, args: Any, kwargs: Any) -> Key:
    """The key of what a CLIP generates after tokens, which hold prompt, system prompt and images. Sampling counts with all its values.

    Raises NotCacheable where tokens are sampled without a seed.
    """
    # of the function itself where it is wrapped, as while the cache provider observes it
    bound = inspect.signature(generate).bind_partial(tokens, *args, **kwargs)
    bound.apply_defaults()
    rest = {name: value for name, value in bound.arguments.items() if name != "tokens"}
    if rest.get("do_sample", True) and rest.get("seed") is None:
        raise NotCacheable(reasons.NO_SEED)
    return key(GENERATED, identity, tokens, rest)


@cache
def _clip_class(base: Any) -> Any:
    if hasattr(base, "skipstone_key"):
        return base

    class MemoCLIP(base):
        def clone(self, *args: Any, **kwargs: Any) -> Any:
            made = super().clone(*args, **kwargs)
            made.__class__ = _clip_class(made.__class__)
            show_on(made, status_of(self))
            return made

        def encode_from_tokens(self, tokens: Any, return_pooled: Any = False, return_dict: bool = False) -> Any:
            encode = super().encode_from_tokens

            def compute() -> Any:
                told = encode(tokens, return_pooled=return_pooled, return_dict=True)
                note_embedding(told)
                return told

            told = kept_or_computed(
                self,
                lambda: self.skipstone_key(tokens, return_pooled),
                compute,
                lambda: clip_places(self),
                is_embedding,
            )
            if return_dict:
                return told
            return (told["cond"], told["pooled_output"]) if return_pooled else told["cond"]

        def encode_from_tokens_scheduled(self, *args: Any, **kwargs: Any) -> Any:
            # calls encode_from_tokens, unless hooks on the CLIP have a schedule
            if self.use_clip_schedule and self.patcher.forced_hooks is not None and (memo := opened()) is not None:
                memo.stats.refused(reasons.HOOKS)
            return super().encode_from_tokens_scheduled(*args, **kwargs)

        def generate(self, tokens: Any, *args: Any, **kwargs: Any) -> Any:
            function = super().generate
            return kept_or_computed(
                self,
                lambda: generated_key(fingerprint.of_clip(self).digest, tokens, function, args, kwargs),
                lambda: function(tokens, *args, **kwargs),
                lambda: clip_places(self),
                lambda value: type(value) is list and all(type(token) is int for token in value),
            )

        def skipstone_key(self, tokens: Any, pooled: Any = True) -> Key:
            """The key of what encode_from_tokens() makes of these tokens. Raises NotCacheable."""
            if self.apply_hooks_to_conds:
                raise NotCacheable(reasons.HOOKS)
            return text_key(fingerprint.of_clip(self).digest, tokens, pooled)

    MemoCLIP.__name__ = MemoCLIP.__qualname__ = f"Memo{base.__name__}"
    return MemoCLIP
