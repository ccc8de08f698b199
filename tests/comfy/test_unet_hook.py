"""The block hook on UNets: a skip gives the output of the network with the earlier output of the last block between."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from skipstone.core.step.method import Blocks, Method
from skipstone.core.step.policies import Interval
from skipstone.core.step.predictors import Reuse
from skipstone.patch.step.attach import attach
from skipstone.tests.comfy import zoo
from skipstone.tests.comfy.zoo import base, unet

STEPS = 4
NAMED = {m.name: m for m in unet.MODELS}
each = pytest.mark.parametrize(
    "name", ["BaseModel (SD 1)", "SDXL (KOALA, without a middle)", "SVD_img2vid", "SD_X4Upscaler"]
)
# with Fn = 3 the block that halves the size runs, too
outer = pytest.mark.parametrize(("prefix", "suffix"), [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (3, 0)])


@functools.cache
def built(tiny: zoo.Tiny) -> tuple[Any, Any]:
    model = tiny.build()
    return model, tiny.conds(model)


@dataclass
class Seen:
    """One call of the network: copies of what it was given, and what it said."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    said: Any = None


def every_second(prefix: int, suffix: int) -> Method:
    return Method("Every", "2", (Interval(1, 2),), Reuse(), blocks=Blocks(prefix, suffix, "none"))


def sampled(tiny: zoo.Tiny, model: Any, conds: Any) -> Any:
    with torch.inference_mode():
        return zoo.sample(tiny, model, *conds, steps=STEPS)


def replayed(
    network: Any, seen: Any, layer: torch.nn.Module, deep: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The output of the network with all layers running, and that of this layer. deep: replaces the output of this layer."""
    found: list[torch.Tensor] = []

    def leave(_: Any, args: Any, out: torch.Tensor) -> torch.Tensor | None:
        found.append(out.clone())
        return deep

    handle = layer.register_forward_hook(leave)
    try:
        with torch.inference_mode():
            return network(*copy.deepcopy(seen.args), **copy.deepcopy(seen.kwargs)), found[0]
    finally:
        handle.remove()


def a_skip_is_as_it_should_be(tiny: zoo.Tiny, model: Any, conds: Any, prefix: int, suffix: int) -> None:
    network = model.model.diffusion_model
    calls: list[Seen] = []

    def before(_: Any, args: Any, kwargs: Any) -> None:
        options = {k: v for k, v in kwargs["transformer_options"].items() if k not in ("wrappers", "callbacks")}
        calls.append(Seen(*copy.deepcopy((args, {**kwargs, "transformer_options": options}))))

    handles = [
        network.register_forward_pre_hook(before, with_kwargs=True),
        network.register_forward_hook(lambda _, args, said: setattr(calls[-1], "said", said)),
    ]
    sampled(tiny, attach(model, every_second(prefix, suffix)), conds)
    for handle in handles:
        handle.remove()
    n = len(calls) // STEPS
    layer = list(network.output_blocks[len(network.output_blocks) - suffix - 1])[-1]
    for computed, skipped in zip(calls[:n], calls[n : 2 * n], strict=True):
        said, deep = replayed(network, computed, layer)
        torch.testing.assert_close(said, computed.said, rtol=1e-4, atol=1e-5)
        expected, _ = replayed(network, skipped, layer, deep)
        torch.testing.assert_close(skipped.said, expected, rtol=1e-4, atol=1e-5)


@outer
@each
def test_a_skip_takes_the_deep_feature(name, prefix, suffix):
    tiny = NAMED[name]
    a_skip_is_as_it_should_be(tiny, *built(tiny), prefix, suffix)


@outer
def test_an_adapter_adds_to_the_blocks_that_run(prefix, suffix):
    """As a T2I adapter does: to what each input block gives. And as a ControlNet does: to each skip connection."""
    tiny = NAMED["BaseModel (SD 1)"]
    model, conds = built(tiny)
    network = model.model.diffusion_model
    gave: list[torch.Size] = []
    handles = [
        list(block)[-1].register_forward_hook(lambda m, a, out: gave.append(out.shape[1:]))
        for block in [*network.input_blocks, network.middle_block]
    ]
    with torch.inference_mode():
        network(base.normal(1, 4, 8, 8), torch.tensor([10.0]), base.normal(1, 5, unet.TEXT), transformer_options={})
    for handle in handles:
        handle.remove()

    def controlled(apply: Any, given: Any) -> Any:
        control = {
            "input": [base.normal(1, *shape, seed=i) for i, shape in enumerate(reversed(gave[:-1]))],
            "middle": [base.normal(1, *gave[-1], seed=20)],
            "output": [base.normal(1, *shape, seed=30 + i) for i, shape in enumerate(gave[:-1])],
        }
        return apply(given["input"], given["timestep"], **{**given["c"], "control": control})

    model = model.clone()
    model.set_model_unet_function_wrapper(controlled)
    a_skip_is_as_it_should_be(tiny, model, conds, prefix, suffix)


@outer
def test_layers_are_counted_as_ever(prefix, suffix):
    """GLIGEN and IPAdapter know a layer by its number."""
    tiny = NAMED["BaseModel (SD 1)"]
    model, conds = built(tiny)
    model = model.clone()
    seen: list[tuple[Any, int]] = []

    def look(n: Any, context: Any, value: Any, options: Any) -> Any:
        seen.append((options["block"], options["transformer_index"]))
        return n, context, value

    model.set_model_attn2_patch(look)
    sampled(tiny, model, conds)
    numbers = set(seen)
    assert len({number for _, number in numbers}) == len(numbers) > 4
    seen.clear()
    sampled(tiny, attach(model, every_second(prefix, suffix)), conds)
    assert set(seen) == numbers
