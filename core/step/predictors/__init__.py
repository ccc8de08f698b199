"""What a skipped evaluation returns: each predictor is one file, plain data, and speaks in weights over anchors."""

from .aligned import ProbeAligned
from .auto import Auto, Integrator
from .base import Prediction, Predictor
from .jvp import JVP, RecursiveJVP
from .linear import Corrected, Linear, Reuse
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
