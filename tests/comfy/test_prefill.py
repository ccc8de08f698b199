"""A model that computes its prompt's keys and values once: its blocks are called twice in the evaluation that does, first on the prompt's
tokens and then on the picture's, and on the picture's alone from then on. ComfyUI's Qwen-Image 2.1 does so."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from skipstone.core.step.method import Method
from skipstone.nodes.dbcache import dbcache_of
from skipstone.nodes.dicache import dicache_of
from skipstone.nodes.firstblock import firstblock_of
from skipstone.nodes.teacache import teacache_of
from skipstone.patch import families
from skipstone.patch.blocks.transformer import ORDER
from skipstone.patch.step.attach import attach
from skipstone.tests.comfy.block_observer import every
from skipstone.tests.comfy.own_network import model_of

pytestmark = pytest.mark.filterwarnings("ignore:::(comfy|torchsde)")

WIDTH, HEADS, STEPS = 32, 2, 8
QWEN = "comfy.ldm.qwen_image21.model:QwenImage21Transformer2DModel"
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        return self.out(attend(*self.qkv(x).chunk(3, -1)))


class Block(nn.Module):
    """scale: of the picture's tokens. prefix: tokens of the prompt before them, which do not depend on time. Writes to `x`."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = Attention()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.SiLU(), nn.Linear(2 * WIDTH, WIDTH))
        self.calls: list[str] = []

    def forward(
        self, x: Tensor, scale: Tensor, pe: Tensor, attend: Attend, prefix: int, transformer_options: Any
    ) -> Tensor:
        self.calls.append("prompt" if prefix == x.shape[1] else "picture" if prefix == 0 else "both")
        scales = torch.cat((torch.ones_like(x[:, :prefix]), scale.expand_as(x[:, prefix:])), 1)
        x.addcmul_(self.attn(self.norm1(x) * scales + pe, attend), scales, value=0.5)
        return x.addcmul_(self.mlp(self.norm2(x) * scales), scales, value=0.5)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    q, k, v = (t.unflatten(2, (HEADS, -1)).transpose(1, 2) for t in (q, k, v))
    return scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class KeepsPrompts(nn.Module):
    """slots: prompts whose keys and values it keeps; 0: it computes prompt and picture together in every call."""

    def __init__(self, depth: int = 4, slots: int = 2) -> None:
        super().__init__()
        self.dtype = torch.float32
        self.slots, self.kept = slots, {}  # type: ignore[var-annotated]
        self.img_in, self.txt_in, self.time = nn.Linear(16, WIDTH), nn.Linear(768, WIDTH), nn.Linear(1, WIDTH)
        self.transformer_blocks = nn.ModuleList(Block() for _ in range(depth))
        self.out = nn.Linear(WIDTH, 16)

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor, transformer_options: Any = {}, **_: Any) -> Tensor:  # noqa: B006
        height, width = x.shape[-2:]
        picture, prompt = self.img_in(x.flatten(2).transpose(1, 2)), self.txt_in(context)
        scale = 1 + self.time(timestep[:, None])[:, None].tanh()
        before, after = prompt.shape[1], prompt.shape[1] + picture.shape[1]
        pe = torch.arange(after, dtype=torch.float32)[None, :, None].mul(0.1).sin().expand(1, after, WIDTH)
        key = (float(context.sum()), tuple(context.shape), tuple(x.shape))
        filled = self.kept.get(key)
        rest = (scale, pe[:, before:])
        mask = torch.ones(after, after, dtype=torch.bool)
        mask[:before] = mask[:before].tril()
        mask[:before, before:] = False
        h = torch.cat((prompt, picture), 1) if not self.slots else picture
        if self.slots and filled is None:
            while len(self.kept) >= self.slots:
                del self.kept[next(iter(self.kept))]
            self.kept[key] = {}
        for i, block in enumerate(self.transformer_blocks):
            if not self.slots:
                h = block(h, scale, pe, functools.partial(attend, mask=mask), before, transformer_options)
                continue
            store = self.kept[key]
            if filled is None:

                def fill(q: Tensor, k: Tensor, v: Tensor, i: int = i, store: Any = store) -> Tensor:
                    store[i] = (k.clone(), v.clone())
                    return attend(q, k, v, mask[:before, :before])

                prompt = block(prompt, scale, pe[:, :before], fill, before, transformer_options)

            def read(q: Tensor, k: Tensor, v: Tensor, i: int = i, store: Any = store) -> Tensor:
                return attend(q, torch.cat((store[i][0], k), 1), torch.cat((store[i][1], v), 1))

            h = block(h, *rest, read, 0, transformer_options)
        said = self.out(h[:, before:] if not self.slots else h)
        return said.transpose(1, 2).reshape(len(x), 16, height, width)


