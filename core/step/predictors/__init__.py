"""What a skipped evaluation returns: each predictor is one file, plain data, and speaks in weights over anchors."""

from .base import Prediction, Predictor
from .by_sampler import Auto, Integrator
from .jvp import JVP, RecursiveJVP
from .linear import Corrected, Linear, Reuse
from .probe_aligned import ProbeAligned
from .spectrum import Spectrum
from .taylor import Taylor

__all__ = [
    "JVP",
    "Auto",
    "Corrected",
    "Integrator",
    "Linear",
    "Prediction",
    "Predictor",
    "ProbeAligned",
    "RecursiveJVP",
    "Reuse",
    "Spectrum",
    "Taylor",
]
