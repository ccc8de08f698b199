"""Step Cache (Auto): chooses the method when a run begins, by its sampler. The measurements behind it are in bench/choices.md."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ...texts import Text
from ..method import Method
from ..policies import Full, Policy, Reason, Schedule
from ..predictors import Integrator, Reuse
from ..report import messages
from .selection import Choice, SamplerInfo, tolerance

NAME = "Step Cache (Auto)"
WHY: dict[Integrator, str] = {
    "euler": Text("why_euler", "best for euler in our tests"),
    "multistep": Text("why_multistep", "best for multistep in our tests"),
    "ode": Text("why_ode", "it can be planned to meet a target"),
    "unknown": Text("why_unknown", "another pack's, watched as it runs"),
    "sde": Text("why_sde", "noise leaves little to gain"),
}
LOOKS = Text("why_two", "decided during the run; best for heun and the like")
FREE = Text("why_adaptive", "decided during the run, like the sampler's steps")
FULL = Method(Text("full_run", "Full run"), "", (Full(Reason.TARGET),), Reuse())
WHY_FEW = Text("why_few", "short runs have little to skip")


@dataclass(frozen=True)
class AutoMethod:
    """Resolves to a Method when the sampler is known.

    Parameters
    ----------
    text: the target, for people.
    planned: a method that plans its steps.
    adaptive: a method that decides as it goes; None for a quality target, which needs a plan's predicted error.
    speedup, decibels: the target, see Choice; decibels set the largest predicted error of the planned method's schedule.
    """

    text: str
    planned: Method
    adaptive: Method | None = None
    speedup: float = 0.0
    decibels: float = 0.0
    name: str = NAME

    @property
    def title(self) -> str:
        return self.name

    def resolve(self, sampler: SamplerInfo) -> Method:
        """The method for this sampler, with the reason in `choice`."""
        method, choice = self._choose(sampler)
        if sampler.steps < messages.FEW and choice.why == WHY[sampler.integrator]:
            choice = replace(choice, why=WHY_FEW)
        return replace(method, variant=f"Auto, {self.text}", choice=choice)

    def _choose(self, sampler: SamplerInfo) -> tuple[Method, Choice]:
        exact = self.speedup > 0 or self.decibels > 0
        choice = Choice(WHY[sampler.integrator], self.speedup, self.decibels)
        if self.adaptive is None and (sampler.adaptive_steps or sampler.integrator == "sde"):
            why = messages.NO_TARGET_ADAPTIVE if sampler.adaptive_steps else messages.NO_TARGET_NOISE
            return FULL, replace(choice, why=why, advice=messages.NO_TARGET)
        if self.adaptive is not None and (sampler.adaptive_steps or (sampler.second_order and not exact)):
            return self.adaptive, replace(choice, why=FREE if sampler.adaptive_steps else LOOKS)
        if self.decibels:
            return within(self.planned, tolerance(self.decibels, sampler.integrator, sampler.cfg)), choice
        if self.speedup or sampler.integrator == "sde":
            return self.planned, choice
        return limited(self.planned, tolerance(messages.VISIBLE, sampler.integrator)), choice


def within(method: Method, error: float) -> Method:
    """The method with the smallest budget whose predicted error is at most `error`, a share of the run's displacement."""
    return _scheduled(method, max_error=error, cautious=True)


def limited(method: Method, error: float) -> Method:
    """The method with its budget, or a larger one where the predicted error would be above `error`."""
    return _scheduled(method, limit=error)


def _scheduled(method: Method, **values: Any) -> Method:
    policies: tuple[Policy, ...] = tuple(
        replace(p, **values) if isinstance(p, Schedule) else p for p in method.policies
    )
    return replace(method, policies=policies)
