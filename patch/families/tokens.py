"""The position of the image's tokens in a model's streams, among references, padding and text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .base import Family

Span = tuple[int, int]


@dataclass(frozen=True)
class CallInputs:
    """Inputs of one call of the network.

    shape: of the latent. keywords: other arguments. options: transformer_options at the first block.
    """

    shape: Sequence[int]
    keywords: Mapping[str, Any]
    options: Mapping[str, Any]


def spans(family: Family, network: Any, lengths: Mapping[str, int], inputs: CallInputs) -> Iterator[Span]:
    """For each stack, the image's tokens in its first stream, as [start, end). lengths: tokens of each stream at block 0."""
    name = family.stacks[0].takes[0][0]
    start, end = _first(family, network, lengths[name], inputs)
    for stack in family.stacks:
        if stack.joins:
            start, end = (
                place + sum(lengths[n] for n in stack.joins[: stack.joins.index(name)]) for place in (start, end)
            )
            lengths = {stack.takes[0][0]: sum(lengths[n] for n in stack.joins)}
        name = stack.takes[0][0]
        yield start, end


def _first(family: Family, network: Any, length: int, inputs: CallInputs) -> Span:
    """In the first stack. All tokens where the record does not fit the stream."""
    image, sizes = family.image, patch_of(family, network)
    if image.where == "all" or not sizes:
        return 0, length
    count = _tokens(inputs.shape, sizes)
    multiple = (getattr(network, image.pads) if image.pads else None) or 1
    count = -(-count // multiple) * multiple
    start = 0 if image.where == "head" else length - count
    if image.where == "img_slice" and inputs.options.get("img_slice"):
        start = int(inputs.options["img_slice"][0])
    ahead = inputs.keywords.get(image.after)
    if ahead is not None:
        before = _tokens(ahead.shape, sizes)
        start = before if before + count <= length else start
    return (start, start + count) if 0 <= start < start + count <= length else (0, length)


def patch_of(family: Family, network: Any) -> list[int]:
    """Latent elements per token along each of the latent's last dimensions; [] where unknown."""
    patch: Any = getattr(network, family.image.patch) if isinstance(family.image.patch, str) else family.image.patch
    return [patch, patch] if isinstance(patch, int) else [int(n) for n in patch]


def _tokens(shape: Sequence[int], sizes: Sequence[int]) -> int:
    """Number of tokens of a latent of shape (batch, channels, ...)."""
    spatial = shape[2:]
    return math.prod(-(-int(n) // int(p)) for n, p in zip(reversed(spatial), reversed(sizes), strict=False))
