"""Who an encoder is, where it is too large to be read in full, and where its weights are no plain numbers."""

import functools
import gc
import weakref

import comfy.sd
import comfy.sd1_clip
import pytest
import torch

from skipstone.core.memo.errors import NotCacheable
from skipstone.patch.memo import fingerprint, source_code
from skipstone.patch.memo.environment import environment_digest


@pytest.fixture
def large(monkeypatch):
    """Every encoder counts as too large to be read in full."""
    monkeypatch.setattr(fingerprint, "WHOLE", 0)


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
        prints.append(fingerprint.of_clip(clip).digest)
    assert len(set(prints)) == 4
    assert fingerprint.of_clip(make_clip()).digest == prints[0]


def test_samples_and_the_whole_are_not_taken_for_each_other(make_clip, monkeypatch):
    whole = fingerprint.of_clip(make_clip()).digest
    monkeypatch.setattr(fingerprint, "WHOLE", 0)
    assert fingerprint.of_clip(make_clip()).digest != whole


def test_it_is_worked_out_once(make_vae, monkeypatch):
    vae = make_vae()
    first = fingerprint.of_vae(vae)

    def never(*_):
        raise AssertionError("read again")

    monkeypatch.setattr(fingerprint, "_base", never)
    assert fingerprint.of_vae(vae) == first


def test_it_keeps_no_encoder_alive(make_vae):
    vae = make_vae()
    fingerprint.of_vae(vae)
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
    prints = [fingerprint._read([("w", torch.nn.Parameter(m, requires_grad=False))]) for m in made]
    assert prints[0] == prints[1] != prints[2]
    assert fingerprint._read([("w", weight)]) not in prints


def test_weights_whose_elements_cannot_be_read_are_refused():
    class Strange(torch.Tensor):
        @staticmethod
        def __new__(cls):
            return torch.Tensor._make_wrapper_subclass(cls, (3,))

        @classmethod
        def __torch_dispatch__(cls, *_, **__):
            raise RuntimeError("not for you")

    with pytest.raises(NotCacheable, match="weights of class Strange"):
        fingerprint._read([("w", Strange())])


def bent(conv, factor):
    """As packs for seamless pictures bend an encoder: a method of one layer is put in another's place."""

    def forward(self, x, weight, bias):
        return torch.nn.functional.conv2d(x, weight, bias, self.stride, self.padding) * factor

    conv._conv_forward = forward.__get__(conv)


def test_what_is_changed_in_place_later_is_another(make_vae):
    vae = make_vae()
    conv = vae.first_stage_model.encoder.conv_in
    prints = [fingerprint.of_vae(vae).digest]
    conv.padding_mode = "circular"
    prints.append(fingerprint.of_vae(vae).digest)
    bent(conv, 2.0)
    prints.append(fingerprint.of_vae(vae).digest)
    bent(conv, 3.0)
    prints.append(fingerprint.of_vae(vae).digest)
    conv.forward = functools.partial(torch.nn.functional.relu, inplace=False)
    prints.append(fingerprint.of_vae(vae).digest)
    conv.forward = functools.partial(torch.nn.functional.gelu, approximate="none")
    prints.append(fingerprint.of_vae(vae).digest)
    assert len(set(prints)) == len(prints)
    del conv.forward, conv._conv_forward
    conv.padding_mode = "zeros"
    assert fingerprint.of_vae(vae).digest == prints[0]


@pytest.mark.parametrize("hook", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_on_its_modules_are_refused(make_vae, hook):
    vae = make_vae()
    fingerprint.of_vae(vae)
    handle = getattr(vae.first_stage_model.encoder.conv_in, hook)(lambda *_: None)
    with pytest.raises(NotCacheable, match="hook"):
        fingerprint.of_vae(vae)
    handle.remove()
    fingerprint.of_vae(vae)


def test_methods_that_another_pack_put_in_place_are_part_of_it(make_vae, make_clip, monkeypatch):
    """They are in no source file of ComfyUI's."""
    before = [fingerprint.of_vae(make_vae()).digest, fingerprint.of_clip(make_clip()).digest]
    crop, encode = comfy.sd.VAE.vae_encode_crop_pixels, comfy.sd1_clip.SDClipModel.encode
    monkeypatch.setattr(comfy.sd.VAE, "vae_encode_crop_pixels", lambda self, pixels: crop(self, pixels))
    monkeypatch.setattr(comfy.sd1_clip.SDClipModel, "encode", lambda self, tokens: encode(self, tokens))
    after = [fingerprint.of_vae(make_vae()).digest, fingerprint.of_clip(make_clip()).digest]
    assert not set(before) & set(after)


def test_code_that_changed_under_a_running_comfyui_is_refused(tmp_path):
    """What runs is what was imported; what lies there now is what the next process runs."""
    (tmp_path / "changed_under_us.py").write_text("")
    with pytest.raises(NotCacheable, match="since ComfyUI was started"):
        source_code.pack_digest(str(tmp_path / "changed_under_us.py"))


def test_what_was_not_foreseen_is_refused(make_vae, make_clip, monkeypatch):
    vae, clip = make_vae(), make_clip()
    monkeypatch.delattr(comfy.sd.VAE, "vae_output_dtype")
    monkeypatch.delattr(type(clip.cond_stage_model), "reset_clip_options")
    with pytest.raises(NotCacheable, match="VAE that is not understood"):
        fingerprint.of_vae(vae)
    with pytest.raises(NotCacheable, match="CLIP that is not understood"):
        fingerprint.of_clip(clip)


@pytest.mark.parametrize("name", ["cuda.matmul", "cudnn.conv", "mkldnn.matmul"])
def test_switches_of_precision_by_their_new_names(name):
    """Once one has been set, PyTorch raises where it is read by its older name."""
    backend = functools.reduce(getattr, name.split("."), torch.backends)
    if not hasattr(backend, "fp32_precision"):
        pytest.skip("a PyTorch without them")
    device = torch.device("cpu")
    before, plain = backend.fp32_precision, environment_digest(device)
    try:
        found = []
        for value in ("ieee", "tf32"):
            backend.fp32_precision = value
            found.append(environment_digest(device))
    finally:
        backend.fp32_precision = before
    assert len({plain, *found}) > 1
    assert environment_digest(device) == plain


class GGMLTensor(torch.Tensor):
    """Stands for ComfyUI-GGUF's: blocks of bytes, with the shape and kind of quantization beside them."""

    @staticmethod
    def of(blocks, kind, shape):
        made = blocks.as_subclass(GGMLTensor)
        made.tensor_type, made.tensor_shape, made.patches = kind, torch.Size(shape), []
        return made


@pytest.mark.parametrize("whole", [True, False])
def test_gguf_weights_are_known_by_their_blocks_and_kind(monkeypatch, whole):
    if not whole:
        monkeypatch.setattr(fingerprint, "WHOLE", 0)
    blocks = torch.randint(0, 255, (64, 144), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    edited = blocks.clone()
    edited[40, 100] += 1
    weights = [
        GGMLTensor.of(blocks.clone(), "Q4_K", (64, 256)),
        GGMLTensor.of(blocks.clone(), "Q4_K", (64, 256)),
        GGMLTensor.of(edited, "Q4_K", (64, 256)),
        GGMLTensor.of(blocks.clone(), "Q5_K", (64, 256)),
        GGMLTensor.of(blocks.clone(), "Q4_K", (256, 64)),
        blocks,
    ]
    prints = [fingerprint._read([("w", weight)]) for weight in weights]
    assert prints[0] == prints[1] and len(set(prints)) == 5
