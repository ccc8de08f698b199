"""A process of its own that keeps a thousand values on disk, again and again until it is killed: python writer.py FOLDER."""

from __future__ import annotations

import itertools
import sys

import torch

from skipstone.core.memo.codec import Entry, encode
from skipstone.core.memo.keys import Key, key
from skipstone.core.memo.tiers.disk import DiskTier

SIZE = 30_000  # elements: a write takes more than one moment


def name(i: int) -> Key:
    return key("vae", "written", i)


def value(i: int) -> torch.Tensor:
    return torch.full((SIZE,), float(i))


if __name__ == "__main__":
    tier = DiskTier(sys.argv[1], spare=0)
    for i in itertools.cycle(range(1000)):
        tier.put(name(i), encode(name(i), Entry(value(i), 1.0, 1.0)))
        print(i, flush=True)
