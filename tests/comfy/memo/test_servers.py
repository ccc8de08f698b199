"""Two real ComfyUI servers on one folder, one Redis or one bucket: what one encoded, the other neither encodes nor loads an encoder for."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
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
    """Wait until there are `number` entries: writes run in the background."""
    for _ in range(200):
        if entries() >= number:
            return
        time.sleep(0.1)


def stats(server: Server) -> str:
    graph = {"stats": {"class_type": "SkipstoneMemoStats", "inputs": {}}}
    return str(ran(server, graph)["outputs"]["stats"]["text"][0])


MODELS_OF = {"vae": [MODELS / "skipstone_demo_vae.safetensors"], "text_encoders": [MODELS / "skipstone_demo_clip.pt"]}


@contextmanager
def two_servers(folder: Path, *options: str, **environment: str) -> Iterator[list[Server]]:
    """Two servers of one machine that share the folder or servers named in `environment`, and nothing else."""
    comfyui = Path(os.environ["COMFYUI_PATH"])
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        for name, value in environment.items():
            patch.setenv(name, value)
        logs = [folder / name for name in ("one.log", "other.log")]
        made = [stack.enter_context(running(comfyui, {"skipstone": ROOT}, MODELS_OF, 1, log, options)) for log in logs]
        for server in made:
            wait_until_up(server)
        yield made


def test_two_servers_on_one_folder(tmp_path):
    """They also keep what ComfyUI's own nodes return."""
    memo = {"SKIPSTONE_PROVIDER": "1", "SKIPSTONE_MEMO_FOLDER": str(tmp_path / "memo"), "SKIPSTONE_MEMO_DISK": "0.1"}
    with two_servers(tmp_path, **memo) as (one, other):
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


class Shared:
    """Two servers that keep nothing but in Redis, led by a Sentinel, and in a bucket: as on two machines."""

    def __init__(self, servers: list[Server], fleet: Any, store: Any, bucket: str) -> None:
        self.one, self.other = servers
        self.fleet, self.store, self.bucket = fleet, store, bucket
        self._made = 0

    def new_graph(self) -> dict[str, Any]:
        """One that neither server has run."""
        self._made += 1
        return changed(self._made)

    def redis(self) -> Any:
        """A client of the server that is the master now."""
        clients = [
            server.client() for server in (self.fleet.master, self.fleet.replica) if server.process.poll() is None
        ]
        return next(client for client in clients if client.role()[0] == b"master")

    def in_redis(self) -> int:
        return len(self.redis().keys("*"))

    def in_bucket(self) -> list[str]:
        listed = self.store.client().list_objects_v2(Bucket=self.bucket)
        return [str(about["Key"]) for about in listed.get("Contents", [])]

    def passed_on(self, tier: str, attempts: int, pause: float = 0.0) -> bytes:
        """The latent of a new graph that one server encoded and of which the other found picture and prompt in a tier.

        On a busy machine a tier may take longer than a run waits for it: that is a miss, and the tier is not asked for a while.
        """
        for attempt in range(attempts):
            time.sleep(pause if attempt else 0.0)
            graph, hits = self.new_graph(), hits_of(tier, self.other)
            redis, bucket = self.in_redis(), len(self.in_bucket())
            first = latent(self.one, graph)
            wait_for(redis + 2, self.in_redis)
            wait_for(bucket + 2, lambda: len(self.in_bucket()))
            if tier == "s3":
                self.redis().flushall()
            assert latent(self.other, graph) == first
            if hits_of(tier, self.other) >= hits + 2:
                return first
        raise AssertionError(stats(self.other))


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Iterator[Shared]:
    pytest.importorskip("redis", reason='Redis\' package is missing: pip install "redis>=5"')
    s3 = pytest.importorskip("skipstone.tests.memo.s3_store")
    from skipstone.tests.memo.test_redis import PROGRAM
    from skipstone.tests.memo.test_redis_fleets import Fleet

    if PROGRAM is None:
        pytest.skip("redis-server is missing (Debian: apt-get install redis-server)")
    if not s3.MOTO:
        pytest.skip("moto's server is missing: run the tests with tools/setup.py")
    folder = tmp_path_factory.mktemp("shared")
    with ExitStack() as stack:
        fleet = Fleet(folder)
        stack.callback(fleet.stop)
        fleet.wait_for_replica()
        store = s3.S3Store(folder)
        stack.callback(store.stop)
        bucket = store.bucket()
        memo = {"DISK": "0", "MEMORY": "0", "REDIS": fleet.url, "KEY": "a key", "NAMESPACE": "red"}
        memo |= {"S3": f"s3://{bucket}/team", "S3_ENDPOINT": store.url}
        environment = s3.CREDENTIALS | {f"SKIPSTONE_MEMO_{name}": value for name, value in memo.items()}
        servers = stack.enter_context(two_servers(folder, "--cache-none", **environment))
        yield Shared(servers, fleet, store, bucket)


@pytest.mark.thorough  # tests/memo tests each tier without a server
def test_two_servers_on_one_redis(shared):
    from skipstone.core.memo.tier_worker import RESTS, WINDOW

    first = shared.passed_on("redis", 3, WINDOW + RESTS[0])
    graph = shared.new_graph()
    with ThreadPoolExecutor(2) as both:  # both want the same at one time
        here, there = both.map(lambda server: latent(server, graph), (shared.one, shared.other))
    assert here == there != first


@pytest.mark.thorough
def test_two_servers_on_one_bucket(shared):
    shared.passed_on("s3", 20)
    assert all(name.startswith("team/1@red.signed/") for name in shared.in_bucket())
    assert "Error" not in stats(shared.other)


@pytest.mark.thorough
def test_two_servers_on_one_redis_that_fails_over(shared):
    """A Sentinel makes the replica the master while both servers work: no graph fails, and no latent is another one."""
    one, other, fleet = shared.one, shared.other, shared.fleet
    known = [shared.new_graph() for _ in range(2)]
    right = [latent(one, graph) for graph in known]
    wait_for(4, lambda: len(fleet.replica.client().keys("*")))
    wrong = []
    for turn in range(6):  # the last known graphs on both servers, and a new one in between
        if turn == 1:
            fleet.master.process.kill()
            fleet.master.process.wait()
        for graph, expected in zip(known[-3:], right[-3:], strict=True):
            with ThreadPoolExecutor(2) as both:
                got = list(both.map(lambda server, graph=graph: latent(server, graph), (one, other)))
            wrong += [graph for value in got if value != expected]
        known.append(shared.new_graph())
        right.append(latent(other, known[-1]))
    assert wrong == []
    wait_for(1, lambda: int(fleet.replica.client().role()[0] == b"master"))
    assert fleet.replica.client().role()[0] == b"master"
    shared.passed_on("redis", 60)  # both have found the new master: one writes there, the other reads
