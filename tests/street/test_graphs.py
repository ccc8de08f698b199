"""Graphs as servers run them: lists, tiles, prompts of scripts, subgraphs, and no cache of outputs at all."""

from __future__ import annotations

import copy
import itertools
import logging
from types import SimpleNamespace

import execution
import pytest
import torch

import nodes
from skipstone.core.step.report.report import Report
from skipstone.patch.step import run_log

from ..comfy.test_report_nodes import START, cache, got, graphs, ksampler, made, report, runs  # noqa: F401

STEPS = 8
numbers = itertools.count(1)


@pytest.fixture
def said(caplog):
    """The lines that Skipstone logs."""
    caplog.set_level(logging.INFO, "skipstone")
    return lambda: [r for r in caplog.records if r.getMessage().startswith("[Skipstone]")]


def executed(prompt, kind=execution.CacheType.CLASSIC, executor=None):
    """A prompt as a script posts it: no client, no workflow. Returns the executor."""
    there = SimpleNamespace(client_id=None, last_node_id=None, send_sync=lambda *_: None)
    executor = executor or execution.PromptExecutor(
        there, cache_type=kind, cache_args={"ram": 0, "ram_inactive": 0, "lru": 0}
    )
    ends = [
        n for n, node in prompt.items() if getattr(nodes.NODE_CLASS_MAPPINGS[node["class_type"]], "OUTPUT_NODE", False)
    ]
    got.clear()
    executor.execute(copy.deepcopy(prompt), f"street-{next(numbers)}", {}, ends)
    assert executor.success, executor.status_messages[-1]
    return executor


def as_prompt(graph):
    return {n: {"class_type": kind, "inputs": inputs} for n, (kind, inputs) in graph.items()}


def test_a_list_of_three_latents_is_three_runs_in_one_report(graphs, monkeypatch):  # noqa: F811
    several = made("TestLatents", ("LATENT",), lambda: ([{"samples": torch.zeros(1, 16, 16, 16)}] * 3,))
    several.OUTPUT_IS_LIST = (True,)
    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "TestLatents", several)
    graph = {**START, "latent": ("TestLatents", {}), "cache": cache(), "sampler": ksampler("cache")}
    found = graphs.run(**graph, **report(latent="sampler"))
    assert len(runs(found)) == 3
    assert found["report"]["text"].count("MeanCache Speed: 8 steps") == 3
    assert len(graphs.shown["report"]["images"]) == 1


def test_a_prompt_of_a_script_with_nodes_of_a_subgraph(graphs, studio):  # noqa: F811
    """Subgraphs arrive as nodes with ids of their own, and scripts send no page and no workflow."""
    inside = {f"12:{n}": node for n, node in {**START, "cache": cache(), "sampler": ksampler("cache")}.items()}
    for _, inputs in inside.values():
        for key, value in inputs.items():
            if isinstance(value, list):
                inputs[key] = [f"12:{value[0]}", value[1]]
    executed(as_prompt({**inside, **report(latent="12:sampler")}))
    (run,) = runs(got)
    assert (run["node"], run["sampler"]) == ("12:cache", "12:sampler")
    assert run["report"]["skipped"] > 0


def test_without_a_cache_of_outputs_every_prompt_skips_as_the_first(graphs):  # noqa: F811
    """--cache-none: every node is executed anew in every prompt."""
    graph = as_prompt({**START, "cache": cache(), "sampler": ksampler("cache"), **report(latent="sampler")})
    executor, pictures = None, []
    for _ in range(2):
        executor = executed(graph, execution.CacheType.NONE, executor)
        (run,) = runs(got)
        assert run["report"]["skipped"] > 0
        pictures.append(got["report"]["latent"]["samples"])
    assert torch.equal(*pictures)


def test_tiles_of_one_step_log_one_line_in_a_prompt(graphs, studio, monkeypatch, said):  # noqa: F811
    """BlenderNeko's Tiled KSampler: a run of one step for each tile and step."""

    def tiled(model):
        for _ in range(32):
            studio.sample(model, steps=1, cfg=1.0)
        return ({"samples": torch.zeros(1, 16, 16, 16)},)

    monkeypatch.setitem(
        nodes.NODE_CLASS_MAPPINGS, "TestTiled", made("TestTiled", ("LATENT",), tiled, {"model": ("MODEL", {})})
    )
    tiles = {"model": START["model"], "cache": cache(), "sampler": ("TestTiled", {"model": ["cache", 0]})}
    graph = as_prompt({**tiles, **report(latent="sampler")})
    executed(graph)
    (line,) = said()
    assert line.levelno == logging.INFO
    assert line.getMessage().startswith("[Skipstone] MeanCache Speed: 1 step, all computed. 1 step is too few")
    executed(as_prompt({**tiles, "cache": cache(preset="Turbo"), **report(latent="sampler")}))
    assert len(said()) == 2, "the next prompt has a line of its own"


def test_outside_of_a_server_every_run_has_its_line(said):
    for _ in range(2):
        run_log.write(Report("MeanCache", "Speed", STEPS, finished=True), "")
    assert len(said()) == 2
