"""Results of ComfyUI's own nodes, kept over a restart: its external cache (CacheProvider, from 0.18) on this memo.

Off unless the machine's owner switches it on (instance.py), as it trusts more than the rest of the memo does: the key is ComfyUI's own,
the class and constants of a node and of all nodes above it. Added to that is what ComfyUI leaves out: the files that those
constants name, versions, code and settings. Only what a few encode nodes return is kept, where every node above them came with
ComfyUI, no encoder was changed in place, and the key is still the same after the node ran.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from comfy_api.latest import Caching
from torch import Tensor

from ...core.memo.errors import CorruptEntry, NotCacheable
from ...core.memo.keys import Key, key
from ...core.memo.reasons import of_kind
from ..comfy_server import running_prompt
from . import model_files, reasons, snapshot
from .device_tags import Devices, pack, unpack
from .fingerprint import is_modified
from .graph_signature import PLAIN, is_comfys, loading_digest
from .instance import opened
from .observation import Observation, watch_encoders
from .shapes import KEYS

NODE = "node"
KEPT = {
    "VAEEncode", "VAEEncodeTiled", "VAEEncodeForInpaint", "InpaintModelConditioning",
    "CLIPTextEncode", "CLIPTextEncodeControlnet", "CLIPTextEncodeFlux", "CLIPTextEncodeHiDream", "CLIPTextEncodeHunyuanDiT",
    "CLIPTextEncodeKandinsky5", "CLIPTextEncodeLumina2", "CLIPTextEncodePixArtAlpha", "CLIPTextEncodeSD3", "CLIPTextEncodeSDXL",
    "CLIPTextEncodeSDXLRefiner", "TextEncodeHunyuanVideo_ImageToVideo", "TextEncodeQwenImageEdit", "TextEncodeQwenImageEditPlus",
    "TextGenerate", "TextGenerateLTX2Prompt",
}  # fmt: skip
# nodes with nothing above them: their constants, the files that these name, and ComfyUI's own fingerprints decide what they return
ROOTS = {
    "LoadImage", "LoadImageMask", "LoadImageOutput", "EmptyImage", "EmptyLatentImage", "EmptySD3LatentImage", "SolidMask",
    "PrimitiveString", "PrimitiveStringMultiline", "PrimitiveInt", "PrimitiveFloat", "PrimitiveBoolean",
}  # fmt: skip
# loaders, with the inputs that name files
LOADERS = {
    **{name: plain.files for name, plain in PLAIN.items() if plain.files},
    "UNETLoader": {"unet_name": "diffusion_models"},
    "CLIPVisionLoader": {"clip_name": "clip_vision"},
    "ControlNetLoader": {"control_net_name": "controlnet"},
    "StyleModelLoader": {"style_model_name": "style_models"},
    "UpscaleModelLoader": {"model_name": "upscale_models"},
}
IN_TILES = {"VAEEncodeTiled"}
LATENT_KEYS = {"samples", "noise_mask", "batch_index", "type", "downscale_ratio_spacial"}

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
        self._asked: dict[str, tuple[float, Observation]] = {}
        watch_encoders()

    def on_prompt_start(self, prompt_id: str) -> None:
        self._names.clear()
        self._asked.clear()
        self._graph = None
        self._graph = self._prompt(prompt_id)

    def on_prompt_end(self, prompt_id: str) -> None:
        self._names.clear()
        self._asked.clear()
        self._graph = None

    def should_cache(self, context: Any, value: Any = None) -> bool:
        """Asked for every node. Where there is a value, it is taken here: later the graph may have written to it."""
        if context.class_type not in KEPT:
            return False
        if value is None:
            return self._graph is not None
        self._keep(context, value)
        return False

    async def on_lookup(self, context: Any) -> Any:
        memo, named = opened(), self._name(context)
        place = context.node_id, context.cache_key_hash
        self._names[place] = named
        found = None if memo is None or named is None else memo.look(named[0])
        try:
            if memo is None or named is None or found is None:
                return None
            outputs = unpack(found.entry.value, _places())
            if not _fit(outputs, context.class_type):
                return None
            memo.used(named[0], found)
            return Caching.CacheValue(outputs=outputs, ui=None)
        except CorruptEntry:
            return None
        finally:  # the last time that this is asked is just before the node runs
            self._asked[context.node_id] = time.perf_counter(), Observation(_device())

    async def on_store(self, context: Any, value: Any) -> None:
        """Nothing: see should_cache()."""

    def _keep(self, context: Any, value: Any) -> None:
        memo, before = opened(), self._names.get((context.node_id, context.cache_key_hash))
        asked = self._asked.get(context.node_id)
        if memo is None or before is None or asked is None or value.ui:
            return
        memo.stats.miss(NODE)
        started, watched = asked
        cost = time.perf_counter() - started
        try:
            if not before[1]:
                raise NotCacheable(reasons.FILES_CHANGED)
            if self._name(context) != before:
                raise NotCacheable(reasons.CHANGED_MEANWHILE)
            watched.check(tiles_wanted=context.class_type in IN_TILES)
            if any(is_modified(encoder) or snapshot.is_changed(encoder) for encoder in watched.encoders()):
                raise NotCacheable(reasons.CHANGED_IN_PLACE)
            outputs = list(value.outputs)
            if not _fit(outputs, context.class_type):
                raise NotCacheable(reasons.OTHER_OUTPUTS)
            memo.put(before[0], pack(outputs, _places()), cost)
        except NotCacheable as reason:
            memo.stats.spent(NODE, cost)
            memo.stats.refused(of_kind(NODE, reason))

    def _name(self, context: Any) -> tuple[Key, bool] | None:
        """The key of a node's result, and whether the files that it depends on are settled; None where that is not known."""
        import nodes

        if self._graph is None or context.node_id not in self._graph:  # a node that another made while it ran
            return None
        memo = opened()
        try:
            files = model_files.Files()
            for node in _with_ancestors(self._graph, context.node_id):
                name, inputs = node["class_type"], node["inputs"]
                links = [v for v in inputs.values() if _is_link(v)]
                if not is_comfys(nodes.NODE_CLASS_MAPPINGS[name]) or not (links or name in ROOTS or name in LOADERS):
                    return None
                for part, folder in LOADERS.get(name, {}).items():
                    if part in inputs and not _is_link(inputs[part]):
                        files.add(model_files.named(folder, inputs[part]))
                for text in _texts(inputs):
                    other = model_files.mentioned(text)
                    files.stamps += other.stamps
                    # of a loader, the kind of folder is known in which its file lies
                    files.settled = files.settled and (name in LOADERS or other.settled)
            return key(NODE, context.class_type, context.cache_key_hash, files.stamps, loading_digest()), files.settled
        except NotCacheable as reason:
            if memo is not None:
                memo.stats.refused(of_kind(NODE, reason))
            return None
        except (KeyError, TypeError, AttributeError):
            return None


