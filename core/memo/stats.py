"""Statistics of a store since it was opened: hits, misses, times and failures, as a dict and as text. Thread-safe."""

from __future__ import annotations

import logging
import threading
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from ..texts import Text
from .tiers.base import Usage

log = logging.getLogger(__name__)
WORDS = {
    "vae": "latents",
    "text": "prompts",
    "image": "pictures",
    "loader": "loaders",
    "node": "other nodes",
    "generated": "generated texts",
    "vision": "vision embeddings",
    "audio": "audio embeddings",
}
"""Names of kinds in the user interface, by kind."""

_UNUSED = Text("stats_unused", "not used yet")
_REUSED = Text("stats_reused", "{hits} of {asked} reused ({rate}), {saved} s saved")


class Stats:
    """Counters by (tier, kind) or by kind, and failures of tiers, of which each is logged once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hits: Counter[tuple[str, str]] = Counter()
        self._passed: Counter[tuple[str, str]] = Counter()  # look-ups in this tier that were misses
        self._misses: Counter[str] = Counter()
        self._saved: defaultdict[str, float] = defaultdict(float)  # seconds, by kind
        self._spent: defaultdict[str, float] = defaultdict(float)
        self._refused: Counter[str] = Counter()
        self._troubles: dict[tuple[str, str], str] = {}

    def hit(self, tier: str, kind: str, cost: float, seconds: float) -> None:
        """Count a hit. cost: seconds that computing the value took when it was cached. seconds: duration of this look-up."""
        with self._lock:
            self._hits[tier, kind] += 1
            self._saved[kind] += cost - seconds

    def passed(self, tier: str, kind: str) -> None:
        """Count a look-up that missed in one tier."""
        with self._lock:
            self._passed[tier, kind] += 1

    def miss(self, kind: str) -> None:
        """Count a value that was in no tier."""
        with self._lock:
            self._misses[kind] += 1

    def spent(self, kind: str, seconds: float) -> None:
        """Add the seconds that computing a missing value took."""
        with self._lock:
            self._spent[kind] += seconds

    def refused(self, reason: str) -> None:
        """Count a value that was not cached, or not in every tier. reason: a short phrase."""
        with self._lock:
            self._refused[reason] += 1

    def trouble(self, tier: str, what: str, detail: str = "") -> None:
        """Log a failure of a tier, once for each `what`. detail: what varies between occurrences; only the first is logged."""
        with self._lock:
            if (tier, what) in self._troubles:
                return
            sentence = f"{tier}: {what}" + (f" ({detail})" if detail else "")
            self._troubles[tier, what] = sentence
        log.warning("[Skipstone] encode cache: %s", sentence)

    @property
    def troubles(self) -> list[tuple[str, str]]:
        """Failures as (tier, what), in order of first occurrence, without details, which may contain paths."""
        with self._lock:
            return list(self._troubles)

    def samples(self) -> list[tuple[str, dict[str, str], float]]:
        """The counts as metrics (metrics.py): names, labels and values."""
        with self._lock:
            told: list[tuple[str, dict[str, str], float]] = []
            for result, counts in (("hit", self._hits), ("miss", self._passed)):
                for (tier, kind), n in sorted(counts.items()):
                    told.append(("lookups_total", {"tier": tier, "kind": kind, "result": result}, n))
            for kind in sorted({kind for _, kind in self._hits} | set(self._misses)):
                reused = sum(n for (_, other), n in self._hits.items() if other == kind)
                told.append(("values_total", {"kind": kind, "result": "reused"}, reused))
                told.append(("values_total", {"kind": kind, "result": "computed"}, self._misses[kind]))
                told.append(("saved_seconds", {"kind": kind}, self._saved[kind]))
                told.append(("computing_seconds_total", {"kind": kind}, self._spent[kind]))
            told.append(("not_kept_total", {}, sum(self._refused.values())))
            return told

    def as_dict(self, usage: Mapping[str, Mapping[str, Usage] | None] | None = None) -> dict[str, Any]:
        """All statistics as plain data for JSON. usage: entries and bytes by tier and kind; None for a tier that did not answer.

        Rates are between 0 and 1, or None where nothing was looked up; times are in seconds.
        """
        with self._lock:
            kinds = sorted({kind for _, kind in self._hits} | set(self._misses))
            by_kind = {k: sum(n for (_, kind), n in self._hits.items() if kind == k) for k in kinds}
            tiers: dict[str, Any] = {}
            for tier in [*(usage or {}), *sorted({tier for tier, _ in self._hits} - set(usage or {}))]:
                hits, passed = _of(self._hits, tier), _of(self._passed, tier)
                tiers[tier] = {"hits": sum(hits.values()), "misses": sum(passed.values()), "hits_by_kind": hits}
                used = (usage or {}).get(tier)
                if used is not None:
                    tiers[tier] |= {
                        "entries": sum(u.entries for u in used.values()),
                        "bytes": sum(u.bytes for u in used.values()),
                        "kinds": {kind: {"entries": u.entries, "bytes": u.bytes} for kind, u in used.items()},
                    }
            return {
                "hits": sum(by_kind.values()),
                "misses": sum(self._misses.values()),
                "hit_rate": _rate(sum(by_kind.values()), sum(self._misses.values())),
                "saved_seconds": round(sum(self._saved.values()), 3),
                "spent_seconds": round(sum(self._spent.values()), 3),
                "kinds": {
                    k: {
                        "hits": by_kind[k],
                        "misses": self._misses[k],
                        "hit_rate": _rate(by_kind[k], self._misses[k]),
                        "saved_seconds": round(self._saved[k], 3),
                        "spent_seconds": round(self._spent[k], 3),
                    }
                    for k in kinds
                },
                "tiers": tiers,
                "not_kept": dict(self._refused.most_common()),
                "troubles": list(self._troubles.values()),
            }

    def text(self, usage: Mapping[str, Mapping[str, Usage] | None] | None = None) -> str:
        """The statistics as lines of text."""
        report = self.as_dict(usage)
        lines = [f"encode cache: {_line(report)}"]
        if len(report["kinds"]) > 1:
            lines += [f"{WORDS.get(kind, kind)}: {_line(counts)}" for kind, counts in report["kinds"].items()]
        for tier, counts in report["tiers"].items():
            held = (
                f", {counts['entries']} entries, {size(counts['bytes'])}"
                if "entries" in counts
                else ", does not answer"
            )
            lines.append(f"{tier}: {counts['hits']} hits{held}")
        lines += [f"not kept: {reason}, {n} times" for reason, n in report["not_kept"].items()]
        return "\n".join(lines + report["troubles"])

    def headline(self) -> Text:
        """Hits, look-ups and the time saved, in one line."""
        return _line(self.as_dict())


def size(n: int) -> str:
    """A number of bytes with its unit, such as 1.2 MB. A GB is 2**30 bytes, as in the settings."""
    number = float(n)
    for unit in ("bytes", "kB", "MB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} GB"


def _of(counts: Counter[tuple[str, str]], tier: str) -> dict[str, int]:
    return {kind: n for (name, kind), n in counts.items() if name == tier}


def _rate(hits: int, misses: int) -> float | None:
    return hits / (hits + misses) if hits + misses else None


def _line(counts: Mapping[str, Any]) -> Text:
    if counts["hit_rate"] is None:
        return _UNUSED
    asked, saved = counts["hits"] + counts["misses"], f"{counts['saved_seconds']:.1f}"
    return _REUSED.of(hits=counts["hits"], asked=asked, rate=f"{counts['hit_rate']:.0%}", saved=saved)
