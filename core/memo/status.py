"""Status of a store for pages that everybody who reaches the server can read: no path, address or password."""

from __future__ import annotations

from typing import Any

from ..texts import Text, said, translatable
from .store import Store
from .tiers.base import Tier
from .tiers.redis import RedisTier
from .tiers.s3 import S3Tier

NAMES = {"disk": Text("its_folder", "its folder"), "redis": "Redis", "s3": "S3"}
"""Replacements for the place of a tier in messages, by the tier's name."""
_WORKS = Text("tier_works", "{tier} works ({ms} ms to write and read)")
NO_SHARED_TIER = Text("no_shared_tier", "no Redis address is set")


def overview(store: Store) -> dict[str, Any]:
    """A report like Stats.as_dict(), with the state of each tier. May take some seconds, as every tier is asked for its usage.

    `tiers` is a list in look-up order. Each has `budget` (bytes or None) and `state`: "on", or "away" for a tier that is not asked at
    present. `troubles` is a list of {"tier", "text"}. `texts`: the sentences of `troubles` and `not_kept` with key and values, for
    translation (Text.as_dict).
    """
    report = store.report(patient=True)
    tiers = []
    for name, tier in store.tiers.items():
        state = "on" if store.serves(name) and "entries" in report["tiers"][name] else "away"
        tiers.append({"name": name, "state": state, "budget": getattr(tier, "budget", None), **report["tiers"][name]})
    troubles = [(name, _without_place(text, store.tiers.get(name))) for name, text in store.stats.troubles]
    return {
        **report,
        "tiers": tiers,
        "troubles": [{"tier": name, "text": text} for name, text in troubles],
        "texts": translatable([*report["not_kept"], *(text for _, text in troubles)]),
    }


def check_connections(store: Store) -> tuple[bool, list[str]]:
    """Write a value to each shared tier and read it back. Returns whether all of them work, and a sentence about each, which begins in
    lower case and has no full stop."""
    shared = [tier for tier in store.tiers.values() if isinstance(tier, RedisTier | S3Tier)]
    if not shared:
        return False, [NO_SHARED_TIER]
    works, sentences = True, list[str]()
    for tier in shared:
        try:
            sentences.append(_WORKS.of(tier=NAMES[tier.name], ms=f"{tier.trial() * 1000:.1f}"))
        except Exception as error:
            works = False
            sentences.append(_without_place(said(error), tier))
    return works, sentences


def text(store: Store) -> str:
    """Store.text() without places. ComfyUI stores it in its history, which every page can read."""
    lines = store.text()
    for tier in store.tiers.values():
        lines = _without_place(lines, tier)
    return lines


def report(store: Store) -> dict[str, Any]:
    """Store.report() without places."""
    made = store.report()
    for tier in store.tiers.values():
        made["troubles"] = [_without_place(trouble, tier) for trouble in made["troubles"]]
    return made


def _without_place(text: str, tier: Tier | None) -> str:
    where = getattr(tier, "where", "")
    if tier is None or not where:
        return text
    name = NAMES.get(tier.name, "its place")
    if isinstance(text, Text):
        text = text.of(**{key: name if value == where else value for key, value in text.values.items()})
    return text.replace(where, name) if where in text else text
