"""The encode cache's nodes: cached encoders, encode nodes that load no encoder on a hit, statistics and clearing."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..core.memo import status
from ..core.memo.reasons import tier_name
from ..core.memo.stats import WORDS, size
from ..core.texts import Text
from ..patch.comfy_server import place, show_text
from ..patch.memo.encoders import memo_clip, memo_vae
from ..patch.memo.instance import opened
from ..patch.memo.lazy_encode import PendingLatent, PendingPrompt, conditioning
from ..patch.memo.node_status import NodeStatus
from ..patch.memo.perception import memo_audio_encoder, memo_clip_vision
from .widgets import among

CATEGORY = "Skipstone/encode cache"
ALIASES = ["skipstone", "encode cache", "memo", "cache", "encode once"]
ALL = "all"
TIERS = (ALL, "memory", "disk", "redis", "s3")
KINDS = {ALL: None, **{word: kind for kind, word in WORDS.items()}}
OFF = Text(
    "memo_off", "The encode cache is switched off in the settings (Skipstone, Encode cache) or by SKIPSTONE_MEMO."
)
_NO_PLACE = Text("memo_no_place", "The encode cache has no place to store anything: see the settings.")
_NO_ANSWER = Text("tier_no_answer", "{tier}: does not answer")
_REMOVED = Text("entries_removed", "{tier}: {entries} entries removed, {size}")
_PARTS = Text("parts", "{parts}")
_NO_TIER = Text("memo_no_tier", "The settings have no {tier}.")
DictType = io.Custom("DICT")
GONE = (
    "there is no {0}, and the encode cache does not have the result. Either the loader has no {0}, as for a checkpoint without one, or "
    "the cache dropped the entry just before it was read; then queue the prompt again"
)


class MemoVAE(io.ComfyNode):
    """VAE -> VAE whose encodings are cached."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkipstoneMemoVAE",
            display_name="Cached VAE",
            category=CATEGORY,
            description=(
                "Caches what this VAE encodes, in memory and on disk, also across restarts: for a known image, every encode node after it "
                "gets the same latent as before, bit for bit, and the VAE is not loaded."
            ),
            search_aliases=[*ALIASES, "vae cache", "latent cache"],
            inputs=[
                io.Vae.Input("vae", tooltip="The VAE whose encodings are cached."),
                io.Boolean.Input(
                    "decode",
                    default=False,
                    tooltip="Cache decoded images too. They take a lot of room and are rarely needed twice.",
                    advanced=True,
                ),
            ],
            outputs=[io.Vae.Output()],
        )

    @classmethod
    def execute(cls, vae: Any, decode: bool = False) -> io.NodeOutput:
        opened()  # tiers start while models are loaded
        return io.NodeOutput(memo_vae(vae, decode, _status()))


class MemoCLIP(io.ComfyNode):
    """CLIP -> CLIP whose encodings are cached."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkipstoneMemoCLIP",
            display_name="Cached CLIP",
            category=CATEGORY,
            description=(
                "Caches the prompts that this text encoder encodes, and the texts that it generates with a seed: for a known prompt, every "
                "node after it gets the same result as before, bit for bit, and the encoder is not loaded. LoRAs and clip skip may come "
                "before or after it."
            ),
            search_aliases=[*ALIASES, "clip cache", "text encoder cache", "prompt cache", "conditioning cache"],
            inputs=[io.Clip.Input("clip", tooltip="The text encoder whose encodings are cached.")],
            outputs=[io.Clip.Output()],
        )

    @classmethod
    def execute(cls, clip: Any) -> io.NodeOutput:
        opened()
        return io.NodeOutput(memo_clip(clip, _status()))


class MemoCLIPVision(io.ComfyNode):
    """CLIP_VISION -> CLIP_VISION whose encodings are cached."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkipstoneMemoCLIPVision",
            display_name="Cached CLIP Vision",
            category=CATEGORY,
            description=(
                "Caches what this vision encoder (CLIP, SigLIP, DINO) makes of images: for a known image, every node after it gets the "
                "same embeddings as before, bit for bit, and the encoder is not loaded."
            ),
            search_aliases=[*ALIASES, "clip vision cache", "siglip", "dino"],
            inputs=[io.ClipVision.Input("clip_vision", tooltip="The vision encoder whose encodings are cached.")],
            outputs=[io.ClipVision.Output()],
        )

    @classmethod
    def execute(cls, clip_vision: Any) -> io.NodeOutput:
        opened()
        return io.NodeOutput(memo_clip_vision(clip_vision, _status()))


