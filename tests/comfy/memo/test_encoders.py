"""Encoders that remember: ComfyUI's own encode nodes give with them, to the bit, what they give without."""

from __future__ import annotations

import comfy.model_management
import comfy.sd
import node_helpers
import pytest
import torch
from comfy_extras import nodes_clip_sdxl, nodes_flux, nodes_wan

import nodes
from skipstone.core.memo.store import Store
from skipstone.nodes import memo as memo_nodes
from skipstone.patch.memo import encoders
from skipstone.patch.memo import instance as process
from skipstone.patch.memo.device_tags import pack
from skipstone.patch.memo.encoders import memo_clip, memo_vae
from skipstone.patch.memo.lazy_encode import PendingLatent, PendingPrompt

TEXT, VAE = "text", "vae"


def encode(clip, text="a red circle", **more):
    return nodes.CLIPTextEncode().encode(clip, text, **more)[0]


def lora(clip, seed=0, alpha=2.0, rank=2):
    """A LoRA file's content for every attention of a CLIP."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, weight in clip.cond_stage_model.named_parameters():
        if name.startswith("clip_l") and "self_attn" in name and name.endswith("weight"):
            at = "text_encoders." + name.removesuffix(".weight")
            state[f"{at}.lora_up.weight"] = torch.randn(weight.shape[0], rank, generator=generator)
            state[f"{at}.lora_down.weight"] = torch.randn(rank, weight.shape[1], generator=generator)
            state[f"{at}.alpha"] = torch.tensor(alpha)
    return state


def with_lora(clip, strength, **how):
    return comfy.sd.load_lora_for_models(None, clip, lora(clip, **how), 0, strength)[1]


def differ(results, same):
    return not any(same(a, b) for i, a in enumerate(results) for b in results[:i])


# VAE


def test_a_latent_is_computed_once(memo, loads, plain_vae, pixels, same):
    truth = plain_vae.encode(pixels())
    vae = memo_vae(plain_vae)
    loads.clear()
    first = nodes.VAEEncode().encode(vae, pixels())[0]["samples"]
    assert len(loads) == 1
    again = nodes.VAEEncode().encode(vae, pixels())[0]["samples"]
    assert len(loads) == 1, "a hit loads nothing"
    assert same(first, truth) and same(again, truth)
    assert memo.counts(VAE) == (1, 1)


def test_the_vae_that_was_given_stays_as_it_is(memo, loads, plain_vae, pixels):
    held, kind = dict(vars(plain_vae)), type(plain_vae)
    vae = memo_vae(plain_vae)
    vae.encode(pixels())
    loads.clear()
    assert vars(plain_vae) == held and type(plain_vae) is kind
    plain_vae.encode(pixels())
    assert len(loads) == 1
    assert isinstance(vae, comfy.sd.VAE)


@pytest.mark.parametrize("written", ["the miss", "the hit", "the input"])
def test_the_graph_may_write_to_what_it_gets(memo, plain_vae, pixels, same, written):
    vae, given = memo_vae(plain_vae), pixels()
    truth = plain_vae.encode(given)
    first = vae.encode(given)
    if written == "the miss":
        first.zero_()
    elif written == "the hit":
        vae.encode(given).zero_()
    else:
        given.zero_()
        assert same(vae.encode(given), plain_vae.encode(given))
    assert same(vae.encode(pixels()), truth)


def test_what_differs_in_anything_is_another_latent(memo, plain_vae, pixels, same):
    """One bit, alpha, order, number, place, size; and each is right when it is asked for again."""
    picture, other = pixels(0), pixels(1)
    bit = picture.clone()
    bit.view(torch.int32)[0, 3, 5, 1] ^= 1
    assert (bit != picture).sum() == 1
    given = [
        picture,
        bit,
        other,
        torch.cat([picture, other]),
        torch.cat([other, picture]),
        torch.cat([picture, picture]),
        torch.cat([picture, torch.full((1, 16, 24, 1), 0.5)], -1),
        picture.flip(1),
        picture.flip(2),
        picture.transpose(1, 2),
        picture[:, :14],
        picture.to(torch.float16),
        picture.to(torch.float64),
    ]
    vae = memo_vae(plain_vae)
    truths = [plain_vae.encode(p) for p in given]
    for _ in range(2):
        for pixels_in, truth in zip(given, truths, strict=True):
            assert same(vae.encode(pixels_in), truth)
    assert memo.counts(VAE) == (len(given), len(given))


def test_memory_layout_is_part_of_the_key(memo, plain_vae, pixels, same):
    """Kernels round by layout: each layout gets what the VAE makes of it."""
    vae, picture = memo_vae(plain_vae), pixels(batch=2)
    layouts = [picture, picture.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)]
    for _ in range(2):
        for given in layouts:
            assert same(vae.encode(given), plain_vae.encode(given))
    assert memo.counts(VAE) == (2, 2)


def test_tiles_are_part_of_the_name(memo, plain_vae, pixels, same):
    picture, vae = pixels(size=(96, 96)), memo_vae(plain_vae)
    ways = [
        lambda v: v.encode(picture),
        lambda v: v.encode_tiled(picture, tile_x=64, tile_y=64, overlap=16),
        lambda v: v.encode_tiled(picture, tile_x=64, tile_y=64, overlap=8),
        lambda v: nodes.VAEEncodeTiled().encode(v, picture, 96, 8)[0]["samples"],
    ]
    truths = [way(plain_vae) for way in ways]
    assert differ(truths, same)
    for _ in range(2):
        assert all(same(way(vae), truth) for way, truth in zip(ways, truths, strict=True))
    assert memo.counts(VAE) == (4, 4)


def test_a_picture_encoded_in_tiles_for_want_of_memory_is_not_kept(memo, make_vae, pixels, monkeypatch, same):
    vae = memo_vae(make_vae())
    whole, calls = vae.first_stage_model.encode, []

    def short_of_memory(x):
        calls.append(x)
        if len(calls) == 1:
            raise comfy.model_management.OOM_EXCEPTION("out of memory")
        return whole(x)

    monkeypatch.setattr(vae.first_stage_model, "encode", short_of_memory)
    vae.encode(pixels())
    monkeypatch.undo()
    assert memo.not_kept == {"vae: computed in tiles for want of memory": 1}
    assert same(vae.encode(pixels()), make_vae().encode(pixels()))
    assert memo.counts(VAE) == (0, 2)


def test_a_vae_that_draws_its_latents_at_random_is_not_kept(memo, make_vae, pixels, same):
    vae = make_vae()
    vae.first_stage_model.regularization.sample = True
    vae = memo_vae(vae)
    assert not same(vae.encode(pixels()), vae.encode(pixels()))
    assert memo.not_kept == {"vae: computed with random numbers": 2}
    assert memo.store.usage()["memory"] == {}


def test_another_vae_is_another_name(memo, make_vae, pixels, same):
    sampled = make_vae()
    one_weight = make_vae()
    one_weight.first_stage_model.encoder.conv_in.bias[3] += 0.25
    buffers = make_vae()
    buffers.first_stage_model.register_buffer("mean", torch.zeros(1))
    scaled = make_vae()
    scaled.process_input = lambda image: image * 2.0 - 0.5
    uncropped = make_vae()
    uncropped.crop_input = False
    vaes = [sampled, make_vae(1), one_weight, make_vae(dtype=torch.bfloat16), scaled]
    truths = [v.encode(pixels()) for v in vaes]
    assert differ(truths, same)
    for _ in range(2):
        assert all(same(memo_vae(v).encode(pixels()), t) for v, t in zip(vaes, truths, strict=True))
    for v in (uncropped, buffers):
        memo_vae(v).encode(pixels())
    assert memo.counts(VAE) == (len(vaes), len(vaes) + 2)


def test_the_same_vae_loaded_again_is_the_same(memo, loads, make_vae, pixels, same):
    first = memo_vae(make_vae()).encode(pixels())
    loads.clear()
    assert same(memo_vae(make_vae()).encode(pixels()), first)
    assert not loads


def test_a_vae_that_was_used_before_is_the_same(memo, make_vae, pixels):
    """Loading, running and unloading change nothing that it is known by."""
    used = make_vae()
    used.encode(pixels(5))
    comfy.model_management.unload_all_models()
    memo_vae(make_vae()).encode(pixels())
    memo_vae(used).encode(pixels())
    assert memo.counts(VAE) == (1, 1)


def test_a_patched_vae_is_another(memo, make_vae, pixels, same):
    """As ComfyUI's own nodes patch one: the patcher is replaced by a clone with patches."""
    vae = memo_vae(make_vae())
    plain = vae.encode(pixels())
    held = vae.patcher
    vae.patcher = held.clone()
    vae.patcher.add_patches({"encoder.conv_in.bias": ("diff", (torch.ones(32),))})
    patched = vae.encode(pixels())
    assert not same(patched, plain)
    assert same(vae.encode(pixels()), patched)
    vae.patcher = held
    assert same(vae.encode(pixels()), plain)
    assert memo.counts(VAE) == (2, 2)


