"""Compile Model+: the same picture, little compiled, nothing left behind. Mostly with backends that compile fast and gain nothing."""

from __future__ import annotations

import copy
import gc
import logging
import re
from types import SimpleNamespace
from typing import Any

import comfy.controlnet
import comfy.hooks
import comfy.model_management
import comfy.patcher_extension
import comfy.sd
import comfy.utils
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_freelunch import FreeU_V2
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT
from comfy_extras.nodes_torch_compile import TorchCompileModel
from torch import nn
from torch._dynamo.backends import registry as torch_backends
from torch._dynamo.utils import counters

from nodes import ConditioningCombine, ConditioningSetArea
from skipstone.core.compile_options import EACH_BLOCK, WHOLE_MODEL, Settings
from skipstone.core.step.method import Blocks, Method
from skipstone.core.step.policies import Interval
from skipstone.core.step.predictors import Reuse
from skipstone.nodes.compile import CompileModel
from skipstone.nodes.easycache import easycache_of
from skipstone.nodes.meancache import method_of
from skipstone.patch.compile import backends as code
from skipstone.patch.compile import model as compiling
from skipstone.patch.compile import module_swap, registry
from skipstone.patch.compile.model import compile_model
from skipstone.patch.compile.module_swap import ModuleSwapper, StandIn
from skipstone.tests.comfy import zoo
from skipstone.tests.thorough import params

STEPS = 3
BOTH = pytest.mark.parametrize("what", [EACH_BLOCK, WHOLE_MODEL])
# where compiling the whole model takes long and nothing else happens than for each block
MOSTLY_BLOCKS = pytest.mark.parametrize("what", params((EACH_BLOCK, WHOLE_MODEL), {EACH_BLOCK}))


@pytest.fixture(autouse=True)
def nothing_compiled(steady_memory):
    """Every test starts with nothing compiled."""
    module_swap._KINDS.clear()
    module_swap._STAGES.clear()


@pytest.fixture
def said(caplog):
    """What Compile Model+ warned of."""
    caplog.set_level(logging.WARNING)
    return lambda: [r.getMessage() for r in caplog.records if "Compile Model+" in r.getMessage()]


@pytest.fixture
def flux(small_flux):
    """A MODEL of 1 + 2 blocks: compiling the whole model costs time for each."""
    return small_flux(depth=1, depth_single_blocks=2)


@pytest.fixture
def smallest(small_flux):
    """A MODEL of 1 + 1 blocks, for the same reason."""
    return small_flux(depth=1, depth_single_blocks=1)


@pytest.fixture(scope="module")
def unet(small_unet):
    """A MODEL of one level with four transformers, for the same reason."""
    return small_unet(1)


def compiled(model, what=EACH_BLOCK, backend="eager", **more):
    return compile_model(model, Settings(what, backend=backend, **more))


class Graphs:
    """How many were compiled since."""

    def __init__(self):
        self.before = counters["stats"]["unique_graphs"]

    @property
    def new(self):
        return counters["stats"]["unique_graphs"] - self.before


def close(a, b):
    return torch.allclose(a, b, atol=1e-4, rtol=1e-4)


def inside(model, look):
    """A clone that calls `look(diffusion_model)` within every call of the model."""
    watched = model.clone()

    def wrapper(executor, *args, **kwargs):
        look(executor.class_obj.diffusion_model)
        return executor(*args, **kwargs)

    watched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "look", wrapper)
    return watched


def blocks_of(model):
    network = model.model.diffusion_model
    return [*network.double_blocks, *network.single_blocks]


# The same picture


@BOTH
@pytest.mark.parametrize("backend", params(("eager", "aot_eager"), {"eager"}))
def test_the_same_picture(studio, flux, what, backend):
    graphs, plain = Graphs(), studio.sample(flux, steps=STEPS)
    assert graphs.new == 0
    assert close(studio.sample(compiled(flux, what, backend), steps=STEPS), plain)
    assert graphs.new > 0


def test_the_same_picture_under_inference_mode_as_comfyui_runs_nodes(studio, flux):
    plain, graphs = studio.sample(flux, steps=STEPS), Graphs()
    with torch.inference_mode():
        assert close(studio.sample(compiled(flux, backend="aot_eager"), steps=STEPS), plain)
    assert graphs.new > 0


@BOTH
def test_a_unet(tiny_unet, studio, what):
    latent = torch.zeros(1, 4, 16, 16)
    plain, graphs = studio.sample(tiny_unet, latent=latent, steps=STEPS), Graphs()
    looks = []
    model = inside(compiled(tiny_unet, what), lambda n: looks.append(sum(isinstance(m, StandIn) for m in n.modules())))
    assert close(studio.sample(model, latent=latent, steps=STEPS), plain)
    assert graphs.new > 0
    names = [type(m).__name__ for m in tiny_unet.model.modules()]
    transformers = names.count("BasicTransformerBlock")
    assert set(looks) == {transformers if what == EACH_BLOCK else 1}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x, transformer_options=None):
        return x + self.linear(x)


