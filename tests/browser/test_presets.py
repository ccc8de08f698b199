"""Presets move the widgets: clicked, typed, copied, undone, saved, exported and linked as a person would."""

from __future__ import annotations

import json
from typing import Any

import pytest
from served import ask

from skipstone.tests.browser.desk import NO_DOUBLE_CLICK

# as it is drawn: the size that the graph has of a Vue node may be an older one
HEIGHT = """(id) => LiteGraph.vueNodesMode
    ? document.querySelector(`[data-node-id='${id}']`).offsetHeight : app.graph.getNodeById(id).size[1]"""


@pytest.fixture
def told(desk):
    """What a node's presets stand for, as the server tells it: `told(kind, preset)`."""
    known: dict[str, Any] = {}

    def values(kind: str, preset: str) -> dict[str, Any]:
        if kind not in known:
            known[kind] = json.loads(ask(desk.server, f"/object_info/{kind}"))[kind]["input"]["required"]
        return {"preset": preset, **known[kind]["preset"][1]["skipstone"]["presets"][preset]}

    return values


def has(desk, node: str, values: dict[str, Any]) -> None:
    """Within five seconds the node's widgets have these values."""
    desk.page.wait_for_function(
        """([id, values]) => {
            const widgets = app.graph.getNodeById(id)?.widgets ?? []
            const near = (a, b) => a === b || Math.abs(a - b) < 1e-9
            return Object.entries(values).every(([name, value]) => near(widgets.find((w) => w.name === name)?.value, value))
        }""",
        arg=[node, values],
        timeout=5000,
    )
    desk.settle()


def unfold(desk, node: str) -> None:
    """Press the button for the values that are folded away."""
    if desk.vue:
        desk.node(node).get_by_text("Show advanced inputs").click()
    else:
        desk.page.mouse.click(*desk.place(node, "skipstone_values"))
    desk.settle()


def restored(desk) -> None:
    """Until an undo is through: the values are there before."""
    desk.page.wait_for_function("() => !app.extensionManager.workflow.activeWorkflow.changeTracker._restoringState")


def theme(desk, name: str) -> None:
    desk.evaluate("(name) => app.extensionManager.setting.set('Comfy.ColorPalette', name)", name)
    desk.page.wait_for_timeout(500)


