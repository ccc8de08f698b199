"""compare.png: the same prompts without and with each preset, side by side, under the figures."""

from __future__ import annotations

import io

from PIL import Image, ImageDraw, ImageFont
from results import Line, Shot

TILE = 192  # 1.5 times the demo's 128
GAP, MARGIN, CAPTION, HEADER, FOOTER = 14, 24, 104, 168, 44
PAPER, INK, GREY, ACCENT, RULE = "#ffffff", "#1f2328", "#59636e", "#1a7f37", "#d1d9e0"


def draw(baseline: list[Shot], cached: dict[str, list[Shot]], lines: list[Line], footer: str) -> Image.Image:
    rows, columns = len(baseline), 1 + len(lines)
    width = 2 * MARGIN + CAPTION + columns * (TILE + GAP) - GAP
    height = 2 * MARGIN + HEADER + rows * (TILE + GAP) - GAP + FOOTER
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)

    left, top = MARGIN + CAPTION, MARGIN + HEADER
    steps, before = lines[0].steps, lines[0].seconds_baseline
    _header(pen, left, "Without", "", [f"{before:.2f} s", f"{steps} of {steps} steps"])
    for i, line in enumerate(lines, 1):
        time, count = f"{line.seconds_cached:.2f} s", f"{line.computed:g} of {line.steps} steps"
        _header(
            pen,
            left + i * (TILE + GAP),
            line.preset,
            f"{line.speedup:.2f}x",
            [time, count, f"PSNR {line.psnr_db:.1f} dB"],
        )
    pen.line((MARGIN, top - 12, width - MARGIN, top - 12), fill=RULE, width=2)

    for row, plain in enumerate(baseline):
        y = top + row * (TILE + GAP)
        pen.multiline_text(
            (MARGIN, y + TILE // 2), _wrapped(plain.pair.caption), fill=INK, font=_font(20), anchor="lm", spacing=8
        )
        for column, shot in enumerate([plain, *(cached[line.preset][row] for line in lines)]):
            with Image.open(io.BytesIO(shot.png)) as picture:
                tile = picture.convert("RGB").resize((TILE, TILE), Image.Resampling.BICUBIC)
            x = left + column * (TILE + GAP)
            sheet.paste(tile, (x, y))
            pen.rectangle((x - 1, y - 1, x + TILE, y + TILE), outline=RULE)  # else a white picture has no edge

    pen.text((MARGIN, height - MARGIN), footer, fill=GREY, font=_font(16), anchor="ls")
    return sheet


def _header(pen: ImageDraw.ImageDraw, x: int, name: str, speedup: str, facts: list[str]) -> None:
    pen.text((x, MARGIN + 22), name, fill=INK, font=_font(27), anchor="ls")
    pen.text((x, MARGIN + 62), speedup, fill=ACCENT, font=_font(34), anchor="ls")
    for i, fact in enumerate(facts):
        pen.text((x, MARGIN + 94 + i * 26), fact, fill=GREY, font=_font(19), anchor="ls")


def _wrapped(caption: str) -> str:
    """ "a red circle on blue" on three lines: what, which shape, on what."""
    words = caption.split()
    return "\n".join((" ".join(words[:2]), *words[2:-2], " ".join(words[-2:])))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
