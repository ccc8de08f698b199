"""The block hook on UNets under ComfyUI's own nodes: a skip is the network with the deep feature of the last computed step in it."""

from __future__ import annotations

from typing import Any

import comfy.cldm.cldm
import comfy.controlnet
import comfy.ops
import comfy.sample
import pytest
import torch
from comfy_extras.nodes_freelunch import FreeU, FreeU_V2
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_model_downscale import PatchModelAddDownscale
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_perpneg import PerpNeg
from comfy_extras.nodes_sag import SelfAttentionGuidance
from comfy_extras.nodes_tomesd import TomePatchModel

from nodes import ConditioningCombine, ConditioningSetArea, ControlNetApplyAdvanced
from skipstone.patch.step.attach import attach
from skipstone.tests.comfy import zoo
from skipstone.tests.comfy.block_observer import below, every
from skipstone.tests.comfy.test_unet_hook import NAMED, a_skip_is_as_it_should_be
from skipstone.tests.comfy.zoo import base, unet

STEPS = 5
TINY = NAMED["BaseModel (SD 1)"]


@pytest.fixture(scope="module")
def small():
    """A MODEL of five input and five output blocks, of 32 and 64 channels, for latents of 4 x 8 x 8."""
    return TINY.build()


@pytest.fixture(scope="module")
def prompts(small):
    return TINY.conds(small)


def sampled(model, conds, steps=STEPS, **how):
    torch.manual_seed(0)  # some nodes draw lots as they go
    with torch.inference_mode():
        return zoo.sample(TINY, model, *conds, steps=steps, **how)


def regional(positive):
    (left,) = ConditioningSetArea().append(base.words(5, unet.TEXT, 5), width=32, height=64, x=0, y=0, strength=1.0)
    return ConditioningCombine().combine(positive, left)[0]


# by name: the MODEL with the node on it
NODES: dict[str, Any] = {
    "FreeU": lambda m: FreeU.execute(m, 1.3, 1.4, 0.9, 0.2)[0],
    "FreeU_V2": lambda m: FreeU_V2.execute(m, 1.3, 1.4, 0.9, 0.2)[0],
    "Deep Shrink in an outer block": lambda m: shrunk(m, 1),
    "Deep Shrink in an inner block": lambda m: shrunk(m, 3),
    "Deep Shrink after the skip connection": lambda m: shrunk(m, 1, after=True),
    "perturbed attention": lambda m: PerturbedAttentionGuidance.execute(m, 3.0)[0],
    "self-attention guidance": lambda m: SelfAttentionGuidance.execute(m, 0.5, 2.0)[0],
    "Perp-Neg": lambda m: PerpNeg.execute(m, base.words(4, unet.TEXT, 6), 1.0)[0],
    "HyperTile": lambda m: HyperTile.execute(m, 32, 2, 0, False)[0],
    "ToMe": lambda m: TomePatchModel.execute(m, 0.3)[0],
    "a patch that writes to what it is given": lambda m: scribbled(m),
}  # fmt: skip
RANDOM = ("HyperTile", "ToMe")


def shrunk(model, block, after=False):
    return PatchModelAddDownscale.execute(model, block, 2.0, 0.0, 0.6, after, "bicubic", "bicubic")[0]


def scribbled(model):
    patched = model.clone()
    patched.set_model_input_block_patch(lambda h, options: h.mul_(1.1))
    patched.set_model_output_block_patch(lambda h, skip, options: (h.mul_(0.9), skip.add_(0.1)))
    return patched


@pytest.mark.parametrize("node", NODES)
def test_never_skipping_is_bit_equal(small, prompts, node):
    model = NODES[node](small)
    reports: list[Any] = []
    plain = sampled(model, prompts)
    assert not torch.equal(plain, sampled(small, prompts))  # the node did something
    for method in (every(1), below(0.0)):
        assert torch.equal(sampled(attach(model, method, (reports.append,)), prompts), plain)
    assert [r.skipped for r in reports] == [0, 0]


@pytest.mark.parametrize("node", [n for n in NODES if n not in RANDOM])
def test_a_skip_under_a_node(small, prompts, node):
    a_skip_is_as_it_should_be(TINY, NODES[node](small), prompts, 1, 2)