@pytest.fixture
def model(monkeypatch) -> Callable[..., Any]:
    """MODELs of this network, which is known by Qwen-Image 2.1's record."""
    monkeypatch.setitem(families._KNOWN, f"{__name__}:{KeepsPrompts.__qualname__}", families._KNOWN[QWEN])
    return functools.partial(model_of, KeepsPrompts)


METHODS: dict[str, Callable[[float], Method]] = {
    "First Block Cache": lambda threshold: firstblock_of("Custom", threshold=threshold, warmup=1),
    "DBCache": lambda threshold: dbcache_of("Custom", fn=1, bn=1, threshold=threshold, warmup=1),
    "TeaCache": lambda threshold: teacache_of("Custom", threshold=threshold, warmup=1, polynomial="Flux"),
    "DiCache": lambda threshold: dicache_of("Custom", threshold=threshold, warmup=1, start_percent=0.0),
}
CLOSE = functools.partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)


def sampled(studio: Any, model: Any, method: Method | None, **how: Any) -> tuple[Tensor, Any]:
    reports: list[Any] = []
    out = studio.sample(model if method is None else attach(model, method, (reports.append,)), steps=STEPS, **how)
    return out, reports[0] if reports else None


def test_the_network_does_as_described(studio, model):
    kept = model()
    out, _ = sampled(studio, kept, None, cfg=1.0)
    for block in kept.model.diffusion_model.transformer_blocks:
        assert block.calls == ["prompt", *["picture"] * STEPS]
    CLOSE(out, sampled(studio, model(slots=0), None, cfg=1.0)[0])


@pytest.mark.parametrize("name", METHODS)
def test_never_skipping_changes_nothing(studio, model, name):
    out, report = sampled(studio, model(), METHODS[name](0.0))
    assert report.computed == STEPS and ORDER not in report.notes
    assert any(e.indicator is not None for e in report.evaluations)
    assert torch.equal(out, sampled(studio, model(), None)[0])


@pytest.mark.parametrize(
    "slots", [2, 1], ids=["both prompts are kept", "one is, so that every call computes its own anew"]
)
@pytest.mark.parametrize("suffix", [0, 1])
def test_a_skip_is_one_of_the_picture_alone(studio, model, suffix, slots):
    """As it comes out where prompt and picture are computed together."""
    with_cache, without = model(slots=slots), model(slots=0)
    for one in (with_cache, without):
        one.model.memory_required = lambda *_, **__: 1e18  # the two conditionings run one after the other
    method = every(2, 1, suffix)
    out, report = sampled(studio, with_cache, method)
    plain, plain_report = sampled(studio, without, method)
    assert [e.computed for e in report.evaluations] == [True, False, True, False, True, False, True, True]
    assert [e.computed for e in plain_report.evaluations] == [e.computed for e in report.evaluations]
    assert not report.notes
    skipped = with_cache.model.diffusion_model.transformer_blocks[1].calls
    assert skipped.count("picture") == 2 * 5
    assert skipped.count("prompt") == (2 if slots == 2 else 2 * STEPS)
    if suffix == 0:
        CLOSE(out, plain)
    assert not torch.equal(out, sampled(studio, with_cache, None)[0])


@pytest.mark.parametrize("name", METHODS)
def test_every_method_skips(studio, model, name):
    made = model()
    out, report = sampled(studio, made, METHODS[name](9.0))
    assert report.skipped >= STEPS // 3 and not report.notes
    assert out.isfinite().all()
    # a second prompt fills the model's cache anew, in a run whose first evaluation is computed
    again, report = sampled(studio, made, METHODS[name](9.0), positive=studio.prompt("a frog on a white background"))
    assert report.skipped >= STEPS // 3 and not report.notes
    assert not torch.equal(out, again)


def test_a_cache_that_is_given_up_in_mid_run(studio, model):
    """ComfyUI drops it where memory is short: from then on prompt and picture run together."""
    made = model()
    network = made.model.diffusion_model

    def drop(step: int, *_: Any) -> None:
        if step == 1:
            network.slots = 0

    out, report = sampled(studio, made, every(2), cfg=1.0, callback=drop)
    assert report.skipped == 3 and not report.notes
    CLOSE(out, sampled(studio, model(slots=0), every(2), cfg=1.0)[0])