def test_settings_that_change_bits_are_in_the_name(memo, plain_vae, pixels, monkeypatch):
    vae = memo_vae(plain_vae)
    vae.encode(pixels())
    with monkeypatch.context() as changed:
        changed.setattr(comfy.cli_args.args, "fp16_intermediates", True)
        assert vae.encode(pixels()).dtype == torch.float16
        assert vae.encode(pixels()).dtype == torch.float16
    assert vae.encode(pixels()).dtype == torch.float32
    with monkeypatch.context() as changed:
        changed.setattr(torch.backends.mkldnn, "enabled", False)
        vae.encode(pixels())
    with monkeypatch.context() as changed:
        changed.setattr(comfy.cli_args.args, "port", 1)
        vae.encode(pixels())
    assert memo.counts(VAE) == (3, 3)


def test_decoding_is_kept_only_when_asked_for(memo, loads, plain_vae, pixels, same):
    latent = plain_vae.encode(pixels())
    truth = plain_vae.decode(latent.clone())
    vae = memo_vae(plain_vae)
    assert same(vae.decode(latent), truth) and same(vae.decode(latent), truth)
    assert memo.counts("image") == (0, 0)
    both = memo_vae(vae, decode=True)
    loads.clear()
    for _ in range(2):
        assert same(nodes.VAEDecode().decode(both, {"samples": latent.clone()})[0], truth)
    assert memo.counts("image") == (1, 1) and len(loads) == 1


