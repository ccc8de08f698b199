"""The quality of a cached run's image: PSNR, SSIM, LPIPS and FLIP against the full run of as many steps, PSNR against one of 400 steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from models import OUTPUT, Studio, perceptual
from objects import held_out_scenes, random_scenes
from torch import Tensor

JUDGED, LEARNED = 9000, 100  # the first seed of the pairs that are judged, and of those that costs may be measured on
FIRST_JUDGED = 1000  # costs are measured on seeds below
TRUTH_STEPS = 400
TRUE = "euler"
NOISY = ("ancestral", "sde", "ddpm", "lcm", "seeds", "sa_solver")  # these end elsewhere with every number of steps


def psnr(a: Tensor, b: Tensor) -> float:
    """dB, peak 1; pictures that are equal have 100."""
    return -10 * math.log10(max(float((a - b).detach().pow(2).mean()), 1e-10))


def ssim(a: Tensor, b: Tensor) -> float:
    """Measures of two images, shape (1, H, W, 3), values in 0..1."""
    from skimage.metrics import structural_similarity

    return float(structural_similarity(a[0].numpy(), b[0].numpy(), channel_axis=-1, data_range=1.0))


@dataclass(frozen=True)
class Cell:
    """Sampler settings."""

    sampler: str
    cfg: float
    steps: int

    @property
    def noisy(self) -> bool:
        return any(word in self.sampler for word in NOISY)

    @property
    def text(self) -> str:
        return f"{self.sampler}, CFG {self.cfg:g}, {self.steps} steps"


@dataclass(frozen=True)
class Pair:
    """A prompt and a seed."""

    seed: int
    caption: str


def pairs(count: int, first: int) -> list[Pair]:
    """Prompts and seeds from `first` on. From FIRST_JUDGED on of combinations that the models were not trained on."""
    generator = torch.Generator().manual_seed(first)
    scenes = held_out_scenes(count, first) if first >= FIRST_JUDGED else random_scenes(count, generator)
    return [Pair(first + i, scene.caption) for i, scene in enumerate(scenes)]


@dataclass
class Tally:
    """Number of the sampler's evaluations in which the network ran."""

    computed: int = 0
    ran: bool = field(default=False, repr=False)


@contextmanager
def watched(model: Any, tally: Tally) -> Iterator[Any]:
    """A clone of the MODEL (a comfy ModelPatcher) whose runs are counted, as seen from outside of every step cache that is put
    on it: the sampler's calls at PREDICT_NOISE, whose outermost wrapper is the first added, and the network's at its own layers,
    because ComfyUI's EasyCache skips inside of the network's forward."""
    from comfy.patcher_extension import WrappersMP

    def count(executor: Any, *args: Any, **kwargs: Any) -> Any:
        tally.ran = False
        result = executor(*args, **kwargs)
        tally.computed += tally.ran
        return result

    def note(*_: Any) -> None:
        tally.ran = True

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "skipstone-bench", count)
    hooks = [layer.register_forward_pre_hook(note) for layer in clone.model.diffusion_model.children()]
    try:
        yield clone
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class Shot:
    """A decoded picture (1, H, W, 3) in 0..1, its latent, and the processor's seconds that its sampling took: what else the machine does is
    not in them. With one thread (see models.loaded) they are what a clock shows on an idle machine."""

    picture: Tensor
    seconds: float
    latent: Tensor


@dataclass(frozen=True)
class Score:
    """Means over the pairs; of the seconds, the median."""

    computed: float
    psnr_db: float
    psnr_truth_db: float | None
    ssim: float
    lpips: float | None
    flip: float | None
    seconds: float


def score(
    computed: float, seconds: float, pictures: list[Tensor], full: list[Tensor], truth: list[Tensor] | None
) -> Score:
    """Of pictures (1, H, W, 3) in 0..1 against those of the full runs, and of the runs of 400 steps where there are any. lpips and
    flip are None where set-up could not fetch their packages."""

    def mean(measure: Callable[[Any, Any], float], others: list[Tensor]) -> float:
        return sum(measure(a, b) for a, b in zip(pictures, others, strict=True)) / len(pictures)

    looks = perceptual.available()
    return Score(
        computed=computed,
        psnr_db=mean(psnr, full),
        psnr_truth_db=mean(psnr, truth) if truth else None,
        ssim=mean(ssim, full),
        lpips=mean(lambda a, b: perceptual.lpips(b[0].numpy(), a[0].numpy()), full) if looks else None,
        flip=mean(lambda a, b: perceptual.flip(b[0].numpy(), a[0].numpy()), full) if looks else None,
        seconds=seconds,
    )


