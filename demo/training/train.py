"""Train a small model; each call goes on from what the last one left.

python train.py flux --minutes 60
python train.py flux_low                                    the second expert: the Flux model's fine-tune below half of the noise
COMFYUI_PATH=... python train.py nextdit                    (or unet)

The learning rate is constant, so that training can go on at any time, and falls to zero over the last --cool share of the call.
What is kept for the next call is the state before that; what is written to --out is the average of the weights after it.
The state (weights, their average, optimizers, step; float32) is .work/training/NAME.pt, saved every few minutes. Where it is
missing, training begins with the demo's own model.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# threads that spin at barriers starve each other (50 times slower) as soon as anything else runs on the machine
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from flux import Flux
from latents import LatentMap
from muon import Muon
from objects import CACHE, Painter, training_scenes
from safetensors.torch import load_file, save_file
from text import embed
from text import save as save_text_encoder
from torch import Tensor, nn

BATCH, RATE, DROP, WARMUP, SAVE_SECONDS = 32, 1e-3, 0.1, 100, 180
MUON = 2.0  # its learning rate in units of AdamW's
SPREAD = 1.2  # of the flow models' logit-normal noise levels
BOUNDARY = 0.5  # the sigma at which a run changes to the second expert
EMA_SHARE, EMA_LONGEST = 0.1, 1000  # the average reaches back over this share of the steps, at most so many
MODELS = Path(__file__).resolve().parents[1] / "models"

Forward = Callable[[Tensor, Tensor, Tensor], Tensor]  # latents, time, words -> what the model predicts
Lesson = tuple[Tensor, Tensor, Tensor, Tensor]  # noisy latents, time, what to predict, weight of each row's loss


def flow_lesson(data: Tensor, noise: Tensor, share: Tensor, below: float, middle: float) -> Lesson:
    """Velocity at a sigma below `below` that is logit-normal and, with `middle` above 0, towards noise: where the object can be
    seen in the latent nothing is learned about the word for it."""
    limit = 1.0 if below >= 1 else float(torch.special.ndtr((torch.logit(torch.tensor(below)) - middle) / SPREAD))
    sigma = torch.sigmoid(torch.special.ndtri((share * limit).clamp(1e-4, 1 - 1e-4)) * SPREAD + middle)
    mix = sigma[:, None, None, None]
    return data * (1 - mix) + noise * mix, sigma, noise - data, torch.ones_like(sigma)


def eps_lesson(data: Tensor, noise: Tensor, share: Tensor, below: float, middle: float) -> Lesson:
    """Noise at a timestep of Stable Diffusion's schedule, uniform in it, weighted as a velocity would be, up to a limit."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    time_step = (share * 1000).long().clamp(max=999)
    signal = torch.cumprod(1 - betas, 0).float()[time_step]
    mix = signal[:, None, None, None]
    return data * mix.sqrt() + noise * (1 - mix).sqrt(), time_step.float(), noise, (1 / signal).clamp(max=25)


def pupil(name: str) -> tuple[nn.Module, Forward, Callable[[Tensor, Tensor, Tensor, float, float], Lesson]]:
    """The model called `name` with fresh weights, how to call it, and what it is taught."""
    if name.startswith("flux"):
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


class Training:
    """A model on its way: weights, their average, optimizers and step, which `save` and `resume` keep in one file."""

    def __init__(self, name: str, rate: float) -> None:
        self.model, self.forward, self.lesson = pupil(name)
        self.weights = dict(self.model.named_parameters())
        self.average = {k: p.detach().clone() for k, p in self.weights.items()}
        self.rate, self.step = rate, 0
        # layers that read or write something else than the hidden state, and all vectors, are AdamW's
        outer = (
            "img_in",
            "txt_in",
            "time_in",
            "final_layer",
            "x_embedder",
            "cap_embedder",
            "t_embedder",
            "time_embed",
            "mod",
        )
        hidden = [p for k, p in self.weights.items() if p.ndim == 2 and not any(o in k for o in outer)]
        chosen = {id(p) for p in hidden}
        rest = [p for p in self.weights.values() if id(p) not in chosen]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        ]
        if hidden:
            self.optimizers.append(Muon(hidden, lr=MUON * rate))

    def update(self, loss: Tensor, scale: float) -> None:
        """One step of the optimizers at `scale` times the learning rate."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.rate * scale * (MUON if isinstance(optimizer, Muon) else 1)
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        keep = 1 - 1 / min(EMA_LONGEST, 1 + EMA_SHARE * self.step)
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), list(self.weights.values()), 1 - keep)

    def save(self, file: Path) -> None:
        """Written aside and renamed, so that there is always a whole file."""
        state = {
            "weights": self.model.state_dict(), "average": self.average, "step": self.step,
            "optimizers": [o.state_dict() for o in self.optimizers],
        }  # fmt: skip
        part = file.with_suffix(".part")
        torch.save(state, part)
        part.rename(file)

    def resume(self, file: Path) -> None:
        state: dict[str, Any] = torch.load(file, weights_only=True)
        self.model.load_state_dict(state["weights"])
        self.average = state["average"]
        self.step = state["step"]
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)

    def begin_with(self, file: Path) -> None:
        """Weights alone, as `write` leaves them."""
        weights = {k: v.float() for k, v in load_file(file).items()}
        self.model.load_state_dict(weights)
        self.average = {k: weights[k].clone() for k in self.average}


class Data:
    """Batches of latents and captions."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator, self.painter, self.to_latent = generator, Painter(), LatentMap()
        self.scenes = training_scenes()
        self.words = embed([s.caption for s in self.scenes] + [""])

    def __call__(self, batch: int) -> tuple[Tensor, Tensor]:
        """Latents (batch, 16, 16, 16) and words (batch, 9, 768); one in ten captions is empty."""
        chosen = torch.randint(len(self.scenes), (batch,), generator=self.generator)
        latents = self.to_latent(self.painter.draw([self.scenes[int(i)] for i in chosen], self.generator))
        chosen[torch.rand(batch, generator=self.generator) < DROP] = len(self.scenes)
        return latents, self.words[chosen]


