"""The graphs to share: found in the template browser, opened with no error, what they say over the API, and run."""

import json
from itertools import combinations
from pathlib import Path

import pytest
from PIL import Image
from served import ask

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(f.stem for f in (ROOT / "workflows").glob("*.json"))
QUICK = (
    "text_to_image",
    "compare",
    "compile_and_cache",
)  # run here, with fewer steps; the memo's are run in tests/comfy/memo
TITLE = 30  # pixels above a node


def box(node):
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE, x + width, y + height


@pytest.mark.parametrize("name", NAMES)
def test_nothing_stands_on_anything_and_all_goes_from_left_to_right(name):
    graph = json.loads((ROOT / "workflows" / f"{name}.json").read_text())
    for a, b in combinations(map(box, graph["nodes"]), 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (a, b)
    places = {node["id"]: node["pos"][0] for node in graph["nodes"]}
    assert all(places[source] <= places[target] for _, source, _, target, _, _ in graph["links"])
    assert sum(node["type"] == "MarkdownNote" for node in graph["nodes"]) == 1, "a note that explains"
    with Image.open(ROOT / "workflows" / f"{name}.jpg") as thumbnail:
        assert (thumbnail.format, thumbnail.size) == ("JPEG", (512, 512))


def test_no_two_have_one_id():
    ids = [json.loads((ROOT / "workflows" / f"{name}.json").read_text())["id"] for name in NAMES]
    assert len({*ids}) == len(ids)


def test_they_open_and_run(open_desk):
    desk = open_desk(vue=False)
    listed = json.loads(ask(desk.server, "/workflow_templates"))
    assert sorted(listed["skipstone"]) == NAMES
    known = json.loads(ask(desk.server, "/object_info"))
    for name in NAMES:
        desk.open(ROOT / "workflows" / f"{name}.json")
        desk.page.keyboard.press("Escape")  # models that are not here are told of
        assert {node["type"] for node in desk.saved()["nodes"]} <= {*known, "MarkdownNote"}
        exported = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text())
        asked = desk.prompt()
        assert {n: node["class_type"] for n, node in asked.items()} == {n: e["class_type"] for n, e in exported.items()}
        for n, node in exported.items():
            told = asked[n]["inputs"]
            assert {key: told[key] for key in node["inputs"]} == node["inputs"], (name, n)
            assert told.keys() - node["inputs"].keys() <= known[node["class_type"]]["input"].get("optional", {}).keys()
        if name in QUICK:
            desk.evaluate(
                """() => app.graph._nodes.filter(n => n.type === "KSampler")
                    .forEach(n => { n.widgets.find(w => w.name === "steps").value = 8 })"""
            )
            desk.queue()