class Network(nn.Module):
    """A network without a family record."""

    def __init__(self, count):
        super().__init__()
        self.stem = nn.ModuleList([nn.Linear(8, 8) for _ in range(4)])  # no blocks: they have no parts
        self.inner = nn.Module()
        self.inner.blocks = nn.ModuleList([Block() for _ in range(count)])

    def forward(self, x, transformer_options):
        blocks: Any = self.inner.blocks
        for part in self.stem:
            x = part(x)
        for block in blocks:
            x = block(x, transformer_options)
        return x


class Base(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.diffusion_model = network


def call(wrapper, base, x, options=None):
    """As BaseModel.apply_model calls a wrapper."""

    def run(x, t, c_concat, c_crossattn, control, transformer_options):
        return base.diffusion_model(x, transformer_options)

    executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(run, base, [wrapper])
    with torch.no_grad():
        return executor.execute(x, None, None, None, None, options or {})


@pytest.mark.parametrize(("count", "stand_ins"), [(3, 3), (2, 1)])
def test_a_network_without_a_family_record(count, stand_ins):
    """Its blocks are looked for; where there are none the whole is compiled."""
    base = Base(Network(count))
    found: list[StandIn] = []

    def look(executor, *args):
        found.extend(m for m in executor.class_obj.modules() if isinstance(m, StandIn))
        return executor(*args)

    wrapper = compiling.CompiledModel(Settings(backend="eager"))
    x, graphs = torch.randn(1, 4, 8), Graphs()

    def run(x, t, c_concat, c_crossattn, control, transformer_options):
        return base.diffusion_model(x, transformer_options)

    executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(run, base, [wrapper, look])
    with torch.no_grad():
        out = executor.execute(x, None, None, None, None, {})
        assert torch.allclose(out, base.diffusion_model(x, {}), atol=1e-6)
    assert len(found) == stand_ins
    assert graphs.new == 1


# How much is compiled


def test_equal_blocks_share_what_is_compiled(studio, small_flux):
    graphs = Graphs()
    studio.sample(compiled(small_flux(depth=1, depth_single_blocks=1)), steps=1)
    one = graphs.new
    module_swap._KINDS.clear()
    graphs = Graphs()
    studio.sample(compiled(small_flux(depth=4, depth_single_blocks=6)), steps=1)
    assert graphs.new == one == 2


@BOTH
def test_nothing_is_compiled_anew_for_steps_prompts_and_seeds(studio, flux, what):
    model = compiled(flux, what)
    studio.sample(model, steps=1)
    graphs = Graphs()
    studio.sample(model, steps=4)
    studio.sample(model, studio.prompt("a green square"), steps=2, seed=5)
    studio.sample(model, steps=2, sampler="dpmpp_2m", scheduler="karras")
    assert graphs.new == 0


@MOSTLY_BLOCKS
def test_another_length_of_the_prompt_is_compiled_once(studio, flux, what):
    model, graphs = compiled(flux, what), Graphs()
    short = studio.prompt("a green square")
    studio.sample(model, short, short, steps=1)
    first = graphs.new
    plain = studio.sample(flux, studio.long_prompt, studio.long_prompt, steps=1)
    assert close(studio.sample(model, studio.long_prompt, studio.long_prompt, steps=1), plain)
    assert graphs.new <= 2 * first
    graphs, longer = Graphs(), studio.prompt("a frog on a white background, " * 40)
    studio.sample(model, longer, longer, steps=1)
    studio.sample(model, short, short, steps=1)
    assert graphs.new == 0


def test_with_dynamic_another_size_is_not_compiled(studio, flux):
    model = compiled(flux, dynamic=True)
    studio.sample(model, latent=torch.zeros(1, 16, 16, 20), steps=1)
    graphs = Graphs()
    for size in ((24, 16), (32, 24)):
        latent = torch.zeros(1, 16, *size)
        assert close(studio.sample(model, latent=latent, steps=1), studio.sample(flux, latent=latent, steps=1))
    assert graphs.new == 0


def test_without_dynamic_each_size_is_compiled(studio, flux):
    model = compiled(flux, dynamic=False)
    for size in ((16, 16), (24, 16), (32, 24)):
        graphs = Graphs()
        studio.sample(model, latent=torch.zeros(1, 16, *size), steps=1)
        assert graphs.new == 2


def test_a_node_that_runs_anew_finds_what_is_compiled(studio, small_flux, flux):
    """Another LoRA before it, another model of the same kind, the model loaded again."""
    studio.sample(compiled(flux), steps=1)
    graphs = Graphs()
    studio.sample(compiled(flux.clone()), steps=1)
    studio.sample(compiled(small_flux(depth=3)), steps=1)
    assert graphs.new == 0
    studio.sample(compiled(flux, dynamic=True), steps=1)  # other settings, other code
    assert graphs.new == 2


def test_a_batch_that_is_split_in_the_middle_of_a_run(studio, flux, monkeypatch):
    """How many conditionings run together depends on the memory that is free at that moment."""
    calls = []

    def shrinks(dev=None, torch_free_too=False):
        if torch_free_too:
            return 1 << 34, 1 << 34
        calls.append(1)
        return (1 << 34) if len(calls) % 3 else 1

    model = compiled(flux)
    monkeypatch.setattr(comfy.model_management, "get_free_memory", shrinks)
    assert close(studio.sample(model, steps=6), studio.sample(flux, steps=6))


# What is left behind


@BOTH
def test_nothing_is_left_behind(studio, flux, what):
    network, before = flux.model.diffusion_model, blocks_of(flux)
    names, seen = list(flux.model.state_dict()), []
    model = inside(compiled(flux, what), lambda _: seen.append(list(flux.model.state_dict())))
    studio.sample(model, steps=1)
    assert flux.model.diffusion_model is network
    assert all(a is b for a, b in zip(blocks_of(flux), before, strict=True))
    assert list(flux.model.state_dict()) == names
    assert seen == [names]  # not even during the call
    # the MODEL without the node is not affected
    graphs = Graphs()
    studio.sample(flux, steps=1)
    assert graphs.new == 0


@BOTH
@pytest.mark.parametrize("error", [RuntimeError, comfy.model_management.InterruptProcessingException])
def test_nothing_is_left_behind_by_an_error(studio, flux, what, error):
    network, before = flux.model.diffusion_model, blocks_of(flux)

    def fail(_):
        raise error("stop")

    with pytest.raises(error):
        studio.sample(inside(compiled(flux, what), fail), steps=1)
    assert flux.model.diffusion_model is network
    assert all(a is b for a, b in zip(blocks_of(flux), before, strict=True))


def test_an_error_of_the_model_is_its_own(studio, flux, said, monkeypatch):
    """It is not taken for one of the compiler."""

    def broken(*args, **kwargs):
        raise ValueError("no such attention")

    monkeypatch.setattr(blocks_of(flux)[0].img_mod, "forward", broken)
    with pytest.raises(ValueError, match="no such attention"):
        studio.sample(compiled(flux), steps=1)
    assert said() == []


def test_no_memory_is_not_taken_for_a_fault_of_the_compiler(studio, flux, said, monkeypatch):
    """The error is passed on to ComfyUI, which can free memory, and the block is not run a second time."""
    calls = []

    def full(*args, **kwargs):
        calls.append(1)
        raise torch.cuda.OutOfMemoryError("out of memory")

    model = compiled(flux)
    studio.sample(model, steps=1)
    monkeypatch.setattr(code.ByTorch, "run", full)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        studio.sample(model, steps=1)
    assert len(calls) == 1
    assert said() == []


# What others do to the blocks


def test_what_is_set_on_a_stand_in():
    block = Block()
    before = dict(vars(block))
    stand_in = StandIn(block, ModuleSwapper(Settings()), False)
    assert stand_in.linear is block.linear
    assert isinstance(stand_in, Block)
    assert dict(stand_in.named_parameters()) == dict(block.named_parameters())
    assert list(stand_in.state_dict()) == list(block.state_dict())
    stand_in.note = 3
    assert block.note == 3
    del stand_in.note
    x = torch.ones(1, 8)
    twice: Any = lambda x: x * 2  # noqa: E731
    stand_in.forward = twice  # type: ignore[method-assign]
    assert torch.equal(stand_in(x), x * 2)
    assert torch.equal(block(x), x + block.linear(x))
    del stand_in.forward
    assert torch.equal(stand_in(x), block(x))
    assert vars(block) == before
    stand_in.linear = nn.Linear(8, 8)
    assert torch.equal(stand_in(x), x + stand_in.linear(x))
    assert stand_in.linear is block.linear


def test_a_forward_that_is_set_on_an_entry_of_the_list_takes_effect(studio, flux):
    """As our block hook does it, within."""
    calls, model = [], compiled(flux).clone()

    def hook(executor, *args, **kwargs):
        block = executor.class_obj.diffusion_model.single_blocks[0]
        assert isinstance(block, StandIn)
        own = block.forward

        def forward(x, **more):
            calls.append(1)
            return own(x, **more) * 2

        block.forward = forward  # type: ignore[method-assign]
        try:
            return executor(*args, **kwargs)
        finally:
            del block.forward

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "hook", hook)
    changed = studio.sample(model, steps=STEPS)
    assert len(calls) == STEPS
    assert not close(changed, studio.sample(flux, steps=STEPS))
    assert close(studio.sample(compiled(flux), steps=STEPS), studio.sample(flux, steps=STEPS))


