"""Do a model's pictures show what their prompts say? 36 combinations that it was not trained on, named by nearest picture.

COMFYUI_PATH=... python check.py [flux | flux_low | nextdit | unet] [--models FOLDER] [--out FILE]

Judged are the files that training writes, or with --models ../models those of the demo. The background is the palette's colour
that is nearest to the picture's border. The object is that of the data set whose picture, before the background as it was drawn
and at the best size and place, is nearest. Exits with 1 where fewer than 80% of the objects or of the backgrounds are right.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import small
import torch
import torch.nn.functional as F
from objects import BACKGROUNDS, CACHE, MARGIN, OBJECTS, SHADOW, SIZE, Painter, Scene, held_out_scenes
from PIL import Image, ImageDraw
from studio import Models, comfy_models
from text import POSITIONS, embed
from torch import Tensor

WANTED, PICTURES, COLUMNS, STEPS, CFG = 0.8, 36, 6, 30, 3.0
COARSE = 4  # pictures are compared in cells of this many pixels


class Judge:
    """Names objects and backgrounds."""

    def __init__(self, painter: Painter) -> None:
        palette = painter.palette
        self.palette = palette
        parts = []
        for dy in range(0, 2 * MARGIN + 1, 2):
            for dx in range(0, 2 * MARGIN + 1, 2):
                parts.append(painter.sprites[..., dy : dy + SIZE, dx : dx + SIZE].float() / 255)
        layers = torch.stack(parts, 2).flatten(1, 2)  # (objects, places, 5, H, W)
        front, back = layers[:, :, :3], (1 - layers[:, :, 3:4]) * (1 - SHADOW * layers[:, :, 4:])
        self.front, self.back = _coarse(front), _coarse(back)  # colour over black; share of the background's colour

    def background(self, picture: Tensor) -> int:
        border = torch.cat((picture[:8].flatten(0, 1), picture[-8:].flatten(0, 1), picture[:, :8].flatten(0, 1)))
        return int(torch.cdist(border.median(0).values[None], self.palette).argmin())

    def scene(self, picture: Tensor) -> Scene:
        """What a picture (H, W, 3) in 0..1 shows."""
        border = torch.cat((picture[:8].flatten(0, 1), picture[-8:].flatten(0, 1)))
        seen, around = _coarse(picture.permute(2, 0, 1)[None]), border.median(0).values[:, None, None]
        best = [
            float((front + back * around - seen).pow(2).mean((1, 2, 3)).min())
            for front, back in zip(self.front, self.back, strict=True)
        ]
        return Scene(min(range(len(best)), key=best.__getitem__), self.background(picture))


def _coarse(pictures: Tensor) -> Tensor:
    return F.avg_pool2d(pictures.flatten(0, -4), COARSE).unflatten(0, pictures.shape[:-3])


def loaded(name: str, folder: Path) -> Models:
    small.comfyui(os.environ["COMFYUI_PATH"])
    models = comfy_models(folder, name if name.startswith("flux") else "flux")
    if name in small.BUILDERS:
        models.model = small.load(name, folder / f"skipstone_demo_{name}.safetensors")
    return models


def same_words(models: Models) -> None:
    """Training reads captions as ComfyUI's text encoder does, or the model has learned other words than people will use."""
    for scene in held_out_scenes(len(OBJECTS)):
        given = models.words(scene.caption)[0][0][0]
        if not torch.allclose(embed([scene.caption])[0], given[: POSITIONS + 1], atol=1e-3):
            raise SystemExit(f"training and ComfyUI read {scene.caption!r} differently: see WORDS in text.py")


def pictures(models: Models, name: str, scenes: list[Scene]) -> Tensor:
    """The model's pictures of the scenes, (n, H, W, 3) in 0..1, as ComfyUI's KSampler and VAE make them."""
    import comfy.sample

    def words(text: str) -> Any:
        given = models.words(text)
        # the small models were trained on the first tokens alone, the rest is padding
        return given if name.startswith("flux") else [[tokens[:, : small.WORDS], more] for tokens, more in given]

    out = []
    for i, scene in enumerate(scenes):
        latent = torch.zeros(1, 16, 16, 16)
        noise = comfy.sample.prepare_noise(latent, 7000 + i)
        more = {"seed": 7000 + i, "disable_pbar": True}
        latent = comfy.sample.sample(
            models.model, noise, STEPS, CFG, "euler", "simple", words(scene.caption), words(""), latent, **more
        )
        out.append(models.vae.decode(latent))
    return torch.cat(out).clamp(0, 1)


@dataclass(frozen=True)
class Verdict:
    asked: Scene
    seen: Scene

    @property
    def object(self) -> bool:
        return self.asked.object == self.seen.object

    @property
    def background(self) -> bool:
        return self.asked.background == self.seen.background


def sheet(verdicts: list[Verdict], shots: Tensor) -> Image.Image:
    """The pictures under each other, with their prompts, and in red what else was seen."""
    cell, text = shots.shape[1], 28
    page = Image.new("RGB", (COLUMNS * (cell + 4), -(-len(shots) // COLUMNS) * (cell + text)), "white")
    draw = ImageDraw.Draw(page)
    for i, (shot, verdict) in enumerate(zip(shots, verdicts, strict=True)):
        x, y = i % COLUMNS * (cell + 4), i // COLUMNS * (cell + text)
        page.paste(Image.fromarray((shot * 255).round().byte().numpy()), (x, y))
        draw.text((x + 2, y + cell), _short(verdict.asked), fill="black")
        if verdict.asked != verdict.seen:
            draw.text((x + 2, y + cell + 12), _short(verdict.seen), fill="red")
    return page


def _short(scene: Scene) -> str:
    return f"{list(OBJECTS.values())[scene.object]}, {list(BACKGROUNDS)[scene.background]}"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default="flux", choices=("flux", "flux_low", *small.BUILDERS))
    parser.add_argument("--models", type=Path, default=CACHE, help="default: where training writes them")
    parser.add_argument("--out", type=Path, default=CACHE.parents[1] / "demo-output" / "check.png")
    parser.add_argument("--pictures", type=int, default=PICTURES)
    args = parser.parse_args()
    scenes = held_out_scenes(args.pictures)
    models = loaded(args.model, args.models)
    same_words(models)
    shots = pictures(models, args.model, scenes)
    judge = Judge(Painter())
    verdicts = [Verdict(scene, judge.scene(shot)) for scene, shot in zip(scenes, shots, strict=True)]
    args.out.parent.mkdir(exist_ok=True)
    sheet(verdicts, shots).save(args.out)
    for verdict in verdicts:
        right = verdict.object and verdict.background
        print(f"{'ok ' if right else 'BAD'} {verdict.asked.caption:44s} -> {_short(verdict.seen)}")
    objects = sum(v.object for v in verdicts) / len(verdicts)
    backgrounds = sum(v.background for v in verdicts) / len(verdicts)
    print(
        f"{len(verdicts)} held-out combinations: {objects:.0%} of objects and {backgrounds:.0%} of backgrounds right; {args.out}"
    )
    return 0 if min(objects, backgrounds) >= WANTED else 1


if __name__ == "__main__":
    raise SystemExit(main())
