"""The demo's pictures for people: compare.png, every preset beside the full run, and flip.webp, which turns from one to the next."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from results import Line, Shot, pixels, psnr_db

TILE, DIFFERENCE = 256, 128  # a picture is enlarged twice, the difference of two is not
GAP, MARGIN, HEADER, CAPTION, FOOTER = 16, 32, 178, 30, 48
AMPLIFIED = 8
PAPER, INK, GREY, ACCENT, RULE = "#ffffff", "#1f2328", "#59636e", "#1a7f37", "#d1d9e0"
FLIP_COLUMNS, FLIP_MILLISECONDS = 3, 1200


def draw(baseline: list[Shot], cached: dict[str, list[Shot]], lines: list[Line], footer: str) -> Image.Image:
    """A row for each prompt: the full run, then each preset with its difference from the full run below it, amplified."""
    row = CAPTION + TILE + GAP // 2 + DIFFERENCE + 2 * GAP
    width = 2 * MARGIN + (1 + len(lines)) * (TILE + GAP) - GAP
    height = 2 * MARGIN + HEADER + len(baseline) * row + FOOTER
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    top = MARGIN + HEADER
    steps, before = lines[0].steps, lines[0].seconds_baseline
    _header(pen, MARGIN, "Without", "", [f"{before:.2f} s", f"{steps} of {steps} steps"])
    for i, line in enumerate(lines, 1):
        near = f"PSNR {line.psnr_db:.1f} dB" + ("" if line.lpips is None else f", LPIPS {line.lpips:.3f}")
        facts = [f"{line.seconds_cached:.2f} s", f"{line.computed:g} of {line.steps} steps", near]
        _header(pen, MARGIN + i * (TILE + GAP), line.preset, f"{line.speedup:.2f}x", facts)
    pen.line((MARGIN, top - 14, width - MARGIN, top - 14), fill=RULE, width=2)

    for i, plain in enumerate(baseline):
        y = top + i * row
        pen.text((MARGIN, y + CAPTION - 10), plain.pair.caption, fill=INK, font=_font(19), anchor="ls")
        y += CAPTION
        _paste(sheet, pen, _picture(plain, TILE), MARGIN, y)
        below = y + TILE + GAP // 2
        note = f"Below each picture:\nits difference from\nthis one, x{AMPLIFIED}"
        pen.multiline_text((MARGIN, below + 4), note, fill=GREY, font=_font(17), spacing=7)
        for column, line in enumerate(lines, 1):
            x, shot = MARGIN + column * (TILE + GAP), cached[line.preset][i]
            _paste(sheet, pen, _picture(shot, TILE), x, y)
            _paste(sheet, pen, _difference(plain, shot), x, below)
            near = f"{psnr_db(pixels(plain.png), pixels(shot.png)):.1f} dB"
            pen.text((x + DIFFERENCE + 12, below + 20), near, fill=GREY, font=_font(17), anchor="ls")

    pen.text((MARGIN, height - MARGIN), footer, fill=GREY, font=_font(17), anchor="ls")
    return sheet


def flip(baseline: list[Shot], cached: dict[str, list[Shot]], lines: list[Line], file: Path) -> None:
    """An animated WebP: all prompts' pictures of the full run, then of each preset, in the same places."""
    frames = [_frame("Without", f"{lines[0].seconds_baseline:.2f} s", baseline)]
    frames += [
        _frame(line.preset, f"{line.seconds_cached:.2f} s   {line.speedup:.2f}x", cached[line.preset]) for line in lines
    ]
    frames[0].save(
        file, save_all=True, append_images=frames[1:], duration=FLIP_MILLISECONDS, loop=0, quality=88, method=6
    )


def _frame(name: str, facts: str, shots: list[Shot]) -> Image.Image:
    bar, columns = 56, min(FLIP_COLUMNS, len(shots))
    rows = -(-len(shots) // columns)
    frame = Image.new("RGB", (columns * TILE, bar + rows * TILE), PAPER)
    pen = ImageDraw.Draw(frame)
    pen.text((16, 38), name, fill=INK, font=_font(28), anchor="ls")
    pen.text((columns * TILE - 16, 38), facts, fill=ACCENT, font=_font(28), anchor="rs")
    for i, shot in enumerate(shots):
        frame.paste(_picture(shot, TILE), (i % columns * TILE, bar + i // columns * TILE))
    return frame


def _picture(shot: Shot, size: int) -> Image.Image:
    with Image.open(io.BytesIO(shot.png)) as picture:
        return picture.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)


def _difference(plain: Shot, shot: Shot) -> Image.Image:
    """Their absolute difference on black, AMPLIFIED times."""
    far = np.abs(pixels(plain.png) - pixels(shot.png)) * AMPLIFIED
    return Image.fromarray((far.clip(0, 1) * 255).round().astype(np.uint8)).resize((DIFFERENCE, DIFFERENCE))


def _paste(sheet: Image.Image, pen: ImageDraw.ImageDraw, tile: Image.Image, x: int, y: int) -> None:
    sheet.paste(tile, (x, y))
    pen.rectangle((x - 1, y - 1, x + tile.width, y + tile.height), outline=RULE)  # else a white picture has no edge


def _header(pen: ImageDraw.ImageDraw, x: int, name: str, speedup: str, facts: list[str]) -> None:
    pen.text((x, MARGIN + 24), name, fill=INK, font=_font(29), anchor="ls")
    pen.text((x, MARGIN + 66), speedup, fill=ACCENT, font=_font(37), anchor="ls")
    for i, fact in enumerate(facts):
        pen.text((x, MARGIN + 98 + i * 26), fact, fill=GREY, font=_font(19), anchor="ls")


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
