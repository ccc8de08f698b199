"""Nodes of earlier packs in prompts as they come to the server: replaced where they are missing, left alone where they are not."""

from __future__ import annotations

import asyncio
import copy
import json
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from app.node_replace_manager import NodeReplaceManager
from comfy_api.latest import io

import nodes
from skipstone.core.legacy_nodes import NODES, Earlier
from skipstone.nodes import GROUPS, replacements

OLD = Path(__file__).resolve().parents[1] / "workflows" / "old"
KNOWN = {node.id: node for node in NODES}
OURS: dict[str, Any] = {
    kind.GET_SCHEMA().node_id: kind for group in GROUPS for kind in import_module(f"skipstone.nodes.{group}").NODES
}
PACKS = sorted(p.name.removesuffix(".api.json") for p in OLD.glob("*.api.json"))


@pytest.fixture
def here(monkeypatch):
    """ComfyUI has our nodes and none of theirs."""
    for name, kind in OURS.items():
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, name, kind)
    assert not set(KNOWN) & set(nodes.NODE_CLASS_MAPPINGS)


def prompt(pack):
    return json.loads((OLD / f"{pack}.api.json").read_text("utf-8"))


def workflow(pack):
    return json.loads((OLD / f"{pack}.json").read_text("utf-8"))


def adopted(given, **beside):
    return replacements.adopted({"prompt": copy.deepcopy(given), **beside})["prompt"]


def schema(node: Earlier) -> list[Any]:
    return list(OURS[node.new].GET_SCHEMA().inputs)


OF_OURS = [node for node in NODES if node.new in OURS]


@pytest.mark.parametrize("node", OF_OURS, ids=lambda n: n.id)
def test_every_widget_of_ours_has_a_value_whatever_the_old_node_lacks(node):
    """A front end would show what a preset has put there, and a prompt would be refused."""
    widgets = {i.id for i in schema(node) if isinstance(i, io.WidgetInput)}
    assert {*node.inputs({})} >= widgets
    assert {*node.inputs({"model": ["1", 0]})} - widgets == {"model"}


@pytest.mark.parametrize("node", OF_OURS, ids=lambda n: n.id)
def test_every_value_that_a_rule_can_give_is_one_that_our_node_takes(node):
    ours = {i.id: i for i in schema(node)}
    for rule in node.rules:
        given = [rule["set_value"]] if "set_value" in rule else [to for _, to in rule.get("values", ())]
        given += [rule["otherwise"]] if "otherwise" in rule else []
        for value in given:
            widget = ours[rule["new_id"]]
            if isinstance(widget, io.Combo.Input):
                assert value in widget.options, (rule, value)
            elif isinstance(widget, io.Boolean.Input | io.String.Input):
                assert isinstance(value, bool | str)
            else:
                assert widget.min <= value <= widget.max, (rule, value)


@pytest.mark.parametrize("pack", PACKS)
def test_an_old_prompt_is_one_of_ours(here, pack):
    given = prompt(pack)
    found = adopted(given)
    for name, node in given.items():
        if node["class_type"] in KNOWN:
            assert found[name]["class_type"] == KNOWN[node["class_type"]].new
            assert found[name]["inputs"]["model"] == node["inputs"]["model"]
            assert found[name].get("_meta") == node.get("_meta")
        else:
            assert found[name] == node
    assert not {n["class_type"] for n in found.values()} & set(KNOWN)


@pytest.mark.parametrize("pack", PACKS)
def test_comfyuis_own_replacing_finds_nothing_left_to_do(here, pack):
    """It would end in an error: these prompts lack inputs of later releases, and some have no titles."""
    manager = NodeReplaceManager()
    for one in registered():
        manager.register(one)
    found = adopted(prompt(pack))
    before = copy.deepcopy(found)
    manager.apply_replacements(found)
    assert found == before
    if pack != "wavespeed":
        with pytest.raises(KeyError):
            manager.apply_replacements(
                prompt(pack) | {"bare": {"class_type": "TeaCache", "inputs": {"model": ["12", 0]}}}
            )


@pytest.mark.parametrize("pack", PACKS)
def test_where_the_old_pack_is_installed_its_nodes_are_its_own(here, monkeypatch, pack):
    for name in KNOWN:
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, name, object)
    assert adopted(prompt(pack)) == prompt(pack)


def test_where_our_own_node_was_left_out_nothing_is_replaced(here, monkeypatch):
    monkeypatch.delitem(nodes.NODE_CLASS_MAPPINGS, "SkipstoneTeaCache")
    assert adopted(prompt("teacache")) == prompt("teacache")


