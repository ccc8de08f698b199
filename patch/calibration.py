"""Costs of the user's own model: recorded while it samples in full, kept as JSON under ComfyUI's user directory.

One file a recipe: model and LoRAs, sampler, sigmas, CFG, size. Its name is a hash; nothing that a workflow says becomes a path.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.step.clock import Grid
from ..core.step.gram import Gram

FOLDER = ("skipstone", "calibration")
LARGEST = 40_000_000  # bytes of a file that is read
TENSORS, ELEMENTS = 24, 256  # how much of a model is looked at to know it again
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """What a calibration is for. Every part must be the same for it to be used."""

    model: str
    prediction: str
    sampler: str
    cfg: str
    size: str
    steps: int
    sigmas: tuple[float, ...]

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]

    @property
    def text(self) -> str:
        return (
            f"{self.model.split(':')[0]}, {self.sampler}, {self.steps} steps, CFG {self.cfg}, latent size {self.size}"
        )


def recipe_of(guider: Any, sampler: Any, grid: Grid, latent: Tensor) -> Recipe:
    """What this run is of. latent: the latents to be sampled, (B, C, ...)."""
    patcher = guider.model_patcher
    cfg = getattr(guider, "cfg", None)
    return Recipe(
        model=f"{type(patcher.model.diffusion_model).__name__}:{fingerprint(patcher)}",
        prediction="+".join(c.__name__ for c in type(patcher.get_model_object("model_sampling")).__bases__),
        sampler=getattr(getattr(sampler, "sampler_function", None), "__name__", type(sampler).__name__),
        cfg=f"{cfg:g} ({type(guider).__name__})" if isinstance(cfg, int | float) else type(guider).__name__,
        size="x".join(str(2 ** round(torch.tensor(float(n)).log2().item())) for n in latent.shape[2:]),
        steps=grid.steps,
        sigmas=tuple(float(f"{s:.5g}") for s in grid.sigmas),
    )


def fingerprint(patcher: Any) -> str:
    """Which weights a MODEL (a comfy ModelPatcher) has: a hash of a sample of them as they were loaded, and of its patches."""
    digest = hashlib.sha256()
    loaded = getattr(patcher.model, "current_patcher", None) or patcher
    originals = {**getattr(patcher, "backup", {}), **getattr(loaded, "backup", {})}
    weights = dict(patcher.model.diffusion_model.named_parameters())
    names = sorted(weights)
    for name in names[:: max(len(names) // TENSORS, 1)]:
        original = originals.get(f"diffusion_model.{name}")
        _add(digest, name, weights[name] if original is None else original.weight)
    for key in sorted(patcher.patches):
        for patch in patcher.patches[key]:
            digest.update(f"{key} {patch[0]} {patch[2]}".encode())
            for part in _tensors(patch[1]):
                _add(digest, key, part)
    return digest.hexdigest()[:32]


def _add(digest: Any, name: str, value: Tensor) -> None:
    digest.update(f"{name} {tuple(value.shape)}".encode())
    flat = value.detach().flatten()
    sample = flat[:: max(flat.numel() // ELEMENTS, 1)][:ELEMENTS]
    digest.update(sample.to(device="cpu", dtype=torch.float32).numpy().tobytes())


def _tensors(patch: Any) -> list[Tensor]:
    """The tensors of a weight patch: a LoRA adapter, or a tuple of ComfyUI's older kind."""
    if isinstance(patch, Tensor):
        return [patch]
    parts = getattr(patch, "weights", patch)
    return [t for p in parts for t in _tensors(p)] if isinstance(parts, tuple | list) else []


def folder() -> Path:
    import folder_paths

    return Path(folder_paths.get_user_directory(), *FOLDER)


def stored(recipe: Recipe) -> tuple[Gram | None, str]:
    """The costs kept for this recipe, or None and a sentence that says why there are none; "" where none were ever recorded."""
    path = folder() / f"{recipe.key}.json"
    try:
        if not path.is_file():
            return None, ""
        if path.stat().st_size > LARGEST:
            raise ValueError("it is too large")
        gram = Gram.from_json(path.read_text("utf-8"))
        if len(gram.times) != recipe.steps:
            raise ValueError("it is for another number of steps")
        return gram, ""
    except (OSError, ValueError, RecursionError) as error:
        return None, f"the calibration {path.name} cannot be used ({error}); delete it to record a new one"


def others(recipe: Recipe) -> list[str]:
    """How the calibrations that the same model has differ from what this run needs: one phrase each."""
    found = []
    wanted = asdict(recipe)
    for path in sorted(folder().glob("*.recipe.json")):
        try:
            if path.stat().st_size > LARGEST:
                continue
            other = json.loads(path.read_text("utf-8"))
            if isinstance(other, dict) and other.get("model") == recipe.model:
                differ = [k for k in wanted if k != "model" and json.dumps(other.get(k)) != json.dumps(wanted[k])]
                found.append(", ".join(f"{k} {_short(other.get(k))} instead of {_short(wanted[k])}" for k in differ))
        except (OSError, ValueError, RecursionError):
            continue
    return [f for f in found if f]


def _short(value: Any) -> str:
    return "others" if isinstance(value, list | tuple) else str(value)[:40]


def keep(recipe: Recipe, gram: Gram) -> Gram:
    """Average with what is kept for this recipe, and keep it. Written aside and renamed: a reader never sees half a file."""
    earlier, _ = stored(recipe)
    if earlier is not None:
        try:
            gram = earlier.averaged(gram)
        except ValueError:
            log.warning("[Skipstone] the calibration %s was of another kind and is replaced", recipe.key)
    place = folder()
    place.mkdir(parents=True, exist_ok=True)
    for name, text in (
        (f"{recipe.key}.json", gram.to_json()),
        (f"{recipe.key}.recipe.json", json.dumps(asdict(recipe))),
    ):
        part = place / f"{name}.{os.getpid()}.part"
        part.write_text(text + "\n", "utf-8")
        part.replace(place / name)
    return gram
