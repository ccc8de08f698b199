"""The route from which a reloaded page gets the reports of the last runs, with their advice."""

from __future__ import annotations

import asyncio
import json
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from comfy_execution.caching import CacheKeySetInputSignature
from comfy_execution.graph import DynamicPrompt

import nodes
from skipstone.core.step.report.report import Report
from skipstone.core.step.report.report_log import LoggedRun, Place, ReportLog
from skipstone.nodes import GROUPS, reporting, routes
from skipstone.nodes.easycache import easycache_of
from skipstone.nodes.meancache import method_of
from skipstone.nodes.method_node import MethodNode
from skipstone.patch.step import calibration

STEPS = 8
NODES = [node for group in GROUPS for node in import_module(f"skipstone.nodes.{group}").NODES]


def has_timeline(node):
    info = node.GET_NODE_INFO_V1()
    return "MODEL" in info["output"] and "unique_id" in info["input"].get("hidden", {})


METHODS = [node for node in NODES if has_timeline(node)]


def ask(path, body=None, kind="application/json"):
    """GET, or POST with a body."""

    async def asked():
        table, app = web.RouteTableDef(), web.Application()
        routes.add(table)
        app.add_routes(table)
        async with TestClient(TestServer(app)) as client:
            sent = client.get(path) if body is None else client.post(path, data=body, headers={"Content-Type": kind})
            answer = await sent
            return answer.status, json.loads(await answer.text())

    return asyncio.run(asked())


@pytest.fixture
def journal(monkeypatch):
    """An empty one."""
    fresh = ReportLog()
    monkeypatch.setattr(reporting, "JOURNAL", fresh)
    monkeypatch.setattr(routes, "JOURNAL", fresh)
    return fresh


@pytest.fixture
def run(studio, journal, monkeypatch):
    """Samples with a node's MODEL, as the node of this id in a prompt of this workflow; what the page is told of it."""

    def sampled(method, node="4", workflow="w", prompt="p", sampler="9", steps=STEPS):
        monkeypatch.setattr(reporting, "place", lambda: Place(workflow, prompt, sampler))
        kind: Any = type("Node", (MethodNode,), {"method": lambda: method, "hidden": SimpleNamespace(unique_id=node)})
        studio.sample(kind.execute(studio.model).args[0], steps=steps)
        told = ask(f"/skipstone/reports?workflow={workflow}")[1]
        return told[-1] if told else None

    return sampled


def test_the_runs_of_a_workflow_oldest_first(run, journal):
    for node, workflow in (("4", "w"), ("12:5", "w"), ("4", "v")):
        run(method_of("Speed"), node, workflow)
    status, told = ask("/skipstone/reports?workflow=w")
    assert status == 200
    assert told == [e.as_dict() for e in journal.of_workflow("w")]
    assert [(t["node"], t["workflow"], t["prompt"], t["sampler"], t["running"]) for t in told] == [
        ("4", "w", "p", "9", False),
        ("12:5", "w", "p", "9", False),
    ]
    assert [len(t["report"]["timeline"]) for t in told] == [STEPS, STEPS]


@pytest.mark.parametrize("query", ["", "?workflow=", "?workflow=nobody", "?workflow=../../etc/passwd", "?other=w"])
def test_who_names_no_workflow_of_ours_is_told_nothing(journal, query):
    for workflow in ("w", ""):
        journal.keep(LoggedRun("source", "4", Place(workflow, "p", "9"), Report("MeanCache", "Speed", STEPS)))
    assert ask(f"/skipstone/reports{query}") == (200, [])


def test_asking_changes_nothing(run, journal):
    run(method_of("Speed"))
    before = [e.as_dict() for e in journal.of_workflow("w")]
    assert ask("/skipstone/reports?workflow=w") == ask("/skipstone/reports?workflow=w") == (200, before)


def test_a_calibration_run_says_what_the_next_will_do_and_it_does(run):
    learned = run(method_of("Speed", calibration="calibrate"))["report"]
    assert learned["learning"] and learned["computed"] == STEPS and not learned["risk"]
    following = run(method_of("Speed", calibration="calibrate"))["report"]
    assert learned["advice"].startswith(f"calibrated. Next run: {following['computed']} of {STEPS} steps, about ")
    assert learned["notes"] and not learned["warnings"]
    assert not following["learning"] and following["skipped"] and following["decibels"] > 0


def test_a_threshold_that_nothing_reaches_is_told_with_what_came_nearest(run):
    report = run(easycache_of("Custom", threshold=1e-6))["report"]
    assert not report["skipped"] and "raise the threshold" in report["advice"]
    held = [e["score"] for e in report["timeline"] if e["score"] is not None]
    assert held and f"{min(held):.3g}" in report["advice"]
    assert {e["threshold"] for e in report["timeline"] if e["score"] is not None} == {1e-6}


def test_a_budget_that_no_picture_survives_is_a_risk(run):
    greedy = method_of("Custom", budget=0.1, warmup=1, calibration="auto")
    run(greedy, steps=30)
    report = run(greedy, steps=30)["report"]
    assert report["computed"] <= 4 and report["decibels"] < 30
    assert report["advice"] == report["risk"] and "dB" in report["risk"]


@pytest.mark.parametrize("kind", METHODS, ids=lambda k: k.__name__)
def test_a_node_and_its_copy_have_each_a_model_of_their_own(monkeypatch, kind):
    """Otherwise ComfyUI would reuse the first node's cached MODEL for the copy, and the copy's runs would be reported to the first."""
    name = kind.GET_SCHEMA().node_id
    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, name, kind)
    prompt = DynamicPrompt({node: {"class_type": name, "inputs": {}} for node in ("4", "9")})

    async def unchanged(_):
        return False

    keys = CacheKeySetInputSignature(prompt, ["4", "9"], SimpleNamespace(get=unchanged))
    asyncio.run(keys.add_keys(["4", "9"]))
    assert keys.get_data_key("4") != keys.get_data_key("9")


def test_what_was_recorded_of_models_is_told_and_deleted(tmp_path, monkeypatch):
    """Of the folder only what Skipstone wrote there."""
    monkeypatch.setattr(calibration, "folder", lambda: tmp_path)
    assert ask("/skipstone/calibration") == (200, {"setups": 0, "bytes": 0})
    names = [f"{key * 32}{end}" for key in "ab" for end in (".json", ".partial.json", ".recipe.json")]
    others = ["notes.json", f"{'c' * 32}.json.bak", f"{'g' * 32}.json"]
    for name in (*names, *others):
        (tmp_path / name).write_text("12345")
    assert ask("/skipstone/calibration") == (200, {"setups": 2, "bytes": 30})
    assert ask("/skipstone/calibration/forget", b"", "application/x-www-form-urlencoded")[0] == 415
    assert ask("/skipstone/calibration/forget", b"{}", "application/json") == (200, {"setups": 0, "bytes": 0})
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(others)
