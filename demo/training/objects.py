"""Rendered objects on coloured backgrounds, with captions: the demo models' training data.

The objects are 64 of the pictures of the npm package @lobehub/fluent-emoji-3d (MIT), which set-up fetches for training only.
Each is RGBA, 256 x 256, with light, gloss and texture. A training picture is one object of random size and place over a soft
shadow, on a plain or graded background of a named colour, 128 x 128. Every ninth combination of object and background is held
out: the models are trained on the others and judged on these.
"""

from __future__ import annotations

import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

PACKAGE, VERSION = "@lobehub/fluent-emoji-3d", "1.1.0"
CACHE = Path(__file__).resolve().parents[2] / ".work" / "training"

# Unicode code point of the picture (its file's name) -> name in captions: the character's Unicode name, shortened to what
# people call the object, each word one token of CLIP
OBJECTS = {
    "1f34e": "red apple", "1f34c": "banana", "1f353": "strawberry", "1f349": "watermelon", "1f34b": "lemon",
    "1f34d": "pineapple", "1f350": "pear", "1f955": "carrot", "1f344": "mushroom", "1f951": "avocado",
    "1f966": "broccoli", "1f354": "hamburger", "1f355": "pizza", "1f369": "doughnut", "1f36a": "cookie",
    "1f9c1": "cupcake", "1f382": "birthday cake", "1f346": "eggplant",
    "1f981": "lion", "1f43c": "panda", "1f438": "frog", "1f437": "pig", "1f431": "cat", "1f436": "dog",
    "1f98a": "fox", "1f430": "rabbit", "1f428": "koala", "1f435": "monkey", "1f427": "penguin", "1f424": "chick",
    "1f989": "owl", "1f419": "octopus", "1f422": "turtle", "1f41e": "ladybug", "1f98b": "butterfly", "1f40b": "whale",
    "1f418": "elephant", "1f980": "crab", "1f984": "unicorn", "1f996": "dinosaur",
    "1f335": "cactus", "1f333": "tree", "1f33b": "sunflower", "2b50": "star", "1f308": "rainbow", "1f30d": "globe",
    "26bd": "soccer ball", "1f3c0": "basketball", "1f381": "gift", "1f514": "bell", "1f680": "rocket", "1f697": "car",
    "1f3e0": "house", "1f451": "crown", "1f48e": "diamond", "1f3c6": "trophy", "1f941": "drum",
    "1f383": "pumpkin", "1f47b": "ghost", "1f480": "skull", "1f916": "robot", "2764-fe0f": "heart",
    "1f9f8": "teddy bear", "26c4": "snowman",
}  # fmt: skip
BACKGROUNDS = {
    "white": (0.94, 0.94, 0.94),
    "gray": (0.56, 0.58, 0.61),
    "black": (0.10, 0.10, 0.12),
    "orange": (0.98, 0.62, 0.26),
    "yellow": (0.98, 0.88, 0.40),
    "green": (0.42, 0.75, 0.48),
    "blue": (0.33, 0.55, 0.93),
    "purple": (0.56, 0.40, 0.84),
    "pink": (0.98, 0.66, 0.78),
}
SIZE = 128
LENGTHS = (96, 100, 104)  # of an object's longer side, pixels
SHIFT = 4  # farthest place from the middle, pixels
MARGIN = 4
SHADOW, DROP, BLUR = 0.4, 5, 5.0  # darkest share, pixels below the object, and its blur's standard deviation in pixels
GRADED = 0.22  # at most so much lighter and darker than the named colour at the picture's ends


@dataclass(frozen=True)
class Scene:
    """A caption's content: an object and a background, by index."""

    object: int
    background: int

    @property
    def caption(self) -> str:
        name = list(OBJECTS.values())[self.object]
        article = "an" if name[0] in "aeio" else "a"
        background = list(BACKGROUNDS)[self.background]
        return f"{article} {name} on {'an' if background == 'orange' else 'a'} {background} background"

    @property
    def held_out(self) -> bool:
        """Whether no model is trained on this combination. Every object has one such background."""
        return (self.object + self.background) % len(BACKGROUNDS) == 4


def all_scenes() -> list[Scene]:
    return [Scene(o, b) for o in range(len(OBJECTS)) for b in range(len(BACKGROUNDS))]


def training_scenes() -> list[Scene]:
    return [s for s in all_scenes() if not s.held_out]


