"""The pack as the front end has it."""

import json
from pathlib import Path

from served import ask

ROOT = Path(__file__).resolve().parents[2]


def test_every_node_can_be_dropped(desk):
    ours = [name for name in json.loads(ask(desk.server, "/object_info")) if name.startswith("Skipstone")]
    assert ours
    placed = {name: desk.add(name, 100, 100) for name in ours}
    kept = {str(node["id"]): node["type"] for node in desk.saved()["nodes"]}
    assert kept == {node: name for name, node in placed.items()}


def test_the_demos_workflow_opens_and_runs(desk, request):
    desk.open(ROOT / "workflows" / "meancache.json")
    desk.queue()
    desk.shoot(f"meancache-{request.node.callspec.id}")
