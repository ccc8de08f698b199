"""Encodings that are known before their encoder is loaded.

When a loader has run, the memo keeps which encoder its graph and files give, as a small entry of kind `loader`. From then on the key
of an encoding is known from the graph alone, in this process and after a restart, and on a hit the loader never runs. The entry's own
key covers the graph, the files, ComfyUI's code and everything that other packs replaced in it. Values themselves are named by the
fingerprint of the encoder that computed them, never by a file.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import Any

import torch

from ...core.memo.errors import CorruptEntry, NotCacheable
from ...core.memo.keys import Key, digest, key
from ...core.memo.reasons import of_kind
from ...core.memo.store import Found, Store
from . import fingerprint, reasons, snapshot
from .device_tags import Devices, nbytes, unpack
from .encoders import content, memo_clip, memo_vae, vae_key
from .graph_signature import GetNode, signature
from .instance import opened
from .model_files import embeddings
from .node_status import NodeStatus
from .shapes import form_of, is_embedding

LOADER = "loader"
WAITING, LARGEST = (
    60.0,
    64 << 20,
)  # seconds and bytes for which values are held between a node's question and its execution


class _Held:
    """Values found when a node was asked what it needs, until it is executed: by then the memo may have dropped them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: OrderedDict[str, tuple[float, int, Key, Found]] = OrderedDict()  # time, bytes, key, value

    def put(self, ticket: str, name: Key, found: Found) -> None:
        """Hold a value. What exceeds LARGEST or WAITING is dropped; the memo is asked again for it."""
        now, size = time.monotonic(), nbytes(found.entry.value)
        with self._lock:
            self._values.pop(ticket, None)
            self._values[ticket] = now, size, name, found
            while self._values and (self._bytes() > LARGEST or now - next(iter(self._values.values()))[0] > WAITING):
                self._values.popitem(last=False)

    def take(self, ticket: str) -> tuple[Key, Found] | None:
        with self._lock:
            held = self._values.pop(ticket, None)
            return held and held[2:]

    def clear(self) -> None:
        with self._lock:
            self._values.clear()

    def bytes(self) -> int:
        with self._lock:
            return self._bytes()

    def _bytes(self) -> int:
        return sum(size for _, size, *_ in self._values.values())


_held = _Held()


def forget_held() -> None:
    """Drop the values that are held for nodes about to be executed. They are found again in the memo."""
    _held.clear()


class Pending:
    """One encoding whose encoder arrives by `link` in the graph. known(): whether it is kept. get(): the value, counted as a hit."""

    def __init__(self, get_node: GetNode, link: Any, content: Any, node: str = "") -> None:
        """content: what is encoded, as digest() takes it; with `link` it identifies the encoding. node: id of the node that encodes, on
        which the source of the value is shown; "" for none."""
        self._status = NodeStatus(node)
        self._memo = opened()
        self._settled = False
        self._about: Key | None = None  # the small entry's
        self._ticket = ""
        if self._memo is None:
            return
        try:
            made = signature(get_node, link)
            self._settled = made.settled
            self._about = self._loader_key(made.digest)
            self._ticket = digest(str(self._about), content)
        except NotCacheable:  # the encoder is loaded, and what it computes is kept all the same
            self._about = None
        except Exception as error:  # whatever another version of ComfyUI raises
            self._about = None
            self._memo.stats.refused(of_kind(LOADER, reasons.NOT_UNDERSTOOD.of(error=type(error).__name__)))

    def known(self) -> bool:
        """Whether get() will return a value, which is held until then."""
        found = self._find()
        if found is None:
            return False
        _held.put(self._ticket, *found)
        return True

    def get(self) -> Any:
        """The value, or None where the encoder has to be run."""
        found = _held.take(self._ticket) or self._find()
        if self._memo is None or found is None:
            return None
        self._memo.used(*found)
        self._status.found(found[1])
        return unpack(found[1].entry.value, _places())

    def _learn(self, told: dict[str, Any], modified: bool) -> None:
        """Keep what the graph makes of its files, now that the encoder has been loaded; not if another file or node may have made it."""
        if self._memo is None or self._about is None:
            return
        if not self._settled:
            self._memo.stats.refused(of_kind(LOADER, reasons.FILES_CHANGED))
        elif modified:
            self._memo.stats.refused(of_kind(LOADER, reasons.CHANGED_IN_PLACE))
        else:
            self._memo.put(self._about, told, 0.0)

    def _loader_key(self, graph: str) -> Key:
        """The key of the small entry."""
        raise NotImplementedError

    def _encoding(self, told: dict[str, Any]) -> Key | None:
        """The key of the encoding, by the small entry."""
        raise NotImplementedError

    def _fits(self, value: Any, told: dict[str, Any]) -> bool:
        """Whether a value has the form that this encoding gives."""
        raise NotImplementedError

    def _find(self) -> tuple[Key, Found] | None:
        if self._memo is None or self._about is None:
            return None
        try:
            return self._found(self._memo, self._about)
        except Exception as error:  # whatever another version of ComfyUI raises
            self._memo.stats.refused(of_kind(LOADER, reasons.NOT_UNDERSTOOD.of(error=type(error).__name__)))
            return None

    def _found(self, memo: Store, about: Key) -> tuple[Key, Found] | None:
        small = memo.look(about)
        told = None if small is None else small.entry.value
        if not isinstance(told, dict):
            return None
        name = self._encoding(told)
        found = None if name is None else memo.look(name)
        if name is None or found is None:
            return None
        try:
            value = unpack(found.entry.value, _places())
        except CorruptEntry:  # also where it was on a device that only the encoder knows
            return None
        return (name, found) if self._fits(value, told) else None


