"""Measure MeanCache's default costs on the demo model: full runs in a real ComfyUI, one Gram matrix of their derivatives.

COMFYUI_PATH=... python costs.py --models ../models --out ../../core/step/calibration/default_costs.json

Seeds are below 1000; the demo and the benches judge on others.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from pictures import random_scenes
from studio import Models, comfy_models
from torch import Tensor

from skipstone.core.step.calibration.gram import Gram

RUNS, STEPS, CFG = 12, 50, 3.0


def recorded(studio: Models, seed: int, caption: str) -> tuple[list[float], Tensor]:
    """Sigmas and guided derivatives d = (x - D) / sigma, (steps, elements), of one full run with euler."""
    import comfy.sample
    from comfy.patcher_extension import WrappersMP

    sigmas: list[float] = []
    derivatives: list[Tensor] = []

    def listen(executor: Any, x: Tensor, timestep: Tensor, *args: Any) -> Tensor:
        denoised = executor(x, timestep, *args)
        sigmas.append(float(timestep[0]))
        derivatives.append(((x - denoised) / timestep[0]).flatten())
        return denoised

    model = studio.model.clone()
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "skipstone-costs", listen)
    latent = torch.zeros(1, 16, 16, 16)
    noise = comfy.sample.prepare_noise(latent, seed)
    words, empty = studio.words(caption), studio.words("")
    comfy.sample.sample(model, noise, STEPS, CFG, "euler", "simple", words, empty, latent, seed=seed, disable_pbar=True)
    return sigmas, torch.stack(derivatives)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=Path, default=Path(__file__).resolve().parent.parent / "models")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    studio = comfy_models(args.models)
    products = torch.zeros(STEPS, STEPS, dtype=torch.float64)
    sigmas: list[float] = []
    scenes = random_scenes(RUNS, torch.Generator().manual_seed(4))
    for i, scene in enumerate(scenes):
        sigmas, d = recorded(studio, 100 + i, scene.caption)
        products += (d @ d.T).double() / d.shape[1]
        print(f"{i + 1} of {RUNS}: {scene.caption}", flush=True)
    products /= products.diagonal().max()
    recipe = f"demo Flux, euler, simple, {STEPS} steps, CFG {CFG:g}, 128x128, {RUNS} runs"
    args.out.write_text(Gram(torch.tensor(sigmas).double().numpy(), products.numpy(), recipe).to_json() + "\n", "utf-8")


if __name__ == "__main__":
    main()
