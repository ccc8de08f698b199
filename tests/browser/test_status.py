"""What nodes without a timeline show of their work: Compile Model+ and the encode cache's encode nodes."""

import json
import re
import uuid
from pathlib import Path

GRAPH = Path(__file__).resolve().parents[2] / "demo" / "graphs" / "meancache.json"
COMPILE = ["each block", "default", "eager", False, "auto", "", "torch.compile", False]


def test_nodes_show_what_they_did(desk, request):
    graph = json.loads(GRAPH.read_text())
    for node in graph["nodes"]:
        if node["id"] == 4:
            node["type"] = node["properties"]["Node name for S&R"] = "SkipstoneCompileModel"
            node["widgets_values"] = COMPILE
        if node["id"] == 5:
            node["type"] = node["properties"]["Node name for S&R"] = "SkipstoneCachedTextEncode"
            node["widgets_values"] = [f"a red circle on {uuid.uuid4().hex}"]
        if node["type"] == "KSampler":
            node["widgets_values"][2] = 2
    desk.open(graph)
    desk.queue()
    desk.page.locator(".skipstone-status").get_by_text(
        re.compile(r"^(Compiled \d+ blocks in \d+\.?\d* s|Already compiled)$")
    ).first.wait_for()
    desk.page.get_by_text(re.compile(r"^Encoded in \d+\.?\d* s, saved for next time$")).first.wait_for()
    known = graph["nodes"][4]["widgets_values"][0]
    for text in ("a fox on a white background", known):
        desk.evaluate("(text) => { app.graph.getNodeById(5).widgets[0].value = text }", text)
        desk.queue()
    desk.page.get_by_text(re.compile(r"^From memory in \d+\.\d ms")).first.wait_for()
    desk.shoot(f"status-{request.node.callspec.id}")
    cut = "(all) => all.filter((e) => e.scrollHeight > e.clientHeight + 1).map((e) => e.innerText)"
    assert desk.page.locator(".skipstone-status").count() == 2
    assert desk.page.locator(".skipstone-status, .skipstone-status span").evaluate_all(cut) == []
    assert not any("skipstone" in key for key in desk.prompt()["5"]["inputs"])
