"""A memo of the test's own, and encoders small enough to be run hundreds of times."""

from __future__ import annotations

import copy
import functools
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import comfy.sd
import execution
import folder_paths
import pytest
import torch
from comfy import sd1_clip, sdxl_clip, supported_models_base
from comfy.ldm.models.autoencoder import AutoencoderKL
from transformers import CLIPTokenizer

import nodes
from skipstone.core.memo.store import Store
from skipstone.core.memo.tiers.memory import MemoryTier
from skipstone.nodes import memo as memo_nodes
from skipstone.patch.memo import instance as process
from skipstone.patch.memo import model_files, source_code
from skipstone.patch.memo.modifications import observer

MODELS = Path(__file__).resolve().parents[3] / "demo" / "models"

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
    process.set_store(store)
    yield Memo(store)
    process.set_store(None)
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


@pytest.fixture(scope="session", autouse=True)
def a_tokenizer_is_read_once():
    """Reading CLIP's tokenizer and its vocabulary takes a loader of `tiny_clip` three quarters of its time."""
    # at their bases: what ComfyUI's modules hold is looked through for changes by other packs
    holders = {
        name: next(c for c in CLIPTokenizer.__mro__ if name in vars(c)) for name in ("from_pretrained", "get_vocab")
    }
    read, words = (vars(holder)[name] for name, holder in holders.items())
    once, known = functools.cache(read.__func__), functools.cache(words)

    def from_pretrained(cls: Any, *args: Any, **more: Any) -> Any:
        return (once if cls is CLIPTokenizer and not more else read.__func__)(cls, *args, **more)

    def get_vocab(self: Any) -> Any:
        return dict(known(self)) if type(self) is CLIPTokenizer else words(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(holders["from_pretrained"], "from_pretrained", classmethod(from_pretrained))
        patch.setattr(holders["get_vocab"], "get_vocab", get_vocab)
        yield


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


LOAD_CLIP = comfy.sd.load_clip


def load_tiny_clip(*args: Any, model_options: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    """comfy.sd.load_clip for files of `tiny_clip`. ComfyUI takes every CLIP-L for one of twelve layers, which costs seconds a prompt."""

    def made(model_options: Any, **options: Any) -> Any:
        config = {**model_options["clip_l_model_config"], **TINY}
        return sd1_clip.SD1CheckpointClipModel(
            model_options={**model_options, "clip_l_model_config": config}, **options
        )

    return LOAD_CLIP(*args, model_options={**(model_options or {}), "clip_l_class": made}, **kwargs)


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


class Shop:
    """ComfyUI's executor with ComfyUI's nodes and ours; `run` gives the values that reached the end nodes, and `ran` the nodes that ran."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, models: Path, clip: Path) -> None:
        self.models = models
        self.ran: list[str] = []
        self.got: dict[str, Any] = {}
        self.error: str | None = None
        self.prompt: dict[str, Any] = {}
        self._patch = monkeypatch
        known: dict[str, Any] = {made.GET_SCHEMA().node_id: made for made in list[Any](memo_nodes.NODES)}
        test_nodes = {"TestPicture": self._picture_node(), "TestEnd": self._end_node(), "TestPass": self._pass_node()}
        for name, made in {**known, **test_nodes}.items():
            monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, name, made)
        for folder, made in (
            ("vae", "vae"),
            ("text_encoders", "clip"),
            ("loras", "loras"),
            ("embeddings", "embeddings"),
        ):
            (models / made).mkdir()
            monkeypatch.setitem(
                folder_paths.folder_names_and_paths, folder, ([str(models / made)], {".pt", ".safetensors"})
            )
        monkeypatch.setattr(folder_paths, "filename_list_cache", {})
        (models / "vae" / "demo.safetensors").symlink_to(MODELS / "skipstone_demo_vae.safetensors")
        (models / "clip" / "tiny.pt").symlink_to(clip)
        monkeypatch.setattr(comfy.sd, "load_clip", load_tiny_clip)
        for loader, method in (
            (nodes.VAELoader, "load_vae"),
            (nodes.CLIPLoader, "load_clip"),
            (nodes.LoraLoader, "load_lora"),
        ):
            self._watched(loader, method)
        self.begin()
        self.restart()

    def begin(self) -> None:
        """As far as files are concerned, the process starts now."""
        self._patch.setattr(model_files, "MARGIN", 0.0)
        self._patch.setattr(model_files, "_first", {})
        time.sleep(0.02)  # the clock of files moves in steps of up to 10 ms
        now = time.time()
        time.sleep(0.02)
        self._patch.setattr(source_code, "process_start", lambda: now)

    def restart(self) -> None:
        """ComfyUI, as good as new: nothing in its caches."""
        self._patch.setattr(model_files, "_first", {})
        there = SimpleNamespace(client_id=None, last_node_id=None, send_sync=lambda *a: None)
        kinds = execution.CacheType
        self._executor = execution.PromptExecutor(
            there, cache_type=kinds.CLASSIC, cache_args={"ram": 0, "ram_inactive": 0, "lru": 0}
        )

    def run(self, **graph: Any) -> dict[str, Any]:
        """Run this graph, `name=("ClassType", {inputs})`, to its TestEnd nodes; what reached each, by node."""
        self.ran.clear()
        self.got.clear()
        prompt = {n: {"class_type": kind, "inputs": inputs} for n, (kind, inputs) in graph.items()}
        self.prompt = prompt
        ends = [
            n
            for n, node in prompt.items()
            if getattr(nodes.NODE_CLASS_MAPPINGS[node["class_type"]], "OUTPUT_NODE", False)
        ]
        with torch.inference_mode(False):  # the executor sees to that itself
            self._executor.execute(copy.deepcopy(prompt), "prompt", {}, ends)
        self.error = None
        if not self._executor.success:
            self.error = str([about for event, about in self._executor.status_messages if event == "execution_error"])
        return dict(self.got)

    def _watched(self, kind: Any, method: str) -> None:
        function, shop = getattr(kind, method), self

        def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
            shop.ran.append(kind.__name__)
            return function(self, *args, **kwargs)

        self._patch.setattr(kind, method, observer(function, noted))

    def _picture_node(self) -> Any:
        class TestPicture:
            RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "make", ""

            @classmethod
            def INPUT_TYPES(cls):
                return {"required": {"seed": ("INT", {})}}

            def make(self, seed):
                return (torch.rand(1, 16, 16, 3, generator=torch.Generator().manual_seed(seed)),)

        return TestPicture

    def _end_node(self) -> Any:
        shop = self

        class TestEnd:
            RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "take", "", True

            @classmethod
            def INPUT_TYPES(cls):
                return {"required": {"value": ("*", {}), "name": ("STRING", {})}}

            @classmethod
            def IS_CHANGED(cls, **_):
                return float("nan")

            def take(self, value, name):
                shop.got[name] = value
                return ()

        return TestEnd

    def _pass_node(self) -> Any:
        class TestPass:
            """A node of another pack, which the memo does not know."""

            RETURN_TYPES, FUNCTION, CATEGORY = ("*",), "hand", ""

            @classmethod
            def INPUT_TYPES(cls):
                return {"required": {"value": ("*", {})}}

            def hand(self, value):
                return (value,)

        return TestPass


@pytest.fixture(scope="session")
def clip_file(tmp_path_factory, plain_clip):
    """The weights of `tiny_clip` in a file, and a time just after it was written."""
    path = tmp_path_factory.mktemp("clip") / "tiny.pt"
    torch.save(plain_clip.cond_stage_model.clip_l.transformer.state_dict(), path)
    return path, path.stat().st_ctime + 0.01


@pytest.fixture
def shop(monkeypatch, tmp_path, clip_file):
    path, _ = clip_file
    return Shop(monkeypatch, tmp_path, path)
