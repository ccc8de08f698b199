"""The commands that put Step Cache (Auto) before every sampler, and that take the step caches out."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

ADD, REMOVE = "Skipstone.AddStepCaches", "Skipstone.RemoveStepCaches"
AUTO = "SkipstoneAuto"
ROOT = Path(__file__).resolve().parents[2]
# official templates, and how many step caches each takes: one a model that is sampled
OFFICIAL = {
    "image_z_image_turbo": 1,
    "flux_dev_full_text_to_image": 1,
    "image_qwen_image": 1,
    "video_wan2_2_14B_t2v": 2,
    "sdxl_simple_example": 2,
    "audio_ace_step_1_t2a_song": 1,
}


def command(desk, name):
    """As the menu does it; what is told about it."""
    desk.evaluate("(name) => app.extensionManager.command.execute(name)", name)
    desk.settle()


def told(desk, text):
    desk.page.get_by_text(re.compile(text)).first.wait_for()


def kinds(desk):
    return sorted(
        desk.evaluate(
            """() => {
                const all = (graph) => graph.nodes.flatMap((n) => [n.type, ...(n.subgraph ? all(n.subgraph) : [])])
                return all(app.rootGraph ?? app.graph)
            }"""
        )
    )


def undo(desk, expected):
    desk.evaluate("() => app.extensionManager.command.execute('Comfy.Undo')")
    for _ in range(50):
        if kinds(desk) == expected:
            return
        desk.page.wait_for_timeout(100)
    assert kinds(desk) == expected


def models(prompt: dict[str, Any]) -> dict[str, str]:
    """By what samples, or guides a sampler, the class of what its model comes from."""
    return {
        node: prompt[inputs["model"][0]]["class_type"]
        for node, entry in prompt.items()
        for inputs in [entry["inputs"]]
        if isinstance(inputs.get("model"), list) and re.search("Sampler|Guider", entry["class_type"])
    }


def refusals(desk, prompt):
    """What the server has against it: node, input -> kind of the error. Files that are not here; that of the model is not in any case,
    or it would run."""
    unknown = {"unet_name": "none", "ckpt_name": "none"}
    asked = {
        node: {**entry, "inputs": {k: unknown.get(k, v) for k, v in entry["inputs"].items()}}
        for node, entry in prompt.items()
    }
    body = json.dumps({"prompt": asked}).encode()
    try:
        answer = urlopen(Request(f"{desk.server.url}/prompt", body, {"Content-Type": "application/json"}))
    except HTTPError as error:
        answer = error
    with answer:
        refused = json.loads(answer.read())["node_errors"]
    assert refused
    return {
        (node, e["extra_info"].get("input_name")): e["type"] for node, found in refused.items() for e in found["errors"]
    }


def test_they_go_before_every_sampler_and_out_again(desk):
    desk.open(ROOT / "demo" / "graphs" / "meancache.json")
    command(desk, ADD)
    told(desk, "Every sampler has a step cache already")
    full = kinds(desk)
    command(desk, REMOVE)
    told(desk, r"Step caches removed: 1\.")
    bare = kinds(desk)
    assert full == sorted([*bare, "SkipstoneMeanCache"])
    assert {*models(desk.prompt()).values()} == {"UNETLoader"}
    undo(desk, full)
    command(desk, REMOVE)

    # a second pass on the same model, and one on a model of its own
    desk.evaluate(
        """() => {
            const [loader, sampler] = ['UNETLoader', 'KSampler'].map((type) => app.graph.nodes.find((n) => n.type === type))
            const copy = (node) => {
                const made = node.clone()
                app.graph.add(made)
                made.pos = [node.pos[0], node.pos[1] + 700]
                return made
            }
            const [second, third, other] = [copy(sampler), copy(sampler), copy(loader)]
            loader.connect(0, second, 0)
            other.connect(0, third, 0)
        }"""
    )
    bare = kinds(desk)
    command(desk, ADD)
    told(desk, r"Step Cache \(Auto\) added: 2\.")
    assert kinds(desk) == sorted([*bare, AUTO, AUTO])
    boxes = desk.evaluate(
        """() => app.graph.nodes.map((n) => [n.pos[0], n.pos[1] - 30, n.pos[0] + n.size[0], n.pos[1] + n.size[1], n.type])"""
    )
    ours = [box for box in boxes if box[4] == AUTO]
    assert not [
        (a[4], b[4])
        for a in ours
        for b in boxes
        if a is not b and a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
    ]
    command(desk, ADD)
    assert kinds(desk) == sorted([*bare, AUTO, AUTO]), "once is enough"
    undo(desk, bare)


def test_inside_subgraphs(desk, request):
    """The sampler in a subgraph of a subgraph, the loader outside: what the run came to is told outside."""
    page = desk.page
    desk.open(ROOT / "demo" / "graphs" / "meancache.json")
    command(desk, REMOVE)
    desk.evaluate(
        """() => {
            for (const type of ['KSampler', null]) {
                app.canvas.deselectAll()
                const node = app.graph.nodes.find((n) => type ? n.type === type : n.subgraph)
                app.canvas.select(node)
                app.extensionManager.command.execute('Comfy.Graph.ConvertToSubgraph')
            }
        }"""
    )
    assert (
        desk.evaluate("() => app.graph.nodes.find((n) => n.subgraph).subgraph.nodes[0].subgraph.nodes[0].type")
        == "KSampler"
    )
    bare, before = kinds(desk), desk.prompt()
    command(desk, ADD)
    told(desk, r"Step Cache \(Auto\) added: 1\. Can be undone\. Of these inside subgraphs: 1\.")
    assert kinds(desk) == sorted([*bare, AUTO])
    prompt = desk.prompt()
    assert {*models(prompt).values()} == {AUTO}
    assert {*models(before).values()} == {"UNETLoader"}
    command(desk, ADD)
    assert kinds(desk) == sorted([*bare, AUTO])

    desk.evaluate(
        """() => {
            const inner = app.graph.nodes.find((n) => n.subgraph).subgraph.nodes[0].subgraph
            const sampler = inner.nodes.find((n) => n.type === 'KSampler')
            sampler.widgets.find((w) => w.name === 'steps').value = 12
            // what ComfyUI has cached is not run; the seed is the outer node's
            sampler.widgets.find((w) => w.name === 'cfg').value = 3 + Math.random()
        }"""
    )
    desk.queue()
    told(desk, r"Step Cache \(Auto\): \d+ of 12 computed, \d\.\dx, about")
    desk.shoot(f"subgraph-told-{request.node.callspec.id}")
    command(desk, REMOVE)
    assert desk.prompt().keys() == before.keys()
    assert models(desk.prompt()) == models(before)
    page.keyboard.press("Escape")


@pytest.mark.skipif(
    find_spec("comfyui_workflow_templates_json") is None, reason="this ComfyUI's templates are elsewhere"
)
def test_official_templates(open_desk):
    """Opened, step caches put in, accepted by the server as it accepts them without, and undone."""
    spec = find_spec("comfyui_workflow_templates_json")
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent / "templates"
    desk = open_desk()
    for name, count in OFFICIAL.items():
        desk.open(folder / f"{name}.json")
        desk.page.keyboard.press("Escape")  # models that are not here are told of
        bare, before = kinds(desk), desk.prompt()
        command(desk, ADD)
        assert kinds(desk) == sorted([*bare, *[AUTO] * count]), name
        prompt = desk.prompt()
        sampled = models(prompt)
        assert sampled.keys() == models(before).keys() and {*sampled.values()} == {AUTO}, name
        assert refusals(desk, prompt) == refusals(desk, before), name
        undo(desk, bare)
        assert desk.prompt() == before, name
