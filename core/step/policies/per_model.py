"""A policy whose numbers depend on the model: presets are chosen before the model is known."""

from __future__ import annotations

from dataclasses import dataclass

from ..calibration.block_profile import BlockProfile
from ..context import RunContext
from ..published.coefficients import Network, fits
from .base import Policy, RunPolicy


@dataclass(frozen=True)
class PerModel(Policy):
    """The policy of the first case whose facts (see published/coefficients.py) the model has; `otherwise` for every other model."""

    cases: tuple[tuple[Network, Policy], ...]
    otherwise: Policy

    def choose(self, network: Network) -> Policy:
        return next((policy for facts, policy in self.cases if fits(facts, network)), self.otherwise)

    def start(self, context: RunContext) -> RunPolicy:
        return self.choose(context.network).start(context)

    def requires_profile(self, network: Network, profile: BlockProfile | None) -> bool:
        return self.choose(network).requires_profile(network, profile)
