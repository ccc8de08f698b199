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
    "a": 320, "on": 525, "red": 736, "green": 1901, "blue": 1746, "yellow": 4481, "purple": 5496, "white": 1579,
    "black": 1449, "circle": 7117, "square": 3999, "triangle": 14615, "star": 1565, "ring": 2540, "cross": 3417,
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
