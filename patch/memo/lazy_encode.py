"""Encodings that are known before their encoder is loaded.

When a loader once ran, the memo learns which encoder its graph and files made, as a small entry of kind `loader`. From then on
the key of an encoding can be told from the graph alone, in this process and after a restart, and on a hit the loader never runs.
An entry names the source files that the encoder was made of: where one has changed since, it says nothing.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import Any

import torch

from ...core.memo.errors import CorruptEntry, NotCacheable
from ...core.memo.keys import Key, digest, key
from ...core.memo.store import Found, Store
from . import fingerprint
from .device_tags import Places, nbytes, unpacked
from .encoders import content, is_latent, is_told, memo_clip, memo_vae, vae_key
from .graph_signature import GetNode, embeddings, signature
from .instance import opened

LOADER = "loader"
WAITING, LARGEST = 60.0, 64 << 20  # seconds and bytes of values between a node's question and its execution


class _Hand:
    """Values found when a node was asked what it needs, until it is executed: by then the memo may have dropped them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: OrderedDict[str, tuple[float, int, Key, Found]] = OrderedDict()  # since when, and how many bytes

    def put(self, ticket: str, name: Key, found: Found) -> None:
        """What is too much is let go: the memo is asked once more then."""
        now, size = time.monotonic(), nbytes(found.entry.value)
        with self._lock:
            self._held.pop(ticket, None)
            self._held[ticket] = now, size, name, found
            while self._held and (self._bytes() > LARGEST or now - next(iter(self._held.values()))[0] > WAITING):
                self._held.popitem(last=False)

    def take(self, ticket: str) -> tuple[Key, Found] | None:
        with self._lock:
            held = self._held.pop(ticket, None)
            return held and held[2:]

    def bytes(self) -> int:
        with self._lock:
            return self._bytes()

    def _bytes(self) -> int:
        return sum(size for _, size, *_ in self._held.values())


_hand = _Hand()


class Pending:
    """One encoding whose encoder comes by `link` in the graph. known(): can it be had without? get(): have it, counted as a hit."""

    def __init__(self, get_node: GetNode, link: Any, content: Any) -> None:
        """content: what is encoded, as digest() takes it; with `link` it names the encoding."""
        self._memo = opened()
        self._settled = False
        self._about: Key | None = None  # the small entry's
        self._ticket = ""
        if self._memo is None:
            return
        try:
            made = signature(get_node, link)
            self._settled = made.settled
            self._about = self._asked(made.digest)
            self._ticket = digest(str(self._about), content)
        except NotCacheable:  # the encoder is loaded, and what it computes kept all the same
            pass
        except Exception as error:  # whatever another version says when it is asked
            self._about = None
            self._memo.stats.refused(f"{LOADER}: not understood ({type(error).__name__})")

    def known(self) -> bool:
        """Whether get() will have it. What was found is held until get() is called."""
        found = self._find()
        if found is None:
            return False
        _hand.put(self._ticket, *found)
        return True

    def get(self) -> Any:
        """The value, or None where the encoder has to be run."""
        found = _hand.take(self._ticket) or self._find()
        if self._memo is None or found is None:
            return None
        self._memo.used(*found)
        return unpacked(found[1].entry.value, _places())

    def fits(self, value: Any) -> bool:
        """Whether it is what this encoding makes."""
        raise NotImplementedError

    def learn(self, told: dict[str, Any], who: fingerprint.Identity) -> None:
        """The encoder has been loaded: remember what its graph makes, unless another node wrote to it."""
        if self._memo is not None and self._about is not None and self._settled and not who.bent:
            self._memo.put(self._about, {**told, "sources": who.sources}, 0.0)

    def _asked(self, graph: str) -> Key:
        """The name of the small entry."""
        raise NotImplementedError

    def _named(self, told: dict[str, Any]) -> Key | None:
        """The name of the encoding, by the small entry."""
        raise NotImplementedError

    def _find(self) -> tuple[Key, Found] | None:
        if self._memo is None or self._about is None:
            return None
        try:
            return self._found(self._memo, self._about)
        except Exception as error:  # whatever another version says when it is asked
            self._memo.stats.refused(f"{LOADER}: not understood ({type(error).__name__})")
            return None

    def _found(self, memo: Store, about: Key) -> tuple[Key, Found] | None:
        small = memo.look(about)
        told = None if small is None else small.entry.value
        if not isinstance(told, dict) or not isinstance(told.get("sources"), dict):
            return None
        if any(fingerprint.source_of(str(module)) != source for module, source in told["sources"].items()):
            return None
        name = self._named(told)
        found = None if name is None else memo.look(name)
        if name is None or found is None:
            return None
        try:
            value = unpacked(found.entry.value, _places())
        except CorruptEntry:  # also where it was on a device that only the encoder knows
            return None
        return (name, found) if self.fits(value) else None


class PendingLatent(Pending):
    """Of pixels, (B, H, W, C), by VAE Encode."""

    def __init__(self, get_node: GetNode, link: Any, pixels: Any) -> None:
        self._pixels = pixels
        try:
            self._content = content(pixels)
        except NotCacheable:  # let the encoder say what is wrong with it
            self._content, link = [], None
        super().__init__(get_node, link, self._content)

    def _asked(self, graph: str) -> Key:
        return key(LOADER, "vae", graph)

    def _named(self, told: dict[str, Any]) -> Key | None:
        who = told.get("identity")
        return vae_key(who, "encode", self._content) if isinstance(who, str) else None

    def fits(self, value: Any) -> bool:
        return is_latent(value)

    def encode(self, vae: Any) -> Any:
        """By the VAE itself, through the memo."""
        made = memo_vae(vae)
        latent = made.encode(self._pixels)
        try:
            who = fingerprint.of_vae(made)
        except NotCacheable:
            return latent
        self.learn({"identity": who.digest}, who)
        return latent


class PendingPrompt(Pending):
    """Of a text, by CLIP Text Encode: what encode_from_tokens() tells, as a dict."""

    def __init__(self, get_node: GetNode, link: Any, text: str) -> None:
        self._text = text
        super().__init__(get_node, link, text)

    def _asked(self, graph: str) -> Key:
        # tokens are made by the CLIP, so the text stands for them, with the files that it may name
        files, settled = embeddings(self._text)
        self._settled = self._settled and settled
        return key(LOADER, "text", graph, self._text, digest(files))

    def _named(self, told: dict[str, Any]) -> Key | None:
        name = told.get("key")
        try:
            return Key("text", name) if isinstance(name, str) else None
        except ValueError:
            return None

    def fits(self, value: Any) -> bool:
        return is_told(value)

    def encode(self, clip: Any) -> Any:
        """By the CLIP itself, through the memo: a CONDITIONING."""
        made = memo_clip(clip)
        tokens = made.tokenize(self._text)
        encoded = made.encode_from_tokens_scheduled(tokens)
        try:
            name, who = made.skipstone_key(tokens), fingerprint.of_clip(made)
        except (NotCacheable, AttributeError):  # or of a kind that cannot be patched
            return encoded
        self.learn({"key": name.digest}, who)
        return encoded


def conditioning(told: dict[str, Any]) -> list[list[Any]]:
    """As encode_from_tokens_scheduled() makes one of what encode_from_tokens() tells."""
    rest = dict(told)
    return [[rest.pop("cond"), rest]]


def _places() -> Places:
    from comfy import model_management

    there = model_management.intermediate_device()
    return {"output": there, "intermediate": there, "cpu": torch.device("cpu")}
