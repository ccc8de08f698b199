"""The timeline on a method's node, as a person sees it: during a run, after it, after a reload, and in other tabs."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import uuid
from pathlib import Path

import pytest
from served import ask

ROOT = Path(__file__).resolve().parents[2]
STEPS = 12
FIRST, SECOND = "SkipstoneMeanCache", "SkipstoneEasyCache"
BALANCED = ("Balanced", 0.45, "PSSP", "auto", 2.0, 3, 2, 0.0, 1.0, 0, "auto")  # and then calibration
CELLS = """(element) => [...element.querySelectorAll('.skipstone-cell')].map(
    cell => [...cell.querySelectorAll('.skipstone-bar:not(.pending)')].map(bar => bar.classList.contains('computed')))"""


def workflow(kind=FIRST, values=("Balanced",), steps=STEPS):
    """The demo's, with an id of its own."""
    graph = json.loads((ROOT / "demo" / "graphs" / "meancache.json").read_text())
    graph["id"] = str(uuid.uuid4())
    seed = uuid.uuid4().int % 10**9  # what ComfyUI has cached is not run
    for node in graph["nodes"]:
        if node["id"] == 4:
            node["type"] = node["properties"]["Node name for S&R"] = kind
            node["widgets_values"] = [*values]
        if node["type"] == "KSampler":
            node["widgets_values"][0], node["widgets_values"][2] = seed, steps
    return graph


def journal(desk, graph):
    return json.loads(ask(desk.server, f"/skipstone/reports?workflow={graph['id']}"))


def expected(run):
    """The cells that belong to a run."""
    cells: list[list[bool]] = [[] for _ in range(run["report"]["steps"])]
    for e in run["report"]["timeline"]:
        cells[e["step"]].append(e["computed"])
    return cells


class Timelines:
    """Those that are in sight."""

    def __init__(self, desk):
        self.desk = desk
        self.all = desk.page.locator(".skipstone-timeline:visible")

    def one(self):
        self.all.first.wait_for()
        assert self.all.count() == 1
        return self.all.first

    def says(self, text):
        """Waits for a headline."""
        self.all.filter(has_text=text).first.wait_for(timeout=30_000)


@pytest.fixture
def timelines(desk):
    return Timelines(desk)


COLOURS = """(element) => {
    const of = (kind) => getComputedStyle(element.querySelector(`.skipstone-bar.${kind}:not(.pending)`)).backgroundColor
    return [of('computed'), of('skipped')]
}"""
DARK = ["rgb(86, 168, 221)", "rgb(230, 159, 0)"]
LIGHT = ["rgb(0, 114, 178)", "rgb(224, 138, 0)"]
CUT = "(element) => element.scrollHeight > element.clientHeight + 1"


def whole(desk, timelines, text):
    """The sentence below the bars, all of it to be seen."""
    say = timelines.one().locator(".skipstone-say")
    say.filter(has_text=text).wait_for()
    assert not desk.page.evaluate(CUT, say.element_handle()), text


def close_up(desk, name):
    """A picture of the method's node."""
    desk.evaluate(
        """() => {
            const node = app.graph.getNodeById(4), ds = app.canvas.ds
            ds.scale = 1.5
            ds.offset = [120 - node.pos[0], 90 - node.pos[1]]
            app.canvas.setDirty(true, true)
        }"""
    )
    desk.page.wait_for_timeout(300)
    desk.shoot(name)


def run(desk):
    desk.page.get_by_test_id("queue-button").or_(desk.page.get_by_role("button", name="Run", exact=True)).first.click()


def idle(desk):
    """Until nothing is queued any more, however it ended."""
    for _ in range(600):
        desk.page.wait_for_timeout(100)
        queue = json.loads(ask(desk.server, "/queue"))
        if not queue["queue_running"] and not queue["queue_pending"]:
            return
    raise AssertionError("it does not end")


