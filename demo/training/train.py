"""Train the small models; the learning rate follows the clock, so --minutes is a promise.

python train.py flux --minutes 95 --out flux.safetensors
COMFYUI_PATH=... python train.py nextdit --out nextdit.safetensors      (or unet)
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

# threads that spin at barriers starve each other (50 times slower) as soon as anything else runs on the machine
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from flux import Flux
from latents import LatentMap
from pictures import all_scenes, draw
from safetensors.torch import load_file, save_file
from text import embed
from torch import Tensor, nn

BATCH, RATE, EMA, DROP = 48, 8e-4, 0.9995, 0.1

Forward = Callable[[Tensor, Tensor, Tensor], Tensor]  # latents, time, words -> what the model predicts
Lesson = tuple[Tensor, Tensor, Tensor, Tensor]  # noisy latents, time, what to predict, weight of each row's loss


def flow_lesson(data: Tensor, noise: Tensor, share: Tensor, middle: float) -> Lesson:
    """Velocity at a sigma that is logit-normal and, with `middle` above 0, towards noise: where the shape can be seen in the
    latent nothing is learned about the word for it."""
    sigma = torch.sigmoid(torch.special.ndtri(share.clamp(1e-4, 1 - 1e-4)) * 1.2 + middle)
    mix = sigma[:, None, None, None]
    return data * (1 - mix) + noise * mix, sigma, noise - data, torch.ones_like(sigma)


def eps_lesson(data: Tensor, noise: Tensor, share: Tensor, middle: float) -> Lesson:
    """Noise at a timestep of Stable Diffusion's schedule, uniform in it, weighted as a velocity would be, up to a limit."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    time_step = (share * 1000).long().clamp(max=999)
    signal = torch.cumprod(1 - betas, 0).float()[time_step]
    mix = signal[:, None, None, None]
    return data * mix.sqrt() + noise * (1 - mix).sqrt(), time_step.float(), noise, (1 / signal).clamp(max=25)


def pupil(name: str) -> tuple[nn.Module, Forward, Callable[[Tensor, Tensor, Tensor, float], Lesson]]:
    """The model called `name` with fresh weights, how to call it, and what it is taught."""
    if name == "flux":
        flux = Flux()
        return flux, torch.compile(flux), flow_lesson
    from small import BUILDERS, WORDS, comfyui, start

    comfyui(os.environ["COMFYUI_PATH"])
    import comfy.model_management

    # otherwise rotary positions and norms take kernels without a gradient
    comfy.model_management.in_training = True
    model = BUILDERS[name]().diffusion_model
    start(model)
    if name == "nextdit":
        compiled = torch.compile(model)
        return model, lambda x, t, words: compiled(x, t, words, num_tokens=WORDS), flow_lesson
    return model, lambda x, t, words: model(x, t, words), eps_lesson


def train(
    name: str, minutes: float, out: Path, seed: int, init: Path | None, rate: float, middle: float, ema: float
) -> None:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    to_latent, scenes = LatentMap(), all_scenes()
    words = embed([s.caption for s in scenes] + [""])
    model, forward, lesson = pupil(name)
    if init:
        model.load_state_dict({k: v.float() for k, v in load_file(init).items()})
    weights = dict(model.named_parameters())
    average = {k: p.detach().clone() for k, p in weights.items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    start, seconds, step, smooth = time.monotonic(), minutes * 60, 0, 0.0
    saved = start
    while (elapsed := time.monotonic() - start) < seconds:
        progress = elapsed / seconds
        now = rate * min(1, (step + 1) / 50) * (0.5 * (1 + math.cos(math.pi * progress)) * 0.98 + 0.02)
        for group in optimizer.param_groups:
            group["lr"] = now
        chosen = torch.randint(len(scenes), (BATCH,), generator=generator)
        data = to_latent(draw([scenes[int(i)] for i in chosen], generator))
        chosen[torch.rand(BATCH, generator=generator) < DROP] = len(scenes)
        # one from each of BATCH equal shares of the noise levels
        share = (torch.arange(BATCH) + torch.rand(BATCH, generator=generator)) / BATCH
        noisy, at, target, weight = lesson(data, torch.randn(data.shape, generator=generator), share, middle)
        with torch.autocast("cpu", torch.bfloat16):
            said = forward(noisy, at, words[chosen])
        loss = ((said.float() - target).pow(2).mean((1, 2, 3)) * weight).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        keep = min(ema, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.values()), list(weights.values()), 1 - keep)
        step += 1
        smooth = loss.item() if step == 1 else 0.98 * smooth + 0.02 * loss.item()
        if step % 50 == 0:
            speed = step * BATCH / (time.monotonic() - start)
            print(f"{elapsed:6.0f} s  step {step:6d}  loss {smooth:.4f}  {speed:.0f} samples/s", flush=True)
        if time.monotonic() - saved > 300:
            save(average, out)
            saved = time.monotonic()
    save(average, out)


def save(weights: dict[str, Tensor], out: Path) -> None:
    """float16, the stock names; written aside and renamed, so that a reader never sees half a file."""
    part = out.with_suffix(".part")
    save_file({k: v.half().contiguous() for k, v in weights.items()}, part)
    part.rename(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=("flux", "nextdit", "unet"))
    parser.add_argument("--minutes", type=float, default=95)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--init", type=Path, help="weights to go on from")
    parser.add_argument("--rate", type=float, default=RATE, help="highest learning rate")
    parser.add_argument(
        "--middle", type=float, default=0.9, help="flow models: logit of the middle sigma, 0.9 for shapes, 0 for edges"
    )
    parser.add_argument("--ema", type=float, default=EMA)
    args = parser.parse_args()
    train(args.model, args.minutes, args.out, args.seed, args.init, args.rate, args.middle, args.ema)