def train(args: argparse.Namespace) -> None:
    state = CACHE / f"{args.model}.pt"
    out = args.out or CACHE / f"skipstone_demo_{args.model}.safetensors"
    CACHE.mkdir(parents=True, exist_ok=True)
    save_text_encoder(CACHE / "skipstone_demo_clip.pt")
    torch.manual_seed(0)
    generator = torch.Generator()
    data = Data(generator)
    training = Training(args.model, args.rate)
    if state.exists():
        training.resume(state)
    elif first := next((f for f in beginnings(args) if f.exists()), None):
        print(f"begins with the weights of {first}", flush=True)
        training.begin_with(first)
    generator.manual_seed(training.step)  # other pictures than the last call's
    below = BOUNDARY if args.model == "flux_low" else 1.0
    bf16 = torch.cpu._is_avx512_bf16_supported()  # elsewhere it is ten times slower
    print(f"{args.model} from step {training.step}", flush=True)
    began = training.step
    begin = saved = time.monotonic()
    seconds, smooth, cooling = args.minutes * 60, 0.0, False
    while (elapsed := time.monotonic() - begin) < seconds:
        left = (1 - elapsed / seconds) / max(args.cool, 1e-6)
        if left < 1 and not cooling:
            training.save(state)
            cooling = True
        latents, words = data(args.batch)
        # one from each of the batch's equal shares of the noise levels
        share = (torch.arange(args.batch) + torch.rand(args.batch, generator=generator)) / args.batch
        noise = torch.randn(latents.shape, generator=generator)
        noisy, at, target, weight = training.lesson(latents, noise, share, below, args.middle)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            said = training.forward(noisy, at, words)
        loss = ((said.float() - target).pow(2).mean((1, 2, 3)) * weight).mean()
        training.update(loss, min(1, left, (training.step - began + 1) / WARMUP))
        done = training.step - began
        smooth = loss.item() if done == 1 else smooth + max(0.01, 1 / done) * (loss.item() - smooth)
        if done % 50 == 0 or done in (1, 10):
            pace = done * args.batch / (time.monotonic() - begin)
            print(f"{elapsed:6.0f} s  step {training.step:6d}  loss {smooth:.4f}  {pace:.0f} samples/s", flush=True)
        if time.monotonic() - saved > SAVE_SECONDS and not cooling:
            training.save(state)
            write(training.average, out)
            saved = time.monotonic()
    if not cooling and training.step > began:
        training.save(state)
    if training.step > began or not out.exists():
        write(training.average, out)


def beginnings(args: argparse.Namespace) -> list[Path]:
    """Files of weights to begin with where there is no state; the first that exists is taken."""
    files = [args.init] if args.init else []
    files.append(MODELS / f"skipstone_demo_{args.model}.safetensors")
    if args.model == "flux_low":
        files += [folder / "skipstone_demo_flux.safetensors" for folder in (CACHE, MODELS)]
    return files


def write(weights: dict[str, Tensor], out: Path) -> None:
    """float16, the stock names; written aside and renamed, so that a reader never sees half a file."""
    part = out.with_suffix(".part")
    save_file({k: v.half().contiguous() for k, v in weights.items()}, part)
    part.rename(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=("flux", "flux_low", "nextdit", "unet"))
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--out", type=Path, help="default: .work/training/skipstone_demo_MODEL.safetensors")
    parser.add_argument("--init", type=Path, help="weights to begin with, where there is no state")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--rate", type=float, default=RATE, help="highest learning rate of AdamW; Muon's is twice that")
    parser.add_argument("--cool", type=float, default=0.15, help="share of the time in which the rate falls to zero")
    parser.add_argument(
        "--middle", type=float, default=0.9, help="flow models: logit of the middle sigma, 0.9 for shapes, 0 for edges"
    )
    train(parser.parse_args())
