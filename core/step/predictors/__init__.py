"""Predictors of skipped evaluations: each is one file of frozen data and answers in weights over anchors."""

from .base import Line, Prediction, Predictor
from .by_sampler import BySampler, Integrator
from .jvp import JVP, RecursiveJVP
from .linear import Corrected, Linear, Reuse
from .probe_aligned import ProbeAligned
from .spectrum import Spectrum
from .taylor import Taylor

__all__ = [
    "JVP",
    "BySampler",
    "Corrected",
    "Integrator",
    "Line",
    "Linear",
    "Prediction",
    "Predictor",
    "ProbeAligned",
    "RecursiveJVP",
    "Reuse",
    "Spectrum",
    "Taylor",
]