class Bench:
    """A model, a way of sampling, and the pairs to judge on."""

    def __init__(self, studio: Studio, cell: Cell, count: int) -> None:
        self.studio, self.cell = studio, cell
        self.pairs = pairs(count, JUDGED)
        self.empty = studio.words("")

    def shot(self, model: Any, pair: Pair, steps: int | None = None) -> Shot:
        words = self.studio.words(pair.caption)
        began = time.process_time()
        latent = self._sampled(model, [pair.seed], words, steps or self.cell.steps)
        seconds = time.process_time() - began
        return Shot(self._decoded(latent), seconds, latent)

    def _sampled(self, model: Any, seeds: list[int], words: Any, steps: int, sampler: str = "") -> Tensor:
        """The seed goes to the sampler too, so a noisy one draws the same noise with every step cache."""
        import comfy.sample

        one = torch.zeros(1, 16, 16, 16)
        noise = torch.cat([comfy.sample.prepare_noise(one, seed) for seed in seeds])
        cfg, sampler, more = self.cell.cfg, sampler or self.cell.sampler, {"seed": seeds[0], "disable_pbar": True}
        latent = torch.zeros_like(noise)
        with torch.inference_mode():  # as a running ComfyUI does
            return comfy.sample.sample(model, noise, steps, cfg, sampler, "simple", words, self.empty, latent, **more)

    def _decoded(self, latent: Tensor) -> Tensor:
        with torch.inference_mode():
            return self.studio.vae.decode(latent).clamp(0, 1).float().cpu()

    @cached_property
    def full(self) -> list[Shot]:
        return [self.shot(self.studio.model, pair) for pair in self.pairs]

    @cached_property
    def seconds_full(self) -> float:
        return median(s.seconds for s in self.full)

    @cached_property
    def truth(self) -> list[Tensor]:
        """What the pairs' pictures would be without any error of the sampler's; kept on disk, as 400 steps take long. Samplers that add
        no noise all come to the same with more and more steps, so one of them stands for all."""
        files = [self._truth_file(pair) for pair in self.pairs]
        lacking = [(p, f) for p, f in zip(self.pairs, files, strict=True) if not f.is_file()]
        if lacking:
            print(f"{self.studio.name}: {len(lacking)} runs of {TRUTH_STEPS} steps with {TRUE}", flush=True)
            # at once: nothing is decided there for one picture that another could feel
            words = together([self.studio.words(p.caption) for p, _ in lacking])
            seeds = [p.seed for p, _ in lacking]
            latents = self._sampled(self.studio.model, seeds, words, TRUTH_STEPS, TRUE)
            for (_, file), latent in zip(lacking, latents, strict=True):
                file.parent.mkdir(parents=True, exist_ok=True)
                part = file.with_name(f"{file.stem}.part.npy")
                np.save(part, self._decoded(latent[None]).numpy())
                part.replace(file)
        return [torch.from_numpy(np.load(file, allow_pickle=False)) for file in files]

    def _truth_file(self, pair: Pair) -> Path:
        name = f"{TRUE}-cfg{self.cell.cfg:g}-{pair.seed}-{pair.caption.replace(' ', '-')}.npy"
        return OUTPUT / "truth" / f"{self.studio.name}-{self.studio.digest}" / name

    def score(self, model: Any, steps: int | None = None) -> float:
        """Mean PSNR against the full run."""
        shots = (self.shot(model, pair, steps).picture for pair in self.pairs)
        return sum(psnr(a, b.picture) for a, b in zip(shots, self.full, strict=True)) / len(self.pairs)

    def scored(self, model: Any, tally: Tally, steps: int | None = None) -> Score:
        """All that is known about a MODEL whose runs `tally` counts."""
        tally.computed = 0
        shots = [self.shot(model, pair, steps) for pair in self.pairs]
        truth = None if self.cell.noisy else self.truth
        pictures, full = [s.picture for s in shots], [s.picture for s in self.full]
        return score(tally.computed / len(shots), median(s.seconds for s in shots), pictures, full, truth)


def together(words: list[Any]) -> Any:
    """Several prompts' conditionings as one of a batch."""
    tokens, more = torch.cat([w[0][0] for w in words]), dict(words[0][0][1])
    more["pooled_output"] = torch.cat([w[0][1]["pooled_output"] for w in words])
    return [[tokens, more]]
