"""Knows a model's weights again: hashes of a few elements of each, without reading a weight in full or dequantizing it."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ...core.memo.errors import NotCacheable
from ..memo.fingerprint import originals, stored_parts, tensors_of

KEPT = 8  # fingerprints of a model with different patches
ELEMENTS = 32  # of each weight of a model that are looked at to know it again

_FINGERPRINTS: WeakKeyDictionary[Any, dict[Hashable, Fingerprint]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Fingerprint:
    """weights: of the weights with their patches, such as LoRAs. base: of the weights alone."""

    weights: str
    base: str


def fingerprint(patcher: Any) -> Fingerprint:
    """Identifies the weights of a MODEL (a comfy ModelPatcher): hashes of a few elements of every weight as it was loaded, and of its
    patches.

    Kept for as long as the model lives, its weights are not written to, and its patches stay.
    """
    weights: dict[str, Tensor] = dict(patcher.model.diffusion_model.named_parameters())
    written = sum(w._version for w in weights.values() if not w.is_inference())
    seen = (getattr(patcher, "patches_uuid", None), sum(map(len, patcher.patches.values())), len(weights), written)
    known = _FINGERPRINTS.setdefault(patcher.model, {})
    if seen not in known:
        while len(known) >= KEPT:
            del known[next(iter(known))]
        known[seen] = _fingerprint(patcher, weights)
    return known[seen]


def _fingerprint(patcher: Any, weights: dict[str, Tensor]) -> Fingerprint:
    digest, samples = hashlib.sha256(), []
    before = originals(patcher)
    for name in sorted(weights):
        weight = before.get(f"diffusion_model.{name}", weights[name])
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        for about, part in _stored(weight):
            digest.update(" ".join(about).encode())
            samples.append(_sample(part))
    base, of_weights = digest.copy(), sum(map(len, samples))
    for key in sorted(patcher.patches):
        for patch in patcher.patches[key]:
            digest.update(f"{key} {patch[0]} {patch[2]}".encode())
            samples += [_sample(part) for part in tensors_of(patch[1])]
    values = _on_host(samples).numpy()
    digest.update(values.tobytes())
    base.update(values[:of_weights].tobytes())
    return Fingerprint(digest.hexdigest()[:32], base.hexdigest()[:32])


def _stored(weight: Tensor) -> list[tuple[list[str], Tensor]]:
    """A weight as it is stored: a quantized one is not dequantized for the sake of a few elements."""
    try:
        return list(stored_parts(weight))
    except NotCacheable:  # of another pack's class
        return [([], weight)]


def _on_host(samples: list[Tensor]) -> Tensor:
    """All of them in one float32 tensor on the CPU, in one transfer a device and dtype."""
    places: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, sample in enumerate(samples):
        places.setdefault((sample.device, sample.dtype), []).append(i)
    found: list[Tensor] = [torch.empty(0)] * len(samples)
    for alike in places.values():
        parts = [samples[i] for i in alike]
        try:
            there = torch.cat(parts)
        except RuntimeError:  # not on this device in this dtype
            there = torch.cat([p.to(torch.float32) for p in parts])
        there = there.detach().to(torch.float32).cpu()
        if len(places) == 1:
            return there
        for i, sample in zip(alike, there.split([len(samples[i]) for i in alike]), strict=True):
            found[i] = sample
    return torch.cat(found) if found else torch.empty(0)


def _sample(value: Tensor) -> Tensor:
    step = max(value.numel() // ELEMENTS, 1)
    if type(value) is Tensor and value.is_contiguous():  # without looking at the rest
        return value.as_strided((min(-(-value.numel() // step), ELEMENTS),), (step,))
    return value.flatten()[::step][:ELEMENTS]
