"""Do the demo model's pictures say what their prompts say? Sixteen prompts in a real ComfyUI, judged by template match.

COMFYUI_PATH=... python check.py --models ../models --out check.png

A picture's ground is the palette colour that most of its border is nearest to, the figure is all that is nearer to others, its
colour the commonest there, its shape that of the drawn template which overlaps it best. Exits with 1 below 14 of 16.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pictures import COLOURS, SHAPES, Scene, all_scenes, signed_distance
from PIL import Image, ImageDraw
from text import POSITIONS, embed
from torch import Tensor

WANTED, PROMPTS, STEPS, CFG = 14, 16, 20, 3.0


def scenes() -> list[Scene]:
    """Sixteen scenes with every shape and colour among them, the same every time."""
    every = all_scenes()
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(16)).tolist()
    chosen: list[Scene] = []
    for i in order:
        scene = every[i]
        if sum(s.shape == scene.shape for s in chosen) < 3 and sum(s.colour == scene.colour for s in chosen) < 3:
            chosen.append(scene)
    return chosen[:PROMPTS]


def read(picture: Tensor) -> Scene:
    """The scene that a picture (H, W, 3) in 0..1 shows."""
    palette = torch.tensor(list(COLOURS.values()))
    nearest = torch.cdist(picture.reshape(-1, 3), palette).argmin(1).reshape(picture.shape[:2])
    border = torch.cat((nearest[0], nearest[-1], nearest[:, 0], nearest[:, -1]))
    ground = int(border.bincount(minlength=len(COLOURS)).argmax())
    counts = nearest.flatten().bincount(minlength=len(COLOURS))
    counts[ground] = 0
    colour = int(counts.argmax())
    return Scene(_shape(nearest != ground), colour, ground)


def _shape(mask: Tensor) -> int:
    """The shape whose template, at the mask's place, best size and tilt, has the largest overlap (IoU) with it."""
    size = mask.shape[0]
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    place = grid[mask]
    middle = (place.amax(0) + place.amin(0)) / 2 if len(place) else torch.zeros(2)
    best = (-1.0, 0)
    for shape in range(len(SHAPES)):
        for radius in torch.linspace(0.35, 0.8, 19).tolist():
            for tilt in (-0.25, -0.12, 0.0, 0.12, 0.25):
                p = (grid - middle) / radius
                c, s = torch.tensor(tilt).cos(), torch.tensor(tilt).sin()
                turned = torch.stack((c * p[..., 0] + s * p[..., 1], c * p[..., 1] - s * p[..., 0]), -1)
                drawn = signed_distance(shape, turned) < 0
                # the middle of a triangle's or star's box is not its centre
                overlap = float((drawn & mask).sum() / (drawn | mask).sum().clamp(min=1))
                best = max(best, (overlap, shape))
    return best[1]


@dataclass
class Models:
    """The demo's files as ComfyUI's loaders return them."""

    model: Any
    clip: Any
    vae: Any

    def words(self, text: str) -> Any:
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))


def comfy_models(folder: Path) -> Models:
    """Loaded by the ComfyUI at COMFYUI_PATH, in this process."""
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    import comfy.cli_args

    comfy.cli_args.args.cpu = not torch.cuda.is_available()
    import comfy.sd
    import comfy.utils

    model = comfy.sd.load_diffusion_model(str(folder / "skipstone_demo_flux.safetensors"))
    kind = comfy.sd.CLIPType.STABLE_DIFFUSION
    clip = comfy.sd.load_clip([str(folder / "skipstone_demo_clip.pt")], clip_type=kind)
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(folder / "skipstone_demo_vae.safetensors")))
    return Models(model, clip, vae)


def same_words(studio: Models) -> None:
    """Training reads captions as ComfyUI's text encoder does, or the model has learned other words than people will use."""
    for scene in scenes():
        given = studio.words(scene.caption)[0][0][0]
        if not torch.allclose(embed([scene.caption])[0], given[: POSITIONS + 1], atol=1e-3):
            raise SystemExit(f"training and ComfyUI read {scene.caption!r} differently: see WORDS in text.py")


def pictures(studio: Models, chosen: list[Scene]) -> Tensor:
    """The model's pictures of the scenes, (n, H, W, 3) in 0..1, as ComfyUI's KSampler and VAE make them."""
    import comfy.sample

    out = []
    for i, scene in enumerate(chosen):
        latent = torch.zeros(1, 16, 16, 16)
        noise = comfy.sample.prepare_noise(latent, 7000 + i)
        words, empty = studio.words(scene.caption), studio.words("")
        latent = comfy.sample.sample(
            studio.model, noise, STEPS, CFG, "euler", "simple", words, empty, latent, seed=7000 + i, disable_pbar=True
        )
        out.append(studio.vae.decode(latent))
    return torch.cat(out).clamp(0, 1)


def sheet(chosen: list[Scene], seen: list[Scene], shots: Tensor) -> Image.Image:
    cell, text = shots.shape[1], 28
    page = Image.new("RGB", (4 * cell, 4 * (cell + text)), "white")
    draw = ImageDraw.Draw(page)
    for i, shot in enumerate(shots):
        x, y = i % 4 * cell, i // 4 * (cell + text)
        page.paste(Image.fromarray((shot * 255).round().byte().numpy()), (x, y))
        draw.text((x + 2, y + cell), chosen[i].caption, fill="black")
        if seen[i] != chosen[i]:
            draw.text((x + 2, y + cell + 12), seen[i].caption, fill="red")
    return page


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=Path, default=Path(__file__).resolve().parent.parent / "models")
    parser.add_argument("--out", type=Path, default=Path("check.png"))
    args = parser.parse_args()
    chosen = scenes()
    studio = comfy_models(args.models)
    same_words(studio)
    shots = pictures(studio, chosen)
    seen = [read(shot) for shot in shots]
    for scene, found in zip(chosen, seen, strict=True):
        print(f"{'ok ' if scene == found else 'BAD'} {scene.caption:32s} -> {found.caption}")
    right = sum(a == b for a, b in zip(chosen, seen, strict=True))
    sheet(chosen, seen, shots).save(args.out)
    print(f"{right} of {len(chosen)} pictures show their prompt's shape and colours; {args.out}")
    return 0 if right >= WANTED else 1


if __name__ == "__main__":
    raise SystemExit(main())
