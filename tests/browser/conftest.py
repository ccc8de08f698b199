"""A real ComfyUI server with the pack and the demo's models, and a real browser on its front end."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "demo" / "models"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
sys.path.insert(0, str(ROOT / "bench"))

from served import running, wait_until_up  # noqa: E402

from skipstone.tests.browser.desk import VIEWPORT, Desk  # noqa: E402

FAILED, LAST = pytest.StashKey[bool](), pytest.StashKey[bool]()

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


@pytest.fixture(scope="session")
def browser():
    """Chromium and the event loop of the library that drives it; the loop is not the running one outside of the tests here."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        loop = asyncio.get_running_loop()
        asyncio._set_running_loop(None)
        yield browser, loop
        asyncio._set_running_loop(loop)
        browser.close()


@pytest.fixture
def chromium(browser):
    """Other tests have event loops of their own: this one is the running one during a test."""
    chromium, loop = browser
    asyncio._set_running_loop(loop)
    yield chromium
    asyncio._set_running_loop(None)


class Pages:
    """Loaded pages that were used before, the last six, with what they were opened with. Loading the front end takes 5 s of CPU time,
    clearing a page a tenth of that."""

    def __init__(self) -> None:
        self.free: list[tuple[tuple[object, ...], Desk]] = []

    def take(self, key: tuple[object, ...], **settings: Any) -> Desk | None:
        """A page as good as new, or None."""
        for entry in [entry for entry in self.free if entry[0] == key]:
            self.free.remove(entry)
            if entry[1].renew(**settings):
                return entry[1]
            entry[1].page.context.close()
        return None

    def put(self, key: tuple[object, ...], desk: Desk) -> None:
        desk.rest()
        self.free.append((key, desk))
        while len(self.free) > 6:
            self.free.pop(0)[1].page.context.close()

    def close(self, of_live_servers: bool = True) -> None:
        """All, or those of servers that have ended."""
        for entry in [entry for entry in self.free if of_live_servers or not entry[1].server.alive]:
            self.free.remove(entry)
            entry[1].page.context.close()


@pytest.fixture(scope="session")
def pages(browser):
    return Pages()


@pytest.fixture(autouse=True)
def no_pages_during_other_tests(request, chromium, pages):
    yield
    if request.node.stash.get(LAST, False):
        pages.close()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item, nextitem):
    item.stash[LAST] = nextitem is None or nextitem.path.parent != item.path.parent


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


@pytest.fixture
def open_desk(request, chromium, no_pages_during_other_tests, pages, server):
    """Opens pages on the front end: `open_desk(vue=True, dark=False)`. No error of ours may be logged in any.

    A page of an earlier test with the same settings is cleared and used again, unless that test failed or left something behind.
    """
    desks: dict[Desk, tuple[object, ...]] = {}
    pages.close(of_live_servers=False)

    def opened(vue: bool = False, dark: bool = True, **settings):
        key = (server.url, vue, *sorted(settings.items()))
        desk = pages.take(key, vue=vue, dark=dark, **settings)
        if desk is None:
            context = chromium.new_context(viewport=VIEWPORT, reduced_motion="reduce")
            desk = Desk(context.new_page(), server, vue=vue, dark=dark, **settings)
        desks[desk] = key
        return desk

    yield opened
    errors = [e for desk in desks for e in desk.errors]
    for desk, key in desks.items():
        if errors or request.node.stash.get(FAILED, False):
            desk.page.context.close()
        else:
            pages.put(key, desk)
    assert errors == []


# tests that `make test` runs in one of both ways of drawing nodes, and the way that it leaves out
ONE_DRAWING = {
    "test_a_bypassed_node_is_not_in_the_prompt": "canvas",
    "test_a_newcomers_path": "canvas",
    "test_a_run_and_what_it_cost_are_seen_on_the_nodes": "canvas",
    "test_a_run_is_told_where_its_node_is": "canvas",
    "test_an_error": "vue",
    "test_every_node": "vue",
    "test_every_node_can_be_dropped": "canvas",
    "test_every_state": "canvas",
    "test_inside_subgraphs": "canvas",
    "test_it_is_found_and_samples": "canvas",
    "test_nodes_show_what_they_did": "vue",
    "test_old_workflows_open_and_run": "vue",
    "test_one_queue_compares_all_presets": "canvas",
    "test_runs_that_share_a_node_copies_and_subgraphs": "canvas",
    "test_the_demos_workflow_opens_and_runs": "canvas",
    "test_they_go_before_every_sampler_and_out_again": "canvas",
    "test_values_are_kept_by_files_copies_undo_and_the_api": "canvas",
    "test_what_a_person_sees_and_does": "canvas",
    "test_what_samplers_came_to_together_is_said_once": "vue",
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        name, _, drawn = item.name.partition("[")
        if name in ONE_DRAWING and drawn == f"{ONE_DRAWING[name]}]":
            item.add_marker(pytest.mark.thorough)


@pytest.fixture(params=["canvas", "vue"])
def desk(request, open_desk):
    """An empty graph, once drawn by the classic canvas and once by Vue nodes."""
    return open_desk(vue=request.param == "vue")