@pytest.mark.parametrize("where", ["block", "part"])
def test_hooks_on_blocks_and_in_them_are_not_missed(studio, flux, where):
    model = compiled(flux)
    plain = studio.sample(model, steps=1)
    block = blocks_of(flux)[1]  # not the last: what follows that one does not depend on a factor
    handle = (block if where == "block" else block.linear1).register_forward_hook(lambda m, given, out: out * 1.5)
    try:
        changed = studio.sample(model, steps=1)
        assert not close(changed, plain)
        assert close(changed, studio.sample(flux, steps=1))
    finally:
        handle.remove()
    assert close(studio.sample(model, steps=1), plain)


def test_a_block_that_another_node_replaced(studio, flux):
    """An object patch is on the model only while it is loaded: blocks are looked up when they are called."""

    class Twice(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block = block

        def forward(self, x, **more):
            return self.block(x, **more) * 2

    model = compiled(flux)
    studio.sample(model, steps=1)
    for patched in (model.clone(), compiled(flux)):
        patched.add_object_patch("diffusion_model.single_blocks.0", Twice(flux.model.diffusion_model.single_blocks[0]))
        plain = flux.clone()
        plain.add_object_patch("diffusion_model.single_blocks.0", Twice(flux.model.diffusion_model.single_blocks[0]))
        assert close(studio.sample(patched, steps=1), studio.sample(plain, steps=1))
    assert close(studio.sample(model, steps=1), studio.sample(flux, steps=1))


# LoRAs


def with_patch(model, strength=1.0, seed=0):
    """As a LoRA loader does it: something is added to weights of two blocks."""
    patched, generator = model.clone(), torch.Generator().manual_seed(seed)
    weights = model.model.state_dict()
    names = [f"diffusion_model.{n}.weight" for n in ("double_blocks.0.img_attn.qkv", "single_blocks.1.linear1")]
    patches = {n: (torch.randn(weights[n].shape, generator=generator) * 0.05,) for n in names}
    assert sorted(patched.add_patches(patches, strength)) == sorted(names)
    return patched


@MOSTLY_BLOCKS
def test_a_lora_after_the_node_or_before_it_and_other_strengths(studio, flux, what):
    model = compiled(flux, what, "aot_eager")
    plain = studio.sample(model, steps=STEPS)
    # weights of older ComfyUIs want gradients until they are patched: that much is compiled for the first LoRA
    studio.sample(with_patch(model, 0.7), steps=STEPS)
    graphs, pictures = Graphs(), [plain]
    for strength in (1.0, 0.4, -1.0):
        after = studio.sample(with_patch(model, strength), steps=STEPS)
        before = studio.sample(compiled(with_patch(flux, strength), what, "aot_eager"), steps=STEPS)
        assert torch.equal(after, before)
        assert close(after, studio.sample(with_patch(flux, strength), steps=STEPS))
        assert not any(close(after, p) for p in pictures)
        pictures.append(after)
    assert torch.equal(studio.sample(model, steps=STEPS), plain)
    assert graphs.new == 0


def test_weights_that_are_patched_as_they_are_used(studio, flux, said, monkeypatch):
    """As those of a LoRA are where memory is short: compiled code would know the patch of one block, and blocks share it."""
    model = compiled(flux)
    plain, graphs = studio.sample(model, steps=1), Graphs()
    for factor in (1.5, 0.5):
        with monkeypatch.context() as patch:
            for block in blocks_of(flux)[1:]:
                patch.setattr(block.linear1, "weight_function", [lambda w, f=factor: w * f])
                patch.setattr(block.linear1, "comfy_cast_weights", True)
            changed = studio.sample(model, steps=1)
            assert not close(changed, plain)
            assert close(changed, studio.sample(flux, steps=1))
    assert close(studio.sample(model, steps=1), plain)
    assert graphs.new == 0
    (message,) = said()
    assert "run uncompiled" in message


# Other nodes


OTHERS = {
    "MeanCache": lambda: method_of(preset="Turbo"),
    "EasyCache": lambda: easycache_of("Turbo"),
    "of block level": lambda: Method(
        "Test", "", (Interval(2, 2),), Reuse(), blocks=Blocks(prefix=1, suffix=1, probe="none")
    ),
}


@MOSTLY_BLOCKS
@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("first", ["compile", "cache"])
def test_with_a_step_cache(studio, flux, smallest, cached, what, name, first):
    how, flux = {"steps": 8}, flux if name == "of block level" else smallest
    model, reports = cached(OTHERS[name](), flux)
    plain = studio.sample(model, **how)
    assert reports[0].skipped > 0
    graphs = Graphs()
    if first == "cache":
        both, reports = cached(OTHERS[name](), flux)
        both = compiled(both, what)
    else:
        both, reports = cached(OTHERS[name](), compiled(flux, what))
    assert close(studio.sample(both, **how), plain)
    skipped, compiled_once = reports[0].skipped, graphs.new
    assert skipped > 0
    assert compiled_once > 0
    assert close(studio.sample(both, **how), plain)
    assert [r.skipped for r in reports] == [skipped, skipped]
    assert graphs.new == compiled_once


def test_two_of_them_the_last_one_counts(studio, flux):
    model, graphs = compiled(compiled(flux, WHOLE_MODEL), EACH_BLOCK), Graphs()
    (wrapper,) = model.get_wrappers(WrappersMP.APPLY_MODEL, compiling.KEY)
    assert wrapper.settings.what == EACH_BLOCK
    assert close(studio.sample(model, steps=1), studio.sample(flux, steps=1))
    assert graphs.new == 2


def test_with_comfyuis_own_the_last_one_counts(studio, flux):
    """Nothing is compiled twice."""

    def own(model):
        return TorchCompileModel.execute(model, "cudagraphs")[0]

    (wrapper,) = own(compiled(flux)).get_wrappers(WrappersMP.APPLY_MODEL, compiling.KEY)
    assert not isinstance(wrapper, compiling.CompiledModel)
    (wrapper,) = compiled(own(flux)).get_wrappers(WrappersMP.APPLY_MODEL, compiling.KEY)
    assert isinstance(wrapper, compiling.CompiledModel)


def test_a_model_that_another_node_compiled_in_its_own_way(studio, flux, said):
    """As old compiling nodes do: with an object patch."""
    model = flux.clone()
    model.add_object_patch("diffusion_model", torch.compile(flux.model.diffusion_model, backend="eager"))
    assert close(studio.sample(compiled(model), steps=1), studio.sample(flux, steps=1))
    (message,) = said()
    assert "already" in message


def scaled(factor):
    def attention(function, *args, **kwargs):
        return function(*args, **kwargs) * factor

    return attention


@MOSTLY_BLOCKS
def test_attention_that_another_node_replaced(studio, flux, what):
    """As SageAttention nodes do: what was compiled without it, or with another, is not taken for it."""
    pictures = []
    for factor in (None, 0.5, 0.0, None):
        pair = [compiled(flux, what), flux.clone()]
        if factor is not None:
            override = scaled(factor)
            for m in pair:
                m.model_options["transformer_options"]["optimized_attention_override"] = override
        out, plain = (studio.sample(m, steps=1) for m in pair)
        assert close(out, plain)
        pictures.append(out)
    assert torch.equal(pictures[0], pictures[3])
    assert not close(pictures[0], pictures[1])
    assert not close(pictures[1], pictures[2])


@MOSTLY_BLOCKS
def test_patches_in_blocks(unet, studio, said, what):
    """As IPAdapter and PAG put them there. Patches between blocks do not prevent compiling."""
    latent, how = torch.zeros(1, 4, 16, 16), {"steps": 1}

    def patched(model, factor):
        model = model.clone()
        model.set_model_attn2_output_patch(lambda n, options: n * factor)
        return model

    def between(model, factor):
        model = model.clone()
        model.set_model_input_block_patch(lambda h, options: h * factor)
        return model

    for node, factors in ((patched, (0.0, 3.0)), (between, (0.5,) if what == EACH_BLOCK else ())):
        pictures = [studio.sample(compiled(unet, what), latent=latent, **how)]
        for factor in factors:
            out = studio.sample(node(compiled(unet, what), factor), latent=latent, **how)
            assert close(out, studio.sample(node(unet, factor), latent=latent, **how))
            assert not any(close(out, p) for p in pictures)
            pictures.append(out)
        messages = said()
        assert len(messages) == (2 if what == EACH_BLOCK else 0)
        assert all("attn2_output_patch" in m and WHOLE_MODEL in m for m in messages)


def test_a_wrapper_of_the_network_that_comes_later(studio, flux):
    """It runs in what is compiled of the whole model."""

    def times(factor):
        def wrapper(executor, *args, **kwargs):
            return executor(*args, **kwargs) * factor

        return wrapper

    pictures = []
    for factor in (1.0, 0.9, 0.5):
        pair = [compiled(flux, WHOLE_MODEL), flux.clone()]
        for m in pair:
            if factor != 1:
                m.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", times(factor))
        out, plain = (studio.sample(m, steps=1) for m in pair)
        assert close(out, plain)
        pictures.append(out)
    assert not close(pictures[0], pictures[1])
    assert not close(pictures[1], pictures[2])


@pytest.fixture
def shown(monkeypatch):
    """Texts on nodes, as (node, text)."""
    texts: list[tuple[str, str]] = []
    monkeypatch.setattr(compiling, "show_text", lambda text, node: texts.append((node, text)))
    return texts


def test_its_node_shows_the_state(shown):
    base, wrapper = Base(Network(3)), compiling.CompiledModel(Settings(backend="eager"), "7")
    for _ in range(2):
        call(wrapper, base, torch.randn(1, 4, 8), {})
    assert [node for node, _ in shown] == ["7", "7"]
    assert shown[0][1] == "Compiling block 1 of 3"
    assert re.fullmatch(r"Compiled 3 blocks in \d+(\.\d)? s", shown[1][1])
    other = compiling.CompiledModel(Settings(backend="eager"), "8")  # with these settings, on the same model
    for _ in range(2):
        call(other, base, torch.randn(1, 4, 8), {})
    assert shown[2:] == [("8", "Already compiled")]


def test_its_node_names_the_block_that_is_compiled(shown):
    network = Network(4)
    blocks: Any = network.inner.blocks
    blocks[2].linear = nn.Linear(8, 8, bias=False)  # of another structure
    call(compiling.CompiledModel(Settings(backend="eager"), "7"), Base(network), torch.randn(1, 4, 8), {})
    first, second, last = (text for _, text in shown)
    assert first == "Compiling block 1 of 4"
    assert re.fullmatch(r"Compiling block 3 of 4, \d+(\.\d)? s so far", second)
    assert last.startswith("Compiled 4 blocks in ")


@BOTH
def test_its_node_says_why_it_compiles_again(shown, what):
    settings = Settings(what, backend="eager", dynamic=False)
    base, wrapper = Base(Network(3)), compiling.CompiledModel(settings, "7")
    for size in (4, 4, 6, 4):
        call(wrapper, base, torch.randn(1, size, 8), {})
    part = "block 1 of 3" if what == EACH_BLOCK else "the model"
    assert [text for _, text in shown][0::2] == [f"Compiling {part}", f"Compiling {part} again: the size changed"]
    assert re.fullmatch(r"Compiled .* in .* s, again in .* s: the size changed", shown[-1][1])
    assert len(shown) == 4


def test_its_node_says_why_nothing_is_compiled(shown, monkeypatch):
    def run(*args):
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(code.ByTorch, "run", run)
    wrapper = compiling.CompiledModel(Settings(backend="eager"), "7")
    call(wrapper, Base(Network(3)), torch.randn(1, 4, 8), {})
    assert shown[-1][1].startswith("Not compiled: inductor needs a C and C++ compiler")


def test_the_state_is_shown_again_in_every_prompt(shown, monkeypatch):
    """ComfyUI keeps the MODEL from prompt to prompt, and the page may have been loaded anew."""
    current = ["a"]
    monkeypatch.setattr(compiling, "prompt_id", lambda: current[0])
    base, wrapper = Base(Network(3)), compiling.CompiledModel(Settings(backend="eager"), "7")
    for prompt in "aabbb":
        current[0] = prompt
        call(wrapper, base, torch.randn(1, 4, 8), {})
    assert len(shown) == 3 and shown[1] == shown[2] and shown[2][1].startswith("Compiled 3 blocks in ")


def test_options_that_change_all_the_time(said):
    """What is new of them runs uncompiled, rather than have the model compiled at every step; it is said which they are."""
    base, wrapper = Base(Network(3)), compiling.CompiledModel(Settings(backend="eager"))
    x, graphs = torch.randn(1, 4, 8), Graphs()
    for count in range(12):
        out = call(wrapper, base, x, {"strange_count": count})
        assert torch.allclose(out, base.diffusion_model(x, {}), atol=1e-6)
    assert graphs.new == compiling.SEEN
    (message,) = said()
    assert "strange_count" in message


def test_options_that_change_now_and_then(said):
    """However often in the life of a node, what is new is compiled: nothing changes all the time."""
    base, wrapper = Base(Network(3)), compiling.CompiledModel(Settings(backend="eager"))
    x, graphs = torch.randn(1, 4, 8), Graphs()
    for count in range(2 * compiling.SEEN):
        for _ in range(compiling.CALLS // compiling.SEEN + 1):
            call(wrapper, base, x, {"strange_count": count})
    assert graphs.new == 2 * compiling.SEEN
    assert not any("on every call" in message for message in said())


class Push(comfy.controlnet.ControlBase):
    """A ControlNet without a network: adds to what the first block gives."""

    def __init__(self):
        super().__init__()
        self.timestep_percent_range = (0.0, 0.5)

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        if t[0] < self.timestep_range[1]:
            return None
        added = torch.randn(1, 64, 64, generator=torch.Generator().manual_seed(1))
        return self.control_merge({"input": [added * 3], "middle": [], "output": []}, None, None)


def controlled(studio):
    more = {"control": Push(), "control_apply_to_uncond": True}
    return [[text, {**options, **more}] for text, options in studio.prompt()]


def hooked(studio):
    """A LoRA whose strength changes on the way."""
    weights = {}
    for name, shape in (("lora_up", (192, 4)), ("lora_down", (4, 64))):
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        weights[f"lora_unet_double_blocks_0_img_attn_qkv.{name}.weight"] = noise * 0.3
    group, frames = comfy.hooks.create_hook_lora(weights, 1.0, 0.0), comfy.hooks.HookKeyframeGroup()
    for percent, strength in ((0.0, 1.0), (0.5, 0.2)):
        frames.add(comfy.hooks.HookKeyframe(strength, percent))
    group.set_keyframes_on_hooks(frames)
    return comfy.hooks.set_hooks_for_conditioning(studio.prompt(), group)


def regional(studio):
    (part,) = ConditioningSetArea().append(
        studio.prompt("a green square"), width=64, height=128, x=0, y=0, strength=1.0
    )
    return ConditioningCombine().combine(studio.prompt(), part)[0]


def windows(model):
    return ContextWindowsManualNode.execute(model, 8, 4, "standard_static", 1, False, "pyramid", 2, False)[0]


# name: (what is done to the MODEL, the positive); on a Flux
FLUX_NODES: dict[str, Any] = {
    "skip layer guidance": (lambda m: SkipLayerGuidanceDiT.execute(m, 2.0, 0.0, 1.0, "0", "0")[0], None),
    "windows": (windows, None),
    "ControlNet": (None, controlled),
    "a LoRA with keyframes": (None, hooked),
    "a regional prompt": (None, regional),
}
UNET_NODES = {
    "FreeU": lambda m: FreeU_V2.execute(m, 1.3, 1.4, 0.9, 0.2)[0],
    "perturbed attention guidance": lambda m: PerturbedAttentionGuidance.execute(m, 3.0)[0],
}


@MOSTLY_BLOCKS
@pytest.mark.parametrize("name", FLUX_NODES)
def test_with_comfyuis_nodes(studio, smallest, what, name):
    node, positive = FLUX_NODES[name]
    given = positive(studio) if positive else None
    plain = studio.sample(node(smallest) if node else smallest, given, steps=4)
    assert not close(plain, studio.sample(smallest, steps=4))
    model, graphs = compiled(smallest, what), Graphs()
    for _ in range(2):
        assert close(studio.sample(node(model) if node else model, given, steps=4), plain)
        first = graphs.new
    assert first == graphs.new > 0
    if node:
        assert close(studio.sample(compiled(node(smallest), what), given, steps=4), plain)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("FreeU", EACH_BLOCK),
        ("perturbed attention guidance", EACH_BLOCK),
        pytest.param("perturbed attention guidance", WHOLE_MODEL, marks=pytest.mark.thorough),
    ],
)
def test_with_comfyuis_nodes_on_a_unet(studio, unet, tiny_unet, what, name):
    unet = tiny_unet if name == "FreeU" else unet  # it changes what is wider than a UNet's first level
    latent, node = torch.zeros(1, 4, 16, 16), UNET_NODES[name]
    plain = studio.sample(node(unet), latent=latent, steps=2)
    assert not close(plain, studio.sample(unet, latent=latent, steps=2))
    assert close(studio.sample(node(compiled(unet, what)), latent=latent, steps=2), plain)


