"""LPIPS and FLIP: how different two pictures look, where PSNR tells how different their numbers are.

LPIPS is the shift-tolerant one (https://arxiv.org/abs/2207.13686) with AlexNet's features, of the package stlpips-pytorch, which ships its
weights. FLIP (https://research.nvidia.com/publication/2020-07_FLIP) is NVIDIA's own, at 67 pixels per degree. Both are 0 for equal
pictures. Set-up installs the packages for the demo and the benches; nothing of the pack needs them.
"""

from __future__ import annotations

import sys
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[Any]  # (H, W, 3) in 0..1


def available() -> bool:
    """Whether set-up has installed the packages: it has not where the user brought an interpreter that they do not fit."""
    try:
        _network()
        import flip_evaluator  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        return False
    return True


@cache
def _network() -> Any:
    # imported by the package for its authors' own debugging, and never called. Only while it is imported: matplotlib asks for IPython
    lacking = {name: ModuleType(name) for name in ("IPython", "torchsummary") if name not in sys.modules}
    for module in lacking.values():
        vars(module).update(embed=None, summary=None)
    sys.modules.update(lacking)
    try:
        from stlpips_pytorch import stlpips  # type: ignore[import-not-found]
    finally:
        for name in lacking:
            del sys.modules[name]
    return stlpips.LPIPS(net="alex", variant="shift_tolerant", verbose=False)


def lpips(a: Pixels, b: Pixels) -> float:
    """Distance of the pictures' deep features. Raises ImportError without stlpips-pytorch."""
    import torch

    network = _network()
    one, two = (torch.from_numpy(np.ascontiguousarray(p, dtype=np.float32)).permute(2, 0, 1)[None] for p in (a, b))
    with torch.inference_mode():
        return float(network(one, two, normalize=True))


def flip(reference: Pixels, test: Pixels) -> float:
    """Mean FLIP error, 0 to 1. Raises ImportError without flip-evaluator."""
    import flip_evaluator

    pictures = [np.ascontiguousarray(p, dtype=np.float32) for p in (reference, test)]
    return float(flip_evaluator.evaluate(*pictures, "LDR", applyMagma=False)[1])
