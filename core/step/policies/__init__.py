"""When to compute: each policy is one file, plain data, and gives an opinion or none."""

from .base import COMPUTE, SKIP, Decision, Policy
from .guards import Cap, LastStep, Warmup, Window
from .schedule import Budget, Schedule

__all__ = ["COMPUTE", "SKIP", "Budget", "Cap", "Decision", "LastStep", "Policy", "Schedule", "Warmup", "Window"]
