"""Train the demo's TAESD-type VAE to invert the fixed latent map: a decoder, then an encoder, in one file.

python train_vae.py --minutes 8

Goes on from the file that it writes, or from the demo's own; the learning rate follows the clock each time.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from latents import CHANNELS, LatentMap
from muon import Muon
from objects import CACHE, Painter, random_scenes
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

SCALE, SHIFT = 0.3611, 0.1159  # ComfyUI's Flux latent format: with them the decoder sees model-space latents
BATCH, CROP, RATE = (
    4,
    8,
    1e-3,
)  # each step is already of 16,384 pixels: more, smaller steps are worth more than larger ones
WIDTH = 64
DEMO = Path(__file__).resolve().parents[1] / "models" / "skipstone_demo_vae.safetensors"


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
    """Muon for the convolutions and Adam for the rest, on |error| + error^2; the learning rate follows the clock."""
    bf16 = torch.cpu._is_avx512_bf16_supported()  # elsewhere it is ten times slower
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    matrices = [p for p in net.parameters() if p.ndim == 4 and p.shape[0] == p.shape[1] == WIDTH]
    chosen = {id(p) for p in matrices}
    optimizers = [
        Muon(matrices, lr=RATE),
        torch.optim.Adam([p for p in net.parameters() if id(p) not in chosen], lr=RATE),
    ]
    start, step, smooth = time.monotonic(), 0, 0.0
    while seconds and (progress := (time.monotonic() - start) / seconds) < 1:
        for group in (g for optimizer in optimizers for g in optimizer.param_groups):
            group["lr"] = RATE * min(1, (step + 1) / 50) * (0.51 + 0.49 * math.cos(math.pi * progress))
        given, wanted = batch()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            error = net(given.to(memory_format=torch.channels_last)).float() - wanted
        loss = error.abs().mean() + 4 * error.pow(2).mean()
        net.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        square = error.detach().pow(2).mean().item()
        smooth = square if step == 1 else 0.98 * smooth + 0.02 * square
        if step % 100 == 0:
            print(f"{progress:5.0%}  step {step:5d}  {-10 * math.log10(smooth):.2f} dB", flush=True)


def train(minutes: float, out: Path, init: Path | None, decode_share: float) -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(int(time.time()))  # other pictures than the last call's
    to_latent, painter = LatentMap(), Painter()

    def crops() -> tuple[Tensor, Tensor]:
        """Pictures and latents of the same quarter: four times as many for the same work."""
        whole = painter.draw(random_scenes(BATCH, generator), generator)
        latent = to_latent(whole)
        y, x = (int(torch.randint(0, latent.shape[-1] - CROP + 1, (1,), generator=generator)) for _ in "yx")
        return whole[..., 8 * y : 8 * (y + CROP), 8 * x : 8 * (x + CROP)], latent[..., y : y + CROP, x : x + CROP]

    def to_decode() -> tuple[Tensor, Tensor]:
        # what the sampler hands over is not exact: learn to read it with a little noise
        picture, latent = crops()
        return latent + 0.05 * torch.randn(latent.shape, generator=generator), picture

    parts = {"taesd_decoder": decoder(), "taesd_encoder": encoder()}
    if first := next((f for f in (out, init, DEMO) if f and f.exists()), None):
        print(f"goes on from {first}", flush=True)
        known = load_file(first)
        for name, part in parts.items():
            part.load_state_dict({k: known[f"{name}.{k}"].float() for k in part.state_dict()})
    fit(parts["taesd_decoder"], minutes * 60 * decode_share, to_decode)
    fit(parts["taesd_encoder"], minutes * 60 * (1 - decode_share), crops)
    state = {f"{name}.{k}": v.half().contiguous() for name, part in parts.items() for k, v in part.state_dict().items()}
    state |= {"vae_scale": torch.tensor(SCALE), "vae_shift": torch.tensor(SHIFT)}
    aside = out.with_suffix(".part")
    save_file(state, aside)
    aside.rename(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--out", type=Path, default=CACHE / "skipstone_demo_vae.safetensors")
    parser.add_argument("--init", type=Path, help="weights to begin with, where there is no --out")
    parser.add_argument("--decode-share", type=float, default=0.7, help="of the time for the decoder")
    args = parser.parse_args()
    train(args.minutes, args.out, args.init, args.decode_share)
