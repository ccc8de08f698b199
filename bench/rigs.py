"""Models with random weights on a GPU, of real width and few blocks, and what they sample. For bench/gpu.py."""

from __future__ import annotations

import time
from typing import Any, ClassVar

import torch

Shape = tuple[int, ...]


def randomize(network: torch.nn.Module, seed: int, device: torch.device) -> None:
    """Random weights of a scale that keeps activations near 1."""
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            scale = weight.shape[1:].numel() ** -0.5 if weight.ndim > 1 else 0.1
            weight.copy_(torch.randn(weight.shape, generator=generator, device=device) * scale)


class Rig:
    """A MODEL in bfloat16, and a sampler's inputs for it.

    Parameters
    ----------
    kind: its class in comfy.supported_models. network: the configuration of that class.
    latent: shapes of an empty latent; several where a model makes several modalities.
    text: tokens of the prompt and their width. pooled: width of the pooled text, 0 for none.
    steps: of a run. methods: names of those that are checked on it; all of them where there are none.
    """

    kind: ClassVar[str]
    network: ClassVar[dict[str, Any]]
    latent: ClassVar[tuple[Shape, ...]]
    text: ClassVar[tuple[int, int]]
    pooled: ClassVar[int] = 0
    steps: ClassVar[int] = 6
    methods: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        self.cuda = self.device()
        self.model = self.made()
        generator = torch.Generator().manual_seed(1)
        more = {"pooled_output": torch.zeros(1, self.pooled)} if self.pooled else {}
        self.prompt = [[torch.randn(1, *self.text, generator=generator), more]]

    def device(self) -> torch.device:
        return torch.device("cuda", torch.cuda.current_device())

    def made(self) -> Any:
        import comfy.model_patcher
        import comfy.supported_models

        config = getattr(comfy.supported_models, self.kind)(dict(self.network))
        config.unet_config.update(self.network)  # also what the class sets itself
        config.set_inference_dtype(torch.bfloat16, None)
        model = config.get_model({}, "", device=self.cuda)
        randomize(model.diffusion_model, 0, self.cuda)
        self.adjust(model.diffusion_model)
        return comfy.model_patcher.ModelPatcher(model.eval(), load_device=self.cuda, offload_device=self.cuda)

    def adjust(self, network: Any) -> None:
        """Change some of the random weights further."""

    def sample(self, model: Any, callback: Any = None, cfg: float = 1.0) -> torch.Tensor:
        """The sampled latent; of several modalities one after the other, flat."""
        import comfy.nested_tensor
        import comfy.sample

        parts = [torch.zeros(shape) for shape in self.latent]
        latent = parts[0] if len(parts) == 1 else comfy.nested_tensor.NestedTensor(parts)
        with torch.inference_mode():
            found: Any = comfy.sample.sample(
                model, comfy.sample.prepare_noise(latent, 1), self.steps, cfg, "euler", "simple", self.prompt,
                self.prompt, latent, seed=1, disable_pbar=True, callback=callback,
            )  # fmt: skip
            return torch.cat([p.flatten() for p in found.unbind()]) if getattr(found, "is_nested", False) else found

    def run(self, method: Any, **how: Any) -> tuple[torch.Tensor, Any, float]:
        """The latent, the report, and the seconds that it took."""
        from skipstone.patch.step.attach import attach

        reports: list[Any] = []
        model = attach(self.model, method, (reports.append,)) if method else self.model
        torch.cuda.synchronize()
        began = time.perf_counter()
        latent = self.sample(model, **how)
        torch.cuda.synchronize()
        return latent, reports[0] if reports else None, time.perf_counter() - began


class Flux(Rig):
    """4,096 tokens of picture, so that an evaluation takes longer than its launches."""

    kind = "Flux"
    network: ClassVar[dict[str, Any]] = {
        "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 768,
        "context_in_dim": 4096, "hidden_size": 3072, "num_heads": 24, "mlp_ratio": 4.0, "depth": 2,
        "depth_single_blocks": 4, "axes_dim": [16, 56, 56], "theta": 10_000, "qkv_bias": True, "guidance_embed": True,
        "txt_ids_dims": [],
    }  # fmt: skip
    latent = ((1, 16, 128, 128),)
    text = (256, 4096)
    pooled = 768
    steps = 12

    def adjust(self, network: Any) -> None:
        with torch.no_grad():
            network.final_layer.linear.weight.mul_(0.05)


VIDEO = ("blocks, taylor", "blocks, first block", "output, line")


class Wan(Rig):
    """Wan 14B's width: 32,760 tokens of 81 frames at 832 x 480, a stream of 335 MB."""

    kind = "WAN21_T2V"
    network: ClassVar[dict[str, Any]] = {
        "image_model": "wan2.1", "model_type": "t2v", "patch_size": (1, 2, 2), "dim": 5120, "ffn_dim": 13824,
        "freq_dim": 256, "text_dim": 4096, "num_heads": 40, "num_layers": 4, "in_dim": 16, "out_dim": 16,
    }  # fmt: skip
    latent = ((1, 16, 21, 60, 104),)
    text = (512, 4096)
    methods = VIDEO


class LTXAV(Rig):
    """LTX-2's width: 121 frames at 1280 x 704 and five seconds of sound, in two streams."""

    kind = "LTXAV"
    network: ClassVar[dict[str, Any]] = {
        "image_model": "ltxav", "num_layers": 4, "attention_head_dim": 128, "num_attention_heads": 32,
        "cross_attention_dim": 4096, "audio_attention_head_dim": 64, "audio_num_attention_heads": 32,
        "audio_cross_attention_dim": 2048, "caption_channels": 3840, "connector_attention_head_dim": 128,
        "connector_num_attention_heads": 30, "connector_num_layers": 1,
    }  # fmt: skip
    latent = ((1, 128, 16, 22, 40), (1, 8, 126, 16))
    text = (256, 7680)
    methods = VIDEO


RIGS: tuple[type[Rig], ...] = (Flux, Wan, LTXAV)
