"""The three models that the pack is judged on, loaded by the ComfyUI at COMFYUI_PATH, in this process."""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "bench-output"
FOLDER = ROOT / "demo" / "models"
sys.path[:0] = [str(ROOT / "demo" / "training"), str(ROOT / "demo")]
import perceptual as perceptual  # noqa: E402
import small  # noqa: E402
from studio import Models, comfy_models  # noqa: E402

NAMES = ("flux", *small.BUILDERS)


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
        return given if self.name == "flux" else [[tokens[:, : small.WORDS], more] for tokens, more in given]


def digest_of(name: str) -> str:
    digest = hashlib.sha256()
    for file in (file_of(name), FOLDER / "skipstone_demo_clip.pt", FOLDER / "skipstone_demo_vae.safetensors"):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def loaded(name: str = "flux") -> Studio:
    if name not in NAMES:
        raise SystemExit(f"there is no model {name}; there are {', '.join(NAMES)}")
    if not file_of(name).is_file():
        raise SystemExit(f"{file_of(name)} is not there: make train makes it")
    small.comfyui(os.environ["COMFYUI_PATH"])
    demo = comfy_models(FOLDER)
    model = demo.model if name == "flux" else small.load(name, file_of(name))
    return Studio(model, demo.clip, demo.vae, name, digest_of(name))
