"""What ComfyUI is given when it opens the pack: a module that fails takes nothing else with it."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

import skipstone.nodes

nodes: Any = skipstone.nodes


@pytest.fixture
def broken(monkeypatch):
    """Has some of the modules in nodes/ fail when they are imported."""
    load = nodes.import_module

    def fail(*names):
        def imported(name, package):
            if name.removeprefix(".") in names:
                raise ImportError("this ComfyUI lacks something")
            return load(name, package)

        monkeypatch.setattr(nodes, "import_module", imported)

    return fail


def listed():
    return {node.GET_SCHEMA().node_id for node in asyncio.run(nodes.SkipstoneExtension().get_node_list())}


@pytest.mark.parametrize("group", nodes.GROUPS)
def test_a_module_of_nodes_that_fails_is_named_and_the_others_are_there(broken, caplog, group):
    everything = listed()
    broken(group)
    with caplog.at_level(logging.ERROR):
        assert listed() < everything
    (record,) = (r for r in caplog.records if "[Skipstone]" in r.getMessage())
    assert f"nodes/{group}.py" in record.getMessage() and record.exc_info


def test_a_service_that_fails_is_named_and_the_others_are_registered(broken, monkeypatch, caplog):
    broken(*nodes.SERVICES)
    with caplog.at_level(logging.ERROR):
        asyncio.run(nodes.SkipstoneExtension().on_load())
    said = [r.getMessage() for r in caplog.records if "[Skipstone]" in r.getMessage()]
    assert said == [f"[Skipstone] {loss}" for loss in nodes.SERVICES.values()]
