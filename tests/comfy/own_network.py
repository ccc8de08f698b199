"""MODELs around small networks that tests define themselves: of a behaviour that no model of the installed ComfyUI has."""

from __future__ import annotations

from typing import Any

import comfy.model_base
import comfy.model_patcher
import comfy.supported_models
import torch

from .zoo.base import fill


def model_of(network: type[torch.nn.Module], **arguments: Any) -> Any:
    """A flow MODEL for the demo's prompts (768 wide) and latents (16 channels) whose diffusion model is `network(**arguments)`, with
    weights that are always the same, in float32 on the CPU."""

    def made(**_: Any) -> torch.nn.Module:
        return network(**arguments)

    config = comfy.supported_models.Flux({"image_model": "flux"})
    config.set_inference_dtype(torch.float32, None)
    model = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.FLOW, torch.device("cpu"), made)
    fill(model.diffusion_model)
    device = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model.eval(), load_device=device, offload_device=device)
