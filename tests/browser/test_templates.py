"""The graphs to share: found in the template browser, opened with no error, what they say over the API, and run."""

import json

from served import ask

from skipstone.tests.drawings import FOLDER, NAMES, exported

# run here, with fewer steps; the memo's are run in tests/comfy/memo
QUICK = ("text_to_image", "compare", "compile_and_cache")


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
            desk.evaluate(
                """() => app.graph._nodes.filter(n => n.type === "KSampler")
                    .forEach(n => { n.widgets.find(w => w.name === "steps").value = 8 })"""
            )
            desk.queue()
