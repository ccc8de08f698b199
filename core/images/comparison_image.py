"""A comparison as an image: left, right and the amplified difference, one row a pair."""

from __future__ import annotations

from PIL import Image

from .compare import Comparison, Pair
from .drawing import GREY, INK, RULE, Sheet, picture_of, width_of

MARGIN, GAP, HEAD, LABEL = 28, 16, 74, 34
SMALLEST, LARGEST = 256, 512  # pixels of an image's longer side
ROWS = 12
FACTORS = [f * 10**e for e in range(5) for f in (1, 2, 5)]


def amplification(comparison: Comparison) -> float:
    """The largest round factor that clips at most a thousandth of the differences."""
    peak = comparison.peak
    return float(max((f for f in FACTORS if f * peak <= 1), default=1)) if peak > 0 else 1.0


def shown(pairs: list[Pair]) -> list[int]:
    """Indices of the pairs to show: all, or ROWS evenly spaced ones."""
    if len(pairs) <= ROWS:
        return list(range(len(pairs)))
    return [round(i * (len(pairs) - 1) / (ROWS - 1)) for i in range(ROWS)]


def drawn(comparison: Comparison, factor: float, names: tuple[str, str] = ("left", "right")) -> Image.Image:
    """The image. factor: on the differences."""
    height, width = comparison.pairs[0].left.shape[:2]
    scale = _scale(max(width, height))
    across, down = max(1, round(width * scale)), max(1, round(height * scale))
    rows = shown(comparison.pairs)
    column = max(across, 200)
    sheet = Sheet(2 * MARGIN + 3 * column + 2 * GAP, HEAD + len(rows) * (down + LABEL + GAP) - GAP + MARGIN)

    lefts = [MARGIN + i * (column + GAP) + (column - across) // 2 for i in range(3)]
    for x, name in zip(lefts, (*names, _heading(comparison, factor)), strict=True):
        sheet.text(x, 50, _shortened(name, 22, column), 22)
    for place, index in enumerate(rows):
        pair = comparison.pairs[index]
        y = HEAD + place * (down + LABEL + GAP)
        difference = (pair.left - pair.right).abs() * factor
        for x, pixels in zip(lefts, (pair.left, pair.right, difference), strict=True):
            sheet.paste(picture_of(pixels), x, y, across, down)
            sheet.box(x - 1, y - 1, across + 2, down + 2, None, RULE, 0)
        number = f"{index + 1}   " if len(comparison.pairs) > 1 else ""
        start = lefts[0] + sheet.text(lefts[0], y + down + 24, number, 17, GREY)
        sheet.text(start, y + down + 24, pair.text(), 17, INK)
    return sheet.finished()


def _heading(comparison: Comparison, factor: float) -> str:
    return "no difference" if comparison.identical else f"difference x {factor:g}"


def _scale(side: int) -> float:
    """The displayed size: the image's own or a whole multiple of it, reduced if it is too large."""
    return LARGEST / side if side > LARGEST else float(max(1, SMALLEST // side))


def _shortened(words: str, size: int, width: float) -> str:
    if width_of(words, size) <= width:
        return words
    while words and width_of(words + "...", size) > width:
        words = words[:-1]
    return words + "..."
