"""From the demo's runs to figures: how near each picture is to the one without a cache, and how much sooner it came."""

from __future__ import annotations

import io
import statistics
from dataclasses import dataclass
from typing import Any

import numpy as np
import perceptual
from numpy.typing import NDArray
from PIL import Image
from skimage.metrics import structural_similarity

# An identical picture has an infinite PSNR, which JSON cannot say; it is given as this.
MAX_PSNR_DB = 100.0

Pixels = NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    caption: str
    seed: int


@dataclass(frozen=True)
class Shot:
    """One run: its picture's file, the sampler's seconds and, with a cache, the steps it took and those it computed."""

    preset: str | None
    pair: Pair
    png: bytes
    seconds: float
    threads: int
    steps: int
    computed: int
    skipped: int


@dataclass(frozen=True)
class Line:
    """A preset's line of the report, over all pairs. lpips is None where the package for it is missing."""

    preset: str
    steps: int
    computed: float
    skipped: float
    seconds_baseline: float
    seconds_cached: float
    speedup: float
    psnr_db: float
    ssim: float
    lpips: float | None

    @property
    def kept(self) -> float:
        """How much of the speed-up that the skipped steps promise was measured; 1 is all of it."""
        return self.speedup / (self.steps / self.computed)


def pixels(png: bytes) -> Pixels:
    """(H, W, 3) in 0..1."""
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture.convert("RGB"), dtype=np.float64) / 255.0


def psnr_db(a: Pixels, b: Pixels) -> float:
    error = float(np.mean((a - b) ** 2))
    return MAX_PSNR_DB if error == 0 else min(MAX_PSNR_DB, -10.0 * float(np.log10(error)))


def ssim(a: Pixels, b: Pixels) -> float:
    """The SSIM of Wang et al. 2004: gaussian window of 1.5 pixels."""
    value = structural_similarity(
        a, b, data_range=1.0, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    return float(value)


def summarise(baseline: list[Shot], cached: dict[str, list[Shot]]) -> tuple[list[Line], list[dict[str, Any]]]:
    """A line for each preset, and the single figures behind them. Lists are by pair, in the same order."""
    before = statistics.median(shot.seconds for shot in baseline)
    lines, details = [], []
    looks = perceptual.available()
    for preset, shots in cached.items():
        scores = []
        for plain, shot in zip(baseline, shots, strict=True):
            a, b = pixels(plain.png), pixels(shot.png)
            scores.append((psnr_db(a, b), ssim(a, b), perceptual.lpips(a, b) if looks else None))
            details.append({
                "preset": preset, "caption": shot.pair.caption, "seed": shot.pair.seed, "steps": shot.steps,
                "computed": shot.computed, "skipped": shot.skipped,
                "seconds_baseline": round(plain.seconds, 4), "seconds_cached": round(shot.seconds, 4),
                "psnr_db": round(scores[-1][0], 3), "ssim": round(scores[-1][1], 6),
                "lpips": None if scores[-1][2] is None else round(scores[-1][2], 6),
            })  # fmt: skip
        after = statistics.median(shot.seconds for shot in shots)
        lines.append(
            Line(
                preset=preset,
                steps=shots[0].steps,
                computed=_mean(shot.computed for shot in shots),
                skipped=_mean(shot.skipped for shot in shots),
                seconds_baseline=round(before, 4),
                seconds_cached=round(after, 4),
                speedup=round(before / after, 4),
                psnr_db=round(statistics.fmean(p for p, _, _ in scores), 3),
                ssim=round(statistics.fmean(s for _, s, _ in scores), 6),
                lpips=round(statistics.fmean(value for *_, value in scores if value is not None), 6) if looks else None,
            )
        )
    return lines, details


def _mean(counts: Any) -> float:
    """Whole where it is whole: a fixed schedule computes the same number of steps in every run."""
    mean = statistics.fmean(counts)
    return int(mean) if mean.is_integer() else round(mean, 2)


def table(lines: list[Line]) -> str:
    """As text; a row for the runs without a cache goes before the first line of each number of steps."""
    rows = [("", "computed", "sampler", "speed-up", "of promised", "PSNR", "SSIM", "LPIPS")]
    for i, line in enumerate(lines):
        if i == 0 or line.steps != lines[i - 1].steps:
            rows.append(("Without", f"{line.steps}/{line.steps}", f"{line.seconds_baseline:.2f} s", "", "", "", "", ""))
        rows.append((
            line.preset, f"{line.computed:g}/{line.steps}", f"{line.seconds_cached:.2f} s", f"{line.speedup:.2f}x",
            f"{line.kept:.0%}", f"{line.psnr_db:.1f} dB", f"{line.ssim:.4f}",
            "" if line.lpips is None else f"{line.lpips:.4f}",
        ))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.rjust, row, widths)) for row in rows)
