"""The settings of a recorded run, and how much a recording tells about runs with other settings.

`make bench-carry` has the measurements behind the factors.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

OTHER_LORA, OTHER_WEIGHTS = 0.7, 0.25
OTHER_NOISE, OTHER_GUIDANCE = 0.2, 0.1
# samplers that add noise between evaluations have one of these in their name
NOISY = ("ancestral", "sde", "ddpm", "lcm", "seeds", "sa_solver", "restart", "stochastic")


@dataclass(frozen=True)
class Recipe:
    """The model and settings of a run.

    Parameters
    ----------
    model: class and fingerprint of the weights with their LoRAs, "class:fingerprint".
    prediction: classes of the model's sampling, such as "ModelSamplingDiscreteFlow+CONST".
    sampler: name of the sampler's function.
    cfg: guidance scale and class of the guider, "3 (CFGGuider)".
    size: of the latent, each dimension rounded to a power of 2.
    steps, sigmas: of the grid.
    blocks: which always run, for a block profile; "" for a Gram matrix.
    base: fingerprint of the weights without LoRAs; "" in files of earlier versions.
    """

    model: str
    prediction: str
    sampler: str
    cfg: str
    size: str
    steps: int
    sigmas: tuple[float, ...]
    blocks: str = ""
    base: str = ""

    @property
    def key(self) -> str:
        """A name for the recipe's files: a hash, so that no value of a workflow becomes part of a path."""
        parts = {name: value for name, value in asdict(self).items() if value != "" and name != "base"}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def architecture(self) -> str:
        return self.model.split(":")[0]

    @property
    def guidance(self) -> float | None:
        """The guidance scale; None where the guider has none."""
        try:
            return float(self.cfg.split(" ")[0])
        except ValueError:
            return None

    def shares_weights(self, other: Recipe) -> bool:
        """Whether both are of one model, whatever its LoRAs. In files of earlier versions a model without LoRAs has no `base`."""
        return self.model == other.model or bool({self.base or self.model} & {other.base or other.model})

    @property
    def text(self) -> str:
        return f"{self.architecture}, {self.sampler}, {self.steps} steps, CFG {self.cfg}, latent size {self.size}"

    @classmethod
    def from_data(cls, data: Any) -> Recipe:
        """From JSON. Raises ValueError unless it was made by `asdict`."""
        if not isinstance(data, Mapping):
            raise ValueError("not a recipe")
        given = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        texts = [v for k, v in given.items() if k not in ("steps", "sigmas")]
        sigmas, steps = given.get("sigmas"), given.get("steps")
        if not all(isinstance(t, str) and len(t) < 1000 and t.isprintable() for t in texts):
            raise ValueError("not a recipe")
        if not isinstance(steps, int) or not isinstance(sigmas, list):
            raise ValueError("not a recipe")
        try:
            return cls(**{**given, "sigmas": tuple(float(s) for s in sigmas)})
        except (TypeError, ValueError, OverflowError):
            raise ValueError("not a recipe") from None


def similarity(known: Recipe, wanted: Recipe, passes: int = 1) -> float:
    """How much a recording with the recipe `known` tells about a run with `wanted`: from 0, nothing, to 1, the same model.

    passes: of the recording; with two the CFG does not matter.
    """
    if known.prediction != wanted.prediction or known.blocks != wanted.blocks:
        return 0.0
    if known.model == wanted.model:
        factor = 1.0
    elif known.shares_weights(wanted):
        factor = OTHER_LORA
    elif known.architecture == wanted.architecture:
        factor = OTHER_WEIGHTS
    else:
        return 0.0
    if noisy(known.sampler) != noisy(wanted.sampler):
        factor *= OTHER_NOISE
    if passes == 1:
        factor *= _guidance_factor(known.guidance, wanted.guidance)
    return factor * _size_factor(known.size, wanted.size)


def noisy(sampler: str) -> bool:
    """Whether a sampler of this name adds noise between evaluations."""
    return any(word in sampler for word in NOISY)


def both_guided_or_neither(known: float | None, wanted: float | None) -> bool:
    """Whether the outputs of one pass at two CFG scales tell of each other. A scale that is not known is comparable with itself alone."""
    return known == wanted or (None not in (known, wanted) and (known == 1) == (wanted == 1))


def _guidance_factor(known: float | None, wanted: float | None) -> float:
    if known == wanted:
        return 1.0
    if known is None or wanted is None or not both_guided_or_neither(known, wanted) or min(known, wanted) <= 0:
        return OTHER_GUIDANCE
    return float(1 / (1 + abs(math.log2(known / wanted)) / 3))


def _size_factor(known: str, wanted: str) -> float:
    try:
        areas = [math.prod(int(n) for n in size.split("x")) for size in (known, wanted)]
    except ValueError:
        return 1.0 if known == wanted else 0.5
    if min(areas) < 1:
        return 1.0
    return float(0.9 ** abs(math.log2(areas[0] / areas[1])))
