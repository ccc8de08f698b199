"""When to run the model: each policy is one file, plain data, and decides evaluation by evaluation."""

from .accumulator import Accumulator, AccumulatorState
from .base import COMPUTE, SKIP, Decision, Indicator, Policy, RunContext, RunPolicy
from .guards import Cap, Events, Full, LastStep, Total, Warmup, Window
from .interval import Interval
from .magcache import Ratios
from .mask import Mask, StepMask
from .per_model import ByModel
from .schedule import Budget, Schedule
from .threshold import Threshold, ThresholdState

__all__ = [
    "COMPUTE",
    "SKIP",
    "Accumulator",
    "AccumulatorState",
    "Budget",
    "ByModel",
    "Cap",
    "Decision",
    "Events",
    "Full",
    "Indicator",
    "Interval",
    "LastStep",
    "Mask",
    "Policy",
    "Ratios",
    "RunContext",
    "RunPolicy",
    "Schedule",
    "StepMask",
    "Threshold",
    "ThresholdState",
    "Total",
    "Warmup",
    "Window",
]
