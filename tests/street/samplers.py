"""Stand-ins for samplers and guiders of other packs, written from their descriptions."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import comfy.samplers
import torch
from comfy.samplers import KSAMPLER, CFGGuider, calc_cond_batch, cfg_function
from torch import Tensor


def _ones(x: Tensor) -> Tensor:
    return x.new_ones(len(x))


def detail_daemon(amount: float, inner: str = "euler") -> KSAMPLER:
    """Jonseed/ComfyUI-Detail-Daemon: a sampler around another, which runs the model at a sigma a little below the sampler's own."""

    def sampler(model: Any, x: Tensor, sigmas: Tensor, **kwargs: Any) -> Tensor:
        places = torch.linspace(-1, 1, len(sigmas) - 1)
        shares = amount * torch.exp(-(4 * places**2))

        def lower(x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
            i = int((sigmas[:-1] - sigma.max()).abs().argmin())
            return model(x, sigma * (1 - shares[i]), **extra)

        lower.inner_model, lower.sigmas = model.inner_model, model.sigmas  # type: ignore[attr-defined]
        return comfy.samplers.sampler_object(inner).sampler_function(lower, x, sigmas, **kwargs)

    return KSAMPLER(sampler)


def runge_kutta(noise: float = 0.0) -> KSAMPLER:
    """As ClownsharKBatwing/RES4LYF's: two stages a step, and new noise at each step."""

    def sampler(model: Any, x: Tensor, sigmas: Tensor, extra_args: Any = None, **_: Any) -> Tensor:
        draw = torch.Generator().manual_seed(4)
        for sigma, after in pairwise(sigmas):
            d = (x - model(x, sigma * _ones(x), **extra_args)) / sigma
            middle = (sigma + after) / 2
            ahead = x + d * (middle - sigma)
            d = (ahead - model(ahead, middle * _ones(x), **extra_args)) / middle
            x = x + d * (after - sigma)
            if noise and after > 0:
                denoised = x - d * after
                new = torch.randn(x.shape, generator=draw)
                x = denoised + (x - denoised) * (1 - noise**2) ** 0.5 + after * noise * new
        return x

    return KSAMPLER(sampler)


def ancestral(share: float) -> KSAMPLER:
    """Euler with new noise at every step, under a name that nobody knows. share: of the noise in the latent that is replaced."""

    def sampler(model: Any, x: Tensor, sigmas: Tensor, extra_args: Any = None, **_: Any) -> Tensor:
        draw = torch.Generator().manual_seed(5)
        for sigma, after in pairwise(sigmas):
            denoised = model(x, sigma * _ones(x), **extra_args)
            old = (x - (1 - sigma) * denoised) / sigma
            new = (1 - share**2) ** 0.5 * old + share * torch.randn(x.shape, generator=draw)
            x = (1 - after) * denoised + after * new
        return x

    return KSAMPLER(sampler)


def own_guidance(scale: float) -> KSAMPLER:
    """Samplers that guide by themselves: at every step they run the model with one prompt, then with the other, on one latent."""

    def sampler(model: Any, x: Tensor, sigmas: Tensor, extra_args: Any = None, **_: Any) -> Tensor:
        guider = model.inner_model
        positive, negative = guider.conds["positive"], guider.conds["negative"]
        for sigma, after in pairwise(sigmas):
            out = []
            for conds in (positive, negative):
                guider.conds["positive"] = conds
                out.append(model(x, sigma * _ones(x), **extra_args))
            x = x + (x - out[1] - scale * (out[0] - out[1])) / sigma * (after - sigma)
        guider.conds["positive"] = positive
        return x

    return KSAMPLER(sampler)


def flow_edit(velocities: bool, source: Tensor, prompts: tuple[Any, Any]) -> tuple[KSAMPLER, type[CFGGuider]]:
    """logtd/ComfyUI-HunyuanLoom: at every step the model is run on the noised picture with the source's prompt and with the target's, in
    turn, with new noise; the picture moves by the difference. velocities: D is the model's velocity."""

    class Guider(CFGGuider):
        def predict_noise(self, x: Tensor, timestep: Tensor, model_options: Any = {}, seed: Any = None) -> Tensor:  # noqa: B006
            denoised = super().predict_noise(x, timestep, model_options, seed)
            return (x - denoised) / timestep[0] if velocities else denoised

    def sampler(model: Any, x: Tensor, sigmas: Tensor, extra_args: Any = None, **_: Any) -> Tensor:
        draw = torch.Generator().manual_seed(6)
        guider, edited = model.inner_model, source.clone()
        positive = guider.conds["positive"]
        other = comfy.samplers.process_conds(
            guider.inner_model, x, {"positive": [dict(c) for c in guider.given]}, x.device
        )["positive"]
        for sigma, after in pairwise(sigmas):
            noised = (1 - sigma) * source + sigma * torch.randn(x.shape, generator=draw)
            velocity = []
            for conds, at in ((other, noised), (positive, edited + noised - source)):
                guider.conds["positive"] = conds
                out = model(at, sigma * _ones(x), **extra_args)
                velocity.append(out if velocities else (at - out) / sigma)
            edited = edited + (velocity[1] - velocity[0]) * (after - sigma)
        guider.conds["positive"] = positive
        return edited

    return KSAMPLER(sampler), Guider


class PairGuider(CFGGuider):
    """scraed/LanPaint: while it samples, `predict_noise` returns two denoised latents of two guidance scales."""

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: Any = {}, seed: Any = None) -> Any:  # noqa: B006
        pair = [self.conds["positive"], self.conds["negative"]]
        out = calc_cond_batch(self.inner_model, pair, x, timestep, model_options)
        return tuple(
            cfg_function(
                self.inner_model, *out, scale, x, timestep, model_options=model_options, cond=pair[0], uncond=pair[1]
            )
            for scale in (self.cfg, 1.0)
        )


