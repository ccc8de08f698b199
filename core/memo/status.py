"""Status of a store for pages that everybody who reaches the server can read: no path, address or password."""

from __future__ import annotations

from typing import Any

from .store import Store
from .tiers.base import Tier
from .tiers.redis import RedisTier
from .tiers.s3 import S3Tier

NAMES = {"disk": "its folder", "redis": "Redis", "s3": "S3"}
"""Replacements for the place of a tier in messages, by the tier's name."""


def overview(store: Store) -> dict[str, Any]:
    """A report like Stats.as_dict(), with the state of each tier. May take some seconds, as every tier is asked for its usage.

    `tiers` is a list in look-up order. Each has `budget` (bytes or None) and `state`: "on", or "away" for a tier that is not asked at
    present. `troubles` is a list of {"tier", "text"}.
    """
    report = store.report(patient=True)
    tiers = []
    for name, tier in store.tiers.items():
        state = "on" if store.serves(name) and "entries" in report["tiers"][name] else "away"
        tiers.append({"name": name, "state": state, "budget": getattr(tier, "budget", None), **report["tiers"][name]})
    troubles = [
        {"tier": name, "text": _without_place(text, store.tiers.get(name))} for name, text in store.stats.troubles
    ]
    return {**report, "tiers": tiers, "troubles": troubles}


def check_connections(store: Store) -> tuple[bool, str]:
    """Write a value to each shared tier and read it back. Returns whether all of them work, and a sentence about each."""
    shared = [tier for tier in store.tiers.values() if isinstance(tier, RedisTier | S3Tier)]
    if not shared:
        return False, "No Redis address is set."
    works, sentences = True, []
    for tier in shared:
        try:
            sentences.append(f"{NAMES[tier.name]} works ({tier.trial() * 1000:.1f} ms to write and read).")
        except Exception as error:
            works, text = False, _without_place(str(error), tier)
            sentences.append(f"{text[:1].upper()}{text[1:]}.")
    return works, " ".join(sentences)


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
    return text.replace(where, NAMES.get(tier.name, "its place")) if tier is not None and where else text
