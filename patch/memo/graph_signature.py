"""What a loader will load, told without running it: from the prompt's graph and the files that its widgets name.

Only ComfyUI's own plain loaders, and what is plainly put between them and an encoder, are understood. Anything else is NotCacheable,
and the loader runs. A file is known by its path, size and times of change: within one machine that is enough, for
whoever changes a file changes those. But ComfyUI loads a file once and may hold it while it is replaced: so nothing is
remembered of a file that is younger than this process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ...core.memo.errors import NotCacheable
from ...core.memo.keys import digest
from . import fingerprint

MARGIN = 2.0  # seconds: file systems' clocks tick coarsely
LONGEST = 64  # nodes in a row
FILES = 20_000  # embeddings that are looked at


@dataclass(frozen=True)
class Plain:
    """A node that is understood. files: the inputs that name files, with their folders. follow: the input that its output is made
    of. ignored: inputs that do not matter to that output. outputs: which of its outputs that is said of. changes: whether what
    comes out computes anything else than what came in."""

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
    """What a link hangs on. settled: no file of it is younger than this process."""

    digest: str
    settled: bool


def signature(get_node: GetNode, link: Any) -> Signature:
    """Of the encoder that arrives by this link, [node id, output]. Raises NotCacheable where that cannot be told."""
    told: list[Any] = []
    files: list[tuple[Any, ...]] = []
    for _ in range(LONGEST):
        kind, inputs, output = _node(get_node, link)
        plain = PLAIN.get(kind)
        if plain is None or output not in plain.outputs or not _is_its_own(kind):
            raise NotCacheable(f"what {kind[:60]} loads is only known when it has run")
        constants = {n: v for n, v in inputs.items() if n != plain.follow and n not in plain.ignored}
        if any(isinstance(v, list | dict) for v in constants.values()):
            raise NotCacheable(f"what {kind} loads hangs on another node")
        for name, folder in plain.files.items():
            if name in constants:
                files += _files(folder, constants[name])
        if plain.changes:
            told.append([kind, output, constants])
        if not plain.follow:
            return Signature(digest(told, files, ground()), settled(files))
        link = inputs.get(plain.follow)
    raise NotCacheable("too many nodes in a row")


def embeddings(text: str) -> tuple[list[tuple[Any, ...]], bool]:
    """The files that a prompt may take embeddings from, and whether they are settled. Raises NotCacheable where they are too many."""
    if "embedding:" not in text.lower():
        return [], True
    import folder_paths

    found: list[tuple[Any, ...]] = []
    for folder in folder_paths.get_folder_paths("embeddings"):
        for path in _below(folder):
            found.append(stamp(path))
            if len(found) > FILES:
                raise NotCacheable("too many embeddings")
    return sorted(found), settled(found)


def settled(files: list[tuple[Any, ...]]) -> bool:
    """Whether none of the files changed since this process began, as far as their times tell."""
    return all(max(changed) / 1e9 < fingerprint.began() - MARGIN for *_, changed in files)


def stamp(path: str) -> tuple[Any, ...]:
    """By which a file is known as long as it is not changed. Raises NotCacheable where there is none."""
    try:
        about = os.stat(path)
    except OSError as error:
        raise NotCacheable(f"a file that cannot be looked at ({type(error).__name__})") from error
    # the time of the last change of the inode tells of a file put in place of another with its times kept
    return os.path.realpath(path), about.st_size, about.st_dev, about.st_ino, (about.st_mtime_ns, about.st_ctime_ns)


def _node(get_node: GetNode, link: Any) -> tuple[str, dict[str, Any], int]:
    if not (isinstance(link, list | tuple) and len(link) == 2 and type(link[1]) is int):
        raise NotCacheable("an encoder that comes from no node")
    try:
        node = get_node(str(link[0]))
        kind, inputs = node["class_type"], node["inputs"]
    except Exception as error:  # what a graph lacks, each version says in its own way
        raise NotCacheable("an encoder from a node that is not in the graph") from error
    if not isinstance(kind, str) or not isinstance(inputs, dict):
        raise NotCacheable("an encoder from something that is no node")
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


def _files(folder: str, name: Any) -> list[tuple[Any, ...]]:
    import folder_paths

    if not isinstance(name, str):
        raise NotCacheable("a file name that is none")
    paths = [folder_paths.get_full_path(folder, name)]
    if folder == "vae":
        if name == "pixel_space":
            return []
        # small stand-ins for VAEs: one file in another folder, or two
        approximate = folder_paths.get_filename_list("vae_approx")
        parts = [f for f in approximate if f == name or f.startswith((f"{name}_encoder.", f"{name}_decoder."))]
        paths += [folder_paths.get_full_path("vae_approx", f) for f in parts]
    stamps = [stamp(path) for path in paths if path]
    if not stamps:
        raise NotCacheable("a file that is not there")
    return stamps


def _below(folder: str) -> Iterator[str]:
    for at, _, names in os.walk(folder, followlinks=True):
        for name in names:
            yield os.path.join(at, name)


def ground() -> list[Any]:
    """What loaders do besides with the same files: the code that they are, and devices and data types that they choose."""
    from comfy import model_management

    devices = [model_management.vae_device(), model_management.text_encoder_device()]
    chosen = [str(model_management.text_encoder_dtype(devices[1])), str(model_management.vae_dtype(devices[0], []))]
    code = [
        fingerprint.source_of(m)
        for m in ("nodes", "comfy.sd", "comfy.model_detection", "comfy.supported_models", "comfy.utils")
    ]
    return [[fingerprint.settings(d) for d in devices], chosen, code]