class LanPaint(KSAMPLER):
    """scraed/LanPaint: at every step the masked part is moved a few times with new noise at the same sigma before the sampler's step."""

    def __init__(self, think: int = 2) -> None:
        super().__init__(comfy.samplers.sampler_object("euler").sampler_function)
        self.think = think

    def sample(
        self, model_wrap: Any, sigmas: Tensor, extra_args: Any, callback: Any, noise: Tensor, latent_image: Any = None,
        denoise_mask: Any = None, disable_pbar: bool = False,
    ) -> Tensor:  # fmt: skip
        draw, known = torch.Generator().manual_seed(1), 1 - denoise_mask

        class Model:
            inner_model = model_wrap

            def __call__(self, x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
                t = float(sigma[0])
                kept = (t * noise + (1 - t) * latent_image) * known
                at = x * denoise_mask + kept
                for _ in range(think if t < 0.98 else 0):
                    _, large = model_wrap(at, sigma, **extra)
                    new = (1 - t) * large + t * torch.randn(x.shape, generator=draw)
                    at = (at + 0.3 * (new - at)) * denoise_mask + kept
                out, _ = model_wrap(at, sigma, **extra)
                x.copy_(at)
                return out * denoise_mask + latent_image * known

        think, x = self.think, model_wrap.inner_model.model_sampling.noise_scaling(sigmas[0], noise, latent_image, True)
        return self.sampler_function(Model(), x, sigmas, extra_args=extra_args, callback=None, disable=True)


def smea(every: int = 3) -> KSAMPLER:
    """Koishi-Star/Euler-Smea-Dyn-Sampler: some steps run the model on the latent at another size as well."""

    def sampler(model: Any, x: Tensor, sigmas: Tensor, extra_args: Any = None, **_: Any) -> Tensor:
        for i, (sigma, after) in enumerate(pairwise(sigmas)):
            d = (x - model(x, sigma * _ones(x), **extra_args)) / sigma
            x = x + d * (after - sigma)
            if after > 0.2 and i % every == 1:
                small = x[..., ::2, ::2]
                e = (small - model(small, after * _ones(x), **extra_args)) / after
                x[..., ::2, ::2] = small + 0.1 * e * (after - sigma)
        return x

    return KSAMPLER(sampler)


def tiles_in_turn(width: int = 8) -> KSAMPLER:
    """A sampler that runs the model on one tile after the other at every step."""

    def sampler(model: Any, x: Tensor, sigmas: Tensor, extra_args: Any = None, **_: Any) -> Tensor:
        for sigma, after in pairwise(sigmas):
            parts = []
            for tile in x.split(width, -1):
                d = (tile - model(tile, sigma * _ones(tile), **extra_args)) / sigma
                parts.append(tile + d * (after - sigma))
            x = torch.cat(parts, -1)
        return x

    return KSAMPLER(sampler)
