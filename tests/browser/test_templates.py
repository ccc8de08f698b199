"""The templates: found in the template browser, opened with no error, what they say over the API, and run."""

import json
import re
from typing import Any

import pytest
from served import ask, ran

from skipstone.tests.drawings import FOLDER, NAMES, exported, with_demo_models

# run here with the demo's models; the encode cache's are run in tests/comfy/memo
QUICK = ("Step Cache - text to image", "Compare - judge it on your model", "Step Cache - with torch.compile")


def test_they_open_and_run(open_desk):
    desk = open_desk(vue=False)
    listed = json.loads(ask(desk.server, "/workflow_templates"))
    assert sorted(listed["skipstone"]) == NAMES
    known = json.loads(ask(desk.server, "/object_info"))
    for name in NAMES:
        desk.open(FOLDER / f"{name}.json")
        desk.page.keyboard.press("Escape")  # models that are not here are told of
        assert {node["type"] for node in desk.saved()["nodes"]} <= {*known, "MarkdownNote"}
        api = exported(name)
        asked = desk.prompt()
        assert {n: node["class_type"] for n, node in asked.items()} == {n: e["class_type"] for n, e in api.items()}
        for n, node in api.items():
            told, has = asked[n]["inputs"], known[node["class_type"]]["input"]
            # an older ComfyUI's own nodes lack some inputs
            ours = {
                k: v for k, v in node["inputs"].items() if k in {**has.get("required", {}), **has.get("optional", {})}
            }
            assert {key: told[key] for key in ours} == ours, (name, n)
            if node["class_type"].startswith("Skipstone"):  # to others a front end may add its own
                assert told.keys() - ours.keys() <= has.get("optional", {}).keys()
        if name in QUICK:
            ran(desk.server, with_demo_models(api))


@pytest.fixture
def no_models(server, tmp_path):
    """The server's models are elsewhere for the time of a test."""
    moved = [(file, tmp_path / str(i)) for i, file in enumerate((server.folder / "models").rglob("*.*"))]
    for file, place in moved:
        file.rename(place)
    yield
    for file, place in moved:
        place.rename(file)


@pytest.mark.thorough
def test_a_missing_model_is_offered_for_download(open_desk, no_models):
    """In a ComfyUI without any model: what the front end lists as missing is what can be downloaded."""
    # a setting that other tests do not name: in a page of theirs the front end tells of other things as well
    settings: dict[str, Any] = {"vue": False, "dark": True, "Comfy.RightSidePanel.IsOpen": False}
    desk = open_desk(**settings)
    for name in NAMES:
        page = desk.page
        page.set_viewport_size({"width": 1600, "height": 1000})
        desk.open(FOLDER / f"{name}.json")
        files = {m["name"] for node in desk.saved()["nodes"] for m in node["properties"].get("models", [])}
        page.get_by_role("button", name="View details").first.click()
        for file in files:
            page.get_by_text(file, exact=True).first.wait_for()
        page.get_by_role("button", name=re.compile("^Download")).first.wait_for()
        desk.shoot(f"template-missing-{NAMES.index(name)}")
        desk.rest()
        if not desk.renew(**settings):
            desk.load()
