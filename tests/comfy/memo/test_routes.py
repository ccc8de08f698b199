"""The memo's routes: only JSON requests change anything, and no answer contains a folder or an address."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import sys
from types import SimpleNamespace

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from skipstone.core.memo.keys import key
from skipstone.core.memo.status import NO_SHARED_TIER
from skipstone.core.memo.store import Store
from skipstone.core.memo.tiers.disk import DiskTier
from skipstone.core.memo.tiers.memory import MemoryTier
from skipstone.core.memo.tiers.redis import RedisTier
from skipstone.nodes import memo as memo_nodes
from skipstone.nodes import routes
from skipstone.patch.memo import instance as process

MEMO, CLEAR, TEST = "/skipstone/memo", "/skipstone/memo/clear", "/skipstone/memo/test"
ALL = {"tier": "all", "kind": "all"}


def ask(method, path, **more):
    """The status, and the answer as JSON."""

    async def asked():
        table, app = web.RouteTableDef(), web.Application()
        routes.add(table)
        app.add_routes(table)
        async with TestClient(TestServer(app)) as client:
            answer = await client.request(method, path, **more)
            return answer.status, json.loads(await answer.text()) if answer.content_type.endswith("json") else None

    return asyncio.run(asked())


def dead():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"redis://me:s3cret@127.0.0.1:{s.getsockname()[1]}"


@pytest.fixture
def store(tmp_path):
    """In memory and in a folder, with a latent that was asked for twice and a prompt."""
    made = Store([MemoryTier(1 << 20, reserve=0), DiskTier(tmp_path / "the-folder", 1 << 30, spare=0)])
    process.set_store(made)
    for name in (key("vae", "a"), key("vae", "a"), key("text", "a")):
        made.compute(name, lambda: [1.0] * 10)
    assert made.flush()
    yield made
    process.set_store(None)
    made.close()


def entries(store):
    return {tier: sum(u.entries for u in held.values()) for tier, held in store.usage().items()}


def test_what_it_did_and_holds(store):
    status, told = ask("GET", MEMO)
    assert (status, told["state"]) == (200, "on")
    assert (told["hits"], told["misses"], told["hit_rate"]) == (1, 2, 1 / 3)
    assert list(told["kinds"]) == ["latents", "prompts"]
    assert told["kinds"]["latents"]["hits"] == 1
    memory, disk, redis = told["tiers"]
    assert (memory["name"], memory["state"], memory["entries"], memory["budget"]) == ("memory", "on", 2, 1 << 20)
    assert (disk["name"], disk["state"], disk["budget"]) == ("disk", "on", 1 << 30)
    assert {kind: held["entries"] for kind, held in disk["kinds"].items()} == {"latents": 1, "prompts": 1}
    assert redis == {"name": "redis", "state": "off"}
    assert told["changed"] is False


def test_asking_changes_nothing(store):
    before = store.report()
    assert ask("GET", MEMO)[1] == ask("GET", MEMO)[1]
    assert store.report() == before
    for path in (CLEAR, TEST):
        assert ask("GET", path)[0] == 405
    assert store.report() == before


def test_metrics_are_off_unless_the_environment_switches_them_on(store, monkeypatch):
    assert ask("GET", "/skipstone/metrics")[0] == 404
    for word in ("0", "off", ""):
        monkeypatch.setenv("SKIPSTONE_METRICS", word)
        assert ask("GET", "/skipstone/metrics")[0] == 404
    monkeypatch.setenv("SKIPSTONE_METRICS", "1")

    async def asked():
        table, app = web.RouteTableDef(), web.Application()
        routes.add(table)
        app.add_routes(table)
        async with TestClient(TestServer(app)) as client:
            answer = await client.get("/skipstone/metrics")
            return answer.status, answer.headers["Content-Type"], await answer.text()

    status, kind, text = asyncio.run(asked())
    assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert 'skipstone_memo_values_total{kind="vae",result="reused"} 1' in text
    assert "the-folder" not in text
    assert ask("POST", "/skipstone/metrics")[0] == 405


def test_clearing(store):
    status, told = ask("POST", CLEAR, json={"tier": "memory", "kind": "prompts"})
    assert status == 200 and told["removed"]["memory"]["entries"] == 1 and "1 entries removed" in told["text"]
    assert entries(store) == {"memory": 1, "disk": 2}
    assert ask("POST", CLEAR, json={"tier": "disk", "kind": "all"})[1]["removed"]["disk"]["entries"] == 2
    assert entries(store) == {"memory": 1, "disk": 0}
    assert ask("POST", CLEAR, json=ALL)[0] == 200
    assert entries(store) == {"memory": 0, "disk": 0}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"tier": "all"},
        {"kind": "all"},
        {"tier": "/etc", "kind": "all"},
        {"tier": "all", "kind": "../.."},
        {"tier": ["disk"], "kind": "all"},
        {"tier": "disk", "kind": None},
        {"tier": "disk", "kind": "vae"},
        [],
        "all",
        7,
    ],
)
def test_only_what_is_on_the_lists_is_cleared(store, body):
    status, told = ask("POST", CLEAR, json=body)
    assert status == 400 and told["error"].endswith(".")
    assert entries(store) == {"memory": 2, "disk": 2}


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_json(store, body):
    assert ask("POST", CLEAR, data=body, headers={"Content-Type": "application/json"})[0] == 400
    assert entries(store) == {"memory": 2, "disk": 2}


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=a"])
@pytest.mark.parametrize("path", [CLEAR, TEST])
def test_what_another_sites_form_can_send_is_refused(store, path, kind):
    """A page elsewhere can post these three without being asked by the browser whether it may; JSON it cannot."""
    status, told = ask("POST", path, data=json.dumps(ALL), headers={"Content-Type": kind})
    assert status == 415 and "application/json" in told["error"]
    assert entries(store) == {"memory": 2, "disk": 2}


def test_a_tier_that_is_not_there(store):
    status, told = ask("POST", CLEAR, json={"tier": "redis", "kind": "all"})
    assert status == 409 and "have no redis" in told["error"]


def test_a_memo_that_is_off():
    process.set_store(None)
    told = ask("GET", MEMO)[1]
    assert told["state"] == "off" and "switched off" in told["text"]
    assert ask("POST", CLEAR, json=ALL) == (409, {"error": memo_nodes.OFF, "told": memo_nodes.OFF.as_dict()})
    assert ask("POST", TEST, json={}) == (
        200,
        {"ok": False, "text": memo_nodes.OFF, "texts": [memo_nodes.OFF.as_dict()]},
    )


def test_no_place_and_no_password_in_any_answer(tmp_path):
    folder, address = tmp_path / "the-folder", dead()
    folder.write_text("a file: nothing can be written there")
    store = Store([MemoryTier(1 << 20, reserve=0), DiskTier(folder), RedisTier(address)])
    process.set_store(store)
    store.put(key("vae", "a"), 1, 1.0)
    store.flush()
    told = [ask("GET", MEMO), ask("POST", CLEAR, json=ALL), ask("POST", TEST, json={})]
    process.set_store(None)
    store.close()
    assert [status for status, _ in told] == [200, 200, 200]
    assert [tier["state"] for tier in told[0][1]["tiers"]][::2] == ["on", "away"]
    assert {trouble["tier"] for trouble in told[0][1]["troubles"]} == {"disk", "redis"}
    assert told[2][1]["ok"] is False and "no connection" in told[2][1]["text"].lower()
    said = json.dumps(told)
    assert not any(word in said for word in (str(tmp_path), "the-folder", "127.0.0.1", "s3cret", "redis://"))


NO_REDIS = {"ok": False, "text": "No Redis address is set.", "texts": [NO_SHARED_TIER.as_dict()]}


def test_the_server_to_try_is_nobodys_to_choose(store):
    """Whatever is sent along: there is no Redis set, so none is tried."""
    for body in ({}, {"address": dead(), "url": dead(), "Skipstone.Memo.Redis": dead()}):
        assert ask("POST", TEST, json=body) == (200, NO_REDIS)


def test_what_fails_is_told_without_its_words(store, monkeypatch, caplog):
    def fails(memo):
        raise RuntimeError("/a/path")

    monkeypatch.setattr(routes, "overview", fails)
    status, told = ask("GET", MEMO)
    assert status == 500 and "log" in told["error"] and "/a/path" not in told["error"]
    assert "/a/path" in caplog.text


def test_registering(monkeypatch):
    table = web.RouteTableDef()
    server = SimpleNamespace(PromptServer=SimpleNamespace(instance=SimpleNamespace(routes=table)))
    monkeypatch.setitem(sys.modules, "server", server)
    assert asyncio.run(routes.register())
    assert {(r.method, r.path) for r in table if isinstance(r, web.RouteDef)} >= {
        ("GET", MEMO),
        ("POST", CLEAR),
        ("POST", TEST),
    }
    server.PromptServer.instance = None  # as where a script loads the pack
    assert not asyncio.run(routes.register())


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"{}", {"Content-Type": "application/json; charset=nonsense"}),
        (b'{"tier": "all", "kind": "all"}', {"Content-Type": "application/json; charset=utf-16"}),
        (b"no gzip", {"Content-Type": "application/json", "Content-Encoding": "gzip"}),
        (b"[]" * 100_000, {"Content-Type": "application/json"}),
        (gzip.compress(b" " * (50 << 20)), {"Content-Type": "application/json", "Content-Encoding": "gzip"}),
        (b"\x00\xff", {"Content-Type": "application/json; charset=latin-1"}),
    ],
    ids=["charset", "another charset", "gzip", "large", "a bomb", "bytes"],
)
@pytest.mark.parametrize("path", [CLEAR, TEST])
def test_whatever_is_sent_is_answered_without_a_traceback(store, caplog, path, body, headers):
    status, told = ask("POST", path, data=body, headers=headers)
    assert status == (200 if (path == TEST and body == b"{}") or b"tier" in body else 400), told
    # aiohttp itself says that the compression is broken
    assert not any(record.exc_info for record in caplog.records if record.name.startswith("skipstone"))
    if status == 400:
        assert entries(store) == {"memory": 2, "disk": 2}


def test_memo_stats_names_no_place(tmp_path):
    folder, address = tmp_path / "the-folder", dead()
    folder.write_text("a file: nothing can be written there")
    store = Store([MemoryTier(1 << 20, reserve=0), DiskTier(folder), RedisTier(address)])
    process.set_store(store)
    store.put(key("vae", "a"), 1, 1.0)
    store.flush()
    text, told = memo_nodes.MemoStats.execute().result
    process.set_store(None)
    store.close()
    said = text + json.dumps(told)
    assert "disk" in said
    assert not any(word in said for word in (str(tmp_path), "the-folder", "127.0.0.1", "s3cret", "redis://"))


def test_freeing_memory_in_comfyui_frees_the_memos(store, monkeypatch):
    """As ComfyUI's server is put together: other middlewares pass `handler` by name."""

    @web.middleware
    async def before(request, handler):
        return await handler(request)

    async def free(request):
        await request.json()
        return web.Response()

    async def asked(body):
        table, app = web.RouteTableDef(), web.Application(middlewares=[before])
        server = SimpleNamespace(PromptServer=SimpleNamespace(instance=SimpleNamespace(routes=table, app=app)))
        monkeypatch.setitem(sys.modules, "server", server)
        assert await routes.register()
        app.add_routes(table)
        app.router.add_post("/free", free)
        async with TestClient(TestServer(app)) as client:
            assert (await client.post("/free", json=body)).status == 200
            assert (await client.get(MEMO)).status == 200

    asyncio.run(asked({"something": 1}))
    assert entries(store) == {"memory": 2, "disk": 2}
    for body in ({"free_memory": True}, {"unload_models": True}):
        store.put(key("vae", "again"), 1, 1.0)
        asyncio.run(asked(body))
        assert store.usage()["memory"] == {} and entries(store)["disk"] == 3
        store.flush()
