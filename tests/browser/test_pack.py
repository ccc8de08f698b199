"""The pack as the front end has it."""

import json
from pathlib import Path

from served import ask

ROOT = Path(__file__).resolve().parents[2]


def open_demo(desk):
    """The demo's workflow, with few steps."""
    desk.open(ROOT / "demo" / "graphs" / "meancache.json")
    desk.evaluate(
        "() => { app.graph._nodes.find(n => n.type === 'KSampler').widgets.find(w => w.name === 'steps').value = 10 }"
    )


def test_every_node_can_be_dropped(desk):
    ours = [name for name in json.loads(ask(desk.server, "/object_info")) if name.startswith("Skipstone")]
    assert ours
    placed = {name: desk.add(name, 100, 100) for name in ours}
    kept = {str(node["id"]): node["type"] for node in desk.saved()["nodes"]}
    assert kept == {node: name for name, node in placed.items()}


def test_the_demos_workflow_opens_and_runs(desk, request):
    open_demo(desk)
    desk.queue()
    desk.shoot(f"meancache-{request.node.callspec.id}")


BYPASSED, MUTED = 4, 2


def test_a_bypassed_node_is_not_in_the_prompt(desk):
    open_demo(desk)
    (node,) = (str(n["id"]) for n in desk.saved()["nodes"] if n["type"] == "SkipstoneMeanCache")
    before = desk.prompt()
    loader = before[node]["inputs"]["model"]
    read = {(n, i) for n, made in before.items() for i, value in made["inputs"].items() if value == [node, 0]}
    assert read

    def kinds() -> set[str]:
        return {made["class_type"] for made in desk.prompt().values()}

    desk.evaluate("([id, mode]) => { app.graph.getNodeById(id).mode = mode }", node, BYPASSED)
    assert "SkipstoneMeanCache" not in kinds()
    assert all(desk.prompt()[n]["inputs"][i] == loader for n, i in read)
    desk.queue()
    desk.evaluate("([id, mode]) => { app.graph.getNodeById(id).mode = mode }", node, MUTED)
    assert "SkipstoneMeanCache" not in kinds()
