"""The demo's files as ComfyUI's loaders give them, in this process."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass
class Models:
    """A MODEL, a CLIP and a VAE."""

    model: Any
    clip: Any
    vae: Any

    def words(self, text: str) -> Any:
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))


def comfy_models(folder: Path, model: str = "flux") -> Models:
    """Loaded by the ComfyUI at COMFYUI_PATH. model: "flux" or "flux_low", the files that its loaders take."""
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    import comfy.cli_args

    comfy.cli_args.args.cpu = not torch.cuda.is_available()
    import comfy.sd
    import comfy.utils

    loaded = comfy.sd.load_diffusion_model(str(folder / f"skipstone_demo_{model}.safetensors"))
    kind = comfy.sd.CLIPType.STABLE_DIFFUSION
    clip = comfy.sd.load_clip([str(folder / "skipstone_demo_clip.pt")], clip_type=kind)
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(folder / "skipstone_demo_vae.safetensors")))
    return Models(loaded, clip, vae)