def test_what_a_person_sees_and_does(desk, told, request):
    mode = request.node.callspec.id
    mean = desk.add("SkipstoneMeanCache", 60, 60)
    has(desk, mean, told("SkipstoneMeanCache", "Balanced"))  # a new node shows what it does
    assert desk.shown(mean) == ["preset"]  # and no more than that

    desk.choose(mean, "preset", "Turbo")
    has(desk, mean, told("SkipstoneMeanCache", "Turbo"))
    unfold(desk, mean)
    assert "span" not in desk.shown(mean), "it is the average velocity's, and auto takes none"
    desk.type(mean, "budget", "0.26")
    has(desk, mean, told("SkipstoneMeanCache", "Turbo"))  # it was that already
    theme(desk, "dark")
    desk.shoot(f"presets-turbo-{mode}")

    desk.type(mean, "budget", "0.31")
    has(desk, mean, {**told("SkipstoneMeanCache", "Turbo"), "preset": "Custom", "budget": 0.31})
    desk.choose(mean, "preset", "Speed")
    has(desk, mean, told("SkipstoneMeanCache", "Speed"))
    desk.choose(mean, "calibration", "record")  # holds with every preset
    has(desk, mean, {**told("SkipstoneMeanCache", "Speed"), "calibration": "record"})

    before = desk.evaluate(HEIGHT, mean)
    desk.choose(mean, "predictor", "average velocity (paper)")
    has(desk, mean, {"preset": "Custom", "predictor": "average velocity (paper)"})
    assert "span" in desk.shown(mean)
    assert desk.evaluate(HEIGHT, mean) > before
    desk.choose(mean, "schedule", "Z-Image 25")
    assert not {"budget", "gamma", "calibration", "max_error"} & {*desk.shown(mean)}
    assert desk.evaluate(HEIGHT, mean) < before
    desk.shoot(f"presets-custom-{mode}")

    # what someone has made larger stays so
    before = desk.evaluate(HEIGHT, mean)
    x, y = desk.corner(mean)
    desk.drag((x, y), (x + 40, y + 220))
    larger = desk.evaluate(HEIGHT, mean)
    assert larger > before + 150
    desk.choose(mean, "preset", "Quality")
    assert "gamma" in desk.shown(mean)
    desk.choose(mean, "schedule", "Z-Image 20")
    assert "gamma" not in desk.shown(mean)
    assert desk.evaluate(HEIGHT, mean) == larger

    mask, auto = desk.add("SkipstoneStepMask", 480, 60), desk.add("SkipstoneAuto", 480, 330)
    assert desk.shown(mask) == ["source", "policy"]
    desk.choose(mask, "source", "bins")
    assert desk.shown(mask) == ["source", "compute_bins", "cache_bins", "policy"]
    # Vue nodes show labels, the classic canvas is asked for names
    which, speed, quality = (
        ("mode", "target speed-up", "target quality (dB)") if desk.vue else ("wish", "speedup", "decibels")
    )
    desk.choose(auto, which, "speed-up")
    assert {speed, quality} & {*desk.shown(auto)} == {speed}
    theme(desk, "light")
    desk.shoot(f"presets-light-{mode}")
    # a file that is opened makes no node higher, whatever it has folded away
    before = [desk.evaluate(HEIGHT, node) for node in (mean, mask, auto)]
    desk.open(desk.saved())
    desk.page.wait_for_timeout(300)
    assert [desk.evaluate(HEIGHT, node) for node in (mean, mask, auto)] == before

    if not desk.vue:  # and a file of when all values were in sight leaves no gap
        desk.choose(mean, "schedule", "PSSP")
        desk.choose(mean, "preset", "Turbo")
        full = desk.evaluate("(id) => app.graph.getNodeById(id).computeSize()[1]", mean)
        unfold(desk, mean)  # the same button folds
        tight = desk.evaluate("(id) => app.graph.getNodeById(id).computeSize()[1]", mean)
        row = desk.evaluate("() => LiteGraph.NODE_WIDGET_HEIGHT + 4")
        assert full > tight + 5 * row
        file = desk.saved()
        (old,) = (node for node in file["nodes"] if str(node["id"]) == mean)
        old["size"][1] = full - row  # there was no button
        old.pop("showAdvanced", None)
        desk.open(file)
        assert desk.evaluate(HEIGHT, mean) == tight
        old["size"][1] = full + 60  # someone wished for more
        desk.open(file)
        assert desk.evaluate(HEIGHT, mean) == full + 60

    desk.evaluate("() => [...app.graph._nodes].forEach((node) => app.graph.remove(node))")
    a_value_over_a_link(desk, told)


