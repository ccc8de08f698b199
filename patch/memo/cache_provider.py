"""ComfyUI's own results, kept over a restart: its external cache (CacheProvider, from 0.18) on this memo.

Off unless the machine's owner switches it on (patch/memo/instance.py), for it trusts more than the rest of the memo does: the key is what
ComfyUI knows its results by, the class and constants of a node and of all above it. To that we add what ComfyUI leaves
out: the files that those constants name, versions, code and settings. And we keep only what a few encode nodes give, where
every node above them came with ComfyUI.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from comfy_api.latest import Caching
from torch import Tensor

from ...core.memo.errors import CorruptEntry, NotCacheable
from ...core.memo.keys import Key, key
from ..comfy_server import running_prompt
from . import fingerprint
from .device_tags import Places, packed, unpacked
from .graph_signature import PLAIN, embeddings, ground, is_comfys, settled, stamp
from .instance import opened

NODE = "node"
KEPT = {
    "VAEEncode", "VAEEncodeTiled", "VAEEncodeForInpaint", "InpaintModelConditioning",
    "CLIPTextEncode", "CLIPTextEncodeControlnet", "CLIPTextEncodeFlux", "CLIPTextEncodeHiDream", "CLIPTextEncodeHunyuanDiT",
    "CLIPTextEncodeKandinsky5", "CLIPTextEncodeLumina2", "CLIPTextEncodePixArtAlpha", "CLIPTextEncodeSD3", "CLIPTextEncodeSDXL",
    "CLIPTextEncodeSDXLRefiner", "TextEncodeHunyuanVideo_ImageToVideo", "TextEncodeQwenImageEdit", "TextEncodeQwenImageEditPlus",
}  # fmt: skip
# nodes with nothing above them: what they give is told by their constants, the files that these name, and their fingerprint
ROOTS = {
    "LoadImage", "LoadImageMask", "LoadImageOutput", "EmptyImage", "EmptyLatentImage", "EmptySD3LatentImage", "SolidMask",
    "PrimitiveString", "PrimitiveStringMultiline", "PrimitiveInt", "PrimitiveFloat", "PrimitiveBoolean",
    "UNETLoader", "CLIPVisionLoader", "ControlNetLoader", "StyleModelLoader", "UpscaleModelLoader",
    *(name for name, plain in PLAIN.items() if plain.files and not plain.follow),
}  # fmt: skip
_NO_MODELS = {"custom_nodes"}

Graph = dict[str, Any]


def running(prompt_id: str) -> Graph | None:
    """The nodes of the prompt that the server is working at."""
    graph, _ = running_prompt(prompt_id) or (None, None)
    return graph


class Provider(Caching.CacheProvider):
    """One for the process. prompt: finds a prompt's graph by its id."""

    def __init__(self, prompt: Callable[[str], Graph | None] = running) -> None:
        self._prompt = prompt
        self._graph: Graph | None = None
        self._names: dict[tuple[str, str], tuple[Key, bool] | None] = {}
        self._asked: dict[str, float] = {}

    def on_prompt_start(self, prompt_id: str) -> None:
        self._names.clear()
        self._asked.clear()
        self._graph = None
        self._graph = self._prompt(prompt_id)

    def on_prompt_end(self, prompt_id: str) -> None:
        self._names.clear()
        self._graph = None

    def should_cache(self, context: Any, value: Any = None) -> bool:
        """Asked for every node; where there is a value, it is taken at once: later the graph may have written to it."""
        if context.class_type not in KEPT:
            return False
        if value is None:
            return self._named(context) is not None
        self._keep(context, value)
        return False

    async def on_lookup(self, context: Any) -> Any:
        memo, named = opened(), self._named(context)
        self._asked[context.node_id] = time.perf_counter()  # the last time is just before the node runs
        found = None if memo is None or named is None else memo.look(named[0])
        if memo is None or named is None or found is None:
            return None
        try:
            outputs = unpacked(found.entry.value, _places())
        except CorruptEntry:
            return None
        if not _fit(outputs, context.class_type):
            return None
        memo.used(named[0], found)
        return Caching.CacheValue(outputs=outputs, ui=None)

    async def on_store(self, context: Any, value: Any) -> None:
        """Nothing: see should_cache()."""

    def _keep(self, context: Any, value: Any) -> None:
        memo, named = opened(), self._named(context)
        if memo is None or named is None:
            return
        name, old_files = named
        if value.ui or not old_files:
            return
        memo.stats.miss(NODE)
        cost = time.perf_counter() - self._asked.get(context.node_id, time.perf_counter())
        try:
            memo.put(name, packed(list(value.outputs), _places()), cost)
        except NotCacheable as reason:
            memo.stats.refused(f"{NODE}: {reason}")

    def _named(self, context: Any) -> tuple[Key, bool] | None:
        """The key, and whether the files that it hangs on are older than this process."""
        place = context.node_id, context.cache_key_hash
        if place not in self._names:
            self._names[place] = self._name(context)
        return self._names[place]

    def _name(self, context: Any) -> tuple[Key, bool] | None:
        import nodes

        if self._graph is None or context.node_id not in self._graph:  # a node that another made while it ran
            return None
        try:
            files: set[tuple[Any, ...]] = set()
            code: set[str] = set()
            for node in _with_ancestors(self._graph, context.node_id):
                kind = nodes.NODE_CLASS_MAPPINGS[node["class_type"]]
                links = [v for v in node["inputs"].values() if _is_link(v)]
                if not is_comfys(kind) or (not links and node["class_type"] not in ROOTS):
                    return None
                code.add(fingerprint.source_of(kind.__module__))
                for text in _texts(node["inputs"]):
                    files.update(_files(text))
            known = sorted(files)
            name = key(NODE, context.class_type, context.cache_key_hash, known, sorted(code), ground())
            return name, settled(known)
        except (NotCacheable, KeyError, TypeError):
            return None


