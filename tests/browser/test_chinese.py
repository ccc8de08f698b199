"""What a Chinese reader sees on nodes: sentences of the server's in Chinese, and none twice."""

import json
import re
import uuid
from pathlib import Path

import pytest

from skipstone.core.step.auto.method import WHY
from skipstone.core.step.clock import Grid
from skipstone.core.step.method import Method
from skipstone.core.step.policies import Budget, Schedule
from skipstone.core.step.predictors import Linear
from skipstone.core.step.report import messages
from skipstone.core.step.run import Run
from skipstone.tests.browser.states import text

GRAPH = Path(__file__).resolve().parents[2] / "demo" / "graphs" / "meancache.json"
COMPILE = ["each block", "default", "eager", False, "auto", "", "torch.compile", False]
# words that stay: of names, of units, of samplers
PLAIN = re.compile(r"MeanCache|euler|dB|ms|s\b")


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
    report = finished()
    shown(desk, graph, report)
    say = desk.page.locator(".skipstone-say")
    say.get_by_text("连同前一个采样器").wait_for()
    everything = say.get_attribute("title")
    assert everything.count("20 次求值中计算了 9 次") == 1
    *sentences, costs = everything.split("\n")  # the last one names a recording
    assert all(map(is_chinese, sentences)) and costs.startswith("跳步代价的来源"), everything


@pytest.mark.parametrize(
    "note", [messages.too_few(4), messages.learned(11, 20), messages.visible(22.0)], ids=lambda t: t.key
)
def test_advice(desk, note):
    graph = graph_with("SkipstoneMeanCache", ["Balanced"])
    desk.open(graph)
    report = finished()
    report.hint, report.together = note, None
    shown(desk, graph, report)
    say = desk.page.locator(".skipstone-say")
    say.get_by_text(re.compile("步")).wait_for()
    assert is_chinese(say.get_attribute("title").split("\n")[0])
    assert not desk.page.evaluate("(e) => e.scrollHeight > e.clientHeight + 1", say.element_handle())


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


def finished():
    """The report of a run that continued another one."""
    grid = Grid.of([1 - i / 10 for i in range(11)])
    run = Run(Method("MeanCache", "Balanced", (Schedule(Budget.of(0.5)),), Linear()), grid, "euler")
    for sigma in grid.sigmas[:-1]:
        run.tick(sigma)
        run.decide(["slot"])
    report = run.close(finished=True)
    report.hint, report.notes, report.chosen = "", [], messages.method("MeanCache", 5, 10, WHY["euler"])
    report.together = 9, 20
    report.note(messages.together(9, 20), warning=False)
    return report


def shown(desk, graph, report):
    run = {"run": 1, "node": "4", "workflow": graph["id"], "prompt": "p", "sampler": "8", "running": False}
    desk.receive("report", run | {"report": report.as_dict()})
