"""Workflows that were saved with earlier packs, in a ComfyUI that has only ours: they open, are replaced by a click, and run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from served import ask, ran

OLD = Path(__file__).resolve().parents[1] / "workflows" / "old"
PACKS = ("wavespeed", "teacache", "magcache", "meancache-z")
# of each pack's file: the old node, and what ours has to have of it
CARRIED = {
    "wavespeed": {
        "38": {"preset": "Custom", "threshold": 0.12, "unit": "relative change", "predictor": "reuse", "max_skips": 0},
        "39": {"compile": "whole model", "mode": "default", "backend": "inductor", "dynamic": "false", "disable": True},
    },
    # a file of March 2025: its third value is no start_percent
    "teacache": {
        "41": {"preset": "Custom", "threshold": 0.4, "polynomial": "Flux", "start_percent": 0.0, "max_skips": 3}
    },
    "magcache": {
        "112": {"preset": "Custom", "threshold": 0.24, "ratios": "Flux", "start_percent": 0.1, "max_skips": 5}
    },
    "meancache-z": {"50": {"preset": "Custom", "budget": 0.6, "warmup": 2, "gamma": 2.0, "history_device": "cpu"}},
}
RUN = {"canvas": ("wavespeed", "magcache"), "vue": ("teacache", "meancache-z")}
MEASURED = 600  # ms, after which Vue nodes have been measured: once they are drawn
METHODS = {"wavespeed": "First Block Cache", "teacache": "TeaCache", "magcache": "MagCache", "meancache-z": "MeanCache"}


def last_report(server):
    """Of the last prompt that a front end asked for: by its workflow's id."""
    history = json.loads(ask(server, "/history"))
    last = max(history.values(), key=lambda told: told["prompt"][0])
    workflow = last["prompt"][3]["extra_pnginfo"]["workflow"]["id"]
    return json.loads(ask(server, f"/skipstone/reports?workflow={workflow}"))[-1]["report"]


def replaced(desk):
    """As a person does it: what is wrong is told in a corner, and the way to mend it is two clicks away. (Older front ends name what
    they show, and still older ones ask in a dialog.)"""

    def button(name):
        return desk.page.get_by_role("button", name=re.compile(f"^({name})$"))

    first = button(r"View details|Show swap nodes|Replace Selected \(\d+\)")
    asked = first.inner_text().startswith("Replace")
    first.click()
    if not asked:
        button("Replace All").click()
    button("Replace (All|Selected.*)").wait_for(state="detached")
    desk.settle()


def covered(desk, *ours):
    """What lies under, or over, the nodes that are put in, which have more widgets than those before them."""
    return desk.evaluate(
        """(ours) => {
            const boxes = app.graph.nodes.map(n => [n.id, n.pos[0], n.pos[1] - 30, n.pos[0] + n.size[0], n.pos[1] + n.size[1]])
            const found = []
            for (const [a, al, at, ar, ab] of boxes.filter(b => ours.includes(String(b[0]))))
                for (const [b, bl, bt, br, bb] of boxes)
                    if (a !== b && al < br && bl < ar && at < bb && bt < ab) found.push([a, b])
            return found
        }""",
        [*ours],
    )


@pytest.mark.parametrize("pack", PACKS)
def test_an_old_prompt_runs(server, pack):
    graph = json.loads((OLD / f"{pack}.api.json").read_text("utf-8"))
    graph["report"] = {"class_type": "SkipstoneStepReport", "inputs": {"latent": ["31", 0]}}
    graph["told"] = {"class_type": "PreviewAny", "inputs": {"source": ["report", 3]}}
    told = ran(server, graph)
    (run,) = json.loads(told["outputs"]["told"]["text"][0])["runs"]
    assert (run["report"]["method"], run["report"]["variant"]) == (METHODS[pack], "Custom")
    assert run["report"]["skipped"] > 0
    limit = {"wavespeed": 0.12, "teacache": 0.4}.get(pack)
    assert run["report"]["threshold"] == limit
    assert told["outputs"]["9"]["images"]


@pytest.mark.parametrize("mode", ["canvas", "vue"])
def test_old_workflows_open_and_run(open_desk, mode):
    """Each is opened and replaced in both ways of drawing nodes, and run in one of them."""
    # with older front ends a person has to wish for it
    desk = open_desk(vue=mode == "vue", **{"Comfy.NodeReplacement.Enabled": True})
    for pack in PACKS:
        desk.open(OLD / f"{pack}.json")
        desk.page.wait_for_timeout(MEASURED)
        lay = covered(desk, *CARRIED[pack])  # some front ends draw a node larger than the one that saved the file
        replaced(desk)
        for node, wanted in CARRIED[pack].items():
            assert desk.values(node) | wanted == desk.values(node)
            assert isinstance(desk.prompt()[node]["inputs"]["model"], list)
        desk.page.wait_for_timeout(MEASURED)
        assert [pair for pair in covered(desk, *CARRIED[pack]) if pair not in lay] == []
        desk.shoot(f"old-{pack}-{mode}")
        if pack in RUN[mode]:
            desk.queue()
            report = last_report(desk.server)
            assert (report["method"], report["variant"]) == (METHODS[pack], "Custom")
            assert report["skipped"] > 0


def test_who_just_presses_run_gets_the_same(open_desk):
    """The prompt lacks the old node's values then, and they are in the workflow that comes with it. The file stays as it was."""
    desk = open_desk()
    desk.open(OLD / "teacache.json")
    desk.page.wait_for_timeout(MEASURED)
    desk.page.keyboard.press("Escape")  # older front ends tell in a dialog what is missing
    saved = {n["id"]: n for n in desk.saved()["nodes"]}
    assert (saved[41]["type"], saved[41]["widgets_values"]) == ("TeaCache", ["flux", 0.4, 3])
    desk.queue()
    report = last_report(desk.server)
    assert (report["method"], report["variant"], report["threshold"]) == ("TeaCache", "Custom", 0.4)
