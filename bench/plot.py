"""The core cell as a picture: PSNR over computed evaluations, a panel a model, a line a method, its name at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from compared import DRAWN
from models import NAMES
from table import Row

# Okabe and Ito's colours, which colour-blind people tell apart; what is not ours is grey or dashed
STYLES: dict[str, dict[str, Any]] = {
    "MeanCache": {"color": "#0072b2", "lw": 2.8, "marker": "o"},
    "Spectrum": {"color": "#009e73", "lw": 1.8, "marker": "s"},
    "TaylorSeer": {"color": "#cc79a7", "lw": 1.8, "marker": "^"},
    "Skipstone EasyCache": {"color": "#d55e00", "lw": 1.8, "marker": "D"},
    "UCache": {"color": "#e69f00", "lw": 1.8, "marker": "v"},
    "released MeanCache": {"color": "#0072b2", "lw": 1.4, "marker": "x", "ls": ":"},
    "core EasyCache": {"color": "#d55e00", "lw": 1.4, "marker": "x", "ls": ":"},
    "core LazyCache": {"color": "#8c6d1f", "lw": 1.4, "marker": "+", "ls": ":"},
    "plain": {"color": "#1f2328", "lw": 2.0, "marker": ".", "ls": "--"},
}
LOW, HIGH = 7, 42  # evaluations: beyond, every method is either ruined or idle
NAMED_FOR = {"plain": "plain sampling"}


def draw(rows: list[Row], cell: dict[str, Any], file: Path) -> None:
    """Into a PNG. Says what is missing by leaving the panel empty."""
    shown = [r for r in rows if all(r[k] == v for k, v in cell.items()) and LOW <= r["computed"] <= HIGH]
    names = [n for n in NAMES if any(r["model"] == n for r in shown)]
    if not names:
        return
    figure, axes = plt.subplots(1, len(names), figsize=(6.6 * len(names), 6.4), squeeze=False, layout="constrained")
    for name, axis in zip(names, axes[0], strict=True):
        _panel(axis, name, [r for r in shown if r["model"] == name])
    axes[0][0].set_ylabel(f"PSNR against the full {cell['steps']} steps, dB", fontsize=12)
    pairs = sorted({r["pairs"] for r in shown})
    figure.suptitle(
        f"{cell['sampler']}, CFG {cell['cfg']:g}, {cell['steps']} steps; mean over {' or '.join(map(str, pairs))} pairs"
        f"{'' if len(names) == 1 else '. Lines: each method as its presets have it; dots: its other variants'}",
        fontsize=13,
    )
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _panel(axis: Any, name: str, rows: list[Row]) -> None:
    ends: list[tuple[float, float, str]] = []
    for method, style in STYLES.items():
        own = [r for r in rows if r["method"] == method]
        others = [r for r in own if r["variant"] != DRAWN[method]]
        axis.scatter(
            [r["computed"] for r in others], [r["psnr_db"] for r in others], s=9, color=style["color"], alpha=0.3, lw=0
        )
        line = sorted((r["computed"], r["psnr_db"]) for r in own if r["variant"] == DRAWN[method])
        if line:
            axis.plot(*zip(*line, strict=True), markersize=5, **style)
            ends.append((*line[-1], method))
    axis.set_title({"flux": "Flux", "nextdit": "NextDiT (as Z-Image)", "unet": "UNet (eps)"}[name], fontsize=14)
    lows = [r["psnr_db"] for r in rows if r["variant"] == DRAWN[r["method"]]]
    if lows:
        axis.set_ylim(min(lows) - 3, max(r["psnr_db"] for r in rows) + 2)  # what only dots reach below is ruined
    axis.set_xlabel("evaluations computed in full", fontsize=12)
    axis.set_xlim(LOW - 1, HIGH + 13)
    axis.set_xticks(range(10, HIGH, 5))
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    _label(axis, ends)


def _label(axis: Any, ends: list[tuple[float, float, str]]) -> None:
    """Names in a column at the right, in the lines' order, pushed apart where they would overlap, each led to its line."""
    low, high = axis.get_ylim()
    gap = (high - low) * 0.042
    at: list[float] = []
    for _, y, _ in sorted(ends, key=lambda e: e[1]):
        at.append(max(y, at[-1] + gap) if at else y)
    over = max(at[-1] - high + gap / 2, 0.0) if at else 0.0
    for i in range(len(at) - 1, -1, -1):  # what was pushed out at the top pushes back
        at[i] = min(at[i], high - gap / 2 - (len(at) - 1 - i) * gap) if over else at[i]
    for (x, y, method), height in zip(sorted(ends, key=lambda e: e[1]), at, strict=True):
        colour = STYLES[method]["color"]
        axis.annotate(
            NAMED_FOR.get(method, method),
            (x, y),
            (HIGH + 1.2, height),
            color=colour,
            fontsize=11,
            va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "alpha": 0.35, "lw": 0.8, "shrinkA": 1, "shrinkB": 4},
        )
    axis.set_ylim(low, high)
