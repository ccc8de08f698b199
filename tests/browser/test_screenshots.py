"""Every node as it is dropped, in both themes and both ways of drawing nodes: `make screenshots`, to be looked at."""

import json

import pytest
from served import ask

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


@pytest.mark.parametrize("mode", ["canvas", "vue"])
def test_every_node(open_desk, mode):
    desk = open_desk(vue=mode == "vue")
    page = desk.page
    page.set_viewport_size({"width": 2600, "height": 1900})
    names = [name for name in json.loads(ask(desk.server, "/object_info")) if name.startswith("Skipstone")]
    for name in names:
        desk.add(name, 0, 0)
    page.wait_for_timeout(800)  # Vue nodes are measured once they are drawn
    width, height = desk.evaluate(PACK, GAP, TITLE, COLUMNS)
    page.evaluate(SHOW, [scale := min(2400 / width, 1700 / height, 1.4), 100 / scale, 110 / scale])
    for theme in ("dark", "light"):
        page.evaluate(THEME, theme)
        page.wait_for_timeout(800)
        path = desk.shoot(f"nodes-{mode}-{theme}")
        assert path.stat().st_size > 100_000
    boxes = desk.evaluate(BOXES)
    assert {b[4] for b in boxes} == {*names}
    assert not [(a[4], b[4]) for i, a in enumerate(boxes) for b in boxes[:i] if not apart(a, b)]