def test_remembering_pictures_makes_no_other_latents(memo, plain_vae, pixels):
    memo_vae(plain_vae).encode(pixels())
    memo_vae(plain_vae, decode=True).encode(pixels())
    assert memo.counts(VAE) == (1, 1)


def test_nodes_that_encode_on_the_way(memo, loads, plain_vae, plain_clip, pixels, same):
    """For Inpaint, inpainting models, reference latents, videos."""
    picture, mask = pixels(size=(32, 32)), torch.zeros(1, 32, 32)
    mask[:, 8:16, 8:16] = 1
    prompt = encode(plain_clip)

    def all_of(vae):
        return [
            nodes.VAEEncodeForInpaint().encode(vae, picture, mask)[0],
            nodes.InpaintModelConditioning().encode(prompt, prompt, picture, vae, mask),
            node_helpers.conditioning_set_values(prompt, {"reference_latents": [vae.encode(picture)]}),
        ]

    truths = all_of(plain_vae)
    vae = memo_vae(plain_vae)
    all_of(vae)
    loads.clear()
    assert same(all_of(vae), truths)
    assert not loads


def test_a_video_node_encodes_once(memo, loads, make_vae, plain_clip, pixels):
    """Wan's image-to-video node encodes a video of its own making; equal videos are equal content."""
    video, prompt = memo_vae(make_vae()), encode(plain_clip)
    made = nodes_wan.WanImageToVideo
    how = {
        "positive": prompt,
        "negative": prompt,
        "vae": video,
        "width": 32,
        "height": 32,
        "length": 1,
        "batch_size": 1,
    }
    loads.clear()
    made.execute(start_image=pixels(size=(32, 32)), **how)
    assert len(loads) == 1
    made.execute(start_image=pixels(size=(32, 32)), **how)
    assert len(loads) == 1


