"""Workflows of earlier packs open and run where those packs are no longer installed: the rules are in core/legacy_nodes.py.

The front end offers ours for what it misses, since ComfyUI tells it (GET /node_replacements). A prompt that comes without a front end is
changed as it arrives: ComfyUI would do so, too, but stops with an error at the first input that an older release did not have, and can
only copy values, not convert them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ..core.legacy_nodes import NODES, Earlier
from ..patch.comfy_server import known_nodes, on_prompt

log = logging.getLogger(__name__)
KNOWN = {node.id: node for node in NODES}


async def register() -> None:
    """Register the replacements when the pack is loaded."""
    on_prompt(adopted)
    try:
        from comfy_api.latest import ComfyAPI, io

        class Replacement(io.NodeReplace):
            """With what the front end's own mapping cannot say; web/js/replacements.js reads it."""

            def as_dict(self) -> dict[str, Any]:
                return {**super().as_dict(), "skipstone": KNOWN[self.old_node_id].as_dict()}

        replacements = ComfyAPI().node_replacement
    except (ImportError, AttributeError):
        log.info("[Skipstone] this ComfyUI cannot replace nodes of earlier packs in the front end")
        return
    for node in NODES:
        await replacements.register(
            Replacement(node.new, node.id, list(node.layouts[0]), [*_plain(node)], [{"new_idx": 0, "old_idx": 0}])
        )


def _plain(node: Earlier) -> list[dict[str, Any]]:
    """The rules that need no conversion."""
    return [dict(rule) for rule in node.rules if "values" not in rule and "less" not in rule]


def adopted(asked: dict[str, Any]) -> dict[str, Any]:
    """A body posted to /prompt with missing nodes of earlier packs replaced by ours."""
    prompt = asked.get("prompt")
    if not isinstance(prompt, dict):
        return asked
    known = known_nodes()
    for name, node in prompt.items():
        if not isinstance(node, dict) or not isinstance(node.get("inputs"), dict):
            continue
        drawn = beside(asked, str(name))
        kind = node.get("class_type") or drawn.get("type")  # the front end names no type that it does not know
        if isinstance(kind, str) and kind in KNOWN and kind not in known and KNOWN[kind].new in known:
            earlier = KNOWN[kind]
            values = drawn.get("widgets_values") if drawn.get("type") == kind else None
            old = {**(earlier.named(values) if isinstance(values, list) else {}), **node["inputs"]}
            prompt[name] = {**node, "class_type": earlier.new, "inputs": earlier.inputs(old)}
            log.info("[Skipstone] %s replaces %s, node %s", earlier.new, earlier.id, name)
    return asked


def beside(asked: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A node's entry in the workflow that accompanies a prompt; empty if it has none. The front end leaves the widgets of unknown nodes out
    of the prompt itself. name: the node's id, after those of the subgraph nodes around it, as `12:5`."""
    try:
        workflow = asked["extra_data"]["extra_pnginfo"]["workflow"]
        subgraphs = {graph["id"]: graph for graph in workflow.get("definitions", {}).get("subgraphs", ())}
        nodes, found = workflow["nodes"], {}
        for part in name.split(":"):
            found = next(node for node in nodes if str(node["id"]) == part)
            nodes = subgraphs.get(found["type"], {}).get("nodes", ())
        return found if isinstance(found, dict) else {}
    except (KeyError, TypeError, AttributeError, StopIteration):
        return {}
