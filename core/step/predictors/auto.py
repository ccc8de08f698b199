"""The predictor that suits the sampler: how it carries the latent forward decides what a prediction should be of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .base import Predictor
from .linear import Corrected, Linear

# "euler" adds (change of sigma) * velocity; "ode" is any other deterministic sampler; "sde" adds noise on the way
Integrator = Literal["euler", "ode", "sde"]


@dataclass(frozen=True)
class Auto:
    """One predictor for each kind of sampler; `choose` before a run."""

    euler: Predictor = field(default_factory=Corrected)
    ode: Predictor = field(default_factory=lambda: Linear(0.75))
    sde: Predictor = field(default_factory=lambda: Linear(0.75))

    def choose(self, integrator: Integrator) -> Predictor:
        return {"euler": self.euler, "ode": self.ode, "sde": self.sde}[integrator]
