"""Block-level methods on a model that ComfyUI's own helper compiles, in whole or block by block: the same picture, and little compiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from torch._dynamo.utils import counters

from skipstone.core.compile_options import EACH_BLOCK, Settings
from skipstone.core.step.indicators.blocks import Modulated
from skipstone.core.step.method import Blocks, Method
from skipstone.core.step.policies import Accumulator, Warmup
from skipstone.core.step.predictors import Reuse
from skipstone.patch.compile.model import compile_model
from skipstone.tests.comfy.block_observer import below, every, insides, sample, untouched


@pytest.fixture(autouse=True)
def nothing_compiled(steady_memory):
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def flux(small_flux):
    """A MODEL of 1 + 2 blocks: compiling the whole model costs time for each."""
    return small_flux(depth=1, depth_single_blocks=2)


@pytest.fixture(scope="module")
def models(flux, small_unet, tiny_unet):
    return {
        "flux": flux,
        "unet": tiny_unet,
        "small unet": small_unet(0, 1),
    }  # the last one with half of the transformers


BLOCKS = ["double_blocks.0", "single_blocks.0", "single_blocks.1"]
PARTS = [f"{at}.transformer_blocks.0" for at in ("input_blocks.1.1", "middle_block.1", "output_blocks.3.1")]
KEYS: dict[str, Any] = {
    "whole": lambda unet: ["diffusion_model"],
    "blocks": lambda unet: [f"diffusion_model.{at}" for at in (PARTS if unet else BLOCKS)],
}
METHODS = {"last blocks too": every(2, 1, 1), "adaptive": below(2.0)}
order = pytest.mark.parametrize("first", ["compile", "cache"])


def skip_options(entries):
    """As TorchCompileModel has it."""
    return ["transformer_options" not in entry.name for entry in entries]


def compiled(model, what):
    if what == "Compile Model+":
        return compile_model(model, Settings(EACH_BLOCK, backend="eager"))
    made = model.clone()
    keys = KEYS[what](hasattr(model.model.diffusion_model, "input_blocks"))
    set_torch_compile_wrapper(made, backend="eager", keys=keys, options={"guard_filter_fn": skip_options})
    return made


class Graphs:
    """How many were compiled since."""

    def __init__(self):
        self.before = counters["stats"]["unique_graphs"]

    @property
    def new(self):
        return counters["stats"]["unique_graphs"] - self.before


def close(a, b):
    return torch.allclose(a, b, atol=1e-3, rtol=1e-3)


def both(cached, method, model, what, first):
    if first == "compile":
        return cached(method, compiled(model, what))
    patched, reports = cached(method, model)
    return compiled(patched, what), reports


CASES = [
    *(("flux", what, how, "compile") for what in KEYS for how in METHODS),
    *(("flux", "blocks", how, "cache") for how in METHODS),
    *(pytest.param("flux", "whole", how, "cache", marks=pytest.mark.thorough) for how in METHODS),
    ("small unet", "whole", "last blocks too", "compile"),
    ("unet", "blocks", "adaptive", "cache"),
]


@pytest.mark.parametrize(("kind", "what", "method", "first"), CASES)
def test_the_same_picture_and_nothing_is_compiled_twice(studio, models, cached, kind, what, method, first):
    model = models[kind]
    patched, plain_reports = cached(METHODS[method], model)
    plain, before = sample(studio, patched, steps=5), insides(model)
    one, reports = both(cached, METHODS[method], model, what, first)
    graphs = Graphs()
    assert close(sample(studio, one, steps=5), plain)
    assert [e.computed for e in reports[0].evaluations] == [e.computed for e in plain_reports[0].evaluations]
    assert reports[0].skipped > 0 and reports[0].notes == []
    untouched(before, insides(model))
    assert graphs.new > 0
    again = Graphs()
    sample(studio, one, positive=studio.prompt("a frog on a white background"), steps=9, seed=2)
    assert close(sample(studio, one, steps=5), plain)
    assert again.new == 0


@pytest.mark.parametrize("what", [*KEYS, "Compile Model+"])
@order
def test_teacache(studio, flux, cached, what, first):
    """It looks into a block, and what is compiled cannot be looked into."""
    method = Method(
        "Tea", "", (Warmup(2), Accumulator(3.0)), Reuse(), indicator=Modulated("Flux"), blocks=Blocks(0, 0, "modulated")
    )
    patched, plain_reports = cached(method, flux)
    plain = sample(studio, patched)
    one, reports = both(cached, method, flux, what, first)
    assert close(sample(studio, one), plain)
    graphs = Graphs()
    assert close(sample(studio, one), plain)
    assert graphs.new == 0
    assert [e.computed for e in reports[0].evaluations] == [e.computed for e in plain_reports[0].evaluations]
    assert reports[0].skipped > 0
    assert reports[0].notes == plain_reports[0].notes


def test_many_blocks_are_compiled_as_few_are(studio, small_flux, cached):
    """And as they share the code, the second model needs none of its own."""
    counts = []
    for depth in (4, 16):
        model = small_flux(depth=1, depth_single_blocks=depth)
        plain, graphs = sample(studio, cached(every(2), model)[0], steps=4), Graphs()
        assert close(sample(studio, compiled(cached(every(2), model)[0], "whole"), steps=4), plain)
        counts.append(graphs.new)
    assert counts[0] > 0 == counts[1]
