"""What every animal of the zoo has, and how they are built, fed and sampled.

A module of the zoo may import ComfyUI only inside functions, or `comfy.supported_models` and `comfy.model_base` as modules: a
class that this ComfyUI lacks is a test skipped, never an import error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

NO_DIFFUSION = {
    "DepthAnything3": "tells depth from a picture",
    "RT_DETR_v4": "finds things in a picture",
    "SAM3": "cuts things out of a picture",
}


@dataclass(frozen=True)
class Tiny:
    """A real class of ComfyUI's at a tiny size, with random weights that are always the same, in float32 on the CPU.

    name: the class in comfy.model_base, with the variant where there are several: "Flux (Kontext)". base: that class.
    build: makes the MODEL. conds: positive and negative as nodes give them, of different text length where the family allows it.
    latent: what a sampler gets as latent_image: a tensor, or a NestedTensor.
    """

    name: str
    base: str
    build: Callable[[], Any]
    conds: Callable[[Any], tuple[Any, Any]]
    latent: Callable[[], Any]
    cfg: float = 3.0

    def __str__(self) -> str:
        return self.name


def supported(kind: str, **unet_config: Any) -> Any:
    """A MODEL of the class `kind` of comfy.supported_models."""
    import comfy.supported_models

    config = getattr(comfy.supported_models, kind)(dict(unet_config))
    config.unet_config.update(unet_config)  # also what it sets itself, for the real size
    return patcher(config)


def patcher(config: Any, weights: dict[str, Any] | None = None) -> Any:
    """A MODEL with random weights of a configuration from comfy.supported_models; `weights`: what its get_model reads of a file."""
    import comfy.model_patcher

    config.set_inference_dtype(torch.float32, None)
    model = config.get_model(weights or {}, "", device="cpu")
    fill(model.diffusion_model)
    device = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model.eval(), load_device=device, offload_device=device)


def fill(network: torch.nn.Module, seed: int = 0) -> None:
    """Random weights: ComfyUI's layers are not given any by themselves. Matrices keep the size of what they multiply, what scales
    (the vectors called weight, scale or gamma) stays near 1, and everything else is small."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in network.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim > 1:
                p.copy_(noise * p.shape[1:].numel() ** -0.5)
            elif name.rpartition(".")[2] in ("weight", "scale", "gamma"):
                p.copy_(1 + 0.1 * noise)
            else:
                p.copy_(0.1 * noise)


def words(tokens: int, width: int, /, seed: int = 0, **more: Any) -> Any:
    """CONDITIONING of `tokens` random text tokens, and further options of a text encoder or a node (pooled_output, guidance ...)."""
    return [[normal(1, tokens, width, seed=seed), more]]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def zeros(*shape: int) -> Callable[[], torch.Tensor]:
    """An empty latent, as Tiny.latent wants it."""
    return lambda: torch.zeros(shape)


def sample(
    tiny: Tiny,
    model: Any,
    positive: Any,
    negative: Any,
    *,
    steps: int = 4,
    sampler: str = "euler",
    scheduler: str = "simple",
    seed: int = 1,
) -> Any:
    """As the KSampler node does it."""
    import comfy.sample

    latent = comfy.sample.fix_empty_latent_channels(model, tiny.latent())
    return comfy.sample.sample(
        model,
        comfy.sample.prepare_noise(latent, seed),
        steps,
        tiny.cfg,
        sampler,
        scheduler,
        positive,
        negative,
        latent,
        seed=seed,
        disable_pbar=True,
    )
