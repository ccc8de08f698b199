"""Which models of the zoo are sampled: those that this ComfyUI has, and of them a few that show every kind of family record."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from .base import Tiny

# Fields of a record that only name something: two records that differ in nothing else are of one kind.
NAMES = {"name", "classes", "at", "why"}


def here(models: Iterable[Tiny]) -> list[Tiny]:
    """The models whose class this ComfyUI has."""
    import comfy.model_base

    return [m for m in models if hasattr(comfy.model_base, m.base)]


class _Found(Exception):
    pass


def network_class(build: Callable[[], Any]) -> tuple[type, Any]:
    """The class of the diffusion model that `build` would make, and the model's configuration; no weights are made."""
    import comfy.model_base

    def stop(self: Any, config: Any, model_type: Any = None, device: Any = None, unet_model: Any = None) -> None:
        raise _Found(unet_model or comfy.model_base.UNetModel, config)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(_Found) as found:
        patch.setattr(comfy.model_base.BaseModel, "__init__", stop)
        build()
    cls, config = found.value.args
    return cls, config


def kinds(record: Any, path: str = "") -> set[tuple[str, object]]:
    """Each field of a family record with the kind of value that it has."""
    found: set[tuple[str, object]] = {(path, type(record).__name__)}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if dataclasses.is_dataclass(value):
            found |= kinds(value, f"{path}{field.name}.")
        elif field.name not in NAMES:
            found.add((f"{path}{field.name}", kind(value, field.name)))
    return found


def kind(value: Any, field: str = "") -> object:
    """What the block hook could branch on: a flag's value, zero or not, empty or not, and how many there are of what."""
    if dataclasses.is_dataclass(value):
        fields = (f for f in dataclasses.fields(value) if f.name not in NAMES)
        return (type(value).__name__, *(kind(getattr(value, f.name), f.name) for f in fields))
    if isinstance(value, tuple):
        return tuple(map(kind, value))
    if value is None or isinstance(value, bool) or field == "where":  # `where` is one of a few literals
        return value
    return (type(value).__name__, bool(value))


def features(tiny: Tiny, record: Any) -> set[tuple[str, object]]:
    """The kinds of values in its record, where the image's tokens are with and without reference images beside them, and its family
    where the latent has several parts, which each such family handles in its own way."""
    positive, _ = tiny.conds(None)
    references = any("reference" in name for name in positive[0][1])
    image = getattr(record, "image", None)
    place = (image.where, bool(image.after)) if image else None
    parts = getattr(record, "name", "") if tiny.latent().is_nested else ""
    return kinds(record) | {("parts", parts), ("references", (references, place))}


def representatives(models: Iterable[Tiny]) -> list[Tiny]:
    """A few of these models that show every feature which any of them has."""
    from skipstone.patch.families import family_of

    records = {m: family_of(object.__new__(network_class(m.build)[0])) for m in models}
    return cover({m: features(m, record) for m, record in records.items() if record is not None})


def unet_representatives(models: Iterable[Tiny]) -> list[Tiny]:
    """A few of these UNets that show every kind of value of every setting in their configurations."""

    def setting(value: Any) -> object:
        if isinstance(value, list | tuple):
            return len(value)
        return min(value, 1) if isinstance(value, int) else type(value).__name__

    configs = {m: network_class(m.build)[1].unet_config for m in models}
    return cover({m: {(name, setting(value)) for name, value in config.items()} for m, config in configs.items()})


def cover(features: dict[Tiny, set[tuple[str, object]]]) -> list[Tiny]:
    """Models that together have every feature: always the one with the most of what is missing, of several the first."""
    missing = set[tuple[str, object]]().union(*features.values())
    chosen = set()
    while missing:
        best = max(features, key=lambda m: len(features[m] & missing))
        chosen.add(best)
        missing -= features[best]
    return [m for m in features if m in chosen]
