"""What else is done to the MODEL: never skipping is bit-equal in every precision (law 9); LoRA before and after the node."""

from __future__ import annotations

import comfy.sd
import pytest
import torch

from .floors import SAME_PICTURE

NEVER = {
    "the whole budget": {"preset": "Custom", "budget": 1.0},
    "warmup": {"preset": "Custom", "budget": 0.2, "warmup": 1000},
    "a window without steps": {"preset": "Custom", "budget": 0.2, "start_percent": 1.0},
    "an empty window": {"preset": "Custom", "budget": 0.2, "start_percent": 0.6, "end_percent": 0.4},
}


@pytest.mark.parametrize("how", NEVER)
def test_never_skipping_is_the_unpatched_model(studio, meancache, watched, how):
    patched, reports = meancache(**NEVER[how])
    model, watch = watched(patched)
    assert torch.equal(studio.sample(model), studio.full())
    watch.agrees_with(reports[0])
    assert all(watch.computed)
    (note,) = reports[0].notes
    assert note.startswith("nothing was skipped")


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m_sde", "euler_ancestral_cfg_pp"])
def test_never_skipping_with_other_samplers(studio, meancache, sampler):
    model, reports = meancache(preset="Custom", budget=1.0)
    assert torch.equal(studio.sample(model, sampler=sampler), studio.full(sampler=sampler))
    assert reports[0].skipped == 0


def in_precision(studio, dtype):
    return comfy.sd.load_diffusion_model(studio.files["flux"], model_options={"dtype": dtype})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_half_precision(studio, meancache, watched, dtype):
    """As UNETLoader's weight_dtype, and a checkpoint's own, have it."""
    half = in_precision(studio, dtype)
    assert half.model_dtype() == dtype
    full = studio.sample(half)
    assert torch.equal(studio.sample(meancache(half, preset="Custom", budget=1.0)[0]), full)
    patched, reports = meancache(half, preset="Turbo")
    model, watch = watched(patched)
    out = studio.sample(model)
    watch.agrees_with(reports[0])
    assert reports[0].skipped > 0
    assert out.dtype == full.dtype
    assert torch.isfinite(out).all()
    assert (out - full).norm() < SAME_PICTURE * full.norm()


@pytest.mark.parametrize("device", ["auto", "gpu", "cpu"])
def test_where_the_history_is_kept_changes_nothing(studio, meancache, device):
    assert torch.equal(studio.sample(meancache(preset="Turbo", history_device=device)[0]), turbo(studio, meancache))


def turbo(studio, meancache, model=None, **how):
    return studio.sample(meancache(model, preset="Turbo")[0], **how)


def test_under_inference_mode_as_comfyui_runs_nodes(studio, meancache):
    with torch.inference_mode():
        inside = turbo(studio, meancache)
    assert torch.equal(inside, turbo(studio, meancache))


def lora(studio, seed=0):
    """Weights of a small LoRA on two of the model's layers, under the names that trainers give them."""
    generator, weights = torch.Generator().manual_seed(seed), {}
    blocks = studio.model.model.diffusion_model
    layers = {
        "double_blocks_0_img_attn_qkv": blocks.double_blocks[0].img_attn.qkv,
        "single_blocks_1_linear1": blocks.single_blocks[1].linear1,
    }
    for name, layer in layers.items():
        out, into = layer.weight.shape
        weights[f"lora_unet_{name}.lora_up.weight"] = torch.randn(out, 4, generator=generator) * 0.05
        weights[f"lora_unet_{name}.lora_down.weight"] = torch.randn(4, into, generator=generator) * 0.05
    return weights


def with_lora(model, weights):
    return comfy.sd.load_lora_for_models(model, None, weights, 1.0, 0.0)[0]


def test_a_lora_before_the_node_or_after_it(studio, meancache):
    weights = lora(studio)
    before, reports = meancache(with_lora(studio.model, weights), preset="Turbo")
    after = with_lora(meancache(preset="Turbo")[0], weights)
    out = studio.sample(before)
    assert torch.equal(out, studio.sample(after))
    assert reports[0].skipped > 0
    # it took effect, on computed steps and on skipped ones
    plain = turbo(studio, meancache)
    assert not torch.allclose(out, plain, atol=1e-2)
    # and is gone with the MODEL that had it
    assert torch.equal(turbo(studio, meancache), plain)


def test_never_skipping_with_a_lora(studio, meancache):
    changed = with_lora(studio.model, lora(studio))
    assert torch.equal(studio.sample(meancache(changed, preset="Custom", budget=1.0)[0]), studio.sample(changed))


def test_two_loras_in_turn_on_one_cached_model(studio, meancache):
    cached, _ = meancache(preset="Turbo")
    first, second = (with_lora(cached, lora(studio, seed)) for seed in (1, 2))
    outs = [studio.sample(m) for m in (first, second, first, cached)]
    assert torch.equal(outs[0], outs[2])
    assert not torch.equal(outs[0], outs[1])
    assert torch.equal(outs[3], turbo(studio, meancache))
