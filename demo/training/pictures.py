"""Procedural pictures with captions: what the demo model is trained on and judged by.

A picture is one shape of one colour on a background of another, lit by a soft gradient, 128 x 128.
Everything is drawn from signed distances, so edges are anti-aliased and a whole batch is a few tensor operations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SIZE = 128
COLOURS = {
    "red": (0.86, 0.12, 0.14),
    "green": (0.12, 0.62, 0.22),
    "blue": (0.13, 0.25, 0.82),
    "yellow": (0.97, 0.84, 0.12),
    "purple": (0.55, 0.16, 0.66),
    "white": (0.95, 0.95, 0.93),
    "black": (0.07, 0.07, 0.09),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")


@dataclass(frozen=True)
class Scene:
    """What a caption says: a shape and two colours, by index."""

    shape: int
    colour: int
    background: int

    @property
    def caption(self) -> str:
        names = list(COLOURS)
        return f"a {names[self.colour]} {SHAPES[self.shape]} on {names[self.background]}"


def all_scenes() -> list[Scene]:
    n = len(COLOURS)
    return [Scene(s, c, b) for s in range(len(SHAPES)) for c in range(n) for b in range(n) if b != c]


def _polygon(points: Tensor, corners: Tensor) -> Tensor:
    """Signed distance (negative inside) of points (B, H, W, 2) to the closed polygon corners (K, 2)."""
    ends = corners.roll(-1, 0)
    distance = torch.full(points.shape[:-1], math.inf)
    inside = torch.zeros(points.shape[:-1], dtype=torch.bool)
    for a, b in zip(corners, ends, strict=True):
        edge, to = b - a, points - a
        t = ((to * edge).sum(-1) / edge.dot(edge)).clamp(0, 1)
        distance = torch.minimum(distance, (to - t[..., None] * edge).pow(2).sum(-1))
        crosses = (a[1] > points[..., 1]) != (b[1] > points[..., 1])
        inside ^= crosses & (points[..., 0] < edge[0] * to[..., 1] / (edge[1] + 1e-12) + a[0])
    return torch.where(inside, -1.0, 1.0) * distance.sqrt()


def _star() -> Tensor:
    angle = torch.arange(10) * math.pi / 5 - math.pi / 2
    radius = torch.where(torch.arange(10) % 2 == 0, 1.08, 0.45)
    return torch.stack((radius * angle.cos(), radius * angle.sin()), -1)


def _triangle() -> Tensor:
    angle = torch.arange(3) * 2 * math.pi / 3 - math.pi / 2
    return 1.15 * torch.stack((angle.cos(), angle.sin()), -1) + torch.tensor([0.0, 0.22])


def signed_distance(shape: int, p: Tensor) -> Tensor:
    name, q = SHAPES[shape], p.abs()
    if name == "circle":
        return p.norm(dim=-1) - 0.95
    if name == "ring":
        return (p.norm(dim=-1) - 0.72).abs() - 0.25
    if name == "square":
        return q.amax(-1) - 0.82
    if name == "cross":
        bars = torch.stack((q - torch.tensor([0.95, 0.3]), q - torch.tensor([0.3, 0.95])))
        return bars.amax(-1).amin(0)
    return _polygon(p, _star() if name == "star" else _triangle())


def draw(scenes: list[Scene], generator: torch.Generator) -> Tensor:
    """Pictures (B, 3, SIZE, SIZE), float32 in 0..1, of the scenes at random places, sizes, tilts and lights."""
    n = len(scenes)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator) * (high - low) + low

    axis = (torch.arange(SIZE) + 0.5) / SIZE * 2 - 1
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    radius = uniform(0.6, 0.7)
    centre = uniform(-0.14, 0.14, 2)
    angle = uniform(-0.08, 0.08)
    local = (grid - centre[:, None, None]) / radius[:, None, None, None]
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    local = torch.stack((cos * local[..., 0] + sin * local[..., 1], cos * local[..., 1] - sin * local[..., 0]), -1)

    distance = torch.empty(n, SIZE, SIZE)
    for shape in range(len(SHAPES)):
        rows = [i for i, s in enumerate(scenes) if s.shape == shape]
        if rows:
            distance[rows] = signed_distance(shape, local[rows])
    cover = (0.5 - distance * radius[:, None, None] * SIZE / 2).clamp(0, 1)[:, None]

    palette = torch.tensor(list(COLOURS.values()))
    front = palette[[s.colour for s in scenes]][:, :, None, None]
    back = palette[[s.background for s in scenes]][:, :, None, None]
    light = uniform(0, 2 * math.pi)
    slope = grid[..., 0] * light.cos()[:, None, None] + grid[..., 1] * light.sin()[:, None, None]
    shade = (uniform(0.0, 0.22)[:, None, None] * slope)[:, None]
    picture = back * (1 + shade) + cover * (front * (1 - 0.5 * shade) - back * (1 + shade))
    return picture.clamp(0, 1)


def random_scenes(n: int, generator: torch.Generator) -> list[Scene]:
    scenes = all_scenes()
    return [scenes[int(i)] for i in torch.randint(len(scenes), (n,), generator=generator)]
