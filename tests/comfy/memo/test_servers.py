"""Two real ComfyUI servers on one folder, or on one Redis: what the one encoded, the other neither encodes nor loads an encoder for."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "bench"))

from served import Server, file, ran, running, wait_until_up  # noqa: E402

MODELS = ROOT / "demo" / "models"
KEPT = 6  # two encodings, what two loaders make, two nodes' results
LOADED = ("VAE load device", "CLIP/text encoder model load device")

GRAPH: dict[str, Any] = {
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


def wait_for(number: int, entries: Callable[[], int]) -> None:
    """Until there are so many: nobody waits for writes, but here."""
    for _ in range(200):
        if entries() >= number:
            return
        time.sleep(0.1)


def stats(server: Server) -> str:
    graph = {"stats": {"class_type": "SkipstoneMemoStats", "inputs": {}}}
    return str(ran(server, graph)["outputs"]["stats"]["text"][0])


@pytest.fixture
def open_servers(tmp_path, monkeypatch):
    """Starts two of one machine that keep what ComfyUI's own nodes return, and share what the settings say and nothing else."""
    monkeypatch.setenv("SKIPSTONE_PROVIDER", "1")
    models = {"vae": [MODELS / "skipstone_demo_vae.safetensors"], "text_encoders": [MODELS / "skipstone_demo_clip.pt"]}
    comfyui = Path(os.environ["COMFYUI_PATH"])
    with ExitStack() as stack:

        def opened(*options, **settings):
            for name, value in settings.items():
                monkeypatch.setenv(f"SKIPSTONE_MEMO_{name}", value)
            logs = [tmp_path / name for name in ("one.log", "other.log")]
            made = [stack.enter_context(running(comfyui, {"skipstone": ROOT}, models, 1, log, options)) for log in logs]
            for server in made:
                wait_until_up(server)
            return made

        yield opened


def test_two_servers_on_one_folder(tmp_path, open_servers):
    one, other = open_servers(FOLDER=str(tmp_path / "memo"), DISK="0.1")
    first, stock = latent(one, GRAPH), latent(one, STOCK)
    assert "0 of 4 reused" in stats(one) and stock == first
    assert all(word in one.log.read_text() for word in LOADED)
    wait_for(KEPT, lambda: len(list((tmp_path / "memo").rglob("*.memo"))))
    assert latent(other, GRAPH) == latent(other, STOCK) == first
    told = stats(other)
    assert "4 of 4 reused" in told and "disk: 4 hits" in told
    assert not any(word in other.log.read_text() for word in LOADED)


def changed(number: int) -> dict[str, Any]:
    """GRAPH with another picture and another prompt."""
    graph = deepcopy(GRAPH)
    graph["picture"]["inputs"]["color"] = 0x010203 * (number + 1)
    graph["prompt"]["inputs"]["text"] = f"{number} circles"
    return graph


def hits_of(tier: str, server: Server) -> int:
    found = re.search(rf"{tier}: (\d+) hits?", stats(server))
    return int(found[1]) if found else 0


def redis_hits(server: Server) -> int:
    return hits_of("redis", server)


def test_two_servers_on_one_redis(tmp_path, open_servers):
    """As on two machines: no folder is shared."""
    pytest.importorskip("redis", reason='Redis\' package is missing: pip install "redis>=5"')
    from skipstone.core.memo.tier_worker import RESTS, WINDOW
    from skipstone.tests.memo.test_redis import PROGRAM
    from skipstone.tests.memo.test_redis import Server as Redis

    if PROGRAM is None:
        pytest.skip("redis-server is missing (Debian: apt-get install redis-server)")
    redis = Redis(tmp_path)
    try:
        one, other = open_servers(DISK="0", REDIS=redis.url)
        entries = redis.client()
        # on a busy machine Redis may take longer than a run waits for it: that is a miss, and then Redis is not asked for a while
        for attempt in range(3):
            if attempt:
                time.sleep(WINDOW + RESTS[0])
            graph, before = changed(attempt), len(entries.keys("*"))
            first, hits = latent(one, graph), redis_hits(other)
            wait_for(before + 2, lambda: len(entries.keys("*")))
            assert latent(other, graph) == first
            if redis_hits(other) >= hits + 2:  # the picture and the prompt
                break
        else:
            raise AssertionError(stats(other))

        # both want the same at one time
        graph = changed(3)
        with ThreadPoolExecutor(2) as both:
            here, there = both.map(lambda server: latent(server, graph), (one, other))
        assert here == there != first
    finally:
        redis.stop()


