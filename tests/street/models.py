"""Stand-ins for nodes of other packs that patch a MODEL, written from their descriptions. Each takes a MODEL and returns a clone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.controlnet
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor


def _wrapped(model: Any, kind: str, wrapper: Callable[..., Any]) -> Any:
    clone = model.clone()
    clone.add_wrapper_with_key(kind, "stand-in", wrapper)
    return clone


def animate_diff(model: Any, frames: int, length: int, overlap: int, moves: int) -> Any:
    """Kosinkadink/ComfyUI-AnimateDiff-Evolved: windows of frames, cut in a CALC_COND_BATCH wrapper and named in
    transformer_options["ad_params"]. moves: frames by which they move from step to step, as "Looped Uniform" ones do, or 0."""
    seen: list[float] = []

    def windows(executor: Any, inner: Any, conds: Any, x: Tensor, timestep: Tensor, model_options: Any) -> Any:
        if not seen or seen[-1] != float(timestep[0]):
            seen.append(float(timestep[0]))
        start, out, count = (
            moves * len(seen) % frames,
            [torch.zeros_like(x) for _ in conds],
            x.new_zeros(frames, 1, 1, 1),
        )
        for first in range(start, frames + start - overlap, length - overlap):
            indices = [i % frames for i in range(first, first + length)]
            model_options["transformer_options"]["ad_params"] = {"sub_idxs": indices, "full_length": frames}
            got = executor(inner, conds, x[indices], timestep[indices], model_options)
            for o, g in zip(out, got, strict=True):
                o[indices] += g
            count[indices] += 1
        return [o / count for o in out]

    return _wrapped(model, WrappersMP.CALC_COND_BATCH, windows)


def unnamed_windows(model: Any, width: int) -> Any:
    """A pack that cuts the latent into tiles in a CALC_COND_BATCH wrapper and names them nowhere."""

    def tiles(executor: Any, inner: Any, conds: Any, x: Tensor, timestep: Tensor, model_options: Any) -> Any:
        parts = [executor(inner, conds, part, timestep, model_options) for part in x.split(width, -1)]
        return [torch.cat(several, -1) for several in zip(*parts, strict=True)]

    return _wrapped(model, WrappersMP.CALC_COND_BATCH, tiles)


def rolled(model: Any) -> Any:
    """Panoramas and SpotDiffusion: the latent is rolled by another distance at every step, and its output back."""
    count = [0]

    def roll(executor: Any, inner: Any, conds: Any, x: Tensor, timestep: Tensor, model_options: Any) -> Any:
        count[0] += 5
        out = executor(inner, conds, x.roll(count[0], -1), timestep, model_options)
        return [o.roll(-count[0], -1) for o in out]

    return _wrapped(model, WrappersMP.CALC_COND_BATCH, roll)


def tiled_diffusion(model: Any, width: int) -> Any:
    """shiimizu/ComfyUI-TiledDiffusion (MultiDiffusion): tiles in a model function wrapper, averaged where they overlap."""

    def tiles(apply: Any, args: Any) -> Tensor:
        x, out = args["input"], torch.zeros_like(args["input"])
        count = torch.zeros_like(x)
        for left in range(0, x.shape[-1] - width // 2, width // 2):
            part = slice(left, left + width)
            out[..., part] += apply(x[..., part].contiguous(), args["timestep"], **args["c"])
            count[..., part] += 1
        return out / count

    clone = model.clone()
    clone.set_model_unet_function_wrapper(tiles)
    return clone


def _on_block(model: Any, number: int, change: Callable[..., Any]) -> Any:
    """A replacement of one of a Flux's double blocks: change(args, original) returns its output."""
    clone = model.clone()
    clone.set_model_patch_replace(
        lambda args, extra: change(args, extra["original_block"]), "dit", "double_block", number
    )
    return clone


def attention_couple(model: Any) -> Any:
    """Attention Couple (laksjdjf/cgem156-ComfyUI and others): a block runs with the text of each region, and a mask joins the results."""

    def couple(args: Any, original: Any) -> Any:
        first, second = original(args), original({**args, "txt": args["txt"].flip(1)})
        mask = torch.linspace(0, 1, args["img"].shape[1])[None, :, None]
        return {"img": first["img"] * mask + second["img"] * (1 - mask), "txt": first["txt"]}

    return _on_block(model, 0, couple)


def ip_adapter(model: Any, start: float = 0.8, end: float = 0.3) -> Any:
    """cubiq/ComfyUI_IPAdapter_plus: a block's output has the image prompt's part added, between two sigmas."""

    def add(args: Any, original: Any) -> Any:
        out = original(args)
        sigma = float(args["transformer_options"]["sigmas"][0])
        if end <= sigma <= start:
            image = torch.sin(torch.arange(out["img"].shape[-1]))
            out = {**out, "img": out["img"] + 0.05 * out["img"].std() * image}
        return out

    return _on_block(model, 1, add)


def pulid(model: Any) -> Any:
    """lldacing/ComfyUI_PuLID_Flux_ll: the whole forward is wrapped, and attends to an identity."""

    def forward(executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out = executor(x, *args, **kwargs)
        return out + 0.03 * torch.sin(torch.linspace(0, 6, out.shape[-1]))

    return _wrapped(model, WrappersMP.DIFFUSION_MODEL, forward)


@dataclass(frozen=True)
class Range:
    start_sigma: float
    end_sigma: float


def hi_diffusion(model: Any, until: float = 0.6) -> Any:
    """blepping/comfyui_jankhidiffusion: in a range of sigma a block works at a lower resolution."""
    span = Range(1.0, until)

    def lower(args: Any, original: Any) -> Any:
        sigma, out = float(args["transformer_options"]["sigmas"][0]), original(args)
        if not span.end_sigma <= sigma <= span.start_sigma:
            return out
        coarse = torch.nn.functional.avg_pool1d(out["img"].transpose(1, 2), 2)
        return {**out, "img": coarse.repeat_interleave(2, -1).transpose(1, 2)}

    return _on_block(model, 0, lower)


class Control(comfy.controlnet.ControlBase):
    """A ControlNet without a network: adds a pattern to the first block's output, within its range."""

    def __init__(self, start: float, end: float, strength: float = 0.1) -> None:
        super().__init__()
        self.timestep_percent_range = (start, end)
        self.push = strength

    def get_control(self, x_noisy: Any, t: Any, cond: Any, batched_number: Any, transformer_options: Any) -> Any:
        if t[0] > self.timestep_range[0] or t[0] < self.timestep_range[1]:
            return None
        return self.control_merge(
            {"input": [torch.full((1, 64, 1), self.push)], "middle": [], "output": []}, None, None
        )


def controlled(prompt: Any, control: Control) -> Any:
    """CONDITIONING with a ControlNet."""
    return [[text, {**options, "control": control, "control_apply_to_uncond": True}] for text, options in prompt]
