"""Step Cache (Auto): the method is chosen when a run begins, by what is known of it then. Plain data and pure functions."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .choice import Choice, Circumstances
from .method import Method
from .predictors import Integrator

NAME = "Step Cache (Auto)"
# What `make bench-quality` measured, PSNR of the picture against the full run's.
WHY: dict[Integrator, str] = {
    "euler": "with euler the nearest to the full run of all methods, on three small models at every budget",
    "multistep": "",
    "ode": "",
    "sde": "",
}
FEW = 12  # steps, of which there is little to be had
ROAMS = "the sampler chooses its own steps, so that none can be planned"


@dataclass(frozen=True)
class Wish:
    """Stands for a Method until it is known what is sampled, and how.

    text: the wish, for people. planned: the method where steps can be planned; free: where they cannot. speedup, decibels: see Choice.

    No family of models has a method of its own, and none is at block level: neither won anywhere on the small Flux, NextDiT and UNet.
    """

    text: str
    planned: Method
    free: Method
    speedup: float = 0.0
    decibels: float = 0.0
    name: str = NAME

    @property
    def title(self) -> str:
        return self.name

    def resolve(self, here: Circumstances) -> Method:
        """What is at work in such a run, with the reason."""
        method, why = (self.free, ROAMS) if here.roams else (self.planned, WHY[here.integrator])
        if here.steps < FEW:
            why += f"; {here.steps} steps have few to spare"
        return replace(method, variant=f"Auto, {self.text}", choice=Choice(why, self.speedup, self.decibels))