# Where nothing can be compiled


@pytest.fixture
def broken_backend():
    """The name of a backend that fails as one without a C compiler does."""
    name = "skipstone_broken"

    def backend(graph, inputs, **options):
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

    torch._dynamo.register_backend(backend, name=name)
    yield name
    torch_backends._BACKENDS.pop(name)
    torch_backends._COMPILER_FNS.pop(name, None)


@BOTH
def test_where_there_is_no_compiler_the_model_runs_as_it_is(studio, flux, said, broken_backend, what):
    model = compiled(flux, what, broken_backend)
    plain = studio.sample(flux, steps=STEPS)
    assert torch.equal(studio.sample(model, steps=STEPS), plain)
    (message,) = said()
    assert "uncompiled" in message
    assert "Failed to find C compiler" in message
    assert "gcc" in message and "Visual Studio" in message
    # another node logs it again, the same one does not
    assert torch.equal(studio.sample(model, steps=STEPS), plain)
    assert len(said()) == 1
    assert torch.equal(studio.sample(compiled(flux, what, broken_backend), steps=STEPS), plain)
    assert len(said()) == 2


def test_what_breaks_a_full_graph_is_named(studio, flux, said, monkeypatch):
    block = blocks_of(flux)[2]
    own = block.linear1.forward

    def breaks(x):
        torch._dynamo.graph_break()
        return own(x)

    for b in blocks_of(flux)[1:]:
        monkeypatch.setattr(b.linear1, "forward", breaks)
    plain = studio.sample(flux, steps=1)
    assert close(studio.sample(compiled(flux), steps=1), plain)
    assert said() == []
    assert torch.equal(studio.sample(compiled(flux, fullgraph=True), steps=1), plain)
    (message,) = said()
    assert "fullgraph" in message


