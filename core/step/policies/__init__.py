"""When to run the model: each policy is one file, plain data, and decides evaluation by evaluation."""

from .accumulate import Accumulating, Accumulator
from .base import COMPUTE, SKIP, Deciding, Decision, Indicator, Policy, Setting
from .bymodel import ByModel
from .guards import Cap, Events, Full, LastStep, Total, Warmup, Window
from .interval import Interval
from .mask import Mask, StepMask
from .ratios import Ratios
from .schedule import Budget, Schedule
from .threshold import Threshold, Thresholding

__all__ = [
    "COMPUTE",
    "SKIP",
    "Accumulating",
    "Accumulator",
    "Budget",
    "ByModel",
    "Cap",
    "Deciding",
    "Decision",
    "Events",
    "Full",
    "Indicator",
    "Interval",
    "LastStep",
    "Mask",
    "Policy",
    "Ratios",
    "Schedule",
    "Setting",
    "StepMask",
    "Threshold",
    "Thresholding",
    "Total",
    "Warmup",
    "Window",
]
