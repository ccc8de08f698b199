"""The facts of a run that are known before its first step, as its policies and its indicator are started with them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from .calibration.block_profile import BlockProfile
from .calibration.gram import Gram, Value
from .clock import Grid
from .planning.response import Response
from .predictors import Predictor
from .published.coefficients import Network


@dataclass
class RunContext:
    """One run's facts. Policies are started in order; each calls `force` for the steps it will compute in any case, so that a
    planner started later spends its budget on the others.

    Parameters
    ----------
    grid: the sampler's sigmas.
    predictor: the one that answers for skipped evaluations.
    costs: Gram matrix of recorded runs; None: the shipped one.
    kept: the value that the predictor predicts; others than "denoised" are planned as velocities.
    network: ComfyUI's facts about the model, see published/coefficients.py.
    block_profile: block-level measurements of full runs of the model; None where none were recorded.
    evaluations_per_step: how often the sampler evaluates the model per step: 2 for heun.
    cfg: guidance; 1 if it is not known.
    response: the sampler's; None if it is not known.
    margin: dB that errors predicted with these costs may be worse.
    parts: lengths of the modalities in a packed latent; empty for others.
    forced: for each step, whether it is computed whatever later policies decide.
    breaks: steps at which older anchors are dropped, because a conditioning or the network changes.
    max_skipped_steps: the longest sequence of steps that may be skipped.
    """

    grid: Grid
    predictor: Predictor
    costs: Gram | None = None
    kept: Value = "velocity"
    network: Network = field(default_factory=dict)
    block_profile: BlockProfile | None = None
    evaluations_per_step: int = 1
    cfg: float = 1.0
    response: Response | None = None
    margin: float = 0.0
    parts: Sequence[int] = ()
    forced: list[bool] = field(init=False)
    breaks: frozenset[int] = frozenset()
    max_skipped_steps: float = math.inf

    def __post_init__(self) -> None:
        self.forced = [False] * self.grid.steps

    def force(self, steps: Iterable[int]) -> None:
        """Mark steps as computed; those outside the grid are ignored."""
        for step in steps:
            if 0 <= step < self.grid.steps:
                self.forced[step] = True