class PendingLatent(Pending):
    """Of pixels, (B, H, W, C), by VAE Encode."""

    def __init__(self, get_node: GetNode, link: Any, pixels: Any, node: str = "") -> None:
        self._pixels = pixels
        try:
            self._content = content(pixels)
        except NotCacheable:  # the encoder says what is wrong with it
            self._content, link = [], None
        super().__init__(get_node, link, self._content, node)

    def _loader_key(self, graph: str) -> Key:
        return key(LOADER, "vae", graph)

    def _encoding(self, told: dict[str, Any]) -> Key | None:
        identity = told.get("identity")
        return vae_key(identity, "encode", self._content) if isinstance(identity, str) else None

    def _fits(self, value: Any, told: dict[str, Any]) -> bool:
        return isinstance(value, torch.Tensor) and form_of(value) == told.get("form")

    def encode(self, vae: Any) -> Any:
        """The latent, by the VAE itself and through the memo."""
        made = memo_vae(vae, status=self._status)
        latent = made.encode(self._pixels)
        try:
            who = fingerprint.of_vae(made)
        except NotCacheable:
            return latent
        if isinstance(latent, torch.Tensor):
            self._learn({"identity": who.digest, "form": form_of(latent)}, who.modified or snapshot.is_changed(made))
        return latent


class PendingPrompt(Pending):
    """Of a text, by CLIP Text Encode: what encode_from_tokens() returns as a dict."""

    def __init__(self, get_node: GetNode, link: Any, text: str, node: str = "") -> None:
        self._text = text
        super().__init__(get_node, link, text, node)

    def _loader_key(self, graph: str) -> Key:
        # the CLIP makes the tokens, so the text stands for them, with the files that it may name
        files = embeddings(self._text)
        self._settled = self._settled and files.settled
        return key(LOADER, "text", graph, self._text, digest(files.stamps))

    def _encoding(self, told: dict[str, Any]) -> Key | None:
        name = told.get("key")
        try:
            return Key("text", name) if isinstance(name, str) else None
        except ValueError:
            return None

    def _fits(self, value: Any, told: dict[str, Any]) -> bool:
        return is_embedding(value) and sorted(value) == told.get("keys")

    def encode(self, clip: Any) -> Any:
        """The CONDITIONING, by the CLIP itself and through the memo."""
        made = memo_clip(clip, self._status)
        tokens = made.tokenize(self._text)
        encoded = made.encode_from_tokens_scheduled(tokens)
        try:
            name, who = made.skipstone_key(tokens), fingerprint.of_clip(made)
        except (NotCacheable, AttributeError):  # or of a kind that cannot be patched
            return encoded
        if len(encoded) == 1:
            keys = sorted({"cond", *encoded[0][1]})
            modified = who.modified or fingerprint.tokenizer_is_modified(made) or snapshot.is_changed(made)
            self._learn({"key": name.digest, "keys": keys}, modified)
        return encoded


def conditioning(told: dict[str, Any]) -> list[list[Any]]:
    """A CONDITIONING, as encode_from_tokens_scheduled() makes it of what encode_from_tokens() returns."""
    rest = dict(told)
    return [[rest.pop("cond"), rest]]


def _places() -> Devices:
    from comfy import model_management

    there = model_management.intermediate_device()
    return {"output": there, "intermediate": there, "cpu": torch.device("cpu")}
