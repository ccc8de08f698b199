"""A method: when to compute, what to say instead, and where in the model. Frozen data; knows no tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .indicators import Moved
from .policies import Policy
from .predictors import Auto, Integrator, Predictor

Kept = Literal["auto", "velocity", "denoised", "residual"]


@dataclass(frozen=True)
class Method:
    """What a node builds from its widgets. `policies` are asked in order; the last step is computed whatever they say.

    keeps: what of the model's answer is kept and predicted. "velocity": (x - D) / sigma, the velocity of flow models, the noise of
    others. "denoised": D. "residual": the network's output minus its input. "auto": what suits the sampler.
    calibration: whether costs are taken from full runs of the user's own model: see patch/calibration.py.
    """

    name: str
    variant: str
    policies: tuple[Policy, ...]
    predictor: Predictor | Auto
    level: Literal["output", "blocks"] = "output"
    history_device: Literal["auto", "gpu", "cpu"] = "auto"
    keeps: Kept = "auto"
    indicator: Moved | None = None
    calibration: Literal["auto", "record", "default", "off"] = "default"

    def suited(self, integrator: Integrator) -> tuple[Predictor, Kept]:
        """The predictor for a sampler of this kind, and what it is given: never "auto"."""
        automatic = isinstance(self.predictor, Auto)
        predictor = self.predictor.choose(integrator) if isinstance(self.predictor, Auto) else self.predictor
        if self.keeps != "auto":
            return predictor, self.keeps
        # a velocity says which noise is in x: what is added later would stay in the picture
        denoised = integrator == "sde" or (automatic and integrator == "ode")
        return predictor, "denoised" if denoised else "velocity"

    @property
    def title(self) -> str:
        return f"{self.name} ({self.variant})" if self.variant else self.name
