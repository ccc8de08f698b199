"""Wirings that people use, from public reports and from the packs' own examples, as a table: see CASES."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import comfy.sample
import comfy.samplers
import torch
from comfy_extras.nodes_advanced_samplers import SamplerLCMUpscale
from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT
from torch import Tensor

from nodes import ConditioningCombine, ConditioningSetMask, ConditioningSetTimestepRange

from ..comfy.test_quality import PAIRS
from . import models, samplers

STEPS = 12
SEEDS = 2  # noises of a batch: every figure is of their pictures together
FRAMES = 3  # of a video, which is cut into windows of two
Cache = Callable[[Any], Any]  # puts the step cache on a MODEL, or does nothing
Sampled = Callable[["Desk", Cache, int], Tensor]


class Desk:
    """The loaded demo model, prompts, and samplers as a graph has them. studio: tests/comfy/conftest.py."""

    def __init__(self, studio: Any) -> None:
        self.studio, self.model = studio, studio.model
        self.prompt, self.other, self.empty = studio.prompt(PAIRS[0][0]), studio.prompt(PAIRS[1][0]), studio.prompt("")

    def noise(self, batch: int = SEEDS, size: int = 16, seed: int = 1) -> Tensor:
        return torch.randn(batch, 16, size, size, generator=torch.Generator().manual_seed(seed))

    @cached_property
    def picture(self) -> Tensor:
        """A latent of the second prompt, to go on from."""
        return self.sample(self.model, 8, positive=self.other)

    def sample(
        self, model: Any, steps: int, positive: Any = None, latent: Any = None, seed: int = 1, **more: Any
    ) -> Tensor:
        """KSampler, with a CFG of 1 where nothing else is asked for, because the negative would double the work."""
        given: dict[str, Any] = {"sampler": "euler", "cfg": 1.0, **more}
        latent = torch.zeros(SEEDS, 16, 16, 16) if latent is None else latent
        noise = self.noise(len(latent), latent.shape[-1], seed)
        return self.studio.sample(
            model, positive or self.prompt, self.empty, steps=steps, latent=latent, noise=noise, **given
        )

    def custom(
        self, model: Any, steps: int, sampler: Any, guider: Any = comfy.samplers.CFGGuider, latent: Any = None, cfg: float = 1.0,
        mask: Any = None, other: Any = None,
    ) -> Tensor:  # fmt: skip
        """SamplerCustomAdvanced."""
        made = guider(model)
        made.set_conds(self.prompt, self.empty)
        made.set_cfg(cfg)
        made.given = comfy.sampler_helpers.convert_cond(self.other)
        latent = torch.zeros(SEEDS, 16, 16, 16) if latent is None else latent
        noise, sigmas = self.noise(len(latent), latent.shape[-1]), torch.linspace(1, 0, steps + 1)
        return made.sample(noise, latent, sampler, sigmas, denoise_mask=mask, disable_pbar=True, seed=1)


@dataclass(frozen=True)
class Case:
    """A wiring.

    Parameters
    ----------
    sampled: samples with a step cache on, in so many steps.
    skips: methods of the output level skip something in it. blocks: so does First Block Cache.
    said: words of the report's advice or notes, where nothing can be skipped.
    """

    sampled: Sampled
    skips: bool = True
    blocks: bool = True
    said: str = ""


def patched(patch: Callable[..., Any], *values: Any, **how: Any) -> Sampled:
    """KSampler with a MODEL that another node patched before the step cache."""
    return lambda desk, cache, steps: desk.sample(cache(patch(desk.model, *values)), steps, **how)


def by(sampler: Callable[[], Any], **how: Any) -> Sampled:
    """SamplerCustomAdvanced with a sampler of another pack."""
    return lambda desk, cache, steps: desk.custom(cache(desk.model), steps, sampler(), **how)


def prompted(positive: Callable[[Desk], Any]) -> Sampled:
    return lambda desk, cache, steps: desk.sample(cache(desk.model), steps, positive(desk))


def lan_paint(desk: Desk, cache: Cache, steps: int) -> Tensor:
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 4:12, 4:12] = 1
    return desk.custom(cache(desk.model), steps, samplers.LanPaint(), samplers.PairGuider, desk.picture, 2.0, mask)


def flow_edit(velocities: bool) -> Sampled:
    def sampled(desk: Desk, cache: Cache, steps: int) -> Tensor:
        sampler, guider = samplers.flow_edit(velocities, desk.picture, (desk.other, desk.prompt))
        return desk.custom(cache(desk.model), steps, sampler, guider)

    return sampled


def ultimate_upscale(desk: Desk, cache: Cache, steps: int) -> Tensor:
    """Ultimate SD Upscale: the picture enlarged, and each tile sampled by itself with a low denoise."""
    model, large = (
        cache(desk.model),
        torch.nn.functional.interpolate(desk.picture[:1], scale_factor=1.5, mode="bilinear"),
    )
    for top, left in ((0, 0), (0, 8), (8, 0), (8, 8)):
        tile = large[..., top : top + 16, left : left + 16].clone()
        large[..., top : top + 16, left : left + 16] = desk.sample(model, steps, latent=tile, denoise=0.4)
    return large


def two_samplers(desk: Desk, cache: Cache, steps: int) -> Tensor:
    """Two KSamplers with a latent upscale between them."""
    model = cache(desk.model)
    small = desk.sample(model, steps, latent=torch.zeros(SEEDS, 16, 12, 12))
    large = torch.nn.functional.interpolate(small, size=(16, 16), mode="nearest")
    return desk.sample(model, steps, latent=large, denoise=0.5, seed=2)


def inpainting(desk: Desk, cache: Cache, steps: int) -> Tensor:
    """Differential Diffusion with a mask that rises from left to right."""
    mask = torch.linspace(0, 1, 16).expand(1, 1, 16, 16)
    model = cache(DifferentialDiffusion.execute(desk.model)[0])
    return desk.sample(model, steps, latent=desk.picture, noise_mask=mask)


def regions(desk: Desk) -> Any:
    """Two prompts with masks."""
    mask = torch.zeros(1, 128, 128)
    mask[..., :64] = 1
    left, right = (
        ConditioningSetMask().append(c, m, "default", 1.0)[0] for c, m in ((desk.prompt, mask), (desk.other, 1 - mask))
    )
    return ConditioningCombine().combine(left, right)[0]


def alternating(every: int) -> Callable[[Desk], Any]:
    """asagi4/comfyui-prompt-control's [a|b]: another prompt every so many steps."""

    def prompts(desk: Desk) -> Any:
        edges = [i / STEPS for i in range(0, STEPS, every)] + [1.0]
        parts: list[Any] = []
        for i, (start, end) in enumerate(pairwise(edges)):
            prompt = (desk.prompt, desk.other)[i % 2]
            parts += ConditioningSetTimestepRange().set_range(
                prompt, max(start - 0.01, 0), end - 0.01 if end < 1 else 1.0
            )[0]
        return parts

    return prompts


