"""A policy whose numbers depend on the model: presets are chosen before the model is known."""

from __future__ import annotations

from dataclasses import dataclass

from ..published.coefficients import Network, fits
from .base import Policy, RunContext, RunPolicy


@dataclass(frozen=True)
class ByModel:
    """The policy of the first case whose facts (see tables.py) the model has; `otherwise` for every other model."""

    cases: tuple[tuple[Network, Policy], ...]
    otherwise: Policy

    def of(self, network: Network) -> Policy:
        return next((policy for wanted, policy in self.cases if fits(wanted, network)), self.otherwise)

    def start(self, setting: RunContext) -> RunPolicy:
        return self.of(setting.network).start(setting)