def test_two_servers_on_one_redis_that_fails_over(tmp_path, open_servers):
    """A Sentinel makes the replica the master while both servers work: no graph fails, and no latent is another one."""
    pytest.importorskip("redis", reason='Redis\' package is missing: pip install "redis>=5"')
    from skipstone.tests.memo.test_redis import PROGRAM
    from skipstone.tests.memo.test_redis_fleets import Fleet

    if PROGRAM is None:
        pytest.skip("redis-server is missing (Debian: apt-get install redis-server)")
    fleet = Fleet(tmp_path)
    try:
        fleet.wait_for_replica()
        one, other = open_servers("--cache-none", DISK="0", MEMORY="0", REDIS=fleet.url)
        right = {number: latent(one, changed(number)) for number in range(2)}
        wait_for(4, lambda: len(fleet.replica.client().keys("*")))
        wrong = []
        for round_ in range(6):  # the graphs that are known, in turn on both; each new in between
            if round_ == 1:
                fleet.master.process.kill()
                fleet.master.process.wait()
            for number, expected in right.items():
                with ThreadPoolExecutor(2) as both:
                    got = list(both.map(lambda server, n=number: latent(server, changed(n)), (one, other)))
                wrong += [number for value in got if value != expected]
            new = 10 + round_
            right[new] = latent(other, changed(new))
        assert wrong == []
        wait_for(1, lambda: int(fleet.replica.client().role()[0] == b"master"))
        assert fleet.replica.client().role()[0] == b"master"

        def written() -> int:
            return len(fleet.replica.client().keys("*"))

        # both have found the new master: one writes there, the other reads
        for attempt in range(60):
            graph, hits, there = changed(100 + attempt), redis_hits(other), written()
            first = latent(one, graph)
            wait_for(there + 2, written)
            assert latent(other, graph) == first
            if redis_hits(other) >= hits + 2:
                break
        else:
            raise AssertionError(stats(other))
    finally:
        fleet.stop()


def test_two_servers_on_one_bucket(tmp_path, open_servers, monkeypatch):
    s3 = pytest.importorskip("skipstone.tests.memo.s3_store")
    if not s3.MOTO:
        pytest.skip("moto's server is missing: run the tests with tools/setup.py")
    for name, value in s3.CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    store = s3.S3Store(tmp_path)
    try:
        bucket = store.bucket()
        one, other = open_servers(
            DISK="0", S3=f"s3://{bucket}/team", S3_ENDPOINT=store.url, KEY="a key", NAMESPACE="red"
        )

        def entries() -> int:
            return int(store.client().list_objects_v2(Bucket=bucket)["KeyCount"])

        for attempt in range(20):  # on a busy machine S3 may take longer than a run waits for it
            graph, hits, there = changed(attempt), hits_of("s3", other), entries()
            first = latent(one, graph)
            wait_for(there + 2, entries)
            assert latent(other, graph) == first
            if hits_of("s3", other) >= hits + 2:
                break
        else:
            raise AssertionError(stats(other))
        names = [about["Key"] for about in store.client().list_objects_v2(Bucket=bucket)["Contents"]]
        assert all(name.startswith("team/1@red.signed/") for name in names)
        assert "Error" not in stats(other)
    finally:
        store.stop()
