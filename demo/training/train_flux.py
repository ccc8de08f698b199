"""Train the demo's transformer by flow matching; the learning rate follows the clock, so --minutes is a promise.

python train_flux.py --minutes 95 --out flux.safetensors
"""

from __future__ import annotations

import argparse
import math
import os
import time
from pathlib import Path

# threads that spin at barriers starve each other (50 times slower) as soon as anything else runs on the machine
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from flux import Flux
from latents import LatentMap
from pictures import all_scenes, draw
from safetensors.torch import load_file, save_file
from text import embed

BATCH, RATE, EMA, DROP = 48, 8e-4, 0.9995, 0.1


def train(
    minutes: float,
    out: Path,
    seed: int = 0,
    compiled: bool = True,
    init: Path | None = None,
    rate: float = RATE,
    middle: float = 0.9,
) -> None:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    to_latent, scenes = LatentMap(), all_scenes()
    words = embed([s.caption for s in scenes] + [""])
    model = Flux()
    if init:
        model.load_state_dict({k: v.float() for k, v in load_file(init).items()})
    average = Flux()
    average.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    forward = torch.compile(model) if compiled else model
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
        # logit-normal and well towards noise, one from each of BATCH equal shares: where the shape can be seen in the
        # latent nothing is learned about the word for it
        share = (torch.arange(BATCH) + torch.rand(BATCH, generator=generator)) / BATCH
        sigma = torch.sigmoid(torch.special.ndtri(share.clamp(1e-4, 1 - 1e-4)) * 1.2 + middle)
        noise = torch.randn(data.shape, generator=generator)
        mix = sigma[:, None, None, None]
        with torch.autocast("cpu", torch.bfloat16):
            velocity = forward(data * (1 - mix) + noise * mix, sigma, words[chosen])
        loss = (velocity.float() - (noise - data)).pow(2).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        keep = min(EMA, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - keep)
        step += 1
        smooth = loss.item() if step == 1 else 0.98 * smooth + 0.02 * loss.item()
        if step % 50 == 0:
            speed = step * BATCH / (time.monotonic() - start)
            print(f"{elapsed:6.0f} s  step {step:6d}  loss {smooth:.4f}  {speed:.0f} samples/s", flush=True)
        if time.monotonic() - saved > 300:
            save(average, out)
            saved = time.monotonic()
    save(average, out)


def save(model: Flux, out: Path) -> None:
    """float16, the stock names; written aside and renamed, so that a reader never sees half a file."""
    part = out.with_suffix(".part")
    save_file({k: v.half().contiguous() for k, v in model.state_dict().items()}, part)
    part.rename(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=95)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--init", type=Path, help="weights to go on from")
    parser.add_argument("--rate", type=float, default=RATE, help="highest learning rate")
    parser.add_argument(
        "--middle", type=float, default=0.9, help="logit of the middle sigma: 0.9 for shapes, 0 for edges"
    )
    parser.add_argument("--eager", action="store_true")
    args = parser.parse_args()
    train(args.minutes, args.out, args.seed, not args.eager, args.init, args.rate, args.middle)