def test_inductor(studio, tiny_flux):
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception:
        pytest.skip("there is no C compiler here")
    options = (("epilogue_fusion", True), ("max_fusion_size", 32))
    model, graphs = compiled(tiny_flux, backend="inductor", mode="default", options=options), Graphs()
    assert close(studio.sample(model, steps=2), studio.sample(tiny_flux, steps=2))
    assert graphs.new == 2


def test_inductor_without_a_c_compiler(studio, tiny_flux, said):
    model = compiled(tiny_flux, backend="inductor")
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        assert torch.equal(studio.sample(model, steps=1), studio.sample(tiny_flux, steps=1))
    (message,) = said()
    assert "gcc" in message


# Dynamic VRAM, other compilers, and the node


class Dynamic:
    """A MODEL under dynamic VRAM, as far as the node asks."""

    def __init__(self, model, error=None):
        self.inner, self.error, self.asked, self.loaded = model, error, [], 0

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def is_dynamic(self):
        return True

    def clone(self, disable_dynamic=False, model_override=None):
        self.asked.append(disable_dynamic)
        if disable_dynamic and self.error:
            raise self.error
        if not disable_dynamic:
            return self.inner.clone()
        self.loaded += model_override is None
        patched = self.inner.clone()
        patched.model = copy.copy(self.inner.model) if model_override is None else model_override[0]
        return patched


