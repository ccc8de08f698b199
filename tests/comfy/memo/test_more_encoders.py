"""What is computed twice beside latents and prompts: generated texts, and what vision and audio encoders give."""

from __future__ import annotations

from typing import Any

import comfy.audio_encoders.audio_encoders
import comfy.clip_vision
import comfy.sd
import pytest
import torch
from comfy import supported_models_base
from comfy.text_encoders import z_image
from comfy_extras import nodes_audio_encoder, nodes_textgen

import nodes
from skipstone.nodes import memo as memo_nodes
from skipstone.patch.memo import observation
from skipstone.patch.memo.encoders import memo_clip
from skipstone.patch.memo.perception import memo_audio_encoder, memo_clip_vision
from skipstone.tests.comfy.memo.conftest import randomized

TINY_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
TINY_VISION = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "num_channels": 3,
    "patch_size": 14,
    "image_size": 56,
    "projection_dim": 16,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
TINY_AUDIO = {"model_type": "wav2vec2", "embed_dim": 32, "num_heads": 2, "num_layers": 2}


def language_model(seed=0):
    options = {"qwen3_4b_model_config": dict(TINY_LLAMA), "dtype": torch.float32}
    target = supported_models_base.ClipTarget(z_image.ZImageTokenizer, z_image.ZImageTEModel)
    made = comfy.sd.CLIP(target, model_options=options)
    randomized(made.cond_stage_model, seed)
    return made


def vision(seed=0, **more):
    made = comfy.clip_vision.ClipVisionModel({**TINY_VISION, **more})
    randomized(made.model, seed)
    return made


def audio_encoder(seed=0):
    made = comfy.audio_encoders.audio_encoders.AudioEncoderModel(dict(TINY_AUDIO))
    randomized(made.model, seed, 0.05)
    return made


@pytest.fixture(scope="module")
def plain_llm():
    return language_model()


# generated texts

SAMPLED = {
    "sampling_mode": "on",
    "temperature": 0.9,
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.0,
    "repetition_penalty": 1.05,
    "seed": 1,
}


def generate(clip, prompt="a dog", length=6, mode=None, kind=nodes_textgen.TextGenerate, **more):
    return kind.execute(clip, prompt, length, dict(mode or SAMPLED), **more).args[0]


def test_a_text_is_generated_once(memo, loads, plain_llm):
    truth = generate(plain_llm)
    clip = memo_clip(plain_llm)
    loads.clear()
    assert generate(clip) == truth and len(loads) == 1
    assert generate(clip) == truth and len(loads) == 1, "a hit loads nothing"
    assert memo.counts("generated") == (1, 1)
    greedy = {"sampling_mode": "off"}
    assert generate(clip, mode=greedy) == generate(plain_llm, mode=greedy)
    assert generate(clip, mode=greedy) == generate(plain_llm, mode=greedy)
    assert memo.counts("generated") == (2, 2)


def test_generated_texts_are_kept_while_the_provider_observes_encoders(memo, plain_llm, monkeypatch):
    for kind, name in ((comfy.sd.CLIP, "generate"), (comfy.sd.CLIP, "encode_from_tokens")):
        monkeypatch.setattr(kind, name, getattr(kind, name))  # as before, after the test
    observation.watch_encoders()
    clip = memo_clip(plain_llm)
    assert generate(clip) == generate(clip) == generate(plain_llm)
    assert memo.counts("generated") == (1, 1)


def test_all_that_decides_a_text_counts(memo, plain_llm):
    clip = memo_clip(plain_llm)
    asked: list[dict[str, Any]] = [
        {},
        {"prompt": "a cat"},
        {"length": 7},
        {"kind": nodes_textgen.TextGenerateLTX2Prompt},
        *({"mode": {**SAMPLED, name: value}} for name, value in (("temperature", 0.8), ("top_k", 41), ("top_p", 0.9))),
        *({"mode": {**SAMPLED, name: value}} for name, value in (("min_p", 0.01), ("repetition_penalty", 1.1))),
        *({"mode": {**SAMPLED, name: value}} for name, value in (("seed", 2), ("presence_penalty", 0.5))),
    ]
    for how in asked:
        assert generate(clip, **how) == generate(plain_llm, **how), how
    assert memo.counts("generated") == (0, len(asked))
    other = memo_clip(language_model(seed=1))
    assert generate(other) == generate(language_model(seed=1))
    assert memo.counts("generated") == (0, len(asked) + 1)
    for how in asked:
        assert generate(clip, **how) == generate(plain_llm, **how), how
    assert memo.counts("generated") == (len(asked), len(asked) + 1)


def test_images_among_the_tokens_count(memo, plain_llm, monkeypatch):
    """As the tokenizers of vision-language models put them there."""
    clip = memo_clip(plain_llm)

    def stand_in(self, tokens, **_):
        return [int(1000 * tokens["qwen3_4b"][0][0][0]["data"].sum())]

    monkeypatch.setattr(type(plain_llm.cond_stage_model), "generate", stand_in)
    pictures = [torch.full((1, 4, 4, 3), value) for value in (0.25, 0.5)]
    for _ in range(2):
        for picture in pictures:
            tokens = {"qwen3_4b": [[({"type": "image", "data": picture, "original_type": "image"}, 1.0)]]}
            assert clip.generate(tokens, seed=1) == [int(1000 * picture.sum())]
    assert memo.counts("generated") == (2, 2)


