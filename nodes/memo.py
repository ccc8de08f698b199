"""The memo's nodes: encoders that remember, encodings that need no encoder when they are known, statistics and clearing."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..core.memo.stats import size
from ..patch.memo.encoders import memo_clip, memo_vae
from ..patch.memo.instance import opened
from ..patch.memo.lazy_encode import PendingLatent, PendingPrompt, conditioning
from .widgets import among

CATEGORY = "Skipstone/memo"
ALIASES = ["skipstone", "memo", "cache", "encode once", "faster"]
ALL = "all"
TIERS = (ALL, "memory", "disk", "redis")
KINDS = {
    ALL: None,
    "latents": "vae",
    "prompts": "text",
    "pictures": "image",
    "loaders": "loader",
    "other nodes": "node",
}
OFF = "The memo is switched off in the settings (Skipstone.Memo) or by SKIPSTONE_MEMO."
DictType = io.Custom("DICT")
GONE = (
    "there is no {0}, and what this node encodes is not in the memo: either the loader gives no {0}, as for a checkpoint without "
    "one, or the memo dropped the value in the moment between being asked and being read; then queue the prompt again"
)


class MemoVAE(io.ComfyNode):
    """VAE -> VAE that remembers what it encodes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkipstoneMemoVAE",
            display_name="Memo VAE",
            category=CATEGORY,
            description=(
                "Remembers what this VAE encodes: every encode node after it gets a latent that was computed before, equal to the "
                "bit, and the VAE is not even loaded. In memory and on disk, also after a restart."
            ),
            search_aliases=[*ALIASES, "vae cache", "latent cache"],
            inputs=[
                io.Vae.Input("vae", tooltip="The VAE that is to remember."),
                io.Boolean.Input(
                    "decode",
                    default=False,
                    tooltip="Remember decoded pictures, too. They take a lot of room, and are rarely asked for twice.",
                    advanced=True,
                ),
            ],
            outputs=[io.Vae.Output()],
        )

    @classmethod
    def execute(cls, vae: Any, decode: bool = False) -> io.NodeOutput:
        opened()  # its tiers get ready while models are loaded
        return io.NodeOutput(memo_vae(vae, decode))


class MemoCLIP(io.ComfyNode):
    """CLIP -> CLIP that remembers its prompts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkipstoneMemoCLIP",
            display_name="Memo CLIP",
            category=CATEGORY,
            description=(
                "Remembers the prompts that this text encoder encodes: every text encode node after it gets what was computed "
                "before, equal to the bit, and the encoder is not even loaded. LoRAs and clip skip may come before it or after it."
            ),
            search_aliases=[*ALIASES, "clip cache", "text encoder cache", "prompt cache", "conditioning cache"],
            inputs=[io.Clip.Input("clip", tooltip="The text encoder that is to remember.")],
            outputs=[io.Clip.Output()],
        )

    @classmethod
    def execute(cls, clip: Any) -> io.NodeOutput:
        opened()
        return io.NodeOutput(memo_clip(clip))


class CachedVAEEncode(io.ComfyNode):
    """IMAGE -> LATENT; asks for its VAE only where the latent is not known."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkipstoneCachedVAEEncode",
            display_name="Cached VAE Encode",
            category=CATEGORY,
            description=(
                "VAE Encode that does not need its VAE for a picture that it has seen: not even the node that loads the VAE runs. "
                "That works when it comes straight from a loader of ComfyUI's, the second time that this loader's file is used."
            ),
            search_aliases=[*ALIASES, "vae encode", "latent cache"],
            inputs=[
                io.Image.Input("image", tooltip="The picture to encode."),
                io.Vae.Input("vae", lazy=True, tooltip="The VAE: loaded only for a picture that is not known."),
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
    """text -> CONDITIONING; asks for its CLIP only where the prompt is not known."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkipstoneCachedTextEncode",
            display_name="Cached Text Encode",
            category=CATEGORY,
            description=(
                "CLIP Text Encode that does not need its text encoder for a prompt that it has seen: not even the node that loads "
                "the encoder runs. That works when it comes from loaders of ComfyUI's, LoRAs and clip skip included."
            ),
            search_aliases=[*ALIASES, "clip text encode", "prompt cache"],
            inputs=[
                io.String.Input("text", multiline=True, dynamic_prompts=True, tooltip="The prompt."),
                io.Clip.Input(
                    "clip", lazy=True, tooltip="The text encoder: loaded only for a prompt that is not known."
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
    return kind(get_node, link, content)


class MemoStats(io.ComfyNode):
    """What the memo did since ComfyUI was started, and what it holds."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkipstoneMemoStats",
            display_name="Memo Stats",
            category=CATEGORY,
            description=(
                "Hit rate, hits, misses, time saved, and entries and bytes in memory, on disk and in Redis, since ComfyUI was "
                "started. Wire anything into it that should have run before."
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
        text, told = (OFF, {}) if memo is None else (memo.text(), memo.report())
        return io.NodeOutput(text, told, ui=ui.PreviewText(text))


class MemoClear(io.ComfyNode):
    """Removes entries, and says how many."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkipstoneMemoClear",
            display_name="Memo Clear",
            category=CATEGORY,
            description="Removes what the memo keeps: of one tier or all, of one kind or all, all of it or what is no longer used.",
            search_aliases=[*ALIASES, "clear cache", "free"],
            inputs=[
                io.Combo.Input("tier", options=list(TIERS), default=ALL, tooltip="Where from."),
                io.Combo.Input("kind", options=list(KINDS), default=ALL, tooltip="What."),
                io.Float.Input(
                    "unused_days",
                    default=0.0,
                    min=0.0,
                    max=3650.0,
                    step=0.1,
                    tooltip="Only what was not used for so many days; 0: everything.",
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
        text, removed = cleared(tier, kind, unused_days)
        return io.NodeOutput(text, removed, after, ui=ui.PreviewText(text))


def cleared(tier: str, kind: str, unused_days: float) -> tuple[str, dict[str, Any]]:
    """Remove that, of TIERS and KINDS: what was removed, for people and by tier; {} where there is nothing to remove from."""
    memo = opened()
    if memo is None:
        return OFF, {}
    try:
        older_than = unused_days * 86400.0 if unused_days > 0 else None
        removed = memo.clear(None if tier == ALL else tier, KINDS[kind], older_than)
    except ValueError:
        return f"There is no tier {tier} in the settings.", {}
    told: dict[str, Any] = {}
    lines = []
    for name, gone in removed.items():
        told[name] = None if gone is None else {"entries": gone.entries, "bytes": gone.bytes}
        lines.append(
            f"{name}: " + ("does not answer" if gone is None else f"{gone.entries} entries removed, {size(gone.bytes)}")
        )
    return "\n".join(lines) or "The memo has no tier.", told


def _after() -> Any:
    return io.AnyType.Input("after", optional=True, tooltip="Anything that should have run before; not looked at.")


NODES = [MemoVAE, MemoCLIP, CachedVAEEncode, CachedTextEncode, MemoStats, MemoClear]
