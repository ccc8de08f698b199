"""ComfyUI's front end in a browser, as a person has it before them: nodes are found, clicked and looked at."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from playwright.sync_api import Error, Locator, Page, ViewportSize
from served import Server, ask

SHOTS = Path(__file__).resolve().parents[2] / "demo-output" / "screenshots"
LOADED = 60_000  # ms
DEFAULT_TIMEOUT = 30_000  # ms, Playwright's own
VIEWPORT: ViewportSize = {"width": 1500, "height": 900}
NO_DOUBLE_CLICK = 500  # ms, after which a click is one of its own
LABEL = "[data-testid='widget-layout-field-label'], .content-center-safe"  # of a Vue node's widget; older front ends give it no name
READY = "() => window.app?.vueAppReady && window.app.graph && window.app.canvas && !document.querySelector('#splash-loader')"


# what a test may leave behind
STATE = """() => {
    const { setting, sidebarTab, workflow } = app.extensionManager
    const values = Object.keys(setting.settings).sort().map((id) => [id, setting.get(id)])
    return {
        theme: setting.get("Comfy.ColorPalette"),
        settings: JSON.stringify(values.filter(([id]) => id !== "Comfy.ColorPalette")),
        sidebar: sidebarTab.activeSidebarTabId,
        tabs: workflow.openWorkflows.length,
        nodes: app.graph._nodes.length,
        root: app.canvas.graph === (app.rootGraph ?? app.graph),
        dialogs: document.querySelectorAll("[role=dialog], .litecontextmenu, .graphdialog, .litesearchbox").length,
    }
}"""
# a page that nobody uses draws 60 times a second: 8% of a core
REST = """() => {
    const own = window.requestAnimationFrame, waiting = []
    window.requestAnimationFrame = (frame) => { waiting.push(frame); return 0 }
    window.wake = () => { window.requestAnimationFrame = own; waiting.forEach((frame) => own(frame)) }
}"""
RENEW = """async (wanted) => {
    window.wake()
    const { command, setting, toast, workflow } = app.extensionManager
    for (const [name, value] of Object.entries(wanted)) if (setting.get(name) !== value) await setting.set(name, value)
    app.api.dispatchCustomEvent("reconnected")  // as after a server that was started anew: earlier runs are forgotten
    await command.execute("Comfy.NewBlankWorkflow")
    for (const tab of [...workflow.openWorkflows]) if (tab !== workflow.activeWorkflow) await workflow.closeWorkflow(tab)
    app.graph.clear()
    app.canvas.ds.reset()
    localStorage.removeItem("litegrapheditor_clipboard")
    toast.removeAll?.()
}"""


class Desk:
    """A page on an empty graph. vue: which of the two ways of drawing nodes; dark: the theme. errors: what the page logged of ours."""

    def __init__(self, page: Page, server: Server, vue: bool = False, dark: bool = True, **settings: Any) -> None:
        self.page, self.server, self.vue = page, server, vue
        self.errors: list[str] = []
        page.on("console", lambda m: self._heard(m.type, m.text))
        page.on("pageerror", lambda e: self._heard("error", f"{e} {e.stack}"))
        self._settings(vue, dark, settings)
        self.load()
        self.evaluate("() => app.graph.clear()")
        self.loaded = self.page.evaluate(STATE)

    def _settings(self, vue: bool, dark: bool, more: dict[str, Any]) -> dict[str, Any]:
        """Make the server's settings those of a new user: what others opened or moved is not."""
        wanted = {
            "Comfy.VueNodes.Enabled": vue,
            "Comfy.ColorPalette": "dark" if dark else "light",
            "Comfy.TutorialCompleted": True,
            "Comfy.Graph.CanvasInfo": False,
            "Comfy.Minimap.Visible": False,
            "Comfy.RightSidePanel.IsOpen": False,  # the front end opens it by itself, to tell of errors
            "Comfy.Locale": "en",
            **more,
        }
        (self.server.folder / "user" / "default" / "comfy.settings.json").unlink(missing_ok=True)
        ask(self.server, "/settings", wanted)
        return wanted

    def rest(self) -> None:
        """Draw nothing until the page is renewed."""
        self.page.evaluate(REST)

    def renew(self, vue: bool, dark: bool, **more: Any) -> bool:
        """Clear a page that rests and was loaded with these settings, apart from the theme: an empty graph in its only tab, nothing open,
        nothing to undo. False if it is not as it was when it had just been loaded."""
        wanted = self._settings(vue, dark, more)
        self.errors.clear()
        self.page.set_default_timeout(DEFAULT_TIMEOUT)
        self.page.set_viewport_size(VIEWPORT)
        self.page.mouse.move(0, 0)
        try:
            self.page.evaluate(RENEW, wanted)
            self.settle()
            return bool(self.page.evaluate(STATE) == self.loaded | {"theme": wanted["Comfy.ColorPalette"]})
        except Error:  # a front end that has not all of it
            return False

    def _heard(self, kind: str, text: str) -> None:
        if kind == "error" and re.search("skipstone", text, re.IGNORECASE):
            self.errors.append(text)

    def load(self) -> None:
        """Open the page, or load it anew."""
        self.page.goto(self.server.url, timeout=LOADED)
        self.page.wait_for_function(READY, timeout=LOADED)
        self.settle()

    def evaluate(self, script: str, *args: Any) -> Any:
        return self.page.evaluate(script, [*args] if len(args) != 1 else args[0])

    def settle(self) -> None:
        """Until what was asked for is drawn."""
        self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    # graphs

    def add(self, kind: str, x: int = 300, y: int = 120, **widgets: Any) -> str:
        """A node, its widgets set as a program would; its id."""
        found = self.evaluate(
            """([kind, x, y, values]) => {
                const node = LiteGraph.createNode(kind)
                if (!node) return null
                node.pos = [x, y]
                app.graph.add(node)
                for (const [name, value] of Object.entries(values))
                    node.widgets.find(w => w.name === name).value = value
                return String(node.id)
            }""",
            kind, x, y, widgets,
        )  # fmt: skip
        assert found, f"the front end knows no node {kind}"
        self.settle()
        return str(found)

    def connect(self, source: str, output: str, target: str, into: str) -> None:
        self.evaluate(
            """([source, output, target, into]) => {
                const [from, to] = [app.graph.getNodeById(source), app.graph.getNodeById(target)]
                from.connect(from.findOutputSlot(output), to, to.findInputSlot(into))
            }""",
            source, output, target, into,
        )  # fmt: skip

    def open(self, workflow: Any) -> None:
        """A workflow in the front end's format, as if its file had been dropped."""
        if isinstance(workflow, Path):
            workflow = json.loads(workflow.read_text())
        self.page.evaluate("(w) => app.loadGraphData(w)", workflow)
        self.settle()

    def saved(self) -> Any:
        """What would be written to a file."""
        return self.page.evaluate("() => app.graph.serialize()")

    def prompt(self) -> Any:
        """What would be exported for the API."""
        return self.page.evaluate("async () => (await app.graphToPrompt()).output")

    def values(self, node: str) -> dict[str, Any]:
        """A node's widgets, hidden ones too: name -> value."""
        script = "(id) => Object.fromEntries(app.graph.getNodeById(id).widgets.map(w => [w.name, w.value]))"
        return dict(self.page.evaluate(script, node))

    def queue(self, seconds: float = 120) -> None:
        """Press Run, and wait until nothing is queued any more. Raises AssertionError if a prompt failed."""
        before = {*json.loads(ask(self.server, "/history"))}
        self.page.get_by_test_id("queue-button").or_(
            self.page.get_by_role("button", name="Run", exact=True)
        ).first.click()
        for _ in range(int(seconds * 10)):
            self.page.wait_for_timeout(100)
            queue = json.loads(ask(self.server, "/queue"))
            if queue["queue_running"] or queue["queue_pending"]:
                continue
            history = json.loads(ask(self.server, "/history"))  # of a session: much to read
            for one in (new := {*history} - before):
                assert history[one]["status"]["status_str"] == "success", history[one]["status"]["messages"][-1]
            if new:
                return
        raise AssertionError(f"the prompt did not end:\n{self.server.log_tail()}")

    def receive(self, event: str, message: Any) -> None:
        """As if the server had sent an event of ours."""
        script = "([name, detail]) => app.api.dispatchCustomEvent(`skipstone.${name}`, detail)"
        self.page.evaluate(script, [event, message])

    # the picture

    def place(self, node: str, widget: str = "") -> tuple[float, float]:
        """Where a person would point at: a node's title, or the middle of one of its widgets, in the page's pixels. Only in the classic
        canvas for widgets; Vue nodes are found with `self.page`'s locators in `self.node(id)`."""
        x, y = self.evaluate(
            """([id, name]) => {
                const node = app.graph.getNodeById(id), box = app.canvas.canvas.getBoundingClientRect()
                const widget = name && node.widgets.find(w => w.name === name)
                const [dx, dy] = widget ? [node.size[0] / 2, widget.last_y + 10] : [40, -12]
                const [x, y] = app.canvas.ds.convertOffsetToCanvas([node.pos[0] + dx, node.pos[1] + dy])
                return [x + box.left, y + box.top]
            }""",
            node, widget,
        )  # fmt: skip
        return float(x), float(y)

    def point(self, x: float, y: float) -> tuple[float, float]:
        """A place in the graph, in the page's pixels."""
        found = self.evaluate(
            """(at) => {
                const box = app.canvas.canvas.getBoundingClientRect(), [x, y] = app.canvas.ds.convertOffsetToCanvas(at)
                return [x + box.left, y + box.top]
            }""",
            [x, y],
        )
        return float(found[0]), float(found[1])

    def slot(self, node: str, side: str, index: int) -> tuple[float, float]:
        """Where the dot of an input or output is, in the page's pixels."""
        if self.vue:
            key = f"{node}-{'in' if side == 'input' else 'out'}-{index}"
            return middle(self.page.locator(f"[data-slot-key='{key}']").first)
        script = "([id, input, i]) => [...app.graph.getNodeById(id).getConnectionPos(input, i)]"
        return self.point(*self.evaluate(script, node, side == "input", index))

    def corner(self, node: str) -> tuple[float, float]:
        """By which a node is made larger, in the page's pixels."""
        if self.vue:
            return middle(self.node(node).get_by_role("button", name="Resize from bottom-right corner"))
        script = "(id) => { const { pos, size } = app.graph.getNodeById(id); return [0, 1].map((i) => pos[i] + size[i] - 3) }"
        return self.point(*self.evaluate(script, node))

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        self.page.wait_for_timeout(NO_DOUBLE_CLICK)
        self.page.mouse.move(*start)
        self.page.mouse.down()
        self.page.mouse.move(*((a + b) / 2 for a, b in zip(start, end, strict=True)), steps=4)
        self.page.mouse.move(*end, steps=4)
        self.page.mouse.up()
        self.settle()

    # widgets, as a person sets them

    def choose(self, node: str, widget: str, option: str) -> None:
        """Open a combo and click at one of what it offers."""
        if self.vue:
            self.widget(node, widget).get_by_role("combobox").click()
            self.page.get_by_role("option", name=option, exact=True).click()
        else:
            entry = self.page.locator(".litecontextmenu .litemenu-entry").get_by_text(option, exact=True)
            for _ in range(3):  # as often as a person would try: on a busy machine the page may miss a click
                self.page.mouse.click(*self.place(node, widget))
                with suppress(Error):
                    entry.wait_for(timeout=5_000)
                    break
            entry.click()
        self.settle()

    def type(self, node: str, widget: str, text: str) -> None:
        """Click into a number, write another one, press Enter."""
        if self.vue:
            # it lies under what is dragged to change it
            self.widget(node, widget).get_by_role("spinbutton").click(force=True)
        else:
            self.page.mouse.click(*self.place(node, widget))
            self.page.locator(".graphdialog input").wait_for()
        self.page.keyboard.press("Control+A")
        self.page.keyboard.type(text)
        self.page.keyboard.press("Enter")
        self.settle()

    def shown(self, node: str) -> list[str]:
        """The names of the widgets that are to be seen."""
        if self.vue:
            return [str(name) for name in self.node(node).locator(LABEL).all_inner_texts()]
        script = """(id) => {
            const node = app.graph.getNodeById(id)
            const seen = (w) => node.isWidgetRowVisible?.(w) ?? node.isWidgetVisible(w)  // linked ones are rows with a name alone
            return node.widgets.filter(seen).map((w) => w.name)
        }"""
        return [name for name in self.page.evaluate(script, node) if not name.startswith("skipstone_")]

    def widget(self, node: str, name: str) -> Any:
        """A Vue node's widget."""
        label = self.page.locator(LABEL).get_by_text(name, exact=True)
        return self.node(node).locator(".lg-node-widget").filter(has=label)

    def node(self, node: str) -> Any:
        """A Vue node's element."""
        return self.page.locator(f"[data-node-id='{node}']").first

    def shoot(self, name: str) -> Path:
        """A picture of the page, for people to look at."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        path = SHOTS / f"{name}.png"
        self.page.screenshot(path=path)
        return path


def middle(element: Locator) -> tuple[float, float]:
    box = element.bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