def test_a_text_without_a_seed_is_not_kept(memo, plain_llm, monkeypatch):
    monkeypatch.setattr(type(plain_llm.cond_stage_model), "generate", lambda self, tokens, **how: [1, 2])
    clip = memo_clip(plain_llm)
    assert clip.generate(clip.tokenize("x")) == clip.generate(clip.tokenize("x")) == [1, 2]
    assert memo.counts("generated") == (0, 0)
    assert memo.not_kept == {"a text that is generated without a seed": 2}


@pytest.mark.parametrize("result", [torch.tensor([1]), ["a"], (1, 2), None])
def test_something_else_than_tokens_is_given_on_and_not_kept(memo, plain_llm, monkeypatch, same, result):
    monkeypatch.setattr(type(plain_llm.cond_stage_model), "generate", lambda self, tokens, **how: result)
    clip = memo_clip(plain_llm)
    assert all(same(clip.generate(clip.tokenize("x"), seed=1), result) for _ in range(2))
    assert memo.counts("generated")[0] == 0 and memo.not_kept


# vision


def outputs(encoder, image, crop="center"):
    return vars(nodes.CLIPVisionEncode().encode(encoder, image, crop)[0])


KINDS = [{}, {"model_type": "siglip_vision_model"}]


@pytest.mark.parametrize("kind", KINDS, ids=["clip", "siglip"])
def test_an_image_is_seen_once(memo, loads, pixels, same, kind):
    plain = vision(**kind)
    truth = outputs(plain, pixels(size=(64, 80)))
    encoder = memo_clip_vision(plain)
    loads.clear()
    first, again = outputs(encoder, pixels(size=(64, 80))), outputs(encoder, pixels(size=(64, 80)))
    assert len(loads) == 1, "a hit loads nothing"
    assert same(first, truth) and same(again, truth)
    assert memo.counts("vision") == (1, 1)
    assert (
        type(nodes.CLIPVisionEncode().encode(encoder, pixels(size=(64, 80)), "center")[0]) is comfy.clip_vision.Output
    )
    again["last_hidden_state"].zero_()
    assert same(outputs(encoder, pixels(size=(64, 80))), truth), "what a graph writes to changes nothing"


def test_all_that_decides_an_image_embedding_counts(memo, pixels, same):
    image = pixels(size=(64, 80))
    asked = [
        (vision(), image, "center"),
        (vision(), image, "none"),
        (vision(), pixels(1, size=(64, 80)), "center"),
        (vision(1), image, "center"),
        (vision(layer_norm_eps=1e-3), image, "center"),
        (vision(image_mean=[0.5, 0.5, 0.5]), image, "center"),
        (vision(), pixels(size=(64, 80), batch=2), "center"),
    ]
    for _ in range(2):
        for encoder, picture, crop in asked:
            assert same(outputs(memo_clip_vision(encoder), picture, crop), outputs(encoder, picture, crop))
    assert memo.counts("vision") == (len(asked), len(asked))


def test_an_output_of_another_form_is_given_on_and_not_kept(memo, pixels, monkeypatch):
    plain = vision()
    monkeypatch.setattr(type(plain), "encode_image", lambda self, image, crop=True: "something")
    encoder = memo_clip_vision(plain)
    assert [encoder.encode_image(pixels()) for _ in range(2)] == ["something"] * 2
    assert memo.counts("vision")[0] == 0 and memo.not_kept


# audio


def sound(encoder, waveform, rate=16000):
    return nodes_audio_encoder.AudioEncoderEncode.execute(encoder, {"waveform": waveform, "sample_rate": rate}).args[0]


def wave(seed=0, channels=1):
    return torch.rand(1, channels, 4000, generator=torch.Generator().manual_seed(seed)) - 0.5


def test_a_sound_is_heard_once(memo, loads, same):
    plain = audio_encoder()
    truth = sound(plain, wave())
    encoder = memo_audio_encoder(plain)
    loads.clear()
    assert same(sound(encoder, wave()), truth) and same(sound(encoder, wave()), truth)
    assert len(loads) == 1, "a hit loads nothing"
    assert memo.counts("audio") == (1, 1)


def test_all_that_decides_an_audio_encoding_counts(memo, same):
    asked = [
        (audio_encoder(), wave(), 16000),
        (audio_encoder(), wave(), 22050),
        (audio_encoder(), wave(1), 16000),
        (audio_encoder(1), wave(), 16000),
    ]
    for _ in range(2):
        for encoder, waveform, rate in asked:
            assert same(sound(memo_audio_encoder(encoder), waveform, rate), sound(encoder, waveform, rate))
    assert memo.counts("audio") == (len(asked), len(asked))


# nodes


def test_the_nodes_patch_copies(memo, pixels):
    plain, heard = vision(), audio_encoder()
    (patched,) = memo_nodes.MemoCLIPVision.execute(plain).args
    (other,) = memo_nodes.MemoAudioEncoder.execute(heard).args
    assert isinstance(patched, type(plain)) and type(patched) is not type(plain)
    assert isinstance(other, type(heard)) and type(other) is not type(heard)
    assert type(memo_clip_vision(patched)) is type(patched), "patched once"
    assert memo_nodes.MemoCLIPVision.execute(None).args == (None,)
    assert memo_nodes.MemoAudioEncoder.execute("another pack's").args == ("another pack's",)