def test_a_model_under_dynamic_vram_is_compiled_without(flux):
    model = Dynamic(flux)
    assert compiled(model).get_wrappers(WrappersMP.APPLY_MODEL, compiling.KEY)
    assert model.asked == [True]


def test_its_file_is_loaded_again_once(flux):
    """However often the node runs, and with whatever settings, for as long as one of its MODELs lives."""
    model = Dynamic(flux)
    first = compiled(model)
    further = compiled(model, mode="max-autotune").clone()
    assert first.model is further.model is not flux.model
    assert model.loaded == 1
    del first
    gc.collect()
    assert compiled(model).model is further.model and model.loaded == 1
    del further
    gc.collect()
    compiled(model)
    assert model.loaded == 2


def test_one_that_cannot_be_had_without_runs_uncompiled(studio, flux, said):
    model = Dynamic(flux, RuntimeError("cached_patcher_init is not initialized"))
    patched = compiled(model)
    assert not patched.get_wrappers(WrappersMP.APPLY_MODEL, compiling.KEY)
    assert model.asked == [True, False]
    (message,) = said()
    assert "--disable-dynamic-vram" in message


@pytest.fixture
def packages(monkeypatch):
    """Installed packages that offer compilers; which were loaded, and what they were asked."""
    asked, loaded = [], []

    def good(module, **how):
        asked.append((module, how))
        return lambda *args, **kwargs: module.forward(*args, **kwargs)

    def bad(module, **how):
        raise RuntimeError("no licence")

    def point(name, function):
        def load():
            loaded.append(name)
            return function

        return SimpleNamespace(name=name, load=load)

    points = [point("good", good), point("bad", bad)]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == "skipstone.compilers" else [])
    registry.offered.cache_clear()
    yield SimpleNamespace(asked=asked, loaded=loaded)
    registry.offered.cache_clear()


