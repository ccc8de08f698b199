"""What a memo did and holds, for a page that anybody who reaches the server can read: no path, no address, no password."""

from __future__ import annotations

from typing import Any

from .store import Store
from .tiers.base import Tier
from .tiers.redis import RedisTier
from .tiers.s3 import S3Tier

NAMES = {"disk": "its folder", "redis": "Redis", "s3": "S3"}


def overview(store: Store) -> dict[str, Any]:
    """As Stats.as_dict, but `tiers` is a list in order, each with `budget` (bytes or None) and `state`: "on", or "away" for one that
    is not asked at present. `troubles`: {"tier", "text"}. May wait some seconds.
    """
    told = store.report(patient=True)  # asks every tier what it holds: whether it answers is known then
    tiers = []
    for name, tier in store.tiers.items():
        state = "on" if store.serves(name) and "entries" in told["tiers"][name] else "away"
        tiers.append({"name": name, "state": state, "budget": getattr(tier, "budget", None), **told["tiers"][name]})
    troubles = [
        {"tier": name, "text": _without_place(what, store.tiers.get(name))} for name, what in store.stats.troubles
    ]
    return {**told, "tiers": tiers, "troubles": troubles}


def tried(store: Store) -> tuple[bool, str]:
    """Whether each shared tier of this store takes a word and gives it back, and sentences that say so or what is wrong."""
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
    """Store.text() without places: it ends up in ComfyUI's history, which every page can read."""
    told = store.text()
    for tier in store.tiers.values():
        told = _without_place(told, tier)
    return told


def report(store: Store) -> dict[str, Any]:
    """Store.report() without places."""
    told = store.report()
    for tier in store.tiers.values():
        told["troubles"] = [_without_place(trouble, tier) for trouble in told["troubles"]]
    return told


def _without_place(text: str, tier: Tier | None) -> str:
    where = getattr(tier, "where", "")
    return text.replace(where, NAMES.get(tier.name, "its place")) if tier is not None and where else text
