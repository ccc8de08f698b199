"""Where in a model's streams the picture's own tokens are: references, padding and text stand around them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .base import Family

Span = tuple[int, int]


@dataclass(frozen=True)
class Given:
    """What one call of the network is given: the latent's shape, its other keyword arguments, the options at the first block."""

    shape: Sequence[int]
    keywords: Mapping[str, Any]
    options: Mapping[str, Any]


def spans(family: Family, network: Any, lengths: Mapping[str, int], given: Given) -> Iterator[Span]:
    """For each stack, where in its first stream the picture's tokens begin and end. lengths: tokens of each stream at block 0."""
    name = family.stacks[0].takes[0][0]
    start, end = _first(family, network, lengths[name], given)
    for stack in family.stacks:
        if stack.joins:
            start, end = (
                place + sum(lengths[n] for n in stack.joins[: stack.joins.index(name)]) for place in (start, end)
            )
            lengths = {stack.takes[0][0]: sum(lengths[n] for n in stack.joins)}
        name = stack.takes[0][0]
        yield start, end


def _first(family: Family, network: Any, length: int, given: Given) -> Span:
    """In the first stack. Where the record does not fit what is there, all tokens count."""
    image, sizes = family.image, patch_of(family, network)
    if image.where == "all" or not sizes:
        return 0, length
    count = _tokens(given.shape, sizes)
    multiple = (getattr(network, image.pads) if image.pads else None) or 1
    count = -(-count // multiple) * multiple
    start = 0 if image.where == "head" else length - count
    if image.where == "img_slice" and given.options.get("img_slice"):
        start = int(given.options["img_slice"][0])
    ahead = given.keywords.get(image.after)
    if ahead is not None:
        before = _tokens(ahead.shape, sizes)
        start = before if before + count <= length else start
    return (start, start + count) if 0 <= start < start + count <= length else (0, length)


def patch_of(family: Family, network: Any) -> list[int]:
    """How many latent elements along each of the latent's last dimensions a token stands for; [] where that is not known."""
    patch: Any = getattr(network, family.image.patch) if isinstance(family.image.patch, str) else family.image.patch
    return [patch, patch] if isinstance(patch, int) else [int(n) for n in patch]


def _tokens(shape: Sequence[int], sizes: Sequence[int]) -> int:
    """Of a latent of this shape (batch, channels, ...)."""
    spatial = shape[2:]
    return math.prod(-(-int(n) // int(p)) for n, p in zip(reversed(spatial), reversed(sizes), strict=False))