@pytest.mark.parametrize("node", RANDOM)
def test_where_lots_are_drawn_a_skip_still_skips(small, prompts, node):
    reports: list[Any] = []
    assert torch.isfinite(sampled(attach(NODES[node](small), every(2), (reports.append,)), prompts)).all()
    assert reports[0].skipped == 2


# ControlNets


@pytest.fixture(scope="module")
def control_net(small):
    """A CONTROL_NET as ComfyUI loads one for this UNet, tiny, with random weights."""
    config = {
        k: v
        for k, v in small.model.model_config.unet_config.items()
        if k not in ("out_channels", "disable_unet_model_creation")
    }
    network = comfy.cldm.cldm.ControlNet(**config, hint_channels=3, operations=comfy.ops.disable_weight_init)
    base.fill(network, 7)
    device = torch.device("cpu")
    return comfy.controlnet.ControlNet(network.eval(), load_device=device)


def controlled(prompts, control_net, start=0.0, end=1.0):
    picture = base.normal(1, 64, 64, 3, seed=8).sigmoid()
    return ControlNetApplyAdvanced().apply_controlnet(*prompts, control_net, picture, 1.0, start, end)


@pytest.mark.parametrize(("prefix", "suffix"), [(1, 0), (1, 2)])
def test_a_skip_under_a_controlnet(small, prompts, control_net, prefix, suffix):
    a_skip_is_as_it_should_be(TINY, small, controlled(prompts, control_net), prefix, suffix)


def test_never_skipping_under_a_controlnet_is_bit_equal(small, prompts, control_net):
    conds = controlled(prompts, control_net, 0.2, 0.7)
    plain = sampled(small, conds)
    assert not torch.equal(plain, sampled(small, prompts))
    assert torch.equal(sampled(attach(small, below(0.0)), conds), plain)


@pytest.mark.parametrize("begins", [True, False])
def test_where_a_controlnet_begins_or_ends_is_computed(small, prompts, control_net, begins):
    steps = 8
    # with every(4) steps 2, 3 and 5, 6 are skipped
    reports: list[Any] = []
    model = attach(small, every(4), (reports.append,))
    sampled(model, prompts, steps)
    plain = [e.computed for e in reports[0].evaluations]
    step = next(i for i in range(2, steps) if not any(plain[i - 1 : i + 2]))
    sampling, sigmas = small.get_model_object("model_sampling"), [e.sigma for e in reports[0].evaluations]
    edge = (sigmas[step] + sigmas[step - 1]) / 2
    percent = next(p / 1000 for p in range(1001) if sampling.percent_to_sigma(p / 1000) < edge)
    sampled(model, controlled(prompts, control_net, *((percent, 1.0) if begins else (0.0, percent))), steps)
    assert [e.computed for e in reports[1].evaluations][step - 1 : step + 1] == [False, True]
    assert reports[1].evaluations[step].reason == "conditioning change"


# How conditionings are batched


def test_whether_conditionings_are_run_together_may_change_from_step_to_step(small, prompts, monkeypatch):
    positive, negative = prompts
    conds = (regional(positive), negative)
    reports: list[Any] = []
    model = attach(small, every(2, 1, 1), (reports.append,))
    together = sampled(model, conds)
    sizes: list[int] = []
    handle = small.model.diffusion_model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    turn = iter([0] * 4 + [1 << 40] * 2 + [0] * 100)
    monkeypatch.setattr(type(small), "get_free_memory", lambda *_: next(turn))
    split = sampled(model, conds)
    handle.remove()
    assert {1, 2} <= set(sizes)
    assert reports[1].skipped == reports[0].skipped == 2
    torch.testing.assert_close(split, together, atol=1e-4, rtol=1e-3)


def test_two_sizes_one_after_the_other(small, prompts):
    model = attach(small, every(2))
    sizes = [torch.zeros(1, 4, 8, 8), torch.zeros(2, 4, 16, 8), torch.zeros(1, 4, 8, 8)]

    def run(model, latent):
        noise = comfy.sample.prepare_noise(latent, 1)
        return comfy.sample.sample(
            model, noise, STEPS, 3.0, "euler", "simple", *prompts, latent, seed=1, disable_pbar=True
        )

    for latent in sizes:
        assert torch.equal(run(model, latent), run(attach(small, every(2)), latent))
