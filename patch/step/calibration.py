"""Calibrations of the user's own models: recorded while they sample in full, kept as JSON under ComfyUI's user directory.

Gram matrices for output-level methods, block profiles for block-level ones. One file a recipe: model, LoRAs, sampler, sigmas, CFG, size.
File names are hashes: no value of a workflow becomes part of a path.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import tempfile
from collections.abc import Callable, Hashable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from ...core.memo.errors import NotCacheable
from ...core.step.calibration.block_profile import BlockProfile
from ...core.step.calibration.gram import Gram
from ...core.step.clock import Grid
from ..memo.fingerprint import originals, stored_parts, tensors_of
from .samplers import function_of

FOLDER = ("skipstone", "calibration")
LARGEST = 40_000_000  # bytes of a file that is read
MOST_STEPS = 1000  # of a run that is recorded: memory grows with the square
KEPT = 8  # fingerprints of a model with different patches
ELEMENTS = 32  # of each weight of a model that are looked at to know it again
log = logging.getLogger(__name__)

_FINGERPRINTS: WeakKeyDictionary[Any, dict[Hashable, str]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Recipe:
    """The model and settings of a recording. A calibration is used for runs whose recipe equals its own in every part."""

    model: str
    prediction: str
    sampler: str
    cfg: str
    size: str
    steps: int
    sigmas: tuple[float, ...]
    blocks: str = ""  # which always run, for a block profile

    @property
    def key(self) -> str:
        parts = {name: value for name, value in asdict(self).items() if value != ""}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def text(self) -> str:
        return (
            f"{self.model.split(':')[0]}, {self.sampler}, {self.steps} steps, CFG {self.cfg}, latent size {self.size}"
        )


def recipe_of(guider: Any, sampler: Any, grid: Grid, latent: Tensor, blocks: str = "") -> Recipe:
    """The recipe of a run. latent: shape (B, C, ...). blocks: see Recipe."""
    patcher = guider.model_patcher
    cfg = getattr(guider, "cfg", None)
    return Recipe(
        model=f"{type(patcher.model.diffusion_model).__name__}:{fingerprint(patcher)}",
        prediction="+".join(c.__name__ for c in type(patcher.get_model_object("model_sampling")).__bases__),
        sampler=function_of(sampler) or type(sampler).__name__,
        cfg=f"{cfg:g} ({type(guider).__name__})" if isinstance(cfg, int | float) else type(guider).__name__,
        size="x".join(str(2 ** round(math.log2(n))) for n in latent.shape[2:]),
        steps=grid.steps,
        sigmas=tuple(float(f"{s:.5g}") for s in grid.sigmas),
        blocks=blocks,
    )


def fingerprint(patcher: Any) -> str:
    """Which weights a MODEL (a comfy ModelPatcher) has: a hash of a few elements of every weight as it was loaded, and of its patches.

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


def _fingerprint(patcher: Any, weights: dict[str, Tensor]) -> str:
    digest, samples = hashlib.sha256(), []
    before = originals(patcher)
    for name in sorted(weights):
        weight = before.get(f"diffusion_model.{name}", weights[name])
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        for about, part in _stored(weight):
            digest.update(" ".join(about).encode())
            samples.append(_sample(part))
    for key in sorted(patcher.patches):
        for patch in patcher.patches[key]:
            digest.update(f"{key} {patch[0]} {patch[2]}".encode())
            samples += [_sample(part) for part in tensors_of(patch[1])]
    digest.update(_on_host(samples).numpy().tobytes())
    return digest.hexdigest()[:32]


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


def folder() -> Path:
    import folder_paths

    return Path(folder_paths.get_user_directory(), *FOLDER)


def stored(recipe: Recipe, grid: Grid, kind: type[Gram] | type[BlockProfile]) -> tuple[Any, str]:
    """The calibration of this recipe, and ""; or None, and why it cannot be used ("" where none was recorded)."""
    path = folder() / f"{recipe.key}.json"
    try:
        if not path.is_file():
            return None, ""
        stat = path.stat()
        if stat.st_size > LARGEST:
            raise ValueError("it is too large")
        taught = _read(path, stat.st_mtime_ns, stat.st_size, kind.from_json)
        if taught.times.shape != (grid.steps,) or not np.allclose(taught.times, grid.times[:-1], atol=1e-4):
            raise ValueError("it is for other steps")
        return taught, ""
    except (OSError, ValueError) as error:
        return None, f"the calibration {path.name} cannot be used ({error}); delete it to record a new one"


@lru_cache(maxsize=16)
def _read(path: Path, changed: int, size: int, from_json: Callable[[str], Any]) -> Any:
    """Cached by the file's time and size."""
    return from_json(path.read_text("utf-8"))


def can_keep() -> str:
    """Why the user directory cannot be written to; "" if it can."""
    try:
        folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder()):
            return ""
    except OSError as error:
        return f"the calibration cannot be saved in ComfyUI's user directory ({error})"


def nearest(recipe: Recipe) -> str:
    """The difference between this recipe and the most similar calibration of the same model; "" where there is none."""
    found: list[list[str]] = []
    wanted = asdict(recipe)
    for path in sorted(folder().glob("*.recipe.json")):
        try:
            if path.stat().st_size > LARGEST:
                continue
            other = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if (
            not isinstance(other, dict)
            or other.get("model") != recipe.model
            or bool(other.get("blocks")) != bool(recipe.blocks)
        ):
            continue
        differ = [k for k in wanted if json.dumps(other.get(k)) != json.dumps(wanted[k])]
        phrases = [f"{k} {_short(wanted[k])}, was {_short(other.get(k))}" for k in differ if k != "sigmas"]
        if differ == ["sigmas"]:
            phrases = ["a different sigma schedule"]
        if phrases:
            found.append(phrases)
    found.sort(key=len)
    return "; ".join(found[0]) if found else ""


def _short(value: Any) -> str:
    """Printable and short: the file may come from anybody."""
    return "".join(c for c in str(value)[:40] if c.isprintable())


def keep(recipe: Recipe, grid: Grid, taught: Gram | BlockProfile) -> Gram | BlockProfile:
    """Store the average with the recipe's earlier calibration. Written aside and renamed: readers never see half a file."""
    earlier, _ = stored(recipe, grid, type(taught))
    if earlier is not None:
        try:
            taught = earlier.averaged(taught)
        except ValueError:
            log.warning("[Skipstone] the calibration %s was of another kind and was replaced", recipe.key)
    place = folder()
    place.mkdir(parents=True, exist_ok=True)
    for name, text in (
        (f"{recipe.key}.json", taught.to_json()),
        (f"{recipe.key}.recipe.json", json.dumps(asdict(recipe))),
    ):
        part = place / f"{name}.{os.getpid()}.part"
        part.write_text(text + "\n", "utf-8")
        part.replace(place / name)
    return taught
