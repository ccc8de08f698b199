"""When to run the model: each policy is one file of frozen data that decides evaluation by evaluation."""

from ..context import RunContext
from ..indicators.reading import Reading
from ..reasons import Reason
from .accumulator import Accumulator
from .base import COMPUTE, SKIP, Comparison, Decision, Policy, ReadIndicator, RunPolicy
from .guards import Cap, ConditioningChanges, Full, LastStep, Total, Warmup, Window
from .interval import Interval
from .magcache import Ratios
from .mask import Mask, StepMask
from .per_model import PerModel
from .schedule import Budget, Schedule
from .threshold import Threshold

__all__ = [
    "COMPUTE",
    "SKIP",
    "Accumulator",
    "Budget",
    "Cap",
    "Comparison",
    "ConditioningChanges",
    "Decision",
    "Full",
    "Interval",
    "LastStep",
    "Mask",
    "PerModel",
    "Policy",
    "Ratios",
    "ReadIndicator",
    "Reading",
    "Reason",
    "RunContext",
    "RunPolicy",
    "Schedule",
    "StepMask",
    "Threshold",
    "Total",
    "Warmup",
    "Window",
]
