"""What a method was chosen for: the wish, the circumstances of the run, and the sentence that says so. Plain data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..predictors import Integrator

if TYPE_CHECKING:
    from ..report.report import Report

# Decibels of a decoded picture above those of the predicted error, reached by nine in ten; see `tolerance`
EXCESS: dict[Integrator, float] = {"euler": -4.0, "multistep": -10.0, "ode": -6.0, "sde": -7.0}
GUESS = "the decibels are a guess, because nothing has been learned of your model"
NEARLY = 0.95  # of a speed-up: what is done beside the model is not what was wished to be faster


@dataclass(frozen=True)
class SamplerInfo:
    """What is known of a run's sampler before the first step.

    Parameters
    ----------
    integrator: its kind.
    steps: of the grid.
    adaptive_steps: it chooses its own steps, so none can be planned.
    second_order: it evaluates the model twice a step, as heun does.
    """

    integrator: Integrator
    steps: int
    adaptive_steps: bool = False
    second_order: bool = False


@dataclass(frozen=True)
class Choice:
    """Why a method was chosen, in a few words, and what was wished for: a speed-up (times), or decibels of the picture against
    the full run; 0 where something else was. advice: what would have more skipped."""

    why: str
    speedup: float = 0.0
    decibels: float = 0.0
    advice: str = "to skip more wish for more speed or fewer decibels, or take more steps"

    def sentence(self, name: str, planned: Sequence[int], steps: int, learning: bool) -> str:
        """What was chosen and why. planned: the steps that will be computed, none where that is decided as it goes."""
        if learning:
            return f"{name}: {self.why}. This run is computed in full, once, to learn what skipping costs on your model"
        count = f", {len(planned)} of {steps} steps" if planned else ""
        return f"{name}{count}: {self.why}"

    def missed(self, report: Report) -> str:
        """How the speed-up that was wished for was missed in a finished run; "" where it was not."""
        total, computed = len(report.evaluations), report.computed
        if not self.speedup or not computed:
            return ""
        possible = total / computed
        if possible < NEARLY * self.speedup:
            return (
                f"{self.speedup:g}x was wished for, and {possible:.1f}x is what {computed} of {total} evaluations come to: the first "
                "steps, the last one and those where a prompt begins or ends are computed whatever is wished for"
            )
        if report.speedup < NEARLY * self.speedup:
            return (
                f"{self.speedup:g}x was wished for, and about {report.speedup:.1f}x reached: predicting takes time too"
            )
        return ""


def tolerance(decibels: float, integrator: Integrator) -> float:
    """The largest predicted error, as a share of the run's displacement (Report.error), that is taken to keep a picture within
    `decibels` (PSNR, peak 1) of the full run's.

    Fitted by `make bench-decibels` on the small Flux, NextDiT and UNet (5 or 6 pairs each; 70, 50, 35 and 25% of 20 steps computed,
    with euler also of 50; costs of one full run). A picture's decibels are those of its latent's error, as a share of the displacement,
    and 9 to 17 more, which is the decoder's doing (the demo's; another latent space has another constant). The latent's error is 0.7 to
    4.4 times the predicted one with euler, 1 to 7 times with multistep samplers, 1.2 to 10 times with heun. With EXCESS for both
    together 97, 97 and 92% of the pictures kept what was predicted, half of them by 11 dB and more; on 65 that nothing was fitted on,
    asked for 30 and 40 dB, 91%: one missed by 0.7 dB, the other five are one pair of the UNet's under five ways of sampling. A few
    became another picture at some step (28 dB where 50 were predicted), as that one did: no constant tells that.
    """
    return float(10 ** (-(decibels - EXCESS[integrator]) / 20))


def decibels(error: float, integrator: Integrator) -> float:
    """What such a predicted error, above 0, is taken to keep a picture within: `tolerance` the other way round."""
    return float(-20 * math.log10(error) + EXCESS[integrator])
