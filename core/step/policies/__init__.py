"""When to run the model: each policy is one file, plain data, and decides evaluation by evaluation."""

from .accumulate import Accumulating, Accumulator
from .base import COMPUTE, SKIP, Deciding, Decision, Indicator, Policy, Setting
from .guards import Cap, Events, LastStep, Warmup, Window
from .interval import Interval
from .mask import Mask, StepMask
from .schedule import Budget, Schedule

__all__ = [
    "COMPUTE",
    "SKIP",
    "Accumulating",
    "Accumulator",
    "Budget",
    "Cap",
    "Deciding",
    "Decision",
    "Events",
    "Indicator",
    "Interval",
    "LastStep",
    "Mask",
    "Policy",
    "Schedule",
    "Setting",
    "StepMask",
    "Warmup",
    "Window",
]