def test_a_run_is_told_where_its_node_is(desk, timelines, request):
    page, mode = desk.page, request.node.callspec.id
    graph = workflow(SECOND, ("Turbo",))
    desk.open(graph)
    timelines.says("No run yet")
    whole(desk, timelines, "Queue to see which steps were skipped, and the time saved.")
    assert page.evaluate(CELLS, timelines.one().element_handle()) == [[]] * 20
    before = desk.saved()
    page.evaluate(
        """() => {
            const element = document.querySelector('.skipstone-timeline'), node = app.graph.getNodeById(4)
            window.heights = new Set()
            window.watching = setInterval(() => window.heights.add(
                JSON.stringify([node.size[1], element.offsetHeight, element.closest('[data-node-id]')?.offsetHeight])), 30)
        }"""
    )
    desk.queue()
    timelines.says("computed")
    assert len(page.evaluate("() => { clearInterval(window.watching); return [...window.heights] }")) == 1
    assert desk.saved() == before
    assert not any("timeline" in key for key in desk.prompt()["4"]["inputs"])

    (told,) = journal(desk, graph)
    report, shown = told["report"], timelines.one()
    assert report["skipped"] and not told["running"]
    assert page.evaluate(CELLS, shown.element_handle()) == expected(told)
    assert shown.locator(".count").inner_text() == f"{report['computed']} of {STEPS} computed"
    assert shown.locator(".gain").get_attribute("title").startswith(f"{report['speedup']:.1f}x, about ")
    assert shown.locator(".skipstone-line .threshold").count() == 1

    # its colours are the theme's, whichever way the front end tells of it
    for theme, colours in (("light", LIGHT), ("dark", DARK)):
        desk.evaluate("(name) => app.extensionManager.setting.set('Comfy.ColorPalette', name)", theme)
        page.wait_for_function(
            "([element, colours, of]) => String(eval(of)(element)) === String(colours)",
            arg=[shown.element_handle(), colours, COLOURS],
        )

    picture = shown.get_by_role("img")
    said = picture.get_attribute("aria-label")
    assert f"{STEPS} steps, {report['computed']} computed, {report['skipped']} skipped." in said
    picture.focus()
    skipped = next(i for i, e in enumerate(report["timeline"]) if not e["computed"])
    page.keyboard.press("Home")
    assert "Step 1 of 12: computed, the first steps are always computed" in shown.inner_text()
    for _ in range(skipped):
        page.keyboard.press("ArrowRight")
    score = report["timeline"][skipped]["score"]
    assert (
        f"Step {skipped + 1} of 12: skipped, below the threshold; change {float(format(score, '.3g')):g}"
        in shown.inner_text()
    )
    page.keyboard.press("Escape")
    assert "Step" not in shown.inner_text()
    box = picture.bounding_box()
    page.mouse.move(box["x"] + box["width"] * (STEPS - 0.5) / STEPS, box["y"] + box["height"] / 2)
    assert "Step 12 of 12: computed, the last step is always computed" in shown.inner_text()

    page.evaluate("() => app.api.dispatchCustomEvent('reconnected')")  # as after a server that was started anew
    timelines.says("computed")
    if mode == "canvas":  # a bypassed node is pale; Vue nodes are so by themselves
        page.evaluate("() => { app.graph.getNodeById(4).mode = 4; app.canvas.setDirty(true, true) }")
        page.locator(".skipstone-timeline.off").wait_for()

    desk.load()
    desk.open(before)  # as a file, where the front end does not bring the tab back by itself
    timelines.says("computed")
    assert page.evaluate(CELLS, timelines.one().element_handle()) == expected(told)
    close_up(desk, f"timeline-{mode}")


def test_runs_that_share_a_node_copies_and_subgraphs(desk, timelines, request):
    page, mode = desk.page, request.node.callspec.id
    graph = workflow(values=(*BALANCED, "default"))
    desk.open(graph)
    # a second pass on the same MODEL, and a third on that of a copy of the node
    page.evaluate(
        """() => {
            const at = (id) => app.graph.getNodeById(id)
            const [method, first, decode] = [at(4), at(8), at(9)]
            app.canvas.copyToClipboard([method]); app.canvas.pasteFromClipboard()
            const copy = app.graph.nodes.at(-1)
            copy.title = 'Copy'
            at(1).connect(0, copy, 0)
            copy.pos = [method.pos[0], method.pos[1] - 500]
            let last = first
            for (const [i, model] of [method, copy].entries()) {
                const next = LiteGraph.createNode('KSampler')
                next.title = `Pass ${i + 2}`
                next.pos = [first.pos[0] + 400 * (i + 1), first.pos[1] - 500]
                app.graph.add(next)
                first.widgets.forEach((w, j) => { next.widgets[j].value = w.value })
                next.widgets.find(w => w.name === 'steps').value = 5 + i
                model.connect(0, next, 0), at(5).connect(0, next, 1), at(6).connect(0, next, 2), last.connect(0, next, 3)
                last = next
            }
            last.connect(0, decode, 0)
        }"""
    )
    desk.queue()
    first, second, third = journal(desk, graph)
    assert first["node"] == second["node"] == "4" != third["node"]
    both = page.locator(".skipstone-timeline")
    shared = both.filter(has_text="2/2")
    shared.wait_for()
    assert both.count() == 2
    assert page.evaluate(CELLS, shared.element_handle()) == expected(second)
    assert "Pass 2" in shared.locator(".number").get_attribute("title")
    copied = both.filter(has_not_text="2/2")
    assert page.evaluate(CELLS, copied.element_handle()) == expected(third)
    shared.get_by_label("Earlier run").click()
    chosen = both.filter(has_text="1/2")
    assert page.evaluate(CELLS, chosen.element_handle()) == expected(first)
    close_up(desk, f"timeline-shared-{mode}")

    # the front end's own command
    subgraph = page.evaluate(
        """() => {
            app.canvas.deselectAll()
            app.canvas.select(app.graph.getNodeById(4))
            app.extensionManager.command.execute('Comfy.Graph.ConvertToSubgraph')
            const node = app.graph.nodes.find(n => n.subgraph)
            return [String(node.id), String(node.subgraph.nodes[0].id)]
        }"""
    )
    assert not any("timeline" in w for w in desk.values(subgraph[0]))
    desk.queue()
    page.get_by_text(re.compile(r"\d of 5 computed, \d\.\dx.*saved")).first.wait_for()  # told outside
    inside = [told for told in journal(desk, graph) if told["node"] == ":".join(subgraph)]
    assert len(inside) == 2
    page.evaluate(
        "(id) => app.canvas.openSubgraph(app.graph.getNodeById(id).subgraph, app.graph.getNodeById(id))", subgraph[0]
    )
    timelines.says("2/2")
    assert page.evaluate(CELLS, timelines.one().element_handle()) == expected(inside[-1])


