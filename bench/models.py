"""The three models that the pack is judged on, loaded by the ComfyUI at COMFYUI_PATH, in this process, on one thread."""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "bench-output"
FOLDER = ROOT / "demo" / "models"
sys.path[:0] = [str(ROOT / "demo" / "training"), str(ROOT / "demo")]
import perceptual as perceptual  # noqa: E402
import small  # noqa: E402
from studio import Models, comfy_models  # noqa: E402

NAMES = ("flux", *small.BUILDERS)
SECOND_EXPERT = "flux_low"  # the Flux model's fine-tune for the lower half of the noise; not judged by itself


def file_of(name: str) -> Path:
    return FOLDER / f"skipstone_demo_{name}.safetensors"


@dataclass
class Studio(Models):
    """One of NAMES with the demo's text encoder and VAE. digest: of all their weights, so that what was measured on other
    weights is known as such."""

    name: str
    digest: str

    def words(self, text: str) -> Any:
        """Conditioning; the small models were trained on its first tokens alone, the rest is padding."""
        given = super().words(text)
        return (
            given if self.name not in small.BUILDERS else [[tokens[:, : small.WORDS], more] for tokens, more in given]
        )


def digest_of(name: str) -> str:
    digest = hashlib.sha256()
    for file in (file_of(name), FOLDER / "skipstone_demo_clip.pt", FOLDER / "skipstone_demo_vae.safetensors"):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def loaded(name: str = "flux") -> Studio:
    if name not in (*NAMES, SECOND_EXPERT):
        raise SystemExit(f"there is no model {name}; there are {', '.join(NAMES)}")
    if not file_of(name).is_file():
        raise SystemExit(f"{file_of(name)} is not there: make train makes it")
    small.comfyui(os.environ["COMFYUI_PATH"])
    # two benches at once, or a training beside, then change no figure; and these models gain little by more
    torch.set_num_threads(1)
    demo = comfy_models(FOLDER, name if name == SECOND_EXPERT else "flux")
    model = small.load(name, file_of(name)) if name in small.BUILDERS else demo.model
    return Studio(model, demo.clip, demo.vae, name, digest_of(name))
