"""Every node as it is dropped, and every state that nodes can show, in both themes and both ways of drawing: `make screenshots`."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from served import ask

from skipstone.tests.browser import states
from skipstone.tests.drawings import apart

GAP, TITLE = 40, 34
COLUMNS = 5
# packs the nodes into columns, each below the last of the shortest; the whole width and height
PACK = """([gap, title, columns]) => {
    const wide = Math.max(...app.graph._nodes.map(n => n.size[0])) + gap
    const bottoms = Array(columns).fill(title)
    for (const node of app.graph._nodes) {
        const i = bottoms.indexOf(Math.min(...bottoms))
        node.pos = [i * wide, bottoms[i]]
        bottoms[i] += node.size[1] + title + gap
    }
    return [columns * wide, Math.max(...bottoms)]
}"""
SHOW = "([scale, x, y]) => { const ds = app.canvas.ds; ds.scale = scale; ds.offset = [x, y]; app.canvas.setDirty(true, true) }"
THEME = "(name) => app.extensionManager.setting.set('Comfy.ColorPalette', name)"
BOXES = "() => app.graph._nodes.map(n => [n.pos[0], n.pos[1] - 30, n.pos[0] + n.size[0], n.pos[1] + n.size[1], n.type])"


def shot(desk, name, width, height):
    """Pictures of all nodes in columns, in both themes. width, height: of the window, without what stands around the canvas."""
    desk.page.wait_for_timeout(800)  # Vue nodes are measured once they are drawn
    wide, high = desk.evaluate(PACK, GAP, TITLE, COLUMNS)
    desk.page.evaluate(SHOW, [scale := min(width / wide, height / high, 1.4), 100 / scale, 110 / scale])
    pictures = []
    for theme in ("dark", "light"):
        desk.page.evaluate(THEME, theme)
        desk.page.wait_for_timeout(800)
        pictures.append(desk.shoot(f"{name}-{theme}"))
    return pictures


@pytest.mark.parametrize("mode", ["canvas", "vue"])
def test_every_node(open_desk, mode):
    desk = open_desk(vue=mode == "vue")
    page = desk.page
    page.set_viewport_size({"width": 2600, "height": 1900})
    names = [name for name in json.loads(ask(desk.server, "/object_info")) if name.startswith("Skipstone")]
    for name in names:
        desk.add(name, 0, 0)
    assert all(path.stat().st_size > 100_000 for path in shot(desk, f"nodes-{mode}", 2400, 1700))
    boxes = desk.evaluate(BOXES)
    assert {b[4] for b in boxes} == {*names}
    assert not [(a[4], b[4]) for i, a in enumerate(boxes) for b in boxes[:i] if not apart(a, b)]


CUT = """() => [...document.querySelectorAll('.skipstone-say, .skipstone-status span, .skipstone-head .count')]
    .filter((e) => e.scrollHeight > e.clientHeight + 1 || e.scrollWidth > e.clientWidth + 1).map((e) => e.innerText)"""


@pytest.mark.parametrize("mode", ["canvas", "vue"])
def test_every_state(open_desk, mode):
    desk = open_desk(vue=mode == "vue")
    page = desk.page
    page.set_viewport_size({"width": 2000, "height": 1900})
    reports = {desk.add("SkipstoneAuto", 0, 0): state for state in states.reports().items()}
    lines = [(desk.add(kind, 0, 0), line) for kind, said in states.lines().items() for line in said]
    workflow = desk.evaluate("() => (app.rootGraph ?? app.graph).id")
    for number, (node, (name, (report, running))) in enumerate(reports.items()):
        desk.evaluate("([id, name]) => { app.graph.getNodeById(id).title = name }", node, name)
        if report is not None:
            place = {"run": number, "node": node, "workflow": workflow, "prompt": "p", "sampler": ""}
            desk.receive("report", place | {"running": running, "report": report.as_dict()})
    for node, line in lines:
        desk.receive("status", {"workflow": workflow, "node": node, **line.as_dict()})
    shot(desk, f"states-{mode}", 1800, 1750)
    assert page.locator(".skipstone-timeline").count() == len(reports)
    assert page.locator(".skipstone-status").count() == len(lines)
    assert desk.evaluate(CUT) == []


SMALL = """() => {
    const values = { width: 128, height: 128, steps: 20 }
    const all = (graph) => graph.nodes.flatMap((n) => [n, ...(n.subgraph ? all(n.subgraph) : [])])
    for (const widget of all(app.graph).flatMap((n) => n.widgets ?? [])) {
        if (widget.name in values) widget.value = values[widget.name]
    }
}"""
ROOT = Path(__file__).resolve().parents[2]


def test_an_error(desk, request):
    """Two step caches on one model: both are named."""
    page = desk.page
    desk.open(ROOT / "demo" / "graphs" / "meancache.json")
    second = desk.add("SkipstoneEasyCache", 60, 700)
    desk.evaluate(
        """(id) => {
            const [second, sampler] = [app.graph.getNodeById(id), app.graph.nodes.find((n) => n.type === 'KSampler')]
            app.graph.nodes.find((n) => n.type === 'SkipstoneMeanCache').connect(0, second, 0)
            second.connect(0, sampler, 0)
        }""",
        second,
    )
    page.get_by_test_id("queue-button").or_(page.get_by_role("button", name="Run", exact=True)).first.click()
    page.get_by_role("button", name="View details").first.click()
    page.wait_for_timeout(1500)
    desk.shoot(f"error-{request.node.callspec.id}")
    page.get_by_text("are both on this model").filter(visible=True).first.wait_for()
    desk.errors.clear()  # the front end asks comfy.org about the node, which has no answer here


# ours and its neighbours in a row, below all others; the row's top left corner
ROW = """() => {
    const { graph } = app.canvas, bottom = Math.max(...graph.nodes.map((n) => n.pos[1] + n.size[1])) + 200
    let x = 0
    for (const type of ['ModelSamplingAuraFlow', 'SkipstoneAuto', 'KSampler']) {
        const node = graph.nodes.find((n) => n.type === type)
        node.setSize([270, node.computeSize()[1]])
        node.pos = [x, bottom]
        x += node.size[0] + 60
    }
    return [0, bottom]
}"""


def test_inside_a_subgraph(open_desk):
    """An official template that is one box, with our node inside, after a run: the picture of README.md and of the help page."""
    found = find_spec("comfyui_workflow_templates_json")
    folder = Path(((found and found.submodule_search_locations) or ["no such folder"])[0])
    file = folder / "templates" / "image_z_image_turbo.json"
    if not file.is_file():
        pytest.skip("the official template is not installed")
    desk = open_desk(vue=False)
    page = desk.page
    page.set_viewport_size({"width": 1140, "height": 480})
    desk.open(file)
    page.keyboard.press("Escape")  # models that are not here are told of
    desk.evaluate("() => app.extensionManager.command.execute('Skipstone.AddStepCaches')")
    page.get_by_text("Step Cache (Auto) added: 1.").first.wait_for()
    desk.evaluate(SMALL)
    desk.queue()
    host = "app.graph.nodes.find((n) => n.subgraph)"
    desk.evaluate(f"() => app.canvas.openSubgraph({host}.subgraph, {host})")
    desk.settle()
    x, y = desk.evaluate(ROW)
    page.evaluate(SHOW, [1, 90 - x, 130 - y])
    page.locator(".skipstone-timeline:visible").get_by_text("of 20 computed").wait_for()
    page.evaluate("() => app.extensionManager.toast.removeAll?.()")  # or they go by themselves
    page.locator(".p-toast-message").first.wait_for(state="detached")
    desk.shoot("subgraph")