def test_a_compiler_of_an_installed_package(studio, flux, packages):
    model, graphs = compiled(flux, compiler="good", mode="max-autotune", backend="inductor"), Graphs()
    assert packages.loaded == []  # not before it is needed
    assert torch.equal(studio.sample(model, steps=STEPS), studio.sample(flux, steps=STEPS))
    assert [module for module, _ in packages.asked] == blocks_of(flux)
    assert packages.asked[0][1] == {
        "mode": "max-autotune",
        "backend": "inductor",
        "fullgraph": False,
        "dynamic": None,
        "options": {},
    }
    assert graphs.new == 0
    studio.sample(compiled(flux, compiler="good", mode="max-autotune", backend="inductor"), steps=1)
    assert len(packages.asked) == len(blocks_of(flux))


def test_a_module_that_comes_later_is_not_taken_for_one_that_is_gone(packages):
    """Another compiler's code is of one module alone, and Python gives a new object the place of one that is gone."""
    there = module_swap.ModuleSwapper(Settings(compiler="good"))
    found = []
    for _ in range(20):
        found.append(there.compiled(StandIn(torch.nn.Linear(2, 2), there, False), ()))
        gc.collect(0)
    assert len({*map(id, found)}) == 20


def test_a_compiler_of_an_installed_package_that_fails(studio, flux, packages, said):
    assert torch.equal(studio.sample(compiled(flux, compiler="bad"), steps=1), studio.sample(flux, steps=1))
    (message,) = said()
    assert "no licence" in message