def test_an_encoder_that_raises_raises_so_with_the_memo(memo, plain_vae, make_vae, pixels, same):
    with pytest.raises(Exception) as plain:
        plain_vae.encode(torch.zeros(1, 0, 0, 3))
    with pytest.raises(type(plain.value)):
        memo_vae(plain_vae).encode(torch.zeros(1, 0, 0, 3))
    broken = make_vae()
    broken.first_stage_model = None
    with pytest.raises(RuntimeError, match="VAE is invalid"):
        memo_vae(broken).encode(pixels())
    assert same(memo_vae(plain_vae).encode(pixels()), plain_vae.encode(pixels()))


def test_nan_comes_back_as_nan(memo, plain_vae, pixels, same):
    picture = pixels()
    picture[0, 0, 0, 0] = float("nan")
    truth = plain_vae.encode(picture)
    assert truth.isnan().any()
    vae = memo_vae(plain_vae)
    assert same(vae.encode(picture), truth) and same(vae.encode(picture), truth)


def test_without_a_memo_all_is_computed(plain_vae, plain_clip, loads, pixels, same):
    process.set_store(None)
    vae, clip = memo_vae(plain_vae), memo_clip(plain_clip)
    assert same(vae.encode(pixels()), plain_vae.encode(pixels()))
    assert same(encode(clip), encode(plain_clip))
    assert len(loads) == 4


def test_a_value_of_another_make_is_computed_again(memo, loads, plain_vae, plain_clip, pixels, same):
    """Somebody else's entry, in a Redis that is shared, may be anything that an entry can be."""
    vae, clip = memo_vae(plain_vae), memo_clip(plain_clip)
    for ask in (lambda: vae.encode(pixels()), lambda: encode(clip)):
        truth, (name,) = ask(), memo.store._near[0]._held
        wrongs: list[object] = [{}, [1], {"value": torch.zeros(1), "places": ["moon"]}]
        told = [torch.zeros(1), {"pooled_output": None}, {"cond": None, "pooled_output": None}, [1], 5, None]
        for value in told[1:] if name.kind == VAE else told:
            wrongs.append(pack(value, {"cpu": torch.device("cpu")}))
        for wrong in (*wrongs, {"value": torch.zeros(1), "places": []}):
            memo.store.put(name, wrong, 0.0)
            loads.clear()
            assert same(ask(), truth) and len(loads) == 1
            assert same(ask(), truth) and len(loads) == 1, "and replaced"
        memo.store.clear()


def test_an_encoding_of_nothing_is_not_kept(memo, plain_vae):
    """ComfyUI gives None for a batch of no pictures."""
    nothing = torch.zeros(0, 16, 16, 3)
    assert plain_vae.encode(nothing) is None
    assert memo_vae(plain_vae).encode(nothing) is None
    assert memo.not_kept == {"vae: no value of the form that was asked for": 1}


def test_what_was_not_foreseen_is_computed_and_not_kept(memo, plain_vae, plain_clip, pixels, same, monkeypatch):
    def fails(*_):
        raise KeyError("another version")

    monkeypatch.setattr(encoders, "vae_places", fails)
    monkeypatch.setattr(encoders, "text_key", fails)
    assert same(memo_vae(plain_vae).encode(pixels()), plain_vae.encode(pixels()))
    assert same(encode(memo_clip(plain_clip)), encode(plain_clip))
    assert sum(memo.not_kept.values()) == 2 and memo.store.usage()["memory"] == {}


