"""MeanCache against plain sampling with as many evaluations, and against the schedules released with it, on the demo model.

make bench-meancache   (in a real ComfyUI, on the CPU; prints a table and writes bench-output/meancache.json)

Every figure is the mean PSNR of the decoded picture against the full 50-step run of the same prompt and seed, peak 1.0, over
pairs that no cost was measured on (calibration has the seeds below 1000).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "demo" / "training")]
from check import Models, comfy_models  # noqa: E402
from pictures import random_scenes  # noqa: E402

BUDGETS = (25, 20, 15, 13, 10)
# the released schedules nearest in budget; where there is none of that size, the next smaller
RELEASED = {25: "Z-Image 25", 20: "Z-Image 20", 15: "Z-Image 15", 13: "Z-Image 13", 10: "Qwen-Image 10"}


def psnr(a: Tensor, b: Tensor) -> float:
    return -10 * math.log10(max(float((a - b).detach().pow(2).mean()), 1e-10))


def loaded() -> Models:
    """The demo's models in the ComfyUI at COMFYUI_PATH."""
    return comfy_models(ROOT / "demo" / "models")


class Bench:
    """The demo model, the pairs to judge on, and their full runs."""

    def __init__(self, studio: Models, pairs: int, steps: int, sampler: str, cfg: float) -> None:
        self.studio, self.steps, self.sampler, self.cfg = studio, steps, sampler, cfg
        scenes = random_scenes(pairs, torch.Generator().manual_seed(9000))
        self.pairs = [(9000 + i, studio.words(s.caption)) for i, s in enumerate(scenes)]
        self.empty = studio.words("")
        self.truth = [self.picture(studio.model, seed, words, steps) for seed, words in self.pairs]

    def picture(self, model: Any, seed: int, words: Any, steps: int) -> Tensor:
        import comfy.sample

        latent = torch.zeros(1, 16, 16, 16)
        noise = comfy.sample.prepare_noise(latent, seed)
        more = {"seed": seed, "disable_pbar": True}
        out = comfy.sample.sample(
            model, noise, steps, self.cfg, self.sampler, "simple", words, self.empty, latent, **more
        )
        return self.studio.vae.decode(out).clamp(0, 1)

    def score(self, model: Any, steps: int | None = None) -> float:
        shots = (self.picture(model, seed, words, steps or self.steps) for seed, words in self.pairs)
        return sum(psnr(a, b) for a, b in zip(shots, self.truth, strict=True)) / len(self.truth)


def methods(model: Any) -> dict[str, Callable[[int], Any]]:
    """What is compared: name -> patched model for a budget of so many evaluations of 50."""
    from skipstone.nodes.meancache import method_of
    from skipstone.nodes.widgets import CUSTOM
    from skipstone.patch.attach import attach

    def ours(predictor: str) -> Callable[[int], Any]:
        return lambda b: attach(model, method_of(CUSTOM, budget=b / 50, predictor=predictor))

    return {
        "MeanCache (auto)": ours("auto"),
        "MeanCache (linear)": ours("linear"),
        "MeanCache (average velocity, paper)": ours("average velocity (paper)"),
        "MeanCache (average velocity, released)": ours("average velocity (released)"),
        "MeanCache (reuse)": ours("reuse"),
        "released schedule and JVP": lambda b: attach(
            model, method_of(CUSTOM, schedule=RELEASED[b], predictor="average velocity (released)", warmup=0)
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--sampler", default="euler")
    parser.add_argument("--cfg", type=float, default=3.0)
    parser.add_argument("--only", default="", help="methods whose name holds this")
    parser.add_argument("--budgets", type=int, nargs="*", default=BUDGETS)
    args = parser.parse_args()
    studio = loaded()
    bench = Bench(studio, args.pairs, 50, args.sampler, args.cfg)
    rows: dict[str, dict[int, float]] = {"plain sampling with B steps": {}}
    print(f"{'PSNR, dB; B of 50 evaluations':42s}" + "".join(f"{b:8d}" for b in args.budgets))
    for b in args.budgets:
        rows["plain sampling with B steps"][b] = bench.score(studio.model, b)
    for name, make in methods(studio.model).items():
        if args.only in name:
            rows[name] = {b: bench.score(make(b)) for b in args.budgets}
    for name, row in rows.items():
        print(f"{name:42s}" + "".join(f"{row[b]:8.2f}" for b in args.budgets))
    out = ROOT / "bench-output"
    out.mkdir(exist_ok=True)
    data = {"sampler": args.sampler, "cfg": args.cfg, "steps": 50, "pairs": args.pairs, "psnr_db": rows}
    (out / "meancache.json").write_text(json.dumps(data, indent=1), "utf-8")


if __name__ == "__main__":
    main()
