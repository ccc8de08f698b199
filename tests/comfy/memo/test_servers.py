"""Two real ComfyUI servers on one folder: what the one encoded, the other neither encodes nor loads an encoder for."""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "bench"))

from served import Server, file, ran, running, wait_until_up  # noqa: E402

MODELS = ROOT / "demo" / "models"
LOADED = ("VAE load device", "CLIP/text encoder model load device")

GRAPH = {
    "picture": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0x336699}},
    "vae": {"class_type": "VAELoader", "inputs": {"vae_name": "skipstone_demo_vae.safetensors"}},
    "clip": {"class_type": "CLIPLoader", "inputs": {"clip_name": "skipstone_demo_clip.pt", "type": "stable_diffusion"}},
    "latent": {"class_type": "SkipstoneCachedVAEEncode", "inputs": {"image": ["picture", 0], "vae": ["vae", 0]}},
    "prompt": {"class_type": "SkipstoneCachedTextEncode", "inputs": {"text": "a red circle", "clip": ["clip", 0]}},
    "save": {"class_type": "SaveLatent", "inputs": {"samples": ["latent", 0], "filename_prefix": "it"}},
    "end": {"class_type": "SkipstoneMemoStats", "inputs": {"after": ["prompt", 0]}},
}
STOCK = {
    **{name: GRAPH[name] for name in ("picture", "vae", "clip", "save")},
    "latent": {"class_type": "VAEEncode", "inputs": {"pixels": ["picture", 0], "vae": ["vae", 0]}},
    "prompt": {"class_type": "CLIPTextEncode", "inputs": {"text": "a red circle", "clip": ["clip", 0]}},
    "end": {"class_type": "SkipstoneMemoStats", "inputs": {"after": ["prompt", 0]}},
}


def latent(server: Server, graph: dict[str, Any]) -> bytes:
    """The numbers of the latent that it saves."""
    (saved,) = ran(server, graph)["outputs"]["save"]["latents"]
    content = file(server, saved)
    return content[8 + int.from_bytes(content[:8], "little") :]  # its header holds the prompt


def stats(server: Server) -> str:
    graph = {"stats": {"class_type": "SkipstoneMemoStats", "inputs": {}}}
    return str(ran(server, graph)["outputs"]["stats"]["text"][0])


@pytest.fixture
def servers(tmp_path, monkeypatch):
    """Two of one machine that share the memo's folder and nothing else, and keep what ComfyUI's own nodes return."""
    monkeypatch.setenv("SKIPSTONE_MEMO_FOLDER", str(tmp_path / "memo"))
    monkeypatch.setenv("SKIPSTONE_MEMO_DISK", "0.1")
    monkeypatch.setenv("SKIPSTONE_PROVIDER", "1")
    models = {"vae": [MODELS / "skipstone_demo_vae.safetensors"], "text_encoders": [MODELS / "skipstone_demo_clip.pt"]}
    comfyui = Path(os.environ["COMFYUI_PATH"])
    with ExitStack() as stack:
        logs = [tmp_path / name for name in ("one.log", "other.log")]
        made = [stack.enter_context(running(comfyui, {"skipstone": ROOT}, models, 1, log)) for log in logs]
        for server in made:
            wait_until_up(server)
        yield made


def test_two_servers_on_one_folder(servers):
    one, other = servers
    first, stock = latent(one, GRAPH), latent(one, STOCK)
    assert "0 of 4 hit" in stats(one) and stock == first
    assert all(word in one.log.read_text() for word in LOADED)
    kept = Path(os.environ["SKIPSTONE_MEMO_FOLDER"])
    for _ in range(200):  # nobody waits for writes, but here
        if len(list(kept.rglob("*.memo"))) == 6:  # two encodings, what two loaders make, two nodes' results
            break
        time.sleep(0.1)
    assert latent(other, GRAPH) == latent(other, STOCK) == first
    told = stats(other)
    assert "4 of 4 hit" in told and "disk: 4 hits" in told
    assert not any(word in other.log.read_text() for word in LOADED)