def _fit(outputs: Any, class_type: str) -> bool:
    """Whether these may be a node's outputs: a list for each, of what its type asks for."""
    import nodes

    types = nodes.NODE_CLASS_MAPPINGS[class_type].RETURN_TYPES
    if type(outputs) is not list or len(outputs) != len(types):
        return False
    return all(t in _IS and type(o) is list and all(_IS[t](v) for v in o) for o, t in zip(outputs, types, strict=True))


def _is_latent(value: Any) -> bool:
    return type(value) is dict and isinstance(value.get("samples"), Tensor) and set(value) <= LATENT_KEYS


def _is_conditioning(value: Any) -> bool:
    return type(value) is list and all(
        type(c) is list and len(c) == 2 and isinstance(c[0], Tensor) and c[0].is_floating_point() and _is_about(c[1])
        for c in value
    )


def _is_about(value: Any) -> bool:
    return type(value) is dict and set(value) <= KEYS


_IS = {"LATENT": _is_latent, "CONDITIONING": _is_conditioning, "STRING": lambda value: type(value) is str}


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


def _places() -> Devices:
    import torch
    from comfy import model_management

    return {"intermediate": model_management.intermediate_device(), "cpu": torch.device("cpu")}


def _device() -> Any:
    from comfy import model_management

    return model_management.get_torch_device()
