"""Every model class of ComfyUI's that samples, at a tiny size: MODELS of all modules in this folder.

A module may also say CANNOT = {class in comfy.model_base: why it is not here}.
"""

from __future__ import annotations

import importlib
import pkgutil

from .base import NO_DIFFUSION, Tiny, sample
from .selection import here, network_class, representatives, unet_representatives

__all__ = [
    "CANNOT",
    "MODELS",
    "NO_DIFFUSION",
    "Tiny",
    "here",
    "network_class",
    "representatives",
    "sample",
    "unet_representatives",
]

_MODULES = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
MODELS: tuple[Tiny, ...] = tuple(tiny for m in _MODULES for tiny in getattr(m, "MODELS", ()))
CANNOT: dict[str, str] = {name: why for m in _MODULES for name, why in getattr(m, "CANNOT", {}).items()}