# CLIP


def test_a_prompt_is_encoded_once(memo, loads, plain_clip, same):
    truth = encode(plain_clip)
    clip = memo_clip(plain_clip)
    assert same(encode(clip), truth)
    loads.clear()
    assert same(encode(clip), truth)
    assert not loads and memo.counts(TEXT) == (1, 1)
    assert isinstance(clip, comfy.sd.CLIP) and type(plain_clip) is comfy.sd.CLIP


def test_every_way_to_ask_shares_what_was_computed(memo, loads, make_clip, same):
    plain_clip = make_clip(sdxl=True)
    tokens = plain_clip.tokenize("a red circle")
    ways = [
        lambda c: c.encode_from_tokens(tokens, return_pooled=True, return_dict=True),
        lambda c: c.encode_from_tokens(tokens, return_pooled=True),
        lambda c: c.encode_from_tokens(tokens),
        lambda c: c.encode_from_tokens_scheduled(tokens),
        lambda c: c.encode("a red circle"),
        lambda c: c.encode_from_tokens_scheduled(tokens, add_dict={"guidance": 3.5, "width": 64}),
    ]
    truths = [way(plain_clip) for way in ways]
    clip = memo_clip(plain_clip)
    loads.clear()
    assert all(same(way(clip), truth) for way, truth in zip(ways, truths, strict=True))
    assert len(loads) == 1
    # but this is another computation
    raw = plain_clip.encode_from_tokens_scheduled(tokens, unprojected=True)
    for _ in range(2):
        assert same(clip.encode_from_tokens_scheduled(tokens, unprojected=True), raw)
    assert not same(raw, truths[3]) and memo.counts(TEXT)[1] == 2


def test_prompts_that_differ_in_anything_are_others(memo, plain_clip, same):
    texts = [
        "a red circle",
        "a red circle.",
        "a (red:1.1) circle",
        "a (red:1.2) circle",
        "a (red) circle",
        "a [red] circle",
        "red a circle",
        "a red BREAK circle",
        "a red circle BREAK",
        "",
        "a red circle, " * 30,
        "a red circle, " * 31,
    ]
    clip = memo_clip(plain_clip)
    truths = [encode(plain_clip, text) for text in texts]
    assert same(encode(plain_clip, "a (red:1.1) circle"), encode(plain_clip, "a (red) circle"))
    for _ in range(2):
        assert all(same(encode(clip, text), truth) for text, truth in zip(texts, truths, strict=True))
    distinct = len(texts) - 1  # "(red)" is "(red:1.1)"
    assert memo.counts(TEXT) == (2 * len(texts) - distinct, distinct)


@pytest.mark.parametrize("order", ["before", "after"])
def test_what_is_done_to_the_clip_is_in_the_name(memo, make_clip, same, order):
    """LoRA on, off, of another strength, of other content, and clip skip: before Memo CLIP or after it."""
    base = make_clip()
    ways = [
        lambda c: c,
        lambda c: with_lora(c, 1.0),
        lambda c: with_lora(c, 0.5),
        lambda c: with_lora(c, 1.0, seed=1),
        lambda c: with_lora(c, 1.0, alpha=4.0),
        lambda c: with_lora(with_lora(c, 0.5), 0.25, seed=1),
        lambda c: nodes.CLIPSetLastLayer().set_last_layer(c, -2)[0],
        lambda c: nodes.CLIPSetLastLayer().set_last_layer(with_lora(c, 1.0), -2)[0],
    ]
    truths = [encode(way(base)) for way in ways]
    assert differ(truths, same)
    memoed = memo_clip(base)
    for _ in range(2):
        for way, truth in zip(ways, truths, strict=True):
            clip = memo_clip(way(base)) if order == "before" else way(memoed)
            assert same(encode(clip), truth)
    assert memo.counts(TEXT) == (len(ways), len(ways))
    assert not memo.not_kept