def _fit(outputs: Any, class_type: str) -> bool:
    """Whether these may be a node's outputs: a list for each, of what its type asks for."""
    import nodes

    types = nodes.NODE_CLASS_MAPPINGS[class_type].RETURN_TYPES
    if type(outputs) is not list or len(outputs) != len(types):
        return False
    return all(t in _IS and type(o) is list and all(_IS[t](v) for v in o) for o, t in zip(outputs, types, strict=True))


def _is_latent(value: Any) -> bool:
    return type(value) is dict and isinstance(value.get("samples"), Tensor)


def _is_conditioning(value: Any) -> bool:
    return type(value) is list and all(
        type(c) is list and len(c) == 2 and isinstance(c[0], Tensor) and type(c[1]) is dict for c in value
    )


_IS = {"LATENT": _is_latent, "CONDITIONING": _is_conditioning}


def _with_ancestors(graph: Graph, node_id: str) -> Iterator[Graph]:
    waiting, seen = [node_id], {node_id}
    while waiting:
        node = graph[waiting.pop()]
        yield node
        for value in node["inputs"].values():
            if _is_link(value) and value[0] not in seen:
                seen.add(value[0])
                waiting.append(value[0])


def _is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list) and not _is_link(value):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def _files(text: str) -> Iterator[tuple[Any, ...]]:
    """The models that a constant may mean: whatever has this name in a folder of models."""
    import folder_paths

    found, _ = embeddings(text)
    yield from found
    if len(text) > 1024 or "\n" in text:
        return
    for folder in folder_paths.folder_names_and_paths:
        if folder not in _NO_MODELS:
            path = folder_paths.get_full_path(folder, text)
            if path:
                yield stamp(path)
    for name in folder_paths.get_filename_list("vae_approx"):
        if name.startswith((f"{text}_encoder.", f"{text}_decoder.")):
            yield stamp(folder_paths.get_full_path("vae_approx", name))


def _places() -> Places:
    import torch
    from comfy import model_management

    return {"intermediate": model_management.intermediate_device(), "cpu": torch.device("cpu")}
