"""Who an encoder is, where it is too large to be read in full, and where its weights are no plain numbers."""

import gc
import weakref

import pytest
import torch

from skipstone.core.memo.errors import Refused
from skipstone.patch import identity


@pytest.fixture
def large(monkeypatch):
    """Every encoder counts as too large to be read in full."""
    monkeypatch.setattr(identity, "WHOLE", 0)


def embedding(clip):
    return clip.cond_stage_model.clip_l.transformer.text_model.embeddings.token_embedding.weight


def test_a_large_encoder_is_known_by_samples(large, make_clip):
    def merged(clip):
        for weight in clip.cond_stage_model.parameters():
            weight.lerp_(torch.ones_like(weight), 0.01)

    def one_layer(clip):
        clip.cond_stage_model.clip_l.transformer.text_model.encoder.layers[1].mlp.fc1.weight.mul_(1.01)

    def last_token(clip):
        embedding(clip)[-1] += 1

    prints = []
    for change in (lambda clip: None, merged, one_layer, last_token):
        clip = make_clip()
        change(clip)
        prints.append(identity.of_clip(clip).digest)
    assert len(set(prints)) == 4
    assert identity.of_clip(make_clip()).digest == prints[0]


def test_samples_and_the_whole_are_not_taken_for_each_other(make_clip, monkeypatch):
    whole = identity.of_clip(make_clip()).digest
    monkeypatch.setattr(identity, "WHOLE", 0)
    assert identity.of_clip(make_clip()).digest != whole


def test_it_is_worked_out_once(make_vae, monkeypatch):
    vae = make_vae()
    first = identity.of_vae(vae)

    def never(*_):
        raise AssertionError("read again")

    monkeypatch.setattr(identity, "as_loaded", never)
    assert identity.of_vae(vae) == first


def test_it_keeps_no_encoder_alive(make_vae):
    vae = make_vae()
    identity.of_vae(vae)
    module, patcher = weakref.ref(vae.first_stage_model), weakref.ref(vae.patcher)
    del vae
    gc.collect()
    assert module() is None and patcher() is None


def test_quantized_weights_are_told_by_data_and_scale():
    quant = pytest.importorskip("comfy.quant_ops")
    if not hasattr(getattr(quant, "QuantizedTensor", None), "state_dict"):
        pytest.skip("this ComfyUI has no such weights")
    weight = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    made = [quant.QuantizedTensor.from_float(w, "TensorCoreFP8Layout") for w in (weight, weight.clone(), weight * 2)]
    prints = [identity._read([("w", torch.nn.Parameter(m, requires_grad=False))]) for m in made]
    assert prints[0] == prints[1] != prints[2]
    assert identity._read([("w", weight)]) not in prints


def test_weights_that_say_nothing_are_refused():
    class Strange(torch.Tensor):
        pass

    with pytest.raises(Refused, match="weights of class Strange"):
        identity._read([("w", torch.ones(3).as_subclass(Strange))])


def test_the_code_that_it_runs_is_part_of_it(make_vae, monkeypatch):
    vae, same = make_vae(), make_vae()
    sources = identity.of_vae(vae).sources
    assert {"comfy.sd", "comfy.ops", "comfy.ldm.models.autoencoder", "comfy.ldm.modules.diffusionmodules.model"} <= set(
        sources
    )
    before, read = identity.of_vae(same).digest, identity.source_of
    monkeypatch.setattr(identity, "source_of", lambda m: "changed" if m == "comfy.ldm.models.autoencoder" else read(m))
    assert identity.of_vae(make_vae()).digest != before
