"""Measure the costs that come with the pack on the demo's models: full runs in a real ComfyUI, as Gram matrices.

COMFYUI_PATH=... python costs.py --out ../../core/step/calibration/shipped_costs.json

Of each model the velocities of euler runs, and the denoised predictions of euler_ancestral runs, both passes of CFG 3. Seeds are below
1000; the demo and the benches judge on others.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "bench")]
from judge import pairs  # noqa: E402
from models import NAMES, Studio, loaded  # noqa: E402

from skipstone.core.step.calibration.gram import Gram  # noqa: E402
from skipstone.core.step.calibration.gram_recorder import GramRecorder  # noqa: E402
from skipstone.core.step.clock import Grid  # noqa: E402

RUNS, STEPS, CFG, FIRST_SEED = 12, 40, 3.0, 100
SAMPLERS = {"velocity": "euler", "denoised": "euler_ancestral"}


def recorded(studio: Studio, sampler: str, kept: str) -> Gram:
    """The average of RUNS full runs."""
    import comfy.model_sampling
    import comfy.sample
    import comfy.samplers
    from comfy.patcher_extension import WrappersMP

    sampling = studio.model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", STEPS).tolist()
    grid = Grid.of(sigmas, isinstance(sampling, comfy.model_sampling.CONST))
    total: Gram | None = None
    for i, pair in enumerate(pairs(RUNS, FIRST_SEED)):
        recorder = GramRecorder(grid, kept, CFG)

        def passes(
            executor: Any, model: Any, conds: Any, x: Tensor, timestep: Tensor, *args: Any, to: Any = recorder
        ) -> Any:
            outputs = executor(model, conds, x, timestep, *args)
            to.observe_passes(float(timestep[0]), x, *outputs)
            return outputs

        def guided(executor: Any, x: Tensor, timestep: Tensor, *args: Any, to: Any = recorder) -> Any:
            denoised = executor(x, timestep, *args)
            to.observe(float(timestep[0]), x, denoised)
            return denoised

        model = studio.model.clone()
        model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "skipstone-costs", passes)
        model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "skipstone-costs", guided)
        latent = torch.zeros(1, 16, 16, 16)
        noise = comfy.sample.prepare_noise(latent, pair.seed)
        words = studio.words(pair.caption), studio.words("")
        with torch.inference_mode():
            comfy.sample.sample(
                model, noise, STEPS, CFG, sampler, "simple", *words, latent, seed=pair.seed, disable_pbar=True
            )
        gram = recorder.gram(f"built-in ({studio.name}, {sampler}, {STEPS} steps, CFG {CFG:g}, {RUNS} runs)")
        total = gram if total is None else total.averaged(gram)
        print(f"{studio.name}, {sampler}: {i + 1} of {RUNS}", flush=True)
    assert total is not None
    return total


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    entries = []
    for name in NAMES:
        studio = loaded(name)
        for kept, sampler in SAMPLERS.items():
            entries.append({"flow": name != "unet", **recorded(studio, sampler, kept).as_data()})
    lines = ",\n".join(json.dumps(e) for e in entries)
    args.out.write_text(f'{{"recordings": [\n{lines}\n]}}\n', "utf-8")


if __name__ == "__main__":
    main()
