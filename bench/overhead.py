"""What a step cache that never skips costs: sampler time with it over sampler time without, both in one process, in turn.

make bench-overhead   (in a real ComfyUI, on the CPU, on the demo model; prints the ratio)

The demo model takes some 50 ms an evaluation, so this is the worst case: the hook's cost is the same for a model of seconds.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from models import loaded

ROUNDS, STEPS, CFG = 25, 20, 3.0


def main() -> None:
    studio = loaded()
    import comfy.sample

    from skipstone.nodes.meancache import method_of
    from skipstone.nodes.widgets import CUSTOM
    from skipstone.patch.attach import attach

    words, empty = studio.words("a red circle on blue"), studio.words("")
    latent = torch.zeros(1, 16, 16, 16)
    noise = comfy.sample.prepare_noise(latent, 1)

    def seconds(model: Any) -> float:
        start = time.perf_counter()
        comfy.sample.sample(
            model, noise, STEPS, CFG, "euler", "simple", words, empty, latent, seed=1, disable_pbar=True
        )
        return time.perf_counter() - start

    patched = attach(studio.model, method_of(CUSTOM, budget=1.0))
    seconds(studio.model), seconds(patched)
    ratios = [seconds(patched) / seconds(studio.model) for _ in range(ROUNDS)]
    print(f"never skipping / unpatched: {statistics.median(ratios):.4f} (median of {ROUNDS} pairs of {STEPS} steps)")


if __name__ == "__main__":
    main()
