"""An indicator's reading, and the subsample of a tensor that indicators and recordings look at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SAMPLE = 4096  # elements of a latent that are looked at


@dataclass(frozen=True)
class Reading:
    """An indicator's answer for one evaluation.

    Parameters
    ----------
    value: the estimated change of the output. May be inf or NaN: the evaluation is then computed.
    typical: the run's median change between consecutive evaluations, in the unit of `value`; 0 where the indicator has none.
    change: the probe's relative change since the last computed evaluation, or the previous one; 0 where the indicator has no probe.
    ratio: the probe's movement since the second-last anchor over its movement between the last two anchors, see ProbeAligned.
    """

    value: float
    typical: float = 0.0
    ratio: float = 1.0
    change: float = 0.0


def subsample(value: Tensor, limit: int = SAMPLE, parts: Sequence[int] = ()) -> Tensor:
    """About `limit` evenly spaced elements of a tensor of any shape: 1-D, float32, a copy on the same device.

    parts: lengths along the last dimension of the modalities in a packed latent. Each gives about as many elements, repeated where it has
    fewer, so that sound is not lost among the pixels of a video.
    """
    if len(parts) > 1 and value.shape[-1] == sum(parts):
        each = max(limit // len(parts), 1)
        several = [subsample(part, each) for part in value.split(list(parts), -1)]
        return torch.cat([s.repeat(max(round(each / max(len(s), 1)), 1)) for s in several])
    flat = value.detach().flatten()
    # a stride that shares no factor with the last two dimensions visits every row and column
    stride = max(-(-flat.numel() // limit), 1) | 1
    while stride > 1 and any(math.gcd(stride, n) > 1 for n in value.shape[-2:]):
        stride += 2
    return flat[::stride].to(torch.float32, copy=True)
