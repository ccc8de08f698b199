"""What every picture of ours is drawn with: a sheet of paper, one font that is always there, colours that everybody can tell apart.

The colours are those of Okabe and Ito (2008), chosen for colour-blind eyes; nothing is told by colour alone.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

PAPER, INK, GREY, RULE = "#ffffff", "#1f2328", "#59636e", "#d8dee4"
BLUE, ORANGE, GREEN, RED = "#0072b2", "#e69f00", "#007a59", "#d55e00"
PALE_BLUE, PALE_ORANGE, BROWN, PALE = "#cfe4f2", "#fdeecd", "#6b4700", "#eff2f5"
FINER = 2  # drawn so many times larger, then reduced: PIL's own edges are jagged


@lru_cache(maxsize=64)
def font(size: int) -> Any:
    """PIL's own font, which needs no file. Before Pillow 10.1 it has one size only."""
    try:
        return ImageFont.load_default(size * FINER)
    except TypeError:
        return ImageFont.load_default()


class Sheet:
    """A canvas in pixels of the finished picture, top left at (0, 0)."""

    def __init__(self, width: int, height: int, colour: str = PAPER) -> None:
        self.image = Image.new("RGB", (width * FINER, height * FINER), colour)
        self.pen = ImageDraw.Draw(self.image)

    def text(self, x: float, y: float, words: str, size: int, colour: str = INK, anchor: str = "ls") -> float:
        """One line; y is the baseline, or what `anchor` says in PIL's terms. Returns its width."""
        try:
            self.pen.text((x * FINER, y * FINER), words, fill=colour, font=font(size), anchor=anchor)
        except ValueError:  # the font of one size knows no anchors
            self.pen.text((x * FINER, (y - size) * FINER), words, fill=colour, font=font(size))
        return width_of(words, size)

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: str | None,
        edge: str | None = None,
        radius: int = 3,
    ) -> None:
        corners = (round(x * FINER), round(y * FINER), round((x + width) * FINER) - 1, round((y + height) * FINER) - 1)
        if corners[2] >= corners[0] and corners[3] >= corners[1]:
            self.pen.rounded_rectangle(corners, radius * FINER, fill, edge, FINER if edge else 0)

    def line(self, x1: float, y1: float, x2: float, y2: float, colour: str = RULE, dash: float = 0) -> None:
        """Upright or level; dash: the length of its dashes, 0 for none."""
        if not dash:
            self.pen.line((x1 * FINER, y1 * FINER, x2 * FINER, y2 * FINER), colour, FINER)
            return
        x = x1
        while x < x2:
            self.pen.line((x * FINER, y1 * FINER, min(x + dash, x2) * FINER, y2 * FINER), colour, round(1.5 * FINER))
            x += 1.7 * dash

    def shape(self, corners: list[tuple[float, float]], colour: str) -> None:
        self.pen.polygon([(x * FINER, y * FINER) for x, y in corners], fill=colour)

    def paste(self, picture: Image.Image, x: int, y: int, width: int, height: int) -> None:
        """A picture at this size: enlarged in whole pixels, so that they can be seen, or reduced smoothly."""
        size = (width * FINER, height * FINER)
        way = Image.Resampling.NEAREST if width >= picture.width else Image.Resampling.LANCZOS
        self.image.paste(picture.resize(size, way), (x * FINER, y * FINER))

    def finished(self) -> Image.Image:
        return self.image.resize((self.image.width // FINER, self.image.height // FINER), Image.Resampling.LANCZOS)


def width_of(words: str, size: int) -> float:
    return float(font(size).getlength(words)) / FINER


def wrapped(words: str, size: int, width: float) -> list[str]:
    """Its lines, none wider than `width` unless a single word is."""
    lines: list[str] = []
    for word in words.split():
        if lines and width_of(f"{lines[-1]} {word}", size) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def tensor_of(picture: Image.Image) -> Tensor:
    """As ComfyUI has an IMAGE: (1, height, width, 3), float32, 0..1."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255)[None]


def picture_of(pixels: Tensor) -> Image.Image:
    """Of (height, width, 1 or 3) in 0..1; what lies outside is cut off."""
    values = (pixels.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(values.expand(*values.shape[:2], 3).contiguous().numpy())