def held_out_scenes(n: int, seed: int = 16) -> list[Scene]:
    """n held-out combinations of different objects, the same every time."""
    scenes = [s for s in all_scenes() if s.held_out]
    return [scenes[i] for i in torch.randperm(len(scenes), generator=torch.Generator().manual_seed(seed)).tolist()[:n]]


def fetch(cache: Path = CACHE) -> Path:
    """The folder of the package's pictures; fetched with npm where it is missing."""
    assets = cache / "emoji" / "package" / "assets"
    if not assets.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", "--silent", f"{PACKAGE}@{VERSION}"], cwd=cache, check=True)
        with tarfile.open(cache / f"lobehub-fluent-emoji-3d-{VERSION}.tgz") as archive:
            archive.extractall(cache / "emoji", filter="data")
    return assets


def _sprite(picture: Image.Image, length: int) -> Tensor:
    """(5, side, side) uint8: colour times alpha, alpha, shadow, of the object in the middle of a square with margins."""
    picture = picture.crop(picture.getbbox())
    scale = length / max(picture.size)
    picture = picture.resize(
        (max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), Image.Resampling.LANCZOS
    )
    side = SIZE + 2 * MARGIN
    canvas = Image.new("RGBA", (side, side))
    canvas.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    rgba = torch.from_numpy(np.array(canvas)).permute(2, 0, 1).float() / 255
    alpha = rgba[3:]
    reach = round(3 * BLUR)
    bell = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / BLUR) ** 2)
    bell = (bell / bell.sum())[None, None]
    shadow = F.conv2d(F.conv2d(alpha[None], bell[..., None], padding=(reach, 0)), bell[:, :, None], padding=(0, reach))[
        0
    ]
    shadow = F.pad(shadow, (0, 0, DROP, 0))[:, :side]
    return (torch.cat((rgba[:3] * alpha, alpha, shadow)) * 255).round().byte()


class Painter:
    """Draws pictures of scenes. Holds every object at every length in memory (64 x 3 sprites, 18 MB)."""

    def __init__(self, assets: Path | None = None) -> None:
        folder = assets or fetch()
        rows = []
        for code in OBJECTS:
            with Image.open(folder / f"{code}.webp") as picture:
                whole = picture.convert("RGBA")
            rows.append(torch.stack([_sprite(whole, length) for length in LENGTHS]))
        self.sprites = torch.stack(rows)
        self.palette = torch.tensor(list(BACKGROUNDS.values()))

    def draw(self, scenes: list[Scene], generator: torch.Generator) -> Tensor:
        """Pictures (B, 3, SIZE, SIZE), float32 in 0..1, of the scenes at random sizes and places, lit from random sides."""
        n = len(scenes)
        length = torch.randint(len(LENGTHS), (n,), generator=generator).tolist()
        place = torch.randint(MARGIN - SHIFT, MARGIN + SHIFT + 1, (n, 2), generator=generator).tolist()
        layers = torch.stack(
            [
                self.sprites[s.object, k, :, y : y + SIZE, x : x + SIZE]
                for s, k, (y, x) in zip(scenes, length, place, strict=True)
            ]
        )
        layers = layers.float() / 255
        axis = (torch.arange(SIZE) + 0.5) / SIZE * 2 - 1
        light = torch.rand(n, generator=generator) * 2 * torch.pi
        slope = axis[None, None, :] * light.cos()[:, None, None] + axis[None, :, None] * light.sin()[:, None, None]
        # half of the backgrounds are plain
        strength = (torch.rand(n, generator=generator) * 2 - 1).clamp(min=0) * GRADED
        graded = 1 + strength[:, None, None] * slope
        back = self.palette[[s.background for s in scenes]][:, :, None, None] * graded[:, None]
        back = back * (1 - SHADOW * layers[:, 4:])
        return (layers[:, :3] + back * (1 - layers[:, 3:4])).clamp(0, 1)

    def still(self, scene: Scene) -> Tensor:
        """The scene at its middle size and place on a plain background, (3, SIZE, SIZE) in 0..1."""
        layers = (
            self.sprites[scene.object, len(LENGTHS) // 2, :, MARGIN : MARGIN + SIZE, MARGIN : MARGIN + SIZE].float()
            / 255
        )
        back = self.palette[scene.background][:, None, None] * (1 - SHADOW * layers[4:])
        return (layers[:3] + back * (1 - layers[3:4])).clamp(0, 1)


def random_scenes(n: int, generator: torch.Generator) -> list[Scene]:
    """Combinations that the models are trained on."""
    scenes = training_scenes()
    return [scenes[int(i)] for i in torch.randint(len(scenes), (n,), generator=generator)]
