"""ComfyUI's own compiler (0.34 and later) gives memory out again that was allocated while it recorded: nothing of ours is in it.

No ComfyUI that can be installed here has it: a double behaves as it is described.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from skipstone.core.compile_options import EACH_BLOCK, WHOLE_MODEL, Settings
from skipstone.core.step.policies import Interval
from skipstone.core.step.report.messages import OUTPUT_NOT_FINITE
from skipstone.nodes import dbcache, dicache, firstblock, magcache, teacache
from skipstone.patch.blocks.transformer import LEFT_OUT
from skipstone.patch.compile import model as compiling
from skipstone.patch.compile import module_swap
from skipstone.patch.compile.backends import ByTorch
from skipstone.patch.compile.model import CompiledModel
from skipstone.patch.step.attach import attach
from skipstone.tests.comfy.block_observer import every

prefetch = pytest.importorskip("comfy.model_prefetch")
pytestmark = [pytest.mark.usefixtures("user"), pytest.mark.filterwarnings("ignore:::(comfy|torchsde)")]

STEPS = 7
METHODS: dict[str, Any] = {
    "reuse": lambda: every(2),
    "the last block runs, too": lambda: every(2, 1, 1),
    "First Block Cache": lambda: firstblock.firstblock_of("Custom", threshold=9.0, warmup=1, max_skips=2),
    "DBCache": lambda: dbcache.dbcache_of("Custom", fn=1, threshold=9.0, warmup=1, max_skips=2),
    "TeaCache": lambda: teacache.teacache_of("Custom", threshold=9.0, warmup=1, polynomial="Flux", max_skips=2),
    "MagCache": lambda: magcache.magcache_of("Custom", threshold=9.0, warmup=1, ratios="Flux"),
    "DiCache": lambda: dicache.dicache_of("Custom", threshold=9.0, warmup=1, max_skips=2),
}


class MallocGraph(TorchDispatchMode):
    """What is allocated while it records is overwritten when it records the next time."""

    def __init__(self) -> None:
        super().__init__()
        self.recording = False
        self.made: list[Tensor] = []
        self.pauses = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.recording:
            given = {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)}
            for t in result if isinstance(result, list | tuple) else [result]:
                if isinstance(t, Tensor) and t.untyped_storage().data_ptr() not in given:
                    self.made.append(t)
        return result

    def begin(self) -> None:
        for made in self.made:
            torch.empty(0, dtype=torch.uint8).set_(made.untyped_storage()).fill_(255)  # NaN
        self.made.clear()
        self.recording = True

    def end(self, result: Any) -> Any:
        self.recording = False
        return tuple(r.clone() for r in result) if isinstance(result, tuple) else result.clone()

    @contextmanager
    def pause(self, sync: bool = False) -> Iterator[None]:
        before, self.recording = self.recording, False
        self.pauses += 1
        yield
        self.recording = before


def blocks_of(model: Any) -> list[Any]:
    network = model.model.diffusion_model
    return [*network.double_blocks, *network.single_blocks]


@pytest.fixture(scope="module")
def flux(small_flux):
    return small_flux(depth=1, depth_single_blocks=3)


@pytest.fixture(params=["the call", "each block"])
def graph(request, flux, monkeypatch) -> Iterator[MallocGraph]:
    """Records every call of the network, or of each of its blocks."""
    found = MallocGraph()
    recorded = [flux.model.diffusion_model] if request.param == "the call" else blocks_of(flux)
    handles = []
    for module in recorded:
        handles.append(module.register_forward_pre_hook(lambda *_: found.begin()))
        handles.append(module.register_forward_hook(lambda module, args, result: found.end(result)))
    monkeypatch.setattr(prefetch, "pause_malloc_graph", found.pause, raising=False)
    with found:
        yield found
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("name", METHODS)
def test_two_prompts_come_out_as_without_it(studio, flux, graph, monkeypatch, name):
    reports: list[Any] = []
    model = attach(flux, METHODS[name](), (reports.append,))
    recorded = [studio.sample(model, steps=STEPS, seed=seed) for seed in (1, 2)]
    assert all(r.skipped > 0 for r in reports)
    assert graph.pauses
    monkeypatch.setattr(graph, "begin", lambda: None)
    plain = [studio.sample(model, steps=STEPS, seed=seed) for seed in (1, 2)]
    assert all(p.isfinite().all() for p in plain)
    assert all(map(torch.equal, recorded, plain))


@pytest.fixture
def compiled_as_it_is(monkeypatch) -> Iterator[None]:
    """torch.compile gives the function itself: Compile Model+ then does all but compiling, which cannot be done in a dispatch mode."""

    def clear() -> None:
        module_swap._KINDS.clear()
        module_swap._STAGES.clear()

    monkeypatch.setattr(ByTorch, "_compile", lambda self, function: function)
    clear()
    yield
    clear()


@pytest.mark.usefixtures("compiled_as_it_is")
@pytest.mark.parametrize(("what", "name"), [(EACH_BLOCK, None), (WHOLE_MODEL, None), (EACH_BLOCK, "First Block Cache")])
def test_compile_model_survives_two_prompts(studio, flux, graph, monkeypatch, name, what):
    """With and without a step cache. What it copies for a second try lives as long as the call."""
    states: list[CompiledModel] = []

    class Observed(CompiledModel):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            states.append(self)

    monkeypatch.setattr(compiling, "CompiledModel", Observed)
    model = compiling.compile_model(flux, Settings(what, backend="eager"))
    reports: list[Any] = []
    if name is not None:
        model = attach(model, METHODS[name](), (reports.append,))
    recorded = [studio.sample(model, steps=4, seed=seed) for seed in (1, 2)]
    assert all(r.skipped > 0 for r in reports)
    # where the double has hooks on the blocks, a whole model is not compiled
    assert states[0].called and (not states[0].problem or what == WHOLE_MODEL), "it was in use"
    monkeypatch.setattr(graph, "begin", lambda: None)
    plain = [studio.sample(model, steps=4, seed=seed) for seed in (1, 2)]
    assert all(p.isfinite().all() for p in plain)
    assert all(map(torch.equal, recorded, plain))


def test_the_double_finds_what_is_kept_of_a_recording(studio, flux, graph, monkeypatch):
    monkeypatch.delattr(prefetch, "pause_malloc_graph")
    reports: list[Any] = []
    out = studio.sample(attach(flux, every(2), (reports.append,)), steps=STEPS)
    assert not out.isfinite().all() or OUTPUT_NOT_FINITE in reports[0].notes


def wrong(*_: Any, **__: Any) -> Any:
    raise TypeError("another function")


@pytest.mark.parametrize(
    "how",
    [{"pause_malloc_graph": wrong}, {"PREFETCH_QUEUES": None}, {"cleanup_prefetch_queues": wrong}],
    ids=lambda how: next(iter(how)),
)
def test_a_comfyui_whose_functions_are_others(studio, flux, monkeypatch, how):
    for name, value in how.items():
        monkeypatch.setattr(prefetch, name, value, raising=False)
    reports: list[Any] = []
    out = studio.sample(attach(flux, every(2), (reports.append,)), steps=STEPS)
    assert reports[0].skipped > 0 and out.isfinite().all()


def test_a_comfyui_without_the_module(studio, flux, monkeypatch):
    from skipstone.patch.blocks import comfy_compiler

    monkeypatch.setattr(comfy_compiler, "model_prefetch", None)
    assert studio.sample(attach(flux, every(2)), steps=STEPS).isfinite().all()


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("when", [lambda at: at == 2, lambda at: at >= 2], ids=["once", "from there on"])
def test_a_block_that_is_replayed_is_noticed(studio, flux, place, when):
    """As a CUDA graph, so that its Python code does not run: such an evaluation is computed, and nothing is predicted from it."""
    calls: list[float] = []
    block = flux.model.diffusion_model.single_blocks[place]

    def replay(given: Any, more: Any) -> Any:
        sigma = float(given["transformer_options"]["sigmas"][0])
        if sigma not in calls:
            calls.append(sigma)
        if not when(calls.index(sigma)):
            return more["original_block"](given)
        rest = {"transformer_options": given["transformer_options"], "vec": given["vec"], "pe": given["pe"]}
        return {"img": type(block).forward(block, given["img"], **rest)}

    replayed = flux.clone()
    replayed.set_model_patch_replace(replay, "dit", "single_block", place)
    reports: list[Any] = []
    method = every(2)
    assert isinstance(method.policies[0], Interval)
    out = studio.sample(attach(replayed, method, (reports.append,)), steps=STEPS, cfg=1.0)
    plain = studio.sample(replayed, steps=STEPS, cfg=1.0)
    computed = [e.computed for e in reports[0].evaluations]
    assert out.isfinite().all()
    if place == 1:  # nothing is to be seen at it
        assert computed[1] is False
        return
    assert computed[:4] == [True, False, True, True]
    assert reports[0].notes.count(LEFT_OUT) == 1
    if when(3):
        assert all(computed[2:])
    assert out.shape == plain.shape
