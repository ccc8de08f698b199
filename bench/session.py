"""A session of 30 typical changes with Step Cache (Auto) as it is dropped into a graph: how many runs are computed in full?

make bench-session ARGS="nextdit"      (in a real ComfyUI, on the CPU; prints a line a run and writes bench-output/session.json)

As of law 16 no run may be: nobody asked for one.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from calibrated import own_user_folder
from judge import LEARNED, pairs
from models import NAMES, OUTPUT, loaded

START: dict[str, Any] = {
    "sampler": "euler", "scheduler": "simple", "steps": 20, "cfg": 3.0, "size": 16, "seed": 1, "prompt": 0, "denoise": 1.0, "lora": 0.0,
}  # fmt: skip
CHANGES: tuple[dict[str, Any], ...] = (
    {}, {"seed": 2}, {"prompt": 1}, {"cfg": 4.0}, {"steps": 25}, {"sampler": "dpmpp_2m"}, {"seed": 3}, {"scheduler": "beta"},
    {"size": 24}, {"cfg": 2.5}, {"prompt": 2}, {"lora": 1.0}, {"lora": 0.6}, {"seed": 4}, {"steps": 30}, {"sampler": "res_multistep"},
    {"cfg": 1.0}, {"prompt": 3}, {"steps": 20}, {"lora": 0.0}, {"denoise": 0.6}, {"denoise": 0.45}, {"seed": 5}, {"denoise": 1.0},
    {"sampler": "euler_ancestral"}, {"cfg": 5.0}, {"size": 16}, {"sampler": "uni_pc"}, {"scheduler": "sgm_uniform"}, {"sampler": "euler"},
)  # fmt: skip


def changed(model: Any, strength: float) -> Any:
    """The MODEL with a small random LoRA on all of its matrices."""
    if not strength:
        return model
    generator, patched, patches = torch.Generator().manual_seed(0), model.clone(), {}
    for name, weight in model.model.diffusion_model.named_parameters():
        if weight.ndim == 2 and "blocks" in name:
            up = torch.randn(weight.shape[0], 2, generator=generator)
            down = torch.randn(2, weight.shape[1], generator=generator)
            patches[f"diffusion_model.{name}"] = (up @ down * 1e-3,)
    patched.add_patches(patches, strength)
    return patched


def main() -> None:
    import sys

    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", choices=NAMES, default="nextdit")
    args = parser.parse_args()
    studio = loaded(args.model)
    import comfy.sample

    from skipstone.nodes.auto import auto_of
    from skipstone.patch.step.attach import attach

    reports: list[Any] = []
    settings, rows, captions = dict(START), [], [p.caption for p in pairs(4, LEARNED)]
    empty = studio.words("")
    with own_user_folder():
        for number, change in enumerate(CHANGES, 1):
            settings |= change
            model = attach(changed(studio.model, settings["lora"]), auto_of(), (reports.append,))
            latent = torch.zeros(1, 16, settings["size"], settings["size"])
            noise = comfy.sample.prepare_noise(latent, settings["seed"])
            with torch.inference_mode():
                comfy.sample.sample(
                    model, noise, settings["steps"], settings["cfg"], settings["sampler"], settings["scheduler"],
                    studio.words(captions[settings["prompt"]]), empty, latent, denoise=settings["denoise"],
                    seed=settings["seed"], disable_pbar=True,
                )  # fmt: skip
            report = reports[-1]
            rows.append(
                {**settings, "computed": report.computed, "evaluations": len(report.evaluations), "costs": report.costs}
            )
            what = ", ".join(f"{k} {v}" for k, v in change.items()) or "the first run"
            print(
                f"{number:2d}. {what:26s} {report.computed:2d} of {len(report.evaluations):2d} computed  {report.costs}",
                flush=True,
            )
    full = sum(r["computed"] == r["evaluations"] for r in rows)
    total, computed = (sum(r[name] for r in rows) for name in ("evaluations", "computed"))
    print(f"\n{full} of {len(rows)} runs in full; {1 - computed / total:.0%} of all evaluations saved")
    OUTPUT.mkdir(exist_ok=True)
    (OUTPUT / "session.json").write_text(json.dumps({"full": full, "runs": rows}, indent=1), "utf-8")
    sys.exit(full > 0)


if __name__ == "__main__":
    main()