def lcm_upscale(desk: Desk, cache: Cache, steps: int) -> Tensor:
    torch.manual_seed(0)
    sampler = SamplerLCMUpscale.execute(1.5, -1, "bilinear")[0]
    return desk.custom(cache(desk.model), steps, sampler, latent=torch.zeros(1, 16, 12, 12))


CASES: dict[str, Case] = {
    # reported
    "LanPaint": Case(lan_paint),
    "AnimateDiff, static windows": Case(
        patched(models.animate_diff, FRAMES, 2, 1, 0, latent=torch.zeros(FRAMES, 16, 16, 16))
    ),
    "AnimateDiff, moving windows": Case(
        patched(models.animate_diff, FRAMES, 2, 1, 2, latent=torch.zeros(FRAMES, 16, 16, 16)),
        False,
        False,
        "windows that move",
    ),
    "FlowEdit": Case(flow_edit(velocities=False), False, False, "follows the sampler's noise"),
    "FlowEdit, HunyuanLoom": Case(flow_edit(velocities=True), False, False, "follows the sampler's noise"),
    "Detail Daemon": Case(by(lambda: samplers.detail_daemon(0.08))),
    "Ultimate SD Upscale": Case(ultimate_upscale),
    "SMEA Dy": Case(by(samplers.smea)),
    "LCM upscale": Case(lcm_upscale),
    "prompts in turn, every step": Case(prompted(alternating(1)), False, False, "changes at nearly every step"),
    "prompts in turn, every 4": Case(prompted(alternating(4))),
    # parts of the latent
    "unnamed tiles": Case(patched(models.unnamed_windows, 8), False, False, "parts of the latent"),
    "rolled latent": Case(patched(models.rolled), False, False, "parts of the latent"),
    "Tiled Diffusion": Case(patched(models.tiled_diffusion, 8), True, False, "parts of the latent"),
    "tiles in turn": Case(by(samplers.tiles_in_turn), False, False, "parts of the latent"),
    # other wirings
    "own guidance": Case(by(lambda: samplers.own_guidance(4.0))),
    "noise of another pack": Case(by(lambda: samplers.ancestral(0.5))),
    "RES4LYF": Case(by(samplers.runge_kutta)),
    "RES4LYF, SDE": Case(by(lambda: samplers.runge_kutta(0.4))),
    "Attention Couple": Case(patched(models.attention_couple)),
    "regional prompts": Case(prompted(regions)),
    "IPAdapter": Case(patched(models.ip_adapter)),
    "PuLID": Case(patched(models.pulid)),
    "HiDiffusion": Case(patched(models.hi_diffusion)),
    "skip layer guidance": Case(
        patched(lambda m: SkipLayerGuidanceDiT.execute(m, 2.0, 0.0, 1.0, "0", "1")[0], cfg=2.0)
    ),
    "ControlNet on a part": Case(prompted(lambda desk: models.controlled(desk.prompt, models.Control(0.0, 0.4)))),
    "Differential Diffusion": Case(inpainting),
    "two samplers": Case(two_samplers),
}