def test_values_that_the_front_end_does_not_send_are_taken_from_the_workflow_beside_the_prompt(here):
    """It sends no widgets of nodes that it does not know."""
    given: dict[str, Any] = {"41": {"class_type": "TeaCache", "inputs": {"model": ["12", 0]}}}
    beside = {"extra_data": {"extra_pnginfo": {"workflow": workflow("teacache")}}}
    told = adopted(given, **beside)["41"]["inputs"]
    assert (told["threshold"], told["polynomial"], told["max_skips"]) == (0.4, "Flux", 3)
    given["41"]["inputs"]["rel_l1_thresh"] = ["7", 0]  # a value that comes over a link is sent
    assert adopted(given, **beside)["41"]["inputs"]["threshold"] == ["7", 0]


def test_a_node_that_the_front_end_names_no_type_of_is_known_by_the_workflow(here):
    """So it sends what is missing; of others that are missing nothing is made."""
    given = {"41": {"inputs": {"UNKNOWN": 3, "model": ["12", 0]}}, "13": {"inputs": {}}}
    beside = {"extra_data": {"extra_pnginfo": {"workflow": workflow("teacache")}}}
    found = adopted(given, **beside)
    assert found["41"]["class_type"] == "SkipstoneTeaCache"
    assert (found["41"]["inputs"]["threshold"], found["41"]["inputs"]["max_skips"]) == (0.4, 3)
    assert "UNKNOWN" not in found["41"]["inputs"]
    assert found["13"] == given["13"]


def test_the_same_in_a_subgraph(here):
    inner = {"id": "u-u-i-d", "nodes": workflow("magcache")["nodes"]}
    outer = {"nodes": [{"id": 5, "type": "u-u-i-d"}], "definitions": {"subgraphs": [inner]}}
    given = {"5:112": {"class_type": "MagCache", "inputs": {"model": ["5:12", 0]}}}
    told = adopted(given, extra_data={"extra_pnginfo": {"workflow": outer}})["5:112"]["inputs"]
    assert (told["threshold"], told["start_percent"], told["max_skips"]) == (0.24, 0.1, 5)


@pytest.mark.parametrize(
    "beside",
    [
        {},
        {"extra_data": None},
        {
            "extra_data": {
                "extra_pnginfo": {"workflow": {"nodes": [{"id": 41, "type": "Other", "widgets_values": [1]}]}}
            }
        },
        {
            "extra_data": {
                "extra_pnginfo": {"workflow": {"nodes": [{"id": 41, "type": "TeaCache", "widgets_values": {}}]}}
            }
        },
        {"extra_data": {"extra_pnginfo": {"workflow": {"nodes": "?", "definitions": []}}}},
    ],
)
def test_a_workflow_that_says_nothing_of_it_is_no_error(here, beside):
    given: dict[str, Any] = {"41": {"class_type": "TeaCache", "inputs": {"model": ["12", 0]}}}
    assert adopted(given, **beside)["41"]["inputs"]["threshold"] == 0.4


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"prompt": None},
        {"prompt": []},
        {
            "prompt": {
                "1": None,
                "2": {},
                "3": {"class_type": ["TeaCache"], "inputs": {}},
                "4": {"class_type": "TeaCache"},
            }
        },
    ],
)
def test_what_is_no_prompt_is_left_to_comfyui_to_refuse(here, asked):
    assert replacements.adopted(copy.deepcopy(asked)) == asked


class Registered(list[Any]):
    async def register(self, one: Any) -> None:
        self.append(one)


def registered(monkeypatch: Any = None) -> Registered:
    """The replacements that the pack registers with ComfyUI when it is loaded."""
    told = Registered()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("comfy_api.latest.ComfyAPI", lambda: SimpleNamespace(node_replacement=told))
        asyncio.run(replacements.register())
    return told


def test_the_front_end_is_told_all_of_them():
    told = {one.old_node_id: json.loads(json.dumps(one.as_dict())) for one in registered()}
    assert told.keys() == KNOWN.keys()
    for name, one in told.items():
        assert one["new_node_id"] == KNOWN[name].new
        assert one["old_widget_ids"] == list(KNOWN[name].layouts[0])
        assert one["skipstone"] == KNOWN[name].as_dict()


def test_a_comfyui_without_replacements_is_told_of_in_one_line(monkeypatch, caplog):
    monkeypatch.setattr("comfy_api.latest.ComfyAPI", SimpleNamespace)
    with caplog.at_level("INFO"):
        asyncio.run(replacements.register())
    assert [r.message for r in caplog.records if "earlier packs" in r.message] == [
        "[Skipstone] this ComfyUI cannot replace nodes of earlier packs in the front end"
    ]
