"""Families that make pictures."""

from __future__ import annotations

from .base import Family, Image, Stack

JOINT = (("img", "img"), ("txt", "txt"))

FAMILIES = (
    Family(
        "Flux",
        ("comfy.ldm.flux.model:Flux",),
        (
            Stack("double_blocks", JOINT, ("img", "txt")),
            Stack("single_blocks", (("x", 0),), "x", joins=("txt", "img")),
        ),
        inplace=True,
        image=Image("head", (2, 2)),
        modulated="img_attn.qkv",
    ),
    Family(
        "Lumina2, Z-Image",
        ("comfy.ldm.lumina.model:NextDiT",),
        (Stack("layers", (("x", 0),), "x"),),
        modulated="arg:3",
    ),
)