def test_a_run_is_told_in_its_own_tab_only(open_desk):
    """And in light colours."""
    for vue in (False, True):
        desk = open_desk(vue=vue, dark=False)
        timelines, page = Timelines(desk), desk.page
        desk.open(workflow(values=(*BALANCED, "calibrate"), steps=20))
        timelines.says("No run yet")
        whole(desk, timelines, "The first run with a model is a calibration run: no step is skipped.")
        graph = workflow(values=(*BALANCED, "record"), steps=20)
        desk.open(graph)
        tab = page.locator(".workflow-tabs").get_by_text(re.compile("Unsaved Workflow"))
        run(desk)
        timelines.says("Calibration run: step")
        whole(desk, timelines, "Calibration run: no steps are skipped. The next run is faster")
        assert timelines.one().locator(".mark.wait").count() == 1  # and no tick: it goes on
        desk.open(workflow(steps=20))  # with the same ids for its nodes
        timelines.says("No run yet")
        assert timelines.one().get_by_text("No run yet").count() == 1
        idle(desk)
        assert timelines.one().get_by_text("No run yet").count() == 1
        (told,) = journal(desk, graph)
        tab.nth(tab.count() - 2).click()
        timelines.says("Calibration run: all 20 computed")
        assert page.evaluate(CELLS, timelines.one().element_handle()) == expected(told)
        assert "Measured and saved. Set calibration to auto to use it" in timelines.one().inner_text()
        assert timelines.one().locator(".mark.learned").count() == 1
        close_up(desk, f"timeline-light-{'vue' if vue else 'canvas'}")

        page.evaluate("() => { app.graph.getNodeById(8).widgets[0].value += 1 }")
        run(desk)
        timelines.says("Calibration run: step")
        ask(desk.server, "/interrupt", {})
        timelines.says("Stopped: ")
        whole(desk, timelines, "Stopped before the calibration was complete: nothing was recorded")
        assert timelines.one().locator(".mark.learned").count() == 0
        _, stopped = journal(desk, graph)
        assert not stopped["running"] and not stopped["report"]["finished"]
        assert page.evaluate(CELLS, timelines.one().element_handle()) == expected(stopped)
        idle(desk)


def front_end_has(word):
    """Does the front end under test know this word?"""
    root = os.environ.get("FRONTEND_ROOT")
    if root is None:
        found = importlib.util.find_spec("comfyui_frontend_package")
        assert found is not None and found.origin is not None
        root = str(Path(found.origin).parent / "static")
    assets = Path(root) / "assets"
    return any(word in file.read_text("utf-8", errors="ignore") for file in assets.glob("*.js"))


def test_at_the_side_there_are_values_and_no_timeline(open_desk):
    if not front_end_has("hideInPanel"):
        pytest.skip("in this front end's panel every widget of a node is shown")
    desk = open_desk(vue=True, **{"Comfy.RightSidePanel.IsOpen": True})
    node = desk.add(FIRST)
    desk.page.wait_for_timeout(500)  # until it stands where it is to be clicked at
    desk.page.mouse.click(*desk.place(node))
    side = desk.page.get_by_test_id("properties-panel")
    side.get_by_text("preset", exact=True).first.wait_for()
    assert side.get_by_text("skipstone_timeline").count() == 0
