"""The templates as the front end draws them, and where things stand in a drawing. Boxes are left, top, right, bottom."""

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


# files that people have, and the demo's that stand for them where a template is run
STAND_INS = {"unet_name": "skipstone_demo_flux.safetensors", "vae_name": "skipstone_demo_vae.safetensors"}
CLIP = {"clip_name": "skipstone_demo_clip.pt", "type": "stable_diffusion", "device": "default"}


def with_demo_models(graph: dict[str, Any], steps: int = 8) -> dict[str, Any]:
    """A template in the API's format, with the demo's models, their size of image, and so many steps."""
    told: dict[str, Any] = {}
    for number, node in graph.items():
        kind, inputs = node["class_type"], dict(node["inputs"])
        if kind in ("CLIPLoader", "DualCLIPLoader"):
            kind, inputs = "CLIPLoader", dict(CLIP)
        inputs |= {name: file for name, file in STAND_INS.items() if name in inputs}
        if kind == "EmptySD3LatentImage":
            inputs |= {"width": 128, "height": 128}
        if kind == "KSampler":
            inputs["steps"] = steps
        told[number] = {"class_type": kind, "inputs": inputs}
    return told


def box(node: dict[str, Any]) -> tuple[float, float, float, float]:
    """With its title."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE, x + width, y + height


def apart(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def inside(inner: tuple[float, ...], outer: tuple[float, ...]) -> bool:
    return inner[0] >= outer[0] and inner[1] >= outer[1] and inner[2] <= outer[2] and inner[3] <= outer[3]