class MemoAudioEncoder(io.ComfyNode):
    """AUDIO_ENCODER -> AUDIO_ENCODER whose encodings are cached."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkipstoneMemoAudioEncoder",
            display_name="Cached Audio Encoder",
            category=CATEGORY,
            description=(
                "Caches what this audio encoder (wav2vec2, Whisper) makes of audio: for known audio, every node after it gets the same "
                "encoding as before, bit for bit, and the encoder is not loaded."
            ),
            search_aliases=[*ALIASES, "audio encoder cache", "wav2vec2", "whisper"],
            inputs=[io.AudioEncoder.Input("audio_encoder", tooltip="The audio encoder whose encodings are cached.")],
            outputs=[io.AudioEncoder.Output()],
        )

    @classmethod
    def execute(cls, audio_encoder: Any) -> io.NodeOutput:
        opened()
        return io.NodeOutput(memo_audio_encoder(audio_encoder, _status()))


class CachedVAEEncode(io.ComfyNode):
    """IMAGE -> LATENT. It asks for its VAE only where the latent is not cached."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkipstoneCachedVAEEncode",
            display_name="Cached VAE Encode",
            category=CATEGORY,
            description=(
                "VAE Encode that needs no VAE for a known image: even the node that loads the VAE does not run. The VAE has to come "
                "straight from one of ComfyUI's loaders, whose file was used before."
            ),
            search_aliases=[*ALIASES, "vae encode", "latent cache"],
            inputs=[
                io.Image.Input("image", tooltip="The image to encode."),
                io.Vae.Input("vae", lazy=True, tooltip="The VAE: loaded only for an image that is not cached."),
            ],
            outputs=[io.Latent.Output()],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def check_lazy_status(cls, image: Any, vae: Any = None) -> list[str]:
        if vae is not None or _pending(cls, PendingLatent, "vae", image).known():
            return []
        return ["vae"]

    @classmethod
    def execute(cls, image: Any, vae: Any = None) -> io.NodeOutput:
        pending = _pending(cls, PendingLatent, "vae", image)
        latent = pending.encode(vae) if vae is not None else pending.get()
        if latent is None:
            raise RuntimeError(GONE.format("VAE"))
        return io.NodeOutput({"samples": latent})


class CachedTextEncode(io.ComfyNode):
    """text -> CONDITIONING. It asks for its CLIP only where the prompt is not cached."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkipstoneCachedTextEncode",
            display_name="Cached Text Encode",
            category=CATEGORY,
            description=(
                "CLIP Text Encode that needs no text encoder for a known prompt: even the node that loads the encoder does not run. The "
                "encoder has to come from ComfyUI's loaders; LoRAs and clip skip may come between."
            ),
            search_aliases=[*ALIASES, "clip text encode", "prompt cache"],
            inputs=[
                io.String.Input("text", multiline=True, dynamic_prompts=True, tooltip="The prompt."),
                io.Clip.Input(
                    "clip", lazy=True, tooltip="The text encoder: loaded only for a prompt that is not cached."
                ),
            ],
            outputs=[io.Conditioning.Output()],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def check_lazy_status(cls, text: str, clip: Any = None) -> list[str]:
        if clip is not None or _pending(cls, PendingPrompt, "clip", text).known():
            return []
        return ["clip"]

    @classmethod
    def execute(cls, text: str, clip: Any = None) -> io.NodeOutput:
        pending = _pending(cls, PendingPrompt, "clip", text)
        if clip is not None:
            return io.NodeOutput(pending.encode(clip))
        told = pending.get()
        if told is None:
            raise RuntimeError(GONE.format("CLIP"))
        return io.NodeOutput(conditioning(told))


def _pending(node: Any, kind: Any, encoder: str, content: Any) -> Any:
    def get_node(name: str) -> Any:
        return node.hidden.dynprompt.get_node(name)

    try:
        link = get_node(node.hidden.unique_id)["inputs"].get(encoder)
    except Exception:  # no graph, as where a script calls the node
        link = None
    return kind(get_node, link, content, place().sampler)


def _status() -> NodeStatus:
    """Of the node that is executed."""
    return NodeStatus(place().sampler)


class MemoStats(io.ComfyNode):
    """Statistics of the encode cache since ComfyUI was started."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkipstoneMemoStats",
            display_name="Encode Cache Stats",
            category=CATEGORY,
            description=(
                "Shows the encode cache's hit rate, hits, misses and time saved since ComfyUI was started, and its size in memory, on disk "
                "and in shared stores. Wire anything into it that should run before."
            ),
            search_aliases=[*ALIASES, "hit rate", "statistics"],
            inputs=[_after()],
            outputs=[io.String.Output("text", display_name="text"), DictType.Output("stats", display_name="stats")],
            is_input_list=True,  # once, whatever the length of a list
            is_output_node=True,
            not_idempotent=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> float:
        return float("nan")  # never the same

    @classmethod
    def execute(cls, after: Any = None) -> io.NodeOutput:
        memo = opened()
        text, told = (OFF, {}) if memo is None else (status.text(memo), status.report(memo))
        show_text(OFF if memo is None else memo.stats.headline(), place().sampler)
        return io.NodeOutput(text, told, ui=ui.PreviewText(text))


