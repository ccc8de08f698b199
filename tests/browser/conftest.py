"""A real ComfyUI server with the pack and the demo's models, and a real browser on its front end."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "demo" / "models"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
sys.path.insert(0, str(ROOT / "bench"))

from served import running, wait_until_up  # noqa: E402

from skipstone.tests.browser.desk import Desk  # noqa: E402

FILES = {
    "diffusion_models": [MODELS / f"skipstone_demo_{name}.safetensors" for name in ("flux", "nextdit", "unet")],
    "vae": [MODELS / "skipstone_demo_vae.safetensors"],
    "text_encoders": [MODELS / "skipstone_demo_clip.pt"],
}


# the files that ComfyUI's default graph names, and the small models that stand for them
DEFAULT = {
    "diffusion_models": ("z_image_turbo_bf16.safetensors", "skipstone_demo_flux.safetensors"),
    "vae": ("ae.safetensors", "skipstone_demo_vae.safetensors"),
    "text_encoders": ("qwen_3_4b.safetensors", "skipstone_demo_clip.pt"),
}


def under_their_names(folder: Path) -> dict[str, list[Path]]:
    """FILES, and those of DEFAULT."""
    files = {kind: [*found] for kind, found in FILES.items()}
    for kind, (name, source) in DEFAULT.items():
        target = folder / name
        if Path(source).suffix == target.suffix:
            target.symlink_to(MODELS / source)
        else:
            weights = torch.load(MODELS / source, weights_only=True)
            safetensors.torch.save_file({k: v.contiguous() for k, v in weights.items()}, target)
        files[kind].append(target)
    return files


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "log"
    files = under_their_names(tmp_path_factory.mktemp("models"))
    with running(Path(os.environ["COMFYUI_PATH"]), {"skipstone": ROOT}, files, 1, log) as server:
        wait_until_up(server)
        yield server


# while Playwright is there its event loop runs, and other tests have loops of their own
@pytest.fixture(scope="module")
def chromium():
    if CHROMIUM is None:
        pytest.skip("there is no Chromium (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_desk(chromium, server):
    """Opens pages on the front end: `open_desk(vue=True, dark=False)`. No error of ours may be logged in any."""
    desks: list[Desk] = []
    contexts = []

    def opened(**settings):
        contexts.append(chromium.new_context(viewport={"width": 1500, "height": 900}, reduced_motion="reduce"))
        desks.append(Desk(contexts[-1].new_page(), server, **settings))
        return desks[-1]

    yield opened
    for context in contexts:
        context.close()
    assert [e for desk in desks for e in desk.errors] == []


@pytest.fixture(params=["canvas", "vue"])
def desk(request, open_desk):
    """An empty graph, once drawn by the classic canvas and once by Vue nodes."""
    return open_desk(vue=request.param == "vue")
