"""The files that a loader will load, found without running it: from the prompt's graph and the files that its widgets name.

Only ComfyUI's own loaders, and the few nodes of its own that lie between them and an encoder, are understood. Anything else raises
NotCacheable, and the loader runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ...core.memo.errors import NotCacheable
from ...core.memo.keys import digest
from . import model_files, reasons
from .environment import environment_digest

LONGEST = 64  # nodes in a row


@dataclass(frozen=True)
class Plain:
    """A node that is understood.

    files: inputs that name files, with their kinds of folders. follow: the input that the output is made from. ignored: inputs that
    the output does not depend on. outputs: the outputs that this is true of. changes: whether the output computes anything else
    than what came in by `follow`.
    """

    files: dict[str, str] = field(default_factory=dict)
    follow: str = ""
    ignored: frozenset[str] = frozenset()
    outputs: frozenset[int] = frozenset({0})
    changes: bool = True


_TEXT = "text_encoders"
_CLIPS = {f"clip_name{n}": _TEXT for n in (1, 2, 3, 4)}
PLAIN = {
    "VAELoader": Plain({"vae_name": "vae"}),
    "CheckpointLoaderSimple": Plain({"ckpt_name": "checkpoints"}, outputs=frozenset({1, 2})),
    "CheckpointLoader": Plain({"ckpt_name": "checkpoints", "config_name": "configs"}, outputs=frozenset({1, 2})),
    "unCLIPCheckpointLoader": Plain({"ckpt_name": "checkpoints"}, outputs=frozenset({1, 2})),
    "ImageOnlyCheckpointLoader": Plain({"ckpt_name": "checkpoints"}, outputs=frozenset({2})),
    "CLIPLoader": Plain({"clip_name": _TEXT}),
    "DualCLIPLoader": Plain(_CLIPS),
    "TripleCLIPLoader": Plain(_CLIPS),
    "QuadrupleCLIPLoader": Plain(_CLIPS),
    "CLIPSetLastLayer": Plain(follow="clip"),
    "LoraLoader": Plain({"lora_name": "loras"}, "clip", frozenset({"model", "strength_model"}), frozenset({1})),
    "SkipstoneMemoVAE": Plain(follow="vae", ignored=frozenset({"decode"}), changes=False),
    "SkipstoneMemoCLIP": Plain(follow="clip", changes=False),
}

GetNode = Callable[[str], Any]
"""A prompt's node by its id: `{"class_type": ..., "inputs": {...}}`; raises or returns None where there is none."""


@dataclass
class Signature:
    """The parts of the graph that determine a linked encoder. settled: see model_files.py."""

    digest: str
    settled: bool


def signature(get_node: GetNode, link: Any) -> Signature:
    """The signature of the encoder that arrives by `link`, [node id, output]. Raises NotCacheable where that is not known."""
    told: list[Any] = []
    files = model_files.Files()
    for _ in range(LONGEST):
        kind, inputs, output = _node(get_node, link)
        plain = PLAIN.get(kind)
        if plain is None or output not in plain.outputs or not _is_its_own(kind):
            raise NotCacheable(reasons.KNOWN_AFTER_RUN.of(node=kind[:60]))
        constants = {n: v for n, v in inputs.items() if n != plain.follow and n not in plain.ignored}
        if any(isinstance(v, list | dict) for v in constants.values()):
            raise NotCacheable(reasons.DEPENDS.of(node=kind))
        for name, folder in plain.files.items():
            if name in constants:
                files.add(model_files.named(folder, constants[name]))
        if plain.changes:
            told.append([kind, output, constants])
        if not plain.follow:
            return Signature(digest(told, files.stamps, loading_digest()), files.settled)
        link = inputs.get(plain.follow)
    raise NotCacheable(reasons.TOO_MANY_NODES)


def _node(get_node: GetNode, link: Any) -> tuple[str, dict[str, Any], int]:
    if not (isinstance(link, list | tuple) and len(link) == 2 and type(link[1]) is int):
        raise NotCacheable(reasons.NO_NODE)
    try:
        node = get_node(str(link[0]))
        kind, inputs = node["class_type"], node["inputs"]
    except Exception as error:  # what a graph lacks, each version says in its own way
        raise NotCacheable(reasons.NOT_IN_GRAPH) from error
    if not isinstance(kind, str) or not isinstance(inputs, dict):
        raise NotCacheable(reasons.NOT_A_NODE)
    return kind, inputs, link[1]


def _is_its_own(kind: str) -> bool:
    """Whether this name means the node that we know: another pack may have put its own in its place."""
    import nodes

    found = nodes.NODE_CLASS_MAPPINGS.get(kind)
    if kind.startswith("Skipstone"):
        return found is not None and found.__module__ == f"{__name__.rpartition('.patch.')[0]}.nodes.memo"
    return found is not None and is_comfys(found)


def is_comfys(kind: Any) -> bool:
    """Whether a node's class came with ComfyUI."""
    return kind.__module__ == "nodes" or str(getattr(kind, "RELATIVE_PYTHON_MODULE", "")).startswith("comfy_extras.")


def loading_digest() -> str:
    """Everything besides files that affects loaders: ComfyUI's code and options, and the devices and data types that it chooses."""
    from comfy import model_management

    devices = [model_management.vae_device(), model_management.text_encoder_device()]
    chosen = [str(model_management.text_encoder_dtype(devices[1])), str(model_management.vae_dtype(devices[0], []))]
    environments = {str(device): environment_digest(device) for device in devices}
    return digest([environments[str(device)] for device in devices], chosen)