@pytest.mark.parametrize("name", ["json.loads", "os:system", "better", ""])
def test_a_compiler_that_nobody_offers_is_not_looked_for(flux, packages, name):
    with pytest.raises(ValueError, match=r"compiler is one of torch\.compile, good, bad"):
        run(flux, compiler=name)
    assert packages.loaded == []


@pytest.mark.parametrize("name", ["os.system", "json:loads", "/tmp/x.so", "TENSORRT"])
def test_a_backend_that_is_not_installed_is_not_looked_for(flux, name):
    with pytest.raises(ValueError, match=r"backend is one of inductor, cudagraphs"):
        run(flux, backend=name)


def run(model, **widgets):
    values = {i.id: i.default for i in CompileModel.define_schema().inputs if i.id != "model"}
    return CompileModel.execute(model=model, **{**values, "backend": "eager", **widgets})[0]


def test_the_node(studio, flux):
    graphs = Graphs()
    assert close(studio.sample(run(flux), steps=1), studio.sample(flux, steps=1))
    assert graphs.new == 2
    assert run(flux, disable=True) is flux


def test_the_node_says_what_is_wrong(flux):
    for bad, message in (
        ({"options": '{"cpp.cxx": "rm"}', "backend": "inductor"}, "cpp.cxx"),
        ({"options": '{"max_autotune": true}'}, "the backend eager takes none"),
        ({"dynamic": "maybe"}, "dynamic is one of"),
        ({"compile": "half"}, "compile is one of"),
        ({"mode": "fast"}, "mode is one of"),
    ):
        with pytest.raises(ValueError, match=message):
            run(flux, **bad)
    with pytest.raises(ValueError, match="diffusion MODEL"):
        run(SimpleNamespace())


def test_its_widgets_are_explained():
    for i in CompileModel.define_schema().inputs:
        assert i.tooltip.endswith("."), i.id


# Several GPUs, and memory


def test_cuda_graphs_are_for_one_gpu(studio, flux, said):
    model, graphs = compiled(flux, mode="reduce-overhead", backend="inductor"), Graphs()

    def on_several(executor: Any, *args: Any, **kwargs: Any) -> Any:
        options = args[5] if len(args) > 5 else kwargs["transformer_options"]
        options["multigpu_thread_device"] = torch.device("cpu")
        return executor(*args, **kwargs)

    model = model.clone()
    spread = flux.clone()
    spread.wrappers = {}
    spread.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "spread", on_several)
    for key, wrappers in model.wrappers[WrappersMP.APPLY_MODEL].items():
        for wrapper in wrappers:
            spread.add_wrapper_with_key(WrappersMP.APPLY_MODEL, key, wrapper)
    assert torch.equal(studio.sample(spread, steps=2, cfg=1.0), studio.sample(flux, steps=2, cfg=1.0))
    assert graphs.new == 0
    (message,) = said()
    assert "one GPU only" in message


@pytest.mark.parametrize(("name", "written"), [("QwenImage", False), ("LTXV", True)])
def test_arguments_are_copied_only_where_blocks_write_to_them(monkeypatch, name, written):
    """For a second try where compiling fails: a video's take gigabytes."""
    tiny = next(t for t in zoo.MODELS if t.name == name)
    model = tiny.build()
    copied: list[Any] = []
    own = module_swap._copied

    def copy_of(*given: Any) -> Any:
        copied.append(given)
        return own(*given)

    monkeypatch.setattr(module_swap, "_copied", copy_of)
    graphs = Graphs()
    zoo.sample(tiny, compiled(model), *tiny.conds(model), steps=1)
    assert graphs.new
    assert bool(copied) == written
