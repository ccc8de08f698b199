"""A trainable twin of ComfyUI's Flux (schnell type) with the same parameter names.

ComfyUI's own blocks add residuals in place, which autograd refuses. The forward is that of the Flux paper code:
double-stream blocks, then single-stream blocks, adaLN modulation, rotary positions. Inputs and outputs are in latent
space; the output is the flow's velocity noise - data.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD = 128
AXES = (16, 56, 56)
Rotary = tuple[Tensor, Tensor]  # cos and sin


def positions(grid: int, text: int) -> tuple[Tensor, Tensor]:
    """cos and sin of the rotary angles, (text + grid^2, HEAD / 2); text tokens sit at position 0."""
    y, x = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    places = torch.stack((torch.zeros(grid * grid), y.flatten(), x.flatten()), -1)
    places = torch.cat((torch.zeros(text, 3), places)).double()
    freqs = [10000.0 ** -(torch.arange(0, d, 2).double() / d) for d in AXES]
    angle = torch.cat([places[:, i, None] * f for i, f in enumerate(freqs)], -1)
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).type_as(x)


class RMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(HEAD))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (HEAD,), self.scale.type_as(x), 1e-6)


class QKNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query_norm = RMSNorm()
        self.key_norm = RMSNorm()


class Modulation(nn.Module):
    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.lin = nn.Linear(width, parts * width)
        nn.init.zeros_(self.lin.weight)
        nn.init.zeros_(self.lin.bias)

    def forward(self, vec: Tensor) -> tuple[Tensor, ...]:
        return self.lin(F.silu(vec))[:, None].chunk(self.parts, -1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.norm = QKNorm()
        self.proj = nn.Linear(width, width)


def split_heads(qkv: Tensor, norm: QKNorm) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = qkv.unflatten(-1, (3, -1, HEAD)).permute(2, 0, 3, 1, 4)
    return norm.query_norm(q), norm.key_norm(k), v


def attend(q: Tensor, k: Tensor, v: Tensor, rotary: Rotary, bias: Tensor) -> Tensor:
    out = F.scaled_dot_product_attention(rotate(q, *rotary), rotate(k, *rotary), v, attn_mask=bias.type_as(v))
    return out.transpose(1, 2).flatten(2)


class MLP(nn.Sequential):
    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))


class DoubleBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.img_mod, self.txt_mod = Modulation(width, 6), Modulation(width, 6)
        self.img_attn, self.txt_attn = Attention(width), Attention(width)
        self.img_mlp, self.txt_mlp = MLP(width), MLP(width)

    def forward(self, img: Tensor, txt: Tensor, vec: Tensor, rotary: Rotary, bias: Tensor) -> tuple[Tensor, Tensor]:
        im, tm = self.img_mod(vec), self.txt_mod(vec)
        iq, ik, iv = split_heads(self.img_attn.qkv(modulate(img, *im[:2])), self.img_attn.norm)
        tq, tk, tv = split_heads(self.txt_attn.qkv(modulate(txt, *tm[:2])), self.txt_attn.norm)
        q, k, v = (torch.cat(pair, 2) for pair in ((tq, iq), (tk, ik), (tv, iv)))
        out_txt, out_img = attend(q, k, v, rotary, bias).split((txt.shape[1], img.shape[1]), 1)
        img = img + im[2] * self.img_attn.proj(out_img)
        img = img + im[5] * self.img_mlp(modulate(img, *im[3:5]))
        txt = txt + tm[2] * self.txt_attn.proj(out_txt)
        txt = txt + tm[5] * self.txt_mlp(modulate(txt, *tm[3:5]))
        return img, txt


class SingleBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.modulation = Modulation(width, 3)
        self.linear1 = nn.Linear(width, 7 * width)
        self.linear2 = nn.Linear(5 * width, width)
        self.norm = QKNorm()

    def forward(self, x: Tensor, vec: Tensor, rotary: Rotary, bias: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(vec)
        qkv, mlp = self.linear1(modulate(x, shift, scale)).split((3 * self.width, 4 * self.width), -1)
        q, k, v = split_heads(qkv, self.norm)
        out = attend(q, k, v, rotary, bias)
        return x + gate * self.linear2(torch.cat((out, F.gelu(mlp, approximate="tanh")), -1))


class Embedder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_layer = nn.Linear(256, width)
        self.out_layer = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_layer(F.silu(self.in_layer(x)))


class FinalLayer(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        for p in (*self.linear.parameters(), *self.adaLN_modulation.parameters()):
            nn.init.zeros_(p)

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(vec)[:, None].chunk(2, -1)
        return self.linear(modulate(x, shift, scale))


def time_embedding(t: Tensor) -> Tensor:
    freqs = torch.exp(-math.log(10000) * torch.arange(128) / 128)
    angle = 1000 * t[:, None] * freqs
    return torch.cat((angle.cos(), angle.sin()), -1)


class Flux(nn.Module):
    """Velocity (B, 16, H, W) of latents (B, 16, H, W) at sigma (B,) under text (B, T, text_width)."""

    def __init__(
        self, width: int = 256, double: int = 2, single: int = 4, text_width: int = 768, grid: int = 8, text: int = 9
    ) -> None:
        super().__init__()
        self.grid, self.text = grid, text
        self.cos: Tensor
        self.sin: Tensor
        self.bias: Tensor
        self.img_in = nn.Linear(64, width)
        self.txt_in = nn.Linear(text_width, width)
        self.time_in = Embedder(width)
        self.double_blocks = nn.ModuleList(DoubleBlock(width) for _ in range(double))
        self.single_blocks = nn.ModuleList(SingleBlock(width) for _ in range(single))
        self.final_layer = FinalLayer(width, 64)
        cos, sin = positions(grid, text)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        # the last text token stands for all the padding of a 77-token prompt
        bias = torch.zeros(text + grid * grid)
        bias[text - 1] = math.log(77 - text + 1)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
        b, c, h, w = x.shape
        rotary, bias = (self.cos, self.sin), self.bias[None, None, None]
        img = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, self.grid**2, 4 * c)
        img, txt = self.img_in(img), self.txt_in(text)
        vec = self.time_in(time_embedding(sigma))
        for block in self.double_blocks:
            img, txt = block(img, txt, vec, rotary, bias)
        img = torch.cat((txt, img), 1)
        for block in self.single_blocks:
            img = block(img, vec, rotary, bias)
        out = self.final_layer(img[:, self.text :], vec)
        return out.reshape(b, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)
