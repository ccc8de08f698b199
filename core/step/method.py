"""A method: when to compute, what a skip returns, and where in the model. Frozen data that holds no tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .auto.selection import Choice, SamplerInfo
from .calibration.block_profile import BlockProfile
from .indicators.base import Indicator
from .policies import Policy
from .predictors import BySampler, Integrator, Predictor
from .published.coefficients import Network

Calibration = Literal["auto", "calibrate", "record", "known", "default", "off"]
Kept = Literal["auto", "velocity", "denoised", "residual"]


@dataclass(frozen=True)
class Blocks:
    """Which blocks run on a skip, and the indicator's input at block level.

    Raises ValueError for negative counts, and for a probe of the prefix without a prefix.

    Parameters
    ----------
    prefix, suffix: number of first and last blocks that always run (Fn and Bn of cache-dit).
    probe: "residual": the prefix's output minus its input, of the image stream. "modulated": the first block's modulated input, or
        the part of its call that depends on time. "states": the image stream before and after the prefix, concatenated along the last
        dimension. "none".
    fit: reduce prefix and suffix where the model has fewer blocks, as presets do.
    """

    prefix: int = 1
    suffix: int = 0
    probe: Literal["none", "residual", "modulated", "states"] = "residual"
    fit: bool = False

    def __post_init__(self) -> None:
        if self.prefix < 0 or self.suffix < 0:
            raise ValueError(f"Fn and Bn are numbers of blocks, 0 or more, not {self.prefix} and {self.suffix}")
        if self.probe in ("residual", "states") and self.prefix < 1:
            raise ValueError("the indicator compares the output of the first Fn blocks, so Fn is at least 1")


@dataclass(frozen=True)
class Method:
    """A node's widgets as data.

    Parameters
    ----------
    name, variant: for people: the method's name, and the preset's.
    policies: asked in order. The last step of the run is computed whatever they decide.
    predictor: returns the output of skipped evaluations; BySampler chooses one by the sampler's kind.
    history_device: where histories are kept: the GPU while there is room, the GPU, or the CPU.
    keeps: the value that is kept and predicted. "velocity": (x - D) / sigma, the velocity of flow models and the noise of others.
        "denoised": D. "residual": the network's output minus its input. "auto": by sampler. Ignored with `blocks`.
    indicator: read by adaptive policies.
    blocks: for block-level methods, which keep the residual of the blocks between prefix and suffix; None at output level.
    calibration: where the costs of skips come from. "auto": earlier runs of the user's own models, else shipped ones, and this run is
        recorded; a block-level method computes a run in full where it needs a block profile and has none. "calibrate": a model without
        a recorded full run is computed in full first. "record": every run is computed in full and recorded. "known": as "auto", but
        nothing is recorded. "default": shipped costs. "off": none.
    choice: why Step Cache (Auto) chose the method; None where the user chose it.
    """

    name: str
    variant: str
    policies: tuple[Policy, ...]
    predictor: Predictor | BySampler
    history_device: Literal["auto", "gpu", "cpu"] = "auto"
    keeps: Kept = "auto"
    indicator: Indicator | None = None
    blocks: Blocks | None = None
    calibration: Calibration = "default"
    choice: Choice | None = None

    def resolve(self, sampler: SamplerInfo) -> Method:
        """The method that works in a run with this sampler: itself. AutoMethod chooses one."""
        return self

    def suited(self, integrator: Integrator) -> tuple[Predictor, Kept]:
        """The predictor for a sampler of this kind, and the value that it predicts (never "auto")."""
        by_sampler = isinstance(self.predictor, BySampler)
        predictor = self.predictor.choose(integrator) if isinstance(self.predictor, BySampler) else self.predictor
        if self.keeps != "auto":
            return predictor, self.keeps
        # a velocity contains the noise that is in x: noise that the sampler adds later would stay in the picture
        denoised = integrator == "sde" or (by_sampler and integrator == "ode")
        return predictor, "denoised" if denoised else "velocity"

    def requires_profile(self, network: Network, profile: BlockProfile | None) -> bool:
        """True if a policy or the indicator needs a block profile that is missing."""
        parts = (*self.policies, self.indicator)
        return any(part.requires_profile(network, profile) for part in parts if part is not None)

    @property
    def level(self) -> Literal["output", "blocks"]:
        return "blocks" if self.blocks else "output"

    @property
    def title(self) -> str:
        return f"{self.name} ({self.variant})" if self.variant else self.name
