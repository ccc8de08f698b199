"""A method: when to compute, what to say instead, and where in the model. Frozen data; knows no tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .auto.selection import Choice, SamplerInfo
from .calibration.block_profile import BlockProfile
from .indicators.blocks import Modulated
from .indicators.output import Indicator
from .policies import ByModel, Policy, Ratios
from .predictors import Auto, Integrator, Predictor
from .published.coefficients import Network

Kept = Literal["auto", "velocity", "denoised", "residual"]


@dataclass(frozen=True)
class Blocks:
    """What of the block stack runs on a skip, and what the indicator looks at there.

    prefix, suffix: the first and the last blocks, which always run (Fn and Bn of cache-dit). probe: "residual" is what the prefix
    adds to the image's stream, "modulated" the first block's modulated input (or what of its call depends on time), "states" the image's
    stream before and after the prefix, side by side along the last dimension, "none" nothing.
    fit: take fewer where the model has not so many, as a preset does.
    Raises ValueError for negative counts, and for a residual of no blocks.
    """

    prefix: int = 1
    suffix: int = 0
    probe: Literal["none", "residual", "modulated", "states"] = "residual"
    fit: bool = False

    def __post_init__(self) -> None:
        if self.prefix < 0 or self.suffix < 0:
            raise ValueError(f"Fn and Bn are numbers of blocks, 0 or more, not {self.prefix} and {self.suffix}")
        if self.probe in ("residual", "states") and self.prefix < 1:
            raise ValueError("the indicator is what the first Fn blocks add, so Fn is at least 1")


@dataclass(frozen=True)
class Method:
    """What a node builds from its widgets. `policies` are asked in order; the last step is computed whatever they say.

    keeps: what of the model's answer is kept and predicted. "velocity": (x - D) / sigma, the velocity of flow models, the noise of
    others. "denoised": D. "residual": the network's output minus its input. "auto": what suits the sampler. Of no account with `blocks`.
    blocks: for a method at block level, which keeps and predicts the residual of the blocks between; None at output level.
    calibration: whether costs are taken from full runs of the user's own model: patch/step/calibration.py. "known": where there are such,
    but none are recorded. choice: why it was chosen, where the user did not choose it himself.
    """

    name: str
    variant: str
    policies: tuple[Policy, ...]
    predictor: Predictor | Auto
    history_device: Literal["auto", "gpu", "cpu"] = "auto"
    keeps: Kept = "auto"
    indicator: Indicator | None = None
    blocks: Blocks | None = None
    calibration: Literal["auto", "record", "known", "default", "off"] = "default"
    choice: Choice | None = None

    def resolve(self, here: SamplerInfo) -> Method:
        """What is at work in a run: itself. See auto.py for what chooses only then."""
        return self

    def suited(self, integrator: Integrator) -> tuple[Predictor, Kept]:
        """The predictor for a sampler of this kind, and what it is given: never "auto"."""
        automatic = isinstance(self.predictor, Auto)
        predictor = self.predictor.choose(integrator) if isinstance(self.predictor, Auto) else self.predictor
        if self.keeps != "auto":
            return predictor, self.keeps
        # a velocity says which noise is in x: what is added later would stay in the picture
        denoised = integrator == "sde" or (automatic and integrator == "ode")
        return predictor, "denoised" if denoised else "velocity"

    def lacks(self, network: Network, lessons: BlockProfile | None) -> bool:
        """Does any part of it need what a full run of the user's own model would teach of its blocks?"""
        parts = (p.of(network) if isinstance(p, ByModel) else p for p in (*self.policies, self.indicator))
        return any(p.lacks(network, lessons) for p in parts if isinstance(p, Modulated | Ratios))

    @property
    def level(self) -> Literal["output", "blocks"]:
        return "blocks" if self.blocks else "output"

    @property
    def title(self) -> str:
        return f"{self.name} ({self.variant})" if self.variant else self.name
