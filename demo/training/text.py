"""The demo's text encoder: a CLIP-L file of 0.2 MB that ComfyUI's CLIPLoader takes.

Nothing in it is learned. Token t's vector is rows t..t+767 of one random sequence (an overlapping view), all residual
branches are zeros with stride 0, so the encoder returns LayerNorm(token + position). Positions after POSITIONS share
a zero code: the padding of a short prompt is one vector repeated, and training needs to see it only once.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTH, VOCAB, LENGTH, LAYERS = 768, 49408, 77, 12
START, END = 49406, 49407  # END also pads
POSITIONS = 8
# CLIP's ids of the words in our captions; check.py compares what they give with what ComfyUI's encoder gives
WORDS = {
    "a": 320, "an": 550, "on": 525, "background": 5994, "red": 736, "apple": 3055, "banana": 8922,
    "strawberry": 10233, "watermelon": 19889, "lemon": 7184, "pineapple": 14831, "pear": 18820, "carrot": 15435,
    "mushroom": 13011, "avocado": 14135, "broccoli": 19094, "hamburger": 33928, "pizza": 4474, "doughnut": 32555,
    "cookie": 9367, "cupcake": 17025, "birthday": 1166, "cake": 2972, "eggplant": 34906, "lion": 5567, "panda": 12952,
    "frog": 11438, "pig": 9619, "cat": 2368, "dog": 1929, "fox": 3240, "rabbit": 10274, "koala": 36654,
    "monkey": 9465, "penguin": 14952, "chick": 11238, "owl": 9899, "octopus": 22327, "turtle": 10912,
    "ladybug": 40038, "butterfly": 9738, "whale": 11650, "elephant": 10299, "crab": 11574, "unicorn": 15660,
    "dinosaur": 15095, "cactus": 19794, "tree": 2677, "sunflower": 21559, "star": 1565, "rainbow": 6286,
    "globe": 9368, "soccer": 4233, "ball": 1069, "basketball": 3835, "gift": 2733, "bell": 3718, "rocket": 8383,
    "car": 1615, "house": 1212, "crown": 6902, "diamond": 6235, "trophy": 6502, "drum": 8698, "pumpkin": 8842,
    "ghost": 7108, "skull": 12092, "robot": 8797, "heart": 1936, "teddy": 11798, "bear": 4298, "snowman": 22668,
    "white": 1579, "gray": 7048, "black": 1449, "orange": 4287, "yellow": 4481, "green": 1901, "blue": 1746,
    "purple": 5496, "pink": 3360,
}  # fmt: skip


def tables() -> tuple[Tensor, Tensor]:
    """Token table (VOCAB, WIDTH), an overlapping view, and position table (LENGTH, WIDTH); float16."""
    generator = torch.Generator().manual_seed(20)
    sequence = torch.randn(VOCAB + WIDTH, generator=generator).half()
    tokens = torch.as_strided(sequence, (VOCAB, WIDTH), (1, 1))
    positions = torch.zeros(LENGTH, WIDTH, dtype=torch.float16)
    positions[:POSITIONS] = torch.randn(POSITIONS, WIDTH, generator=generator).half()
    return tokens, positions


def embed(captions: list[str]) -> Tensor:
    """(B, POSITIONS + 1, WIDTH) float32: what the CLIP file gives for captions of words in WORDS, padding seen once."""
    tokens, positions = tables()
    ids = [[START, *(WORDS[w] for w in c.split()), END] for c in captions]
    rows = torch.tensor([(r + [END] * LENGTH)[: POSITIONS + 1] for r in ids])
    return F.layer_norm(tokens[rows].float() + positions[: POSITIONS + 1].float(), (WIDTH,))


def state_dict() -> dict[str, Tensor]:
    tokens, positions = tables()

    def constant(value: float, *shape: int) -> Tensor:
        return torch.tensor([value]).half().expand(*shape)

    state = {
        "text_model.embeddings.token_embedding.weight": tokens,
        "text_model.embeddings.position_embedding.weight": positions,
        "text_model.final_layer_norm.weight": constant(1, WIDTH),
        "text_model.final_layer_norm.bias": constant(0, WIDTH),
        "text_projection.weight": constant(0, WIDTH, WIDTH),
    }
    for i in range(LAYERS):
        layer = f"text_model.encoder.layers.{i}."
        for norm in ("layer_norm1", "layer_norm2"):
            state[f"{layer}{norm}.weight"] = constant(1, WIDTH)
            state[f"{layer}{norm}.bias"] = constant(0, WIDTH)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            state[f"{layer}self_attn.{name}.weight"] = constant(0, WIDTH, WIDTH)
            state[f"{layer}self_attn.{name}.bias"] = constant(0, WIDTH)
        for name, n_out, n_in in (("fc1", 4 * WIDTH, WIDTH), ("fc2", WIDTH, 4 * WIDTH)):
            state[f"{layer}mlp.{name}.weight"] = constant(0, n_out, n_in)
            state[f"{layer}mlp.{name}.bias"] = constant(0, n_out)
    return state


def save(path: Path) -> None:
    torch.save(state_dict(), path)
