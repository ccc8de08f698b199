"""Observes the computation of a value: random numbers drawn, tiles used because memory ran out, encoders that ran."""

from __future__ import annotations

import random
from collections import deque
from typing import Any
from weakref import ref

import numpy
import torch

from ...core.memo.errors import NotCacheable
from . import reasons
from .modifications import observer

_tiles = 0  # calls of a VAE's functions that work in tiles, in this process
_encodings = 0
_encoders: deque[Any] = deque(maxlen=256)  # references to those that were used last


class Observation:
    """Compares the state before and after a computation on `device`."""

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device
        self._random, self._tiles, self._encodings = _random_states(device), _tiles, _encodings

    def check(self, tiles_wanted: bool = False) -> None:
        """Raises NotCacheable if random numbers were drawn since this was made, or tiles were used that were not asked for."""
        if _random_states(self._device) != self._random:
            raise NotCacheable(reasons.RANDOM)
        if self._tiles != _tiles and not tiles_wanted:
            raise NotCacheable(reasons.TILES)

    def encoders(self) -> list[Any]:
        """Encoders that were used since this was made and still exist; see watch_encoders()."""
        number = _encodings - self._encodings
        used = [there() for there in list(_encoders)[-number:]] if number else []
        return [encoder for encoder in used if encoder is not None]


def watch_encoders() -> None:
    """Note, for Observation, each use of ComfyUI's VAE and CLIP classes. May be called again."""
    import comfy.sd

    for kind, names in (
        (comfy.sd.VAE, ("encode", "encode_tiled")),
        (comfy.sd.CLIP, ("encode_from_tokens", "generate")),
    ):
        notes_tiles(kind)
        for name in names:
            function = getattr(kind, name, None)  # earlier versions of ComfyUI generate no text
            if function is not None and not getattr(function, "skipstone_counts", False):
                setattr(kind, name, _noted(function))


def _noted(function: Any) -> Any:
    def encode(self: Any, *args: Any, **kwargs: Any) -> Any:
        global _encodings
        _encodings += 1
        _encoders.append(ref(self))
        return function(self, *args, **kwargs)

    made = observer(function, encode)
    made.skipstone_counts = True
    return made


def notes_tiles(kind: Any) -> None:
    """Count, for Observation, calls of the functions of a VAE class that encode and decode in tiles. May be called again."""
    for name in dir(kind):
        # those that encode() and decode() fall back on; encode_tiled() itself is what a node calls
        if name.startswith(("encode_tiled_", "decode_tiled_", "_encode_tiled_", "_decode_tiled_")):
            function = getattr(kind, name)
            if callable(function) and not getattr(function, "skipstone_counts", False):
                setattr(kind, name, _counted(function))


def _counted(function: Any) -> Any:
    def in_tiles(self: Any, *args: Any, **kwargs: Any) -> Any:
        global _tiles
        _tiles += 1
        return function(self, *args, **kwargs)

    made = observer(function, in_tiles)
    made.skipstone_counts = True
    return made


def _random_states(device: torch.device | None) -> list[Any]:
    """Of torch's, Python's and numpy's random number generators: drawing a number changes one of them."""
    states = [torch.get_rng_state()]
    if device is not None and device.type != "cpu":
        module = getattr(torch, device.type, None)
        if module is not None and hasattr(module, "get_rng_state"):
            states.append(module.get_rng_state(device) if device.type == "cuda" else module.get_rng_state())
    drawn: Any = numpy.random.get_state()
    others = [hash(random.getstate()), drawn[1].tobytes(), drawn[2]]
    return [*(state.numpy().tobytes() for state in states), *others]
