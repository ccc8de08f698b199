"""A real ComfyUI in this process, on the CPU, with the demo's trained models."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "demo" / "models"

if "COMFYUI_PATH" not in os.environ:
    raise pytest.UsageError("COMFYUI_PATH is not set: run the tests with `make test`")
sys.path.insert(0, os.environ["COMFYUI_PATH"])

import comfy.cli_args  # noqa: E402

comfy.cli_args.args.cpu = True  # before anything asks for a device

import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.sd  # noqa: E402
import torch  # noqa: E402

SIZE = (16, 16, 16)  # channels, height, width of the demo's latents


class Studio:
    """What a graph would hold: the demo's model and prompts, and a sampler to run them with."""

    def __init__(self) -> None:
        self.model = comfy.sd.load_diffusion_model(str(MODELS / "skipstone_demo_flux.safetensors"))
        self.clip = comfy.sd.load_clip(
            [str(MODELS / "skipstone_demo_clip.pt")], clip_type=comfy.sd.CLIPType.STABLE_DIFFUSION
        )

    def prompt(self, text: str = "a red circle on blue"):
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))

    def sample(
        self,
        model,
        positive=None,
        negative=None,
        *,
        steps: int = 20,
        cfg: float = 3.0,
        sampler: str = "euler",
        scheduler: str = "simple",
        seed: int = 1,
        batch: int = 1,
        latent: torch.Tensor | None = None,
        **more,
    ) -> torch.Tensor:
        """As the KSampler node does it; latents (batch, 16, 16, 16) on the CPU."""
        if latent is None:
            latent = torch.zeros(batch, *SIZE)
        return comfy.sample.sample(
            model,
            comfy.sample.prepare_noise(latent, seed),
            steps,
            cfg,
            sampler,
            scheduler,
            positive if positive is not None else self.prompt(),
            negative if negative is not None else self.prompt(""),
            latent,
            seed=seed,
            disable_pbar=True,
            **more,
        )


@pytest.fixture(scope="session")
def studio() -> Studio:
    return Studio()


@pytest.fixture
def meancache(studio):
    """A MODEL with MeanCache on it, and the reports of its runs: `model, reports = meancache(preset="Speed")`."""
    from skipstone.nodes.meancache import method_of
    from skipstone.patch.attach import attach

    def patched(model=None, **widgets):
        reports: list[Any] = []
        return attach(model or studio.model, method_of(**widgets), (reports.append,)), reports

    return patched


@pytest.fixture
def world():
    """ComfyUI's own modules, for tests that build what a graph would."""
    import comfy.hooks
    import comfy.model_patcher
    import nodes

    return SimpleNamespace(nodes=nodes, hooks=comfy.hooks, samplers=comfy.samplers, sd=comfy.sd)
