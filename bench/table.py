"""The bench's rows as JSON for machines and as one table for people. A row is found again by what it is of."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

Row = dict[str, Any]
KEY = ("model", "sampler", "cfg", "steps", "method", "variant", "level")
Key = tuple[Any, ...]


def key_of(row: Row) -> Key:
    return tuple(row[k] for k in KEY)


@dataclass
class Table:
    """Rows in a file, whole at every moment. weights: model -> digest of the weights that its rows were measured with, kept
    beside the rows, which have a fixed shape."""

    file: Path
    rows: dict[Key, Row] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)

    @property
    def beside(self) -> Path:
        return self.file.with_suffix(".weights.json")

    @classmethod
    def read(cls, file: Path) -> Table:
        table = cls(file)
        if file.is_file():
            table.add(json.loads(file.read_text("utf-8"))["rows"])
        if table.beside.is_file():
            table.weights = json.loads(table.beside.read_text("utf-8"))
        return table

    def add(self, rows: Iterable[Row]) -> None:
        self.rows |= {key_of(row): row for row in rows}

    def begin(self, model: str, digest: str) -> None:
        """Rows of the model that were measured with other weights say nothing about it and are dropped."""
        if self.weights.get(model, digest) != digest:
            stale = [key for key, row in self.rows.items() if row["model"] == model]
            print(f"{model}: the weights have changed, {len(stale)} rows are measured anew", flush=True)
            for key in stale:
                del self.rows[key]
        self.weights[model] = digest

    def save(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in self.rows.values())
        write(self.file, f'{{"rows": [\n{lines}\n]}}\n')
        write(self.beside, json.dumps(self.weights) + "\n")


def write(file: Path, text: str) -> None:
    """Written aside and renamed: an interrupted run leaves the old file or the new one."""
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    part.write_text(text, "utf-8")
    part.replace(file)


def over_plain(row: Row, rows: Iterable[Row], what: str = "psnr_db") -> float | None:
    """dB above plain sampling with as many evaluations, between two numbers of steps linear; None beyond those measured."""
    where = ("model", "sampler", "cfg", "steps")
    curve = sorted(
        (r["computed"], r[what])
        for r in rows
        if r["method"] == "plain" and r[what] is not None and all(r[k] == row[k] for k in where)
    )
    if row[what] is None:
        return None
    for x, y in curve:
        if x == row["computed"]:
            return float(row[what] - y)
    for (x, y), (z, w) in pairwise(curve):
        if x < row["computed"] < z:
            return float(row[what] - y - (w - y) * (row["computed"] - x) / (z - x))
    return None


HEAD = (
    "Model", "Sampler", "CFG", "Steps", "Method", "Variant", "Level", "Computed", "PSNR, dB", "over plain",
    "Truth, dB", "truth over plain", "SSIM", "LPIPS", "FLIP", "Speedup",
)  # fmt: skip


def markdown(rows: Iterable[Row]) -> str:
    """One table. PSNR: against the full run of as many steps. Truth: PSNR against the run of 400. Over plain: dB above plain
    sampling with as many evaluations. Speedup: of the sampling alone."""
    rows = list(rows)
    lines = [f"| {' | '.join(HEAD)} |", "|---|---|--:|--:|---|---|---" + "|--:" * 9 + "|"]
    for row in rows:
        cells = [str(row[k]) for k in ("model", "sampler")]
        cells += [f"{row['cfg']:g}", str(row["steps"]), row["method"], row["variant"], row["level"]]
        cells += [f"{row['computed']:.1f}", f"{row['psnr_db']:.2f}", _signed(over_plain(row, rows))]
        cells += ["" if row["psnr_truth_db"] is None else f"{row['psnr_truth_db']:.2f}"]
        cells += [_signed(over_plain(row, rows, "psnr_truth_db")), f"{row['ssim']:.4f}"]
        cells += ["" if row.get(k) is None else f"{row[k]:.4f}" for k in ("lpips", "flip")]  # older rows have none
        cells += [f"{row['seconds_full'] / row['seconds']:.2f}x"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}"