def test_values_are_kept_by_files_copies_undo_and_the_api(desk, told):
    page = desk.page
    tea = desk.add("SkipstoneTeaCache", 60, 120)  # older front ends have a menu above
    turbo = told("SkipstoneTeaCache", "Turbo")
    desk.choose(tea, "preset", "Turbo")
    has(desk, tea, turbo)

    # undone, and done again
    unfold(desk, tea)
    page.wait_for_timeout(300)  # an undo restores sizes too: let them be those that are kept
    page.mouse.click(*desk.place(tea))
    desk.type(tea, "threshold", "1.7")
    edited = {**turbo, "preset": "Custom", "threshold": 1.7}
    has(desk, tea, edited)
    page.mouse.click(*desk.place(tea))
    page.keyboard.press("Control+z")
    has(desk, tea, turbo)
    restored(desk)
    page.keyboard.press("Control+y")
    has(desk, tea, edited)
    restored(desk)

    # copied and pasted
    page.wait_for_timeout(NO_DOUBLE_CLICK)
    page.mouse.click(*desk.place(tea))
    page.keyboard.press("Control+c")
    page.mouse.move(*desk.point(420, 120))
    page.keyboard.press("Control+v")
    page.wait_for_function("() => app.graph._nodes.length === 2")
    copy = desk.evaluate("(id) => String(app.graph._nodes.find((n) => String(n.id) !== id).id)", tea)
    has(desk, copy, edited)
    desk.choose(copy, "preset", "Quality")
    has(desk, copy, told("SkipstoneTeaCache", "Quality"))
    has(desk, tea, edited)

    # saved and loaded; exported for the API, and that opened
    mean = desk.add("SkipstoneMeanCache", 800, 60)
    desk.choose(mean, "preset", "Turbo")
    kept = {node: desk.values(node) for node in (tea, copy, mean)}
    file, exported = desk.saved(), desk.prompt()
    (saved,) = [node["widgets_values"] for node in file["nodes"] if str(node["id"]) == mean]
    names = names_of(desk, "SkipstoneMeanCache")
    assert saved[: len(names) - 1] == [kept[mean][name] for name in names[1:]], "hidden widgets keep their place"
    for node, values in kept.items():
        assert {k: v for k, v in values.items() if k in exported[node]["inputs"]} == exported[node]["inputs"]
        assert {*told(exported[node]["class_type"], "Turbo")} <= {*exported[node]["inputs"]}
    desk.open(file)
    assert {node: desk.values(node) for node in kept} == kept
    assert "span" not in desk.shown(mean)
    desk.evaluate("async (api) => { await app.loadApiJson(api, 'of the API') }", exported)
    assert {node: desk.values(node) for node in kept} == kept

    # what a program or a file says is not someone's edit: the preset is what counts, on the server too
    stale = {**exported[mean]["inputs"], "budget": 0.9, "gamma": 5.0}
    desk.evaluate("async (api) => { await app.loadApiJson(api, 'stale') }", {mean: {**exported[mean], "inputs": stale}})
    has(desk, mean, told("SkipstoneMeanCache", "Turbo"))
    file["nodes"] = [_stale(node) for node in file["nodes"]]
    desk.open(file)
    has(desk, mean, told("SkipstoneMeanCache", "Turbo"))

    # what an older version had no widget for is what it was then
    (old,) = [node for node in file["nodes"] if str(node["id"]) == tea]
    before = {k: v for k, v in old.items() if k != "widgets_values_named"}
    desk.open({**file, "nodes": [{**before, "widgets_values": ["Custom", 0.4, *old["widgets_values"][2:9]]}]})
    has(desk, tea, {"preset": "Custom", "threshold": 0.4, "unit": "relative change"})

    # values that a file names too go to the widgets of these names, wherever those stand now
    named = {k: v for k, v in kept[tea].items() if k != "unit"} | {"threshold": 0.7}
    moved = ["Custom", *reversed(old["widgets_values"][1:])]
    desk.open({**file, "nodes": [{**old, "widgets_values": moved, "widgets_values_named": named}]})
    has(desk, tea, {**edited, "threshold": 0.7, "unit": "relative change"})
    inputs = {k: v for k, v in exported[tea]["inputs"].items() if k != "unit"}
    desk.evaluate("async (api) => { await app.loadApiJson(api, 'old') }", {tea: {**exported[tea], "inputs": inputs}})
    has(desk, tea, {"preset": "Custom", "threshold": 1.7, "unit": "relative change"})


def names_of(desk, kind: str) -> list[str]:
    """Of a node's required inputs, the model first."""
    return [*json.loads(ask(desk.server, f"/object_info/{kind}"))[kind]["input"]["required"]]


def _stale(node: dict[str, Any]) -> dict[str, Any]:
    if node["type"] != "SkipstoneMeanCache":
        return node
    preset, _, *rest = node["widgets_values"]
    named = {"widgets_values_named": {**node.get("widgets_values_named", {}), "preset": preset, "budget": 0.9}}
    return {**node, "widgets_values": [preset, 0.9, *rest], **named}


def a_value_over_a_link(desk, told):
    mean, number = desk.add("SkipstoneMeanCache", 420, 60), desk.add("PrimitiveFloat", 60, 60, value=0.7)
    unfold(desk, mean)
    budget = desk.evaluate("(id) => app.graph.getNodeById(id).inputs.findIndex((i) => i.name === 'budget')", mean)
    desk.drag(desk.slot(number, "output", 0), desk.slot(mean, "input", budget))
    # with a preset it would not be looked at
    has(desk, mean, {"preset": "Custom"})
    assert desk.prompt()[mean]["inputs"]["budget"] == [number, 0]
    desk.choose(mean, "schedule", "Z-Image 25")
    assert "gamma" not in desk.shown(mean)
    # newer front ends draw what is linked as a slot among the values
    seen = desk.node(mean).get_by_text("budget", exact=True).is_visible() if desk.vue else "budget" in desk.shown(mean)
    assert seen, "what is linked stays to be seen"

    # a preset can still be chosen, and a file or a run does not unchoose it
    desk.choose(mean, "preset", "Turbo")
    has(desk, mean, told("SkipstoneMeanCache", "Turbo"))
    prompt = desk.prompt()
    desk.open(desk.saved())
    has(desk, mean, told("SkipstoneMeanCache", "Turbo"))
    assert desk.prompt() == prompt
