"""Why Step Cache (Auto) chose a method, as data and as a sentence; and the relation of predicted error to decibels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..calibration.costs import Origin
from ..predictors import Integrator
from ..report import messages

if TYPE_CHECKING:
    from ..report.report import Report

# PSNR of a decoded picture minus that of the predicted error, reached by nine in ten; see bench/choices.md
EXCESS: dict[Integrator, float] = {"euler": 2.5, "multistep": -2.0, "ode": 2.0, "sde": -7.0, "unknown": -2.0}
# dB less for each unit of CFG above 3: guidance enlarges differences, more than the simulation says. It was measured up to CFG 6
PER_GUIDANCE: dict[Integrator, float] = {"euler": 0.0, "multistep": 1.5, "ode": 1.5, "sde": 2.0, "unknown": 1.5}
FROM_CFG, UP_TO_CFG = 3.0, 6.0
# dB that a typical picture is above what nine in ten reach, at least
TYPICAL_SURPLUS = 6.0
# dB that the prediction of nine in ten pictures may be worse where the costs were not measured in full runs of the model
MARGIN: dict[Origin, float] = {Origin.MEASURED: 0.0, Origin.LEARNED: 3.0, Origin.RELATED: 4.0, Origin.SHIPPED: 6.0}
NEARLY = 0.95  # share of a target speed-up that counts as reached: work beside the model is not skipped


@dataclass(frozen=True)
class SamplerInfo:
    """Facts about a run's sampler that are known before the first step.

    Parameters
    ----------
    integrator: its kind.
    steps: of the grid.
    adaptive_steps: it chooses its own steps, so none can be planned.
    second_order: it evaluates the model twice a step, as heun does.
    cfg: guidance; 1 if it is not known.
    """

    integrator: Integrator
    steps: int
    adaptive_steps: bool = False
    second_order: bool = False
    cfg: float = 1.0


@dataclass(frozen=True)
class Choice:
    """Why a method was chosen.

    Parameters
    ----------
    why: in a few words.
    speedup: the target, in times; 0 for another target.
    decibels: the target PSNR against the full run; 0 for another target.
    advice: how to have more skipped.
    """

    why: str
    speedup: float = 0.0
    decibels: float = 0.0
    advice: str = messages.AUTO_TO_SKIP_MORE

    def sentence(self, name: str, planned: Sequence[int], steps: int, learning: bool) -> str:
        """The choice in a sentence. planned: the steps to compute; empty where the method decides as it goes."""
        return messages.method(name, 0 if learning else len(planned), steps, self.why)

    def missed(self, report: Report) -> str:
        """Why a finished run missed the target speed-up; "" where it did not."""
        total, computed = len(report.evaluations), report.computed
        if not self.speedup or not computed:
            return ""
        possible = total / computed
        if possible < NEARLY * self.speedup:
            return messages.target_impossible(self.speedup, computed, total)
        if report.speedup < NEARLY * self.speedup:
            return messages.target_missed(self.speedup, report.speedup)
        return ""


def tolerance(decibels: float, integrator: Integrator, cfg: float = 1.0) -> float:
    """The largest predicted error, as a share of the run's displacement (Report.error), that keeps a picture within `decibels` of the full
    run's (PSNR, peak 1), for nine in ten pictures of the fit. See bench/choices.md.
    """
    return float(10 ** (-(decibels - _excess(integrator, cfg)) / 20))


def typical_decibels(error: float, integrator: Integrator, cfg: float = 1.0) -> float:
    """The PSNR in dB of a typical picture with this predicted error above 0."""
    return float(-20 * math.log10(error) + _excess(integrator, cfg) + TYPICAL_SURPLUS)


def _excess(integrator: Integrator, cfg: float) -> float:
    return EXCESS[integrator] - PER_GUIDANCE[integrator] * max(min(cfg, UP_TO_CFG) - FROM_CFG, 0.0)
