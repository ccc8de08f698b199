"""The subgraph blueprint: listed by ComfyUI, found by its name, put into a graph and run."""

import json
from pathlib import Path

import pytest
from served import ask

from skipstone.tests.browser.test_step_caches import models

ROOT = Path(__file__).resolve().parents[2]
NAME = "KSampler with Step Cache"
MODE, LINKS = "mode", ("model", "positive", "negative", "latent_image")


def test_it_is_found_and_samples(desk, request):
    page = desk.page
    listed = json.loads(ask(desk.server, "/global_subgraphs"))
    found = [key for key, entry in listed.items() if entry["name"] == NAME]
    if not found:
        pytest.skip("this ComfyUI takes no blueprints of packs")
    assert listed[found[0]]["info"]["node_pack"] == "custom_nodes.skipstone"

    desk.open(ROOT / "demo" / "graphs" / "meancache.json")
    desk.evaluate(
        "() => { app.canvas.ds.scale = 1; app.canvas.ds.offset = [-3000, -3000]; app.canvas.setDirty(true, true) }"
    )
    desk.settle()
    ground = (700, 500)  # with nothing on it
    page.wait_for_timeout(1000)  # the view has come to rest
    page.mouse.dblclick(*ground)
    page.locator("input:focus").wait_for()
    page.keyboard.type(NAME, delay=20)
    page.get_by_text(NAME).last.wait_for()
    page.wait_for_timeout(500)
    page.keyboard.press("Enter")
    page.wait_for_function("() => app.graph.nodes.some((n) => n.subgraph)")
    page.mouse.move(*ground, steps=4)
    page.mouse.click(*ground)  # where the node hangs on the pointer, this drops it
    host = desk.evaluate("() => String(app.graph.nodes.find((n) => n.subgraph).id)")
    desk.evaluate(
        """([host, links, seed]) => {
            const graph = app.graph, node = graph.getNodeById(host)
            const of = (type) => graph.nodes.find((n) => n.type === type)
            const [old, cache] = [of('KSampler'), of('SkipstoneMeanCache')]
            const from = (target, name) => {
                const link = graph.links.get(target.inputs.find((i) => i.name === name).link)
                return [graph.getNodeById(link.origin_id), link.origin_slot]
            }
            for (const name of links) {
                const [source, slot] = name === 'model' ? from(cache, 'model') : from(old, name)
                source.connect(slot, node, node.findInputSlot(name))
            }
            node.connect(0, of('VAEDecode'), 0)
            graph.remove(old)
            graph.remove(cache)
            node.widgets.find((w) => w.name === 'steps').value = 12
            node.widgets.find((w) => w.name === 'seed').value = seed
        }""",
        # a seed of its own for each way of drawing: ComfyUI does not sample the same prompt twice
        host, list(LINKS), 1 + sum(request.node.callspec.id.encode()),
    )  # fmt: skip
    prompt = desk.prompt()
    assert [*models(prompt).values()] == ["SkipstoneAuto"]
    (sampler,) = (entry["inputs"] for entry in prompt.values() if entry["class_type"] == "KSampler")
    (cache,) = (entry["inputs"] for entry in prompt.values() if entry["class_type"] == "SkipstoneAuto")
    assert sampler["steps"] == 12 and cache["wish"] == "Balanced"
    assert {*desk.evaluate("(id) => app.graph.getNodeById(id).widgets.map((w) => w.label ?? w.name)", host)} >= {
        MODE,
        "steps",
        "seed",
        "cfg",
    }
    desk.queue()
    # told outside; the timeline is inside, out of sight
    page.get_by_text("of 12 computed").filter(visible=True).first.wait_for()
    desk.shoot(f"blueprint-{request.node.callspec.id}")
