"""The predictor by the sampler's kind: how a sampler carries the latent forward decides what is best predicted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .base import Predictor
from .linear import Corrected, Linear

# "euler" adds (change of sigma) * velocity; "multistep" evaluates once a step and uses its own past; "ode": other
# deterministic samplers, such as those that evaluate twice a step; "sde" adds noise between evaluations; "unknown": of another pack
Integrator = Literal["euler", "multistep", "ode", "sde", "unknown"]


@dataclass(frozen=True)
class BySampler:
    """One predictor for each kind of sampler; see `make bench-quality` for the comparison that settled the defaults."""

    euler: Predictor = field(default_factory=Corrected)
    multistep: Predictor = field(default_factory=Corrected)
    # the correction would count the second evaluation of a step twice
    ode: Predictor = field(default_factory=lambda: Linear(0.75, "log-SNR"))
    sde: Predictor = field(default_factory=lambda: Linear(0.5))

    def choose(self, integrator: Integrator) -> Predictor:
        known = {"euler": self.euler, "multistep": self.multistep, "ode": self.ode, "sde": self.sde}
        # of another pack: never more than 0.1 dB below plain sampling, with one or two evaluations a step (tests/street)
        return known.get(integrator, self.multistep)
