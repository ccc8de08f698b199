"""The text on a node of the encode cache: where the results of this prompt came from, and how long encoding took."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from ...core.memo.reasons import tier_name
from ...core.memo.store import Found
from ...core.texts import Text
from ..comfy_server import prompt_id, show_text

_ENCODING = Text("encoding", "Encoding: not in the cache")
_FROM = Text("from_cache", "From {tiers} in {looking} ms")
_FROM_SAVED = Text("from_cache_saved", "From {tiers} in {looking} ms, {saved} saved")
_SEVERAL = Text("several_from_cache", "{hits} from {tiers} in {looking} ms")
_SEVERAL_SAVED = Text("several_from_cache_saved", "{hits} from {tiers} in {looking} ms, {saved} saved")
_SOME = Text("some_from_cache", "{hits} of {all} from the cache")
_SOME_SAVED = Text("some_from_cache_saved", "{hits} of {all} from the cache, {saved} saved")
_ENCODED = Text("encoded", "Encoded in {seconds}, saved for next time")
_NOT_CACHED = Text("encoded_not_cached", "Encoded in {seconds}, not cached: {reason}")
WORTH = 0.1  # seconds saved that are told

# By patched encoder. No attribute of the encoder itself, because these count in its fingerprint.
_STATUSES: WeakKeyDictionary[Any, NodeStatus] = WeakKeyDictionary()


@dataclass
class Counts:
    """Of one prompt. Times in seconds.

    Args:
        hits, misses (int): results that came from the cache, and those that were computed.
        looking, saved, spent (float): time to read the hits, time that they took when they were computed, time to compute the misses.
        tiers (set of str): of the hits.
        reason (str): why the last miss is not kept; "" where it is.
    """

    hits: int = 0
    misses: int = 0
    looking: float = 0.0
    saved: float = 0.0
    spent: float = 0.0
    tiers: set[str] = field(default_factory=set)
    reason: str = ""

    def text(self) -> Text:
        """One line for the node."""
        worth, saved = self.saved >= WORTH, _seconds(self.saved)
        if self.hits and not self.misses:
            tiers = [tier_name(tier) for tier in sorted(self.tiers)]
            one, several = (_FROM_SAVED, _SEVERAL_SAVED) if worth else (_FROM, _SEVERAL)
            told = several if self.hits > 1 else one
            return told.of(hits=self.hits, tiers=tiers, looking=f"{1000 * self.looking:.1f}", saved=saved)
        if self.hits:
            told = _SOME_SAVED if worth else _SOME
            return told.of(hits=self.hits, all=self.hits + self.misses, saved=saved)
        if self.reason:
            return _NOT_CACHED.of(seconds=_seconds(self.spent), reason=self.reason)
        return _ENCODED.of(seconds=_seconds(self.spent))


class NodeStatus:
    """What became of one node's encodings in the current prompt. Every change is shown on the node.

    Args:
        node (str): id of the node in its graph; "" for none.
    """

    def __init__(self, node: str) -> None:
        self.node = node
        self._prompt = ""
        self._counts = Counts()

    def starts(self) -> None:
        """A result is not in the cache and is computed."""
        show_text(_ENCODING, self.node)

    def found(self, found: Found) -> None:
        """A result came from the cache."""
        counts = self._current()
        counts.hits += 1
        counts.looking += found.seconds
        counts.saved += found.entry.cost
        counts.tiers.add(found.tier)
        show_text(counts.text(), self.node)

    def computed(self, seconds: float, reason: str = "") -> None:
        """A result was computed. reason: why it is not kept."""
        counts = self._current()
        counts.misses += 1
        counts.spent += seconds
        counts.reason = reason
        show_text(counts.text(), self.node)

    def _current(self) -> Counts:
        prompt = prompt_id()
        if prompt != self._prompt:
            self._prompt, self._counts = prompt, Counts()
        return self._counts


def status_of(encoder: Any) -> NodeStatus | None:
    """The status of the node that patched an encoder; None where no node did."""
    return _STATUSES.get(encoder)


def show_on(encoder: Any, status: NodeStatus | None) -> None:
    """Have the status show what becomes of a patched encoder's encodings. No-op for an encoder that cannot be referenced weakly."""
    if status is None:
        return
    try:
        _STATUSES[encoder] = status
    except TypeError:  # None, or an object of another pack
        return


def _seconds(value: float) -> str:
    return f"{value:.{0 if value >= 10 else 1}f} s"
