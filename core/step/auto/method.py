"""Step Cache (Auto): the method is chosen when a run begins, by what is known of it then. Plain data and pure functions.

What was measured, PSNR against the full run's picture on the small models (`make bench-quality`, CFG 3; decibels at evaluations computed):

- euler, 50 steps; Flux, NextDiT, UNet: MeanCache above all others at each of 25, 20, 15, 13 and 10 (README).
- dpmpp_2m, 50 steps: MeanCache 63.7 at 25, 50.6 at 15 on NextDiT, 64.2 and 54.5 on the UNet. The next: TaylorSeer 54.4 at 27, EasyCache
  45.7 at 15 on NextDiT; TaylorSeer 57.0 at 27, Spectrum 45.6 at 16 on the UNet.
- heun, 20 steps, 39 evaluations: UCache 50.5 at 18.8, 44.1 at 15 on NextDiT, 49.5 at 19, 44.5 at 15 on the UNet; MeanCache 44.6 and 40.7,
  43.0 and 40.6 there; on Flux UCache 53.5 at 18.5, MeanCache 48.1 at 19.
- res_multistep, 8 steps, CFG 1: MeanCache 41.5 at 6 on NextDiT, 45.6 on the UNet; UCache 42.0 at 6.7, 42.3 at 6.2. On NextDiT plain
  sampling with 6 steps has 43.0: little is to be had.
- uni_pc, 20 steps: MeanCache 43.8 at 10 on NextDiT, UCache 42.3 at 11.
- euler_ancestral, 20 steps: NextDiT 33.2 at 12 (MeanCache), 31.3 at 11 (UCache); UNet 32.4 at 12, 33.2 at 11; Flux 37.5 at 12, 34.4 at 11.
  There a picture is as far off with few skips as with many: 30.0, 27.4, 34.0 and 44.3 at 16 of 20 on NextDiT, 30.7, 27.0, 36.6 and 42.2
  at 13, wherever they are. So no decibels are promised.
- dpm_adaptive: UCache 48.8 of 19.2, 46.8 of 25.0, 53.9 of 22.8 on NextDiT, UNet and Flux, EasyCache 49.1 of 19.8, 45.3 of 24.8, 54.0 of
  23.5; MeanCache with default costs 47.1 of 18.8, 47.6 of 24.2, 50.9 of 22.0, and 35.2 of 22.2 on the UNet when it is to skip more.

No family of models has a method of its own, and none is at block level: neither won on any of the three.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..method import Method
from ..policies import Full, Policy, Reason, Schedule
from ..predictors import Integrator, Reuse
from .selection import Choice, SamplerInfo, tolerance

NAME = "Step Cache (Auto)"
WHY: dict[Integrator, str] = {
    "euler": "the nearest to the full run of all methods, at every budget, with euler on three small models",
    "multistep": "the nearest to the full run of all methods, at every budget, with dpmpp_2m on two small models",
    "ode": "its steps can be planned, and held to a speed-up or to decibels",
    "sde": "this sampler adds noise, where no method gains much",
}
LOOKS = "decided as it goes, 3.4 to 6.5 dB nearer to the full run than planned steps, with heun on three small models"
FREE = "decided as it goes, because this sampler chooses its own steps and none can be planned"
NO_DECIBELS = "no decibels can be foretold, because this sampler "
NOT_HERE = "to skip, wish for something else or take another sampler"
FULL = Method("Full run", "", (Full(Reason.TARGET),), Reuse())
FEW = 12  # steps, of which there is little to be had
WHY_FEW = "planned steps; so few have little to spare, whatever the method"


@dataclass(frozen=True)
class AutoMethod:
    """Stands for a Method until it is known what is sampled, and how.

    text: the wish, for people. planned: a method whose steps are; free: one that decides as it goes, None for decibels, which it
    cannot foretell. speedup, decibels: see Choice; decibels set the largest error of the planned method's schedule.
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

    def resolve(self, here: SamplerInfo) -> Method:
        """What is at work in such a run, with the reason."""
        method, choice = self._chosen(here)
        if here.steps < FEW and choice.why == WHY[here.integrator]:
            choice = replace(choice, why=WHY_FEW)
        return replace(method, variant=f"Auto, {self.text}", choice=choice)

    def _chosen(self, here: SamplerInfo) -> tuple[Method, Choice]:
        exact = self.speedup > 0 or self.decibels > 0
        choice = Choice(WHY[here.integrator], self.speedup, self.decibels)
        if self.free is None and (here.adaptive_steps or here.integrator == "sde"):
            why = NO_DECIBELS + ("chooses its own steps" if here.adaptive_steps else "adds noise")
            return FULL, replace(choice, why=why, advice=NOT_HERE)
        if self.free is not None and (here.adaptive_steps or (here.second_order and not exact)):
            return self.free, replace(choice, why=FREE if here.adaptive_steps else LOOKS)
        if self.decibels:
            return within(self.planned, tolerance(self.decibels, here.integrator)), choice
        plans = [p for p in self.planned.policies if isinstance(p, Schedule)]
        if all(
            p.budget.count(here.steps) >= here.steps for p in plans
        ):  # nothing is skipped, and so nothing is to be learned
            return replace(self.planned, calibration="known"), choice
        return self.planned, choice


def within(method: Method, error: float) -> Method:
    """The method, with schedules whose predicted error is at most `error`."""
    policies: tuple[Policy, ...] = tuple(
        replace(p, max_error=error) if isinstance(p, Schedule) else p for p in method.policies
    )
    return replace(method, policies=policies)
