"""The graphs to share as the front end draws them, and where things stand in a drawing. Boxes are left, top, right, bottom."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "workflows"
NAMES = sorted(f.stem for f in FOLDER.glob("*.json"))
TITLE = 30  # pixels above a node


def drawn(name: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    return told


def exported(name: str) -> dict[str, Any]:
    """In the API's format."""
    told: dict[str, Any] = json.loads((FOLDER / "api" / f"{name}.json").read_text("utf-8"))
    return told


def box(node: dict[str, Any]) -> tuple[float, float, float, float]:
    """With its title."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE, x + width, y + height


def apart(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def inside(inner: tuple[float, ...], outer: tuple[float, ...]) -> bool:
    return inner[0] >= outer[0] and inner[1] >= outer[1] and inner[2] <= outer[2] and inner[3] <= outer[3]
