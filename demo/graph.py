"""The shared workflow in API format, with the demo's prompt, seed, preset and stopwatch put in."""

from __future__ import annotations

import copy
from typing import Any

from comfy_server import DemoError

CACHE, SAMPLER, LOADER, TIMER = "SkipstoneMeanCache", "KSampler", "UNETLoader", "SkipstoneDemoTimer"

Graph = dict[str, dict[str, Any]]


def find(graph: Graph, node_type: str) -> str:
    found = [i for i, node in graph.items() if node["class_type"] == node_type]
    if len(found) != 1:
        raise DemoError(f"the demo needs exactly one {node_type} in its workflow, and this one has {len(found)}")
    return found[0]


def prepare(workflow: Graph, preset: str | None, caption: str, seed: int, steps: int) -> Graph:
    """A copy of the workflow for one run; without the cache node when preset is None."""
    graph = copy.deepcopy(workflow)
    cache, sampler, loader = find(graph, CACHE), graph[find(graph, SAMPLER)]["inputs"], find(graph, LOADER)
    graph[sampler["positive"][0]]["inputs"]["text"] = caption
    sampler.update(seed=seed, steps=steps)
    # The stopwatch goes first of all patches, and so outside of them: what the cache itself costs is timed too.
    _reconnect(graph, [loader, 0], ["timer", 0])
    graph["timer"] = {"class_type": TIMER, "inputs": {"model": [loader, 0]}}
    if preset is None:
        _reconnect(graph, [cache, 0], graph.pop(cache)["inputs"]["model"])
    else:
        graph[cache]["inputs"]["preset"] = preset
    return graph


def _reconnect(graph: Graph, old: list[Any], new: list[Any]) -> None:
    for node in graph.values():
        for name, value in node["inputs"].items():
            if value == old:
                node["inputs"][name] = new
