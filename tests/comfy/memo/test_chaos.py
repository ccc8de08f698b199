"""Whatever the tiers do, a graph gets to the bit what it gets without a memo, and never an error of ours."""

from __future__ import annotations

import os

import comfy.hooks
import pytest

from skipstone.core.memo import tier_worker
from skipstone.core.memo.settings import Settings
from skipstone.core.memo.store import Store
from skipstone.core.memo.tiers.disk import DiskTier
from skipstone.patch.memo import instance as process
from skipstone.patch.memo.encoders import memo_clip
from skipstone.tests.comfy.memo.test_nodes import latent, prompt, stock
from skipstone.tests.memo.test_chaos import Flaky
from skipstone.tests.thorough import params


@pytest.fixture
def use():
    """Takes a store for the process; all are closed when the test is over."""
    made: list[Store] = []

    def used(store):
        made.append(store)
        process.set_store(store)
        return store

    yield used
    process.set_store(None)
    for store in made:
        store.close(1)


def runs_right(shop, same, times=3):
    """Pictures and prompts through our nodes, restarts between; each as ComfyUI's own nodes give it."""
    for graph in (latent(), prompt("a")):
        process_store = process.opened()
        process.set_store(None)
        truth = shop.run(**stock(graph))["it"]
        process.set_store(process_store)
        for _ in range(times):
            shop.restart()
            got = shop.run(**graph)
            assert shop.error is None and same(got["it"], truth)


@pytest.mark.parametrize("seed", range(2))
def test_tiers_that_lie_fail_and_tear(use, shop, same, monkeypatch, seed):
    monkeypatch.setattr(tier_worker, "RESTS", (0.0, 0.01))
    monkeypatch.setattr(tier_worker, "WINDOW", 0.01)
    store = use(Store([Flaky(seed, "near"), Flaky(seed + 10, "far")]))
    store.ready(10)
    runs_right(shop, same, times=8)


def test_a_disk_that_takes_nothing_and_a_redis_that_is_dead(use, shop, same, tmp_path):
    (tmp_path / "file").write_text("no folder")
    store = use(Settings(folder=tmp_path / "file" / "memo", redis="redis://127.0.0.1:1", memory=0).open())
    runs_right(shop, same)
    assert store.stats.as_dict()["hits"] == 0


@pytest.mark.parametrize("damage", params(("emptied", "cut", "garbled", "swapped", "removed"), ("cut", "swapped")))
def test_files_that_are_damaged_between_two_runs(use, shop, same, tmp_path, damage):
    store = use(Store([DiskTier(tmp_path / "memo", spare=0)]))
    store.ready(10)
    runs_right(shop, same, times=1)
    store.flush(30)
    paths = sorted((tmp_path / "memo").rglob("*.memo"))
    assert len(paths) == 4  # two encodings, and what their loaders make
    contents = [path.read_bytes() for path in paths]
    for i, (path, content) in enumerate(zip(paths, contents, strict=True)):
        if damage == "removed":
            path.unlink()
        else:
            middle = len(content) // 2
            path.write_bytes({
                "emptied": b"",
                "cut": content[:middle],
                "garbled": content[:middle] + os.urandom(16) + content[middle + 16 :],
                "swapped": contents[i - 1],
            }[damage])  # fmt: skip
    runs_right(shop, same, times=1)
    store.flush(30)
    assert store.ready(30)  # after so much rubbish it rests
    shop.restart()
    shop.run(**latent())
    assert shop.ran == [], "and healed"


def test_nothing_with_a_hook_is_written_down(use, shop, tmp_path, make_clip):
    store = use(Store([DiskTier(tmp_path / "memo", spare=0)]))
    store.ready(10)
    clip = make_clip()
    hooks = comfy.hooks.HookGroup()
    hooks.add(comfy.hooks.WeightHook())
    clip.patcher.forced_hooks = hooks
    clip.use_clip_schedule = True
    clip.apply_hooks_to_conds = hooks
    memo_clip(clip).encode_from_tokens_scheduled(clip.tokenize("a"))
    store.flush(30)
    assert not list((tmp_path / "memo").rglob("*"))
    assert "hooks on the CLIP" in store.stats.as_dict()["not_kept"]
