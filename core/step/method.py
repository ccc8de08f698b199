"""A method: when to compute, what to say instead, and where in the model. Frozen data; knows no tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .policies import Policy
from .predictors import Auto, Predictor


@dataclass(frozen=True)
class Method:
    """What a node builds from its widgets. `policies` are asked in order; the last step is computed whatever they say."""

    name: str
    variant: str
    policies: tuple[Policy, ...]
    predictor: Predictor | Auto
    level: Literal["output", "blocks"] = "output"
    history_device: Literal["auto", "gpu", "cpu"] = "auto"

    @property
    def title(self) -> str:
        return f"{self.name} ({self.variant})" if self.variant else self.name
