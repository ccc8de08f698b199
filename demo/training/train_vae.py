"""Train the demo's TAESD-type VAE to invert the fixed latent map: a decoder, then an encoder, in one file.

python train_vae.py --minutes 8 --out vae.safetensors
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from latents import CHANNELS, LatentMap
from pictures import draw, random_scenes
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

SCALE, SHIFT = 0.3611, 0.1159  # ComfyUI's Flux latent format: with them the decoder sees model-space latents
BATCH, CROP, RATE = 16, 8, 1e-3
WIDTH = 64


def conv(n_in: int, n_out: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, padding=1, stride=stride, bias=bias)


class Block(nn.Module):
    """TAESD's residual block; same parameter names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(conv(WIDTH, WIDTH), nn.ReLU(), conv(WIDTH, WIDTH), nn.ReLU(), conv(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) + x)


class Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


def decoder() -> nn.Sequential:
    layers: list[nn.Module] = [Clamp(), conv(CHANNELS, WIDTH), nn.ReLU()]
    for _ in range(3):
        layers += [Block(), Block(), Block(), nn.Upsample(scale_factor=2), conv(WIDTH, WIDTH, bias=False)]
    return nn.Sequential(*layers, Block(), conv(WIDTH, 3))


def encoder() -> nn.Sequential:
    layers: list[nn.Module] = [conv(3, WIDTH), Block()]
    for _ in range(3):
        layers += [conv(WIDTH, WIDTH, stride=2, bias=False), Block(), Block(), Block()]
    return nn.Sequential(*layers, conv(WIDTH, CHANNELS))


def fit(net: nn.Module, seconds: float, batch: Callable[[], tuple[Tensor, Tensor]]) -> None:
    """Adam on |error| + error^2, the learning rate following the clock."""
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
    start, step = time.monotonic(), 0
    while seconds and (progress := (time.monotonic() - start) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 50) * (0.51 + 0.49 * math.cos(math.pi * progress))
        given, wanted = batch()
        with torch.autocast("cpu", torch.bfloat16):
            error = net(given.to(memory_format=torch.channels_last)).float() - wanted
        loss = error.abs().mean() + 4 * error.pow(2).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 50 == 0:
            psnr = -10 * math.log10(error.detach().pow(2).mean().item())
            print(f"{progress:5.0%}  step {step:5d}  {psnr:.2f} dB", flush=True)


def train(minutes: float, out: Path, seed: int = 0, init: Path | None = None, decode_share: float = 0.7) -> None:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    to_latent = LatentMap()

    def crops() -> tuple[Tensor, Tensor]:
        """Pictures and latents of the same quarter: four times as many for the same work."""
        whole = draw(random_scenes(BATCH, generator), generator)
        latent = to_latent(whole)
        y, x = (int(torch.randint(0, latent.shape[-1] - CROP + 1, (1,), generator=generator)) for _ in "yx")
        return whole[..., 8 * y : 8 * (y + CROP), 8 * x : 8 * (x + CROP)], latent[..., y : y + CROP, x : x + CROP]

    def to_decode() -> tuple[Tensor, Tensor]:
        # what the sampler hands over is not exact: learn to read it with a little noise
        picture, latent = crops()
        return latent + 0.05 * torch.randn(latent.shape, generator=generator), picture

    parts = {"taesd_decoder": decoder(), "taesd_encoder": encoder()}
    if init:
        known = load_file(init)
        for name, part in parts.items():
            part.load_state_dict({k: known[f"{name}.{k}"].float() for k in part.state_dict()})
    fit(parts["taesd_decoder"], minutes * 60 * decode_share, to_decode)
    fit(parts["taesd_encoder"], minutes * 60 * (1 - decode_share), crops)
    state = {f"{name}.{k}": v.half().contiguous() for name, part in parts.items() for k, v in part.state_dict().items()}
    state |= {"vae_scale": torch.tensor(SCALE), "vae_shift": torch.tensor(SHIFT)}
    save_file(state, out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="weights to go on from")
    parser.add_argument("--decode-share", type=float, default=0.7, help="of the time for the decoder")
    args = parser.parse_args()
    train(args.minutes, args.out, init=args.init, decode_share=args.decode_share)
