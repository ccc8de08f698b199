"""Step Cache (Auto): the method is chosen when a run begins, by what is known of it then. Plain data and pure functions."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .choice import Choice, Circumstances, tolerance
from .method import Method
from .policies import Full, Schedule
from .predictors import Integrator, Reuse

NAME = "Step Cache (Auto)"
WHY: dict[Integrator, str] = {
    "euler": "with euler it is nearest to the full run of all methods, at every budget, on three small models",
    "multistep": "TODO",
    "ode": "TODO",
    "sde": "TODO",
}
FREE = "decided as it goes, because this sampler chooses its own steps and none can be planned"
FULL = Method("Full run", "", (Full("wish"),), Reuse())
NO_DECIBELS = "no decibels can be foretold, because this sampler chooses its own steps"
FEW = 12  # steps, of which there is little to be had


@dataclass(frozen=True)
class Wish:
    """Stands for a Method until it is known what is sampled, and how.

    text: the wish, for people. planned: the method where steps can be planned; free: where they cannot, None to compute everything
    there. speedup, decibels: see Choice; decibels set the largest error of the planned method's schedule.

    No family of models has a method of its own, and none is at block level: neither won anywhere on the small Flux, NextDiT and UNet.
    """

    text: str
    planned: Method
    free: Method | None = None
    speedup: float = 0.0
    decibels: float = 0.0
    name: str = NAME

    @property
    def title(self) -> str:
        return self.name

    def resolve(self, here: Circumstances) -> Method:
        """What is at work in such a run, with the reason."""
        choice = Choice(WHY[here.integrator], self.speedup, self.decibels)
        if here.roams and self.free is None:
            choice = replace(choice, why=NO_DECIBELS, advice="to skip, wish for something else or take another sampler")
            method = FULL
        elif here.roams and self.free is not None:
            choice = replace(choice, why=FREE)
            method = self.free
        else:
            method = self.planned
            if self.decibels:
                method = within(method, tolerance(self.decibels, here.integrator))
            if here.steps < FEW:
                choice = replace(choice, why=f"{choice.why}; so few steps have little to spare")
        return replace(method, variant=f"Auto, {self.text}", choice=choice)


def within(method: Method, error: float) -> Method:
    """The method, with schedules whose predicted error is at most `error`."""
    policies = (replace(p, max_error=error) if isinstance(p, Schedule) else p for p in method.policies)
    return replace(method, policies=tuple(policies))
