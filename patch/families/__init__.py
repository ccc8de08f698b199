"""The families that the block hook supports, found by the class of the diffusion model."""

from __future__ import annotations

from typing import Any

from . import image, other, unet, video
from .base import Family, Image, LeftOut, Stack

FAMILIES: tuple[Family, ...] = (*image.FAMILIES, *video.FAMILIES, *other.FAMILIES, *unet.FAMILIES)
LEFT_OUT: tuple[LeftOut, ...] = other.LEFT_OUT

__all__ = ["FAMILIES", "LEFT_OUT", "Family", "Image", "LeftOut", "Stack", "family_of"]

_RECORDS: tuple[Family | LeftOut, ...] = (*FAMILIES, *LEFT_OUT)
_KNOWN = {c: record for record in _RECORDS for c in record.classes}


# methods of diffusion models that run the blocks, or some of them
FORWARDS = {"forward", "_forward", "forward_orig", "_process_transformer_blocks"}
# keys of transformer_options with which a model of some family keeps state from call to call
STATE_OPTIONS = {r.state_option for r in FAMILIES if r.state_option}


def family_of(network: Any) -> Family | LeftOut | None:
    """The record of a diffusion model (torch.nn.Module); None for an unknown class. A class derived from a known one has its record,
    unless it defines a forward of its own."""
    for cls in type(network).__mro__:
        record = _KNOWN.get(f"{cls.__module__}:{cls.__qualname__}")
        if record is not None:
            return record
        if FORWARDS & vars(cls).keys():
            return None
    return None
