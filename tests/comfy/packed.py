"""A trained model of video with sound, small enough for tests: the demo's Flux for the frames, a Gaussian's denoiser for the sound.

ComfyUI samples such latents packed: video and sound, each of its own shape, lie behind one another in one row of numbers, as for
MiniMax H3 (video (B, 24, T, H, W), sound (B, 32, 2, T')) and LTX-2 with sound. The zoo has these classes with random weights,
whose predictions change by 40% a step; this one's change as a trained model's do.
"""

from __future__ import annotations

import copy
from typing import Any

import comfy.conds
import comfy.model_patcher
import torch
from comfy.nested_tensor import NestedTensor
from torch import Tensor

VIDEO, SOUND = (1, 16, 2, 16, 16), (1, 32, 2, 10)  # of one batch entry


class Streams(torch.nn.Module):
    """The network: takes and gives [video (B, 16, T, H, W), sound (B, 32, 2, T')], velocities of a flow."""

    def __init__(self, picture: torch.nn.Module) -> None:
        super().__init__()
        self.picture, self.dtype = picture, picture.dtype
        self.tone: Tensor
        self.register_buffer("tone", torch.randn(SOUND[1:], generator=torch.Generator().manual_seed(3)))

    def forward(self, x: list[Tensor], timestep: Tensor, context: Tensor, **more: Any) -> list[Tensor]:
        video, sound = x
        frames = [self.picture(frame, timestep, context, **more) for frame in video.unbind(2)]
        return [torch.stack(frames, 2), self.velocity(sound, timestep)]

    def velocity(self, x: Tensor, sigma: Tensor, spread: float = 0.5) -> Tensor:
        """(x - E[z | x]) / sigma for z of the mean `tone` and the standard deviation `spread`, x = (1 - sigma) z + sigma noise."""
        s = sigma[:, None, None, None]
        mean = (1 - s) * self.tone
        return (x - self.tone - spread**2 * (1 - s) / (spread**2 * (1 - s) ** 2 + s**2) * (x - mean)) / s


def packed(flux: Any) -> Any:
    """A MODEL (a comfy ModelPatcher) of packed latents around that of the demo's Flux, whose weights it shares."""

    class Packed(type(flux.model)):  # type: ignore[misc]
        def extra_conds(self, **kwargs: Any) -> Any:
            out = super().extra_conds(**kwargs)
            if shapes := kwargs.get("latent_shapes"):
                out["latent_shapes"] = comfy.conds.CONDConstant(shapes)
            return out

    base = copy.copy(flux.model)
    base._modules = dict(flux.model._modules)
    base.__class__ = Packed
    base.diffusion_model = Streams(flux.model.diffusion_model)
    return comfy.model_patcher.ModelPatcher(base, load_device=flux.load_device, offload_device=flux.offload_device)


def latent() -> Any:
    """An empty latent, as the nodes for such models make it."""
    return NestedTensor([torch.zeros(VIDEO), torch.zeros(SOUND)])
