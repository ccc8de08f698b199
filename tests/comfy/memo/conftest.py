"""A memo of the test's own, and encoders small enough to be run hundreds of times."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.sd
import comfy.utils
import pytest
import torch
from comfy import sd1_clip, sdxl_clip, supported_models_base
from comfy.ldm.models.autoencoder import AutoencoderKL

from skipstone.core.memo.store import Store
from skipstone.core.memo.tiers.memory import MemoryTier
from skipstone.patch import memo as process

TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "projection_dim": 32,
}
SHAPE = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 32,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
}


class Memo:
    """The process's store, and what became of what was asked of it."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def counts(self, kind: str) -> tuple[int, int]:
        """Hits and misses so far."""
        told = self.store.stats.as_dict()["kinds"].get(kind, {"hits": 0, "misses": 0})
        return told["hits"], told["misses"]

    @property
    def not_kept(self) -> dict[str, int]:
        return self.store.stats.as_dict()["not_kept"]


@pytest.fixture
def memo():
    """In memory only, and empty."""
    store = Store([MemoryTier(1 << 30, reserve=0)])
    process.use(store)
    yield Memo(store)
    process.use(None)
    store.close()


@pytest.fixture
def loads(monkeypatch):
    """Encoders that were loaded, one for each time."""
    seen: list[Any] = []
    load = comfy.model_management.load_models_gpu

    def noted(models, *args, **kwargs):
        seen.extend(models)
        return load(models, *args, **kwargs)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", noted)
    return seen


def randomized(module: torch.nn.Module, seed: int, scale: float = 0.3) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * scale)


def tiny_clip(seed: int = 0, dtype: torch.dtype = torch.float32, sdxl: bool = False) -> Any:
    """A CLIP of SD1's or SDXL's kind, of three layers with random weights."""
    kinds = (
        (sdxl_clip.SDXLTokenizer, sdxl_clip.SDXLClipModel) if sdxl else (sd1_clip.SD1Tokenizer, sd1_clip.SD1ClipModel)
    )
    options = {"clip_l_model_config": dict(TINY), "clip_g_model_config": dict(TINY), "dtype": dtype}
    clip = comfy.sd.CLIP(supported_models_base.ClipTarget(*kinds), model_options=options)
    randomized(clip.cond_stage_model, seed)
    return clip


def tiny_vae(seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """A VAE of SD's kind that halves width and height, with random weights."""
    made = AutoencoderKL(ddconfig=SHAPE, embed_dim=4)
    randomized(made, seed, 0.1)
    config = {"params": {"ddconfig": SHAPE, "embed_dim": 4}}
    vae = comfy.sd.VAE(sd=made.state_dict(), config=config, dtype=dtype)
    vae.downscale_ratio = vae.upscale_ratio = 2
    return vae


@pytest.fixture(scope="session")
def plain_clip():
    return tiny_clip()


@pytest.fixture(scope="session")
def plain_vae():
    return tiny_vae()


@pytest.fixture(scope="session")
def make_clip():
    return tiny_clip


@pytest.fixture(scope="session")
def make_vae():
    return tiny_vae


@pytest.fixture(autouse=True)
def as_nodes_run():
    """ComfyUI executes nodes in inference mode."""
    with torch.inference_mode():
        yield


@pytest.fixture
def pixels():
    """Pictures, (batch, height, width, channels), by a seed: `pixels(2, batch=3)`."""

    def made(seed: int = 0, batch: int = 1, channels: int = 3, size: tuple[int, int] = (16, 24)):
        return torch.rand(batch, *size, channels, generator=torch.Generator().manual_seed(seed))

    return made


@pytest.fixture
def same():
    """Whether two values are equal to the bit: tensors with dtype, device and shape, everything else with its type."""

    def equal(a: Any, b: Any) -> bool:
        if type(a) is not type(b):
            return False
        if isinstance(a, torch.Tensor):
            about = (a.dtype, a.device, a.shape) == (b.dtype, b.device, b.shape)
            return about and a.contiguous().numpy().tobytes() == b.contiguous().numpy().tobytes()
        if isinstance(a, dict):
            return list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
        if isinstance(a, list | tuple):
            return len(a) == len(b) and all(map(equal, a, b))
        return a == b

    return equal
