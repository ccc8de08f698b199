"""Drawing for all of our images: a canvas, PIL's built-in font, and colours.

The colours are those of Okabe and Ito (2008, https://jfly.uni-koeln.de/color/), chosen for colour-blind people. No meaning depends on
colour alone.
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
FINER = 2  # supersampling: PIL draws without anti-aliasing


@lru_cache(maxsize=64)
def font(size: int) -> Any:
    """PIL's built-in font. Before Pillow 10.1 it has one size only."""
    try:
        return ImageFont.load_default(size * FINER)
    except TypeError:
        return ImageFont.load_default()


class Sheet:
    """A canvas with coordinates in pixels of the finished image, top left at (0, 0)."""

    def __init__(self, width: int, height: int, colour: str = PAPER) -> None:
        self.image = Image.new("RGB", (width * FINER, height * FINER), colour)
        self.pen = ImageDraw.Draw(self.image)

    def text(self, x: float, y: float, words: str, size: int, colour: str = INK, anchor: str = "ls") -> float:
        """One line of text. y: the baseline, unless `anchor` (PIL's) says otherwise. Returns its width."""
        try:
            self.pen.text((x * FINER, y * FINER), words, fill=colour, font=font(size), anchor=anchor)
        except ValueError:  # the bitmap font has no anchors
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
        """A vertical or horizontal line. dash: length of its dashes; 0 for a solid line."""
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
        """An image at this size: enlarged by repeating pixels, or reduced smoothly."""
        size = (width * FINER, height * FINER)
        way = Image.Resampling.NEAREST if width >= picture.width else Image.Resampling.LANCZOS
        self.image.paste(picture.resize(size, way), (x * FINER, y * FINER))

    def finished(self) -> Image.Image:
        return self.image.resize((self.image.width // FINER, self.image.height // FINER), Image.Resampling.LANCZOS)


def width_of(words: str, size: int) -> float:
    return float(font(size).getlength(words)) / FINER


def wrapped(words: str, size: int, width: float) -> list[str]:
    """The text's lines, at most `width` wide unless a single word is wider."""
    lines: list[str] = []
    for word in words.split():
        if lines and width_of(f"{lines[-1]} {word}", size) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def tensor_of(picture: Image.Image) -> Tensor:
    """ComfyUI's IMAGE: shape (1, H, W, 3), float32, 0..1."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255)[None]


def picture_of(pixels: Tensor) -> Image.Image:
    """From shape (H, W, 1 or 3); values are clamped to 0..1."""
    values = (pixels.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(values.expand(*values.shape[:2], 3).contiguous().numpy())