def test_a_lora_in_place_hides_nothing(memo, make_clip, same):
    """The first encoder that is asked may have another clone's LoRA in its weights at that moment."""
    base = make_clip()
    encode(with_lora(base, 1.0))
    patched_now = base.patcher.model.current_weight_patches_uuid
    assert patched_now is not None and patched_now != base.patcher.patches_uuid
    first = encode(memo_clip(base))
    assert same(encode(memo_clip(make_clip())), first)
    assert memo.counts(TEXT) == (1, 1)


def test_another_clip_is_another_name(memo, make_clip, same):
    edited = make_clip()
    edited.cond_stage_model.clip_l.transformer.text_model.embeddings.token_embedding.weight[736] += 0.5
    masked = make_clip()
    masked.cond_stage_model.clip_l.enable_attention_masks = True
    half = make_clip(dtype=torch.float16)
    clips = [make_clip(), make_clip(1), edited, masked, half]
    truths = [encode(c) for c in clips]
    assert differ(truths[:3], same) and differ([truths[0], truths[4]], same)
    for _ in range(2):
        assert all(same(encode(memo_clip(c)), t) for c, t in zip(clips, truths, strict=True))
    assert memo.counts(TEXT) == (len(clips), len(clips))


def test_sdxl_size_conditioning(memo, make_clip, same):
    clip = make_clip(sdxl=True)
    asked = [("a cat", "a cat", 1024), ("a cat", "a cat", 512), ("a cat", "a dog", 512), ("a dog", "a cat", 512)]

    def node(c, g, l, width):  # noqa: E741
        made = nodes_clip_sdxl.CLIPTextEncodeSDXL
        how = {"width": width, "height": 1024, "crop_w": 0, "crop_h": 0, "target_width": 1024, "target_height": 1024}
        return made.execute(clip=c, text_g=g, text_l=l, **how)[0]

    truths = [node(clip, *a) for a in asked]
    assert differ(truths, same)
    memoed = memo_clip(clip)
    for _ in range(2):
        assert all(same(node(memoed, *a), truth) for a, truth in zip(asked, truths, strict=True))
    assert memo.counts(TEXT) == (5, 3)  # sizes are added to what is remembered


def test_nodes_that_change_conditionings_change_nothing_that_is_kept(memo, plain_clip, same):
    clip, truth = memo_clip(plain_clip), encode(plain_clip)
    for _ in range(2):
        got = encode(clip)
        zero = nodes.ConditioningZeroOut().zero_out(got)[0]
        assert not zero[0][0].any()
        nodes_flux.FluxGuidance.execute(conditioning=got, guidance=2.0)
        got[0][0].zero_()
        got[0][1]["pooled_output"].zero_()
        got[0][1]["guidance"] = 7.0
    assert same(encode(clip), truth)


def test_conditionings_with_hooks_are_not_kept(memo, make_clip, same):
    import comfy.hooks
    from comfy_extras.nodes_hooks import SetClipHooks

    clip = make_clip()
    hooks = comfy.hooks.create_hook_lora(lora(clip), 1.0, 1.0)
    truth = encode(clip)
    for apply_to_conds, schedule in ((True, False), (False, False), (False, True), (True, True)):
        hooked = SetClipHooks().apply_hooks(memo_clip(clip), schedule, apply_to_conds, hooks)[0]
        got = encode(hooked)
        assert ("hooks" in got[0][1]) == apply_to_conds
    assert memo.not_kept == {"hooks on the CLIP": 4}
    assert memo.counts(TEXT) == (0, 0)
    assert same(encode(memo_clip(clip)), truth)


