# ruff: noqa: RUF001 - Chinese has its own colon and comma
"""What a Chinese reader sees on nodes: sentences of the server's in Chinese, and none twice."""

import json
import re
import uuid
from pathlib import Path

import pytest

from skipstone.core.memo.keys import key
from skipstone.core.memo.status import check_connections, overview
from skipstone.core.memo.store import Store
from skipstone.core.memo.tiers.memory import MemoryTier
from skipstone.core.memo.tiers.redis import RedisTier
from skipstone.core.step.auto.method import WHY
from skipstone.core.step.report import messages
from skipstone.core.texts import translatable
from skipstone.tests.browser.states import ADVICE, report, text

GRAPH = Path(__file__).resolve().parents[2] / "demo" / "graphs" / "meancache.json"
COMPILE = ["each block", "default", "eager", False, "auto", "", "torch.compile", False]
# words that stay: of names, of units, of samplers
PLAIN = re.compile(r"MeanCache|First Block Cache|ControlNet|Latent|step_mask|euler|dB|ms|s\b")


def is_chinese(said):
    return bool(re.search(r"[\u4e00-\u9fff]", said)) and not re.search("[A-Za-z]{2,}", PLAIN.sub("", said))


@pytest.fixture(params=["canvas", "vue"])
def desk(request, open_desk):
    return open_desk(vue=request.param == "vue", **{"Comfy.Locale": "zh"})


def graph_with(kind, values, seed=None):
    graph = json.loads(GRAPH.read_text())
    graph["id"] = str(uuid.uuid4())
    for node in graph["nodes"]:
        if node["id"] == 4:
            node["type"] = node["properties"]["Node name for S&R"] = kind
            node["widgets_values"] = values
        if node["type"] == "KSampler":
            node["widgets_values"][2] = 12
    return graph


def test_what_samplers_came_to_together_is_said_once(desk):
    graph = graph_with("SkipstoneMeanCache", ["Balanced"])
    desk.open(graph)
    shown(desk, graph, finished(together=(9, 20), notes=[messages.together(9, 20)]))
    say = desk.page.locator(".skipstone-say")
    say.get_by_text("连同前一个采样器").wait_for()
    everything = say.get_attribute("title")
    assert everything.count("20 次求值中计算了 9 次") == 1
    *sentences, costs = everything.split("\n")  # the last one names a model
    assert all(map(is_chinese, sentences)) and costs.startswith("跳步代价的来源"), everything


def test_advice(desk):
    graph = graph_with("SkipstoneMeanCache", ["Balanced"])
    desk.open(graph)
    say = desk.page.locator(".skipstone-say")
    for note in (messages.too_few(4), messages.learned(11, 20), messages.visible(22.0), *ADVICE):
        shown(desk, graph, finished(hint=note))
        said = say.get_attribute("title").split("\n")[0]
        assert is_chinese(said) and said in say.inner_text()
        assert not desk.page.evaluate("(e) => e.scrollHeight > e.clientHeight + 1", say.element_handle()), said


def test_states_of_other_nodes(desk):
    graph = graph_with("SkipstoneCompileModel", COMPILE)
    for node in graph["nodes"]:
        if node["id"] == 5:
            node["type"] = node["properties"]["Node name for S&R"] = "SkipstoneCachedTextEncode"
            node["widgets_values"] = [f"a red circle on {uuid.uuid4().hex}"]
    desk.open(graph)
    compiled = text("compiled", what=text("blocks", count=12), seconds="63 s")
    for node, line in (("4", compiled), ("5", text("encoded", seconds="1.2 s"))):
        desk.receive("status", {"workflow": graph["id"], "node": node, **line.as_dict()})
    lines = desk.page.locator(".skipstone-status")
    lines.get_by_text("已编译 12 个块").wait_for()
    for line in lines.all_inner_texts():
        assert is_chinese(line), line


def finished(**values):
    """A run's report."""
    return report(chosen=messages.method("MeanCache", 5, 20, WHY["euler"]), error=0.01, costs="another model", **values)


def shown(desk, graph, told):
    run = {"run": 1, "node": "4", "workflow": graph["id"], "prompt": "p", "sampler": "8", "running": False}
    desk.receive("report", run | {"report": told.as_dict()})


def test_why_an_encoding_is_not_cached_and_what_is_wrong_with_a_tier(open_desk):
    """In the panel, and what the settings' test answers."""
    store = Store([MemoryTier(10, reserve=0), RedisTier("redis://127.0.0.1:1")])
    store.put(key("vae", "a"), {1, 2}, 1.0)
    store.put(key("text", "b"), 1, 1.0)
    store.stats.refused(text("uncached_changed_in_place"))
    store.stats.trouble("redis", text("tier_silent", ms="30"))
    told = {"state": "on", **overview(store), "environment": []}
    sentences = check_connections(store)[1]
    store.close()
    desk = open_desk(**{"Comfy.Locale": "zh", "Skipstone.Sidebar": "always"})
    page = desk.page
    page.route("**/skipstone/memo", lambda route: route.fulfill(json=told))
    tested = {"ok": False, "text": "", "texts": translatable(sentences)}
    page.route("**/skipstone/memo/test", lambda route: route.fulfill(json=tested))
    page.get_by_test_id("side-toolbar").get_by_role("button", name="编码缓存").click()
    lines = page.locator(".skipstone-memo details li")
    lines.get_by_text("1 次未缓存：VAE：类 set 的对象").wait_for()
    found = lines.all_inner_texts()
    assert len(found) == len(told["not_kept"]) + len(told["troubles"]) >= 4
    assert all(re.search(r"[\u4e00-\u9fff]{2}", line) and line not in told["texts"] for line in found), found
    page.get_by_role("region", name="编码缓存").get_by_role("button", name="设置").click()
    test = page.locator("[data-setting-id='Skipstone.Memo.RedisTest']")
    test.get_by_role("button").click()
    test.get_by_text("✗ 无法连接 Redis：条目不共享。").wait_for()
    page.unroute_all()  # the page is used again