class MemoClear(io.ComfyNode):
    """Removes entries of the encode cache, and reports how many."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkipstoneMemoClear",
            display_name="Encode Cache Clear",
            category=CATEGORY,
            description=(
                "Deletes entries of the encode cache: from memory, disk, Redis, S3 or all of them, of one kind or all, all entries or only "
                "those unused for some days. They are computed again when needed."
            ),
            search_aliases=[*ALIASES, "clear cache", "free"],
            inputs=[
                io.Combo.Input("tier", options=list(TIERS), default=ALL, tooltip="Where to delete entries."),
                io.Combo.Input("kind", options=list(KINDS), default=ALL, tooltip="Which kind of entries to delete."),
                io.Float.Input(
                    "unused_days",
                    default=0.0,
                    min=0.0,
                    max=3650.0,
                    step=0.1,
                    tooltip="Delete only entries unused for this many days; 0: all entries.",
                ),
                _after(),
            ],
            outputs=[
                io.String.Output("text", display_name="text"),
                DictType.Output("removed", display_name="removed"),
                io.AnyType.Output("after", display_name="after"),
            ],
            is_output_node=True,
            not_idempotent=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> float:
        return float("nan")

    @classmethod
    def execute(cls, tier: str = ALL, kind: str = ALL, unused_days: float = 0.0, after: Any = None) -> io.NodeOutput:
        among("tier", tier, TIERS)
        among("kind", kind, KINDS)
        lines, removed = cleared(tier, kind, unused_days)
        show_text(_PARTS.of(parts=lines) if removed else lines[0], place().sampler)
        text = "\n".join(lines)
        return io.NodeOutput(text, removed, after, ui=ui.PreviewText(text))


def cleared(tier: str, kind: str, unused_days: float) -> tuple[list[Text], dict[str, Any]]:
    """Delete entries. tier, kind: of TIERS and KINDS. Returns lines of text, and what was removed by tier; {} where nothing can be."""
    memo = opened()
    if memo is None:
        return [OFF], {}
    try:
        older_than = unused_days * 86400.0 if unused_days > 0 else None
        removed = memo.clear(None if tier == ALL else tier, KINDS[kind], older_than)
    except ValueError:
        return [_NO_TIER.of(tier=tier_name(tier))], {}
    told: dict[str, Any] = {}
    lines = []
    for name, gone in removed.items():
        told[name] = None if gone is None else {"entries": gone.entries, "bytes": gone.bytes}
        where = tier_name(name)
        lines.append(
            _NO_ANSWER.of(tier=where)
            if gone is None
            else _REMOVED.of(tier=where, entries=gone.entries, size=size(gone.bytes))
        )
    return lines or [_NO_PLACE], told


def _after() -> Any:
    return io.AnyType.Input(
        "after", optional=True, tooltip="Anything that should run before this node; its value is not used."
    )


NODES = [MemoVAE, MemoCLIP, CachedVAEEncode, CachedTextEncode, MemoStats, MemoClear, MemoCLIPVision, MemoAudioEncoder]