def test_what_is_not_understood_is_computed_and_not_kept(memo, make_clip, same):
    truth = encode(make_clip())
    injected = make_clip()
    injected.patcher.set_injections("bypass_lora", [object()])
    injected.patcher.skip_injection = True
    patched = make_clip()
    patched.patcher.add_object_patch("clip_l.max_length", object())
    patched.patcher.object_patches.pop("clip_l.max_length")
    patched.patcher.add_object_patch("nothing", print)
    for clip in (injected, patched):
        for _ in range(2):
            assert same(encode(memo_clip(clip)), truth)
    assert sum(memo.not_kept.values()) == 4 and len(memo.not_kept) == 2
    assert memo.store.usage()["memory"] == {}


def test_embeddings_in_a_prompt_are_part_of_the_content(memo, make_clip, tmp_path, same):
    """The same name, with other content in its file."""
    clip = make_clip()
    tokenizer = clip.tokenizer.clip_l
    tokenizer.embedding_directory, tokenizer.embedding_size = [str(tmp_path)], 32
    memoed = memo_clip(clip)
    results = []
    for value in (0.1, 0.2):
        torch.save({"emb_params": torch.full((2, 32), value)}, tmp_path / "style.pt")
        truth = encode(clip, "a embedding:style circle")
        for _ in range(2):
            assert same(encode(memoed, "a embedding:style circle"), truth)
        results.append(truth)
    assert differ(results, same)
    assert memo.counts(TEXT) == (2, 2)


def test_what_a_text_encoder_adds_comes_back(memo, loads, plain_clip, monkeypatch, same):
    """Masks, byte features, audio codes: any tensor or plain value."""
    mask = torch.ones(1, 77, dtype=torch.int64)
    more = {"n": 3, "names": ["a", None], "x": float("nan")}
    encode_weights = plain_clip.cond_stage_model.encode_token_weights

    def adding(tokens):
        return (*encode_weights(tokens)[:2], {"attention_mask": mask.clone(), **more})

    monkeypatch.setattr(plain_clip.cond_stage_model, "encode_token_weights", adding)
    clip = memo_clip(plain_clip)
    first = encode(clip)
    loads.clear()
    again = encode(clip)
    assert not loads
    assert repr(first) == repr(again) and same(again[0][1]["attention_mask"], mask)
    monkeypatch.setattr(
        plain_clip.cond_stage_model, "encode_token_weights", lambda t: (*encode_weights(t)[:2], {"control": object()})
    )
    encode(clip, "something else")
    assert memo.not_kept == {"text: something of class object": 1}


def test_a_memo_without_tiers_is_harmless(plain_clip, same):
    store = Store([])
    process.set_store(store)
    assert same(encode(memo_clip(plain_clip)), encode(plain_clip))
    assert same(encode(memo_clip(plain_clip)), encode(plain_clip))
    process.set_store(None)
    store.close()


@pytest.mark.parametrize("given", [None, 3, "a VAE"])
def test_what_is_no_encoder_passes_through_to_who_says_what_is_wrong_with_it(memo, given):
    """A checkpoint without a VAE gives None."""
    assert memo_nodes.MemoVAE.execute(given).result == (given,)
    assert memo_nodes.MemoCLIP.execute(given).result == (given,)


def test_an_encoder_of_another_pack_that_cannot_be_patched_is_used_as_it_is(memo):
    class Fixed:
        __slots__ = ()

        def encode(self, pixels):
            return "encoded"

        def clone(self):
            return self

        def tokenize(self, text):
            return text.split()

        def encode_from_tokens_scheduled(self, tokens):
            return [[tokens, {}]]

    fixed = Fixed()
    assert memo_vae(fixed) is fixed and memo_clip(fixed) is fixed
    assert PendingPrompt(lambda _: None, None, "a b").encode(fixed) == [[["a", "b"], {}]]
    assert PendingLatent(lambda _: None, None, torch.zeros(1)).encode(fixed) == "encoded"
    assert memo.not_kept == {"an encoder of class Fixed": 4}
