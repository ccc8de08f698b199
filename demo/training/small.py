"""Two more small models, of ComfyUI's own classes: what its loaders refuse at this width is built by hand.

NextDiT is the architecture of Z-Image and Lumina 2 (flow), UNet that of Stable Diffusion (predicts noise). Both share the
demo's latent space, so the demo's VAE decodes them, and its CLIP file, of whose 77 tokens they read the first WORDS.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from text import POSITIONS
from torch import nn

WORDS = POSITIONS + 1  # the rest is padding, always the same

NEXTDIT = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 256, "n_layers": 3, "n_refiner_layers": 1,
    "n_heads": 4, "qk_norm": True, "axes_dims": [16, 24, 24], "axes_lens": [64, 64, 64], "rope_theta": 256.0,
    "ffn_dim_multiplier": 2.0, "multiple_of": 64, "cap_feat_dim": 768, "z_image_modulation": True, "time_scale": 1000.0,
    "pad_tokens_multiple": 8,
}  # fmt: skip
UNET = {
    "image_size": 16, "in_channels": 16, "out_channels": 16, "model_channels": 64, "num_res_blocks": [1, 1],
    "channel_mult": (1, 2), "transformer_depth": [0, 1], "transformer_depth_output": [0, 0, 1, 1],
    "transformer_depth_middle": 1, "use_spatial_transformer": True, "context_dim": 768, "num_heads": -1,
    "num_head_channels": 32, "use_linear_in_transformer": False, "adm_in_channels": None, "use_temporal_attention": False,
    "legacy": False,
}  # fmt: skip


def nextdit() -> Any:
    """ComfyUI's BaseModel around a small NextDiT, weights not yet set."""
    import comfy.supported_models

    return _built(comfy.supported_models.ZImage(dict(NEXTDIT)))


def unet() -> Any:
    """ComfyUI's BaseModel around a small UNet that predicts noise, on the demo's 16 latent channels; weights not yet set."""
    import comfy.latent_formats
    import comfy.supported_models

    config = comfy.supported_models.SD15(dict(UNET))
    config.latent_format = comfy.latent_formats.Flux()
    # more than 4 channels would be taken for those of an inpainting model
    config.inpaint_model = lambda: False
    return _built(config)


BUILDERS: dict[str, Callable[[], Any]] = {"nextdit": nextdit, "unet": unet}


def _built(config: Any) -> Any:
    config.set_inference_dtype(torch.float32, None)
    return config.get_model({}, "", device="cpu")


def start(model: nn.Module) -> None:
    """Fresh weights, which ComfyUI's layers are not given by themselves: PyTorch's own, and nothing said at first."""
    silent = ("adaLN_modulation", "final_layer.linear", "out_layers.3", "proj_out", "out.2")
    with torch.no_grad():
        for name, part in model.named_modules():
            if isinstance(part, nn.Linear | nn.Conv2d):
                # ComfyUI's own classes override it with nothing
                (nn.Linear if isinstance(part, nn.Linear) else nn.Conv2d).reset_parameters(part)  # type: ignore[arg-type]
                if any(s in name for s in silent):
                    for p in part.parameters():
                        p.zero_()
            elif "norm" in type(part).__name__.lower():
                for key, p in part.named_parameters(recurse=False):
                    p.fill_(1.0 if key == "weight" else 0.0)
        for name, p in model.named_parameters():
            p.requires_grad_(True)
            if name.endswith("pad_token"):
                p.normal_(std=0.02)


def comfyui(path: str) -> None:
    """Make the ComfyUI at `path` importable, on the CPU where there is no GPU."""
    sys.path.insert(0, path)
    import comfy.cli_args

    comfy.cli_args.args.cpu = not torch.cuda.is_available()
    comfy.cli_args.args.use_pytorch_cross_attention = True


def load(name: str, file: Path) -> Any:
    """A MODEL as UNETLoader would give it: BUILDERS[name] with the weights of `file`."""
    import comfy.model_management
    import comfy.model_patcher
    import comfy.utils

    base = BUILDERS[name]()
    base.diffusion_model.load_state_dict({k: v.float() for k, v in comfy.utils.load_torch_file(str(file)).items()})
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(base.eval(), load_device=device, offload_device=torch.device("cpu"))
