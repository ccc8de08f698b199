"""Models whose class has no record: their blocks are found by structure, and used if a check in the first evaluation succeeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from skipstone.nodes.dbcache import dbcache_of
from skipstone.nodes.firstblock import firstblock_of
from skipstone.nodes.magcache import magcache_of
from skipstone.nodes.teacache import teacache_of
from skipstone.patch import families
from skipstone.patch.blocks import generic
from skipstone.patch.blocks.resolver import block_support_of
from skipstone.patch.blocks.transformer import UNSEEN
from skipstone.patch.errors import StepCacheError
from skipstone.patch.step.attach import attach
from skipstone.tests.comfy import zoo
from skipstone.tests.comfy.block_observer import every
from skipstone.tests.comfy.own_network import model_of
from skipstone.tests.comfy.test_families import Subject, same

pytestmark = pytest.mark.filterwarnings("ignore:::(comfy|torchsde|numpy)")

WIDTH, DEPTH, STEPS = 32, 5, 6
ALTERNATING = [True, False, True, False, True, True]
FOUND, REFUSED = (sentence.partition("{")[0] for sentence in (generic.FOUND, generic.REFUSED))


class Block(nn.Module):
    """(x, scale) -> x, in a new tensor."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        mixed = self.norm(x) + x.mean(1, keepdim=True)
        return x + 0.3 * self.down(self.up(mixed * scale).relu())


class Network(nn.Module):
    """A list of blocks, and what is before and after them. `through` runs them."""

    block: type[nn.Module] = Block

    def __init__(self, depth: int = DEPTH) -> None:
        super().__init__()
        self.dtype = torch.float32
        self.img_in, self.txt_in, self.time = nn.Linear(16, WIDTH), nn.Linear(768, WIDTH), nn.Linear(1, WIDTH)
        self.layers = nn.ModuleList(self.block() for _ in range(depth))
        self.out = nn.Linear(WIDTH, 16)

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor, **_: Any) -> Tensor:
        img, txt = self.img_in(x.flatten(2).transpose(1, 2)), self.txt_in(context)
        scale = 1 + self.time(timestep[:, None])[:, None].tanh()
        img = self.through(img, txt, scale)
        return self.out(img).transpose(1, 2).reshape(x.shape)

    def through(self, img: Tensor, txt: Tensor, scale: Tensor) -> Tensor:
        img = torch.cat((txt, img), 1)
        for layer in self.layers:
            img = layer(img, scale)
        return img[:, txt.shape[1] :]


class TwoStreams(Network):
    """Blocks return (txt, img), of which the model adds something to one in between; the last returns no text."""

    class block(Block):
        def forward(self, *, img: Tensor, txt: Tensor, scale: Tensor, last: bool) -> Any:  # type: ignore[override]
            both = super().forward(torch.cat((txt, img), 1), scale)
            txt, img = both.split((txt.shape[1], img.shape[1]), 1)
            return None if last else txt, img

    def through(self, img: Tensor, txt: Tensor, scale: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            txt, img = layer(img=img, txt=txt, scale=scale, last=i == DEPTH - 1)
            img = img + 0.1
        return img


class InPlace(Network):
    """Blocks write to the tuple of streams that they are given, and return it."""

    class block(Block):
        def forward(self, both: Any, scale: Tensor) -> Any:
            img, txt = both
            txt.add_(img.mean(1, keepdim=True))
            img.copy_(super().forward(img, scale)).add_(txt.mean(1, keepdim=True))
            return both

    def through(self, img: Tensor, txt: Tensor, scale: Tensor) -> Tensor:
        for layer in self.layers:
            img, txt = layer((img, txt), scale=scale)
        return img + txt.mean(1, keepdim=True)


GOOD = [Network, TwoStreams, InPlace]


class Shrinks(Network):
    """Tokens are merged on the way."""

    class block(Block):
        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            x = super().forward(x, scale)
            return x if x.shape[1] <= 64 else x[:, ::2]

    def through(self, img: Tensor, txt: Tensor, scale: Tensor) -> Tensor:
        before = img
        for layer in self.layers:
            img = layer(img, scale)
        return before + img.mean(1, keepdim=True)


class ReadsAll(Network):
    """What every block returns is read at the end."""

    def through(self, img: Tensor, txt: Tensor, scale: Tensor) -> Tensor:
        outputs = []
        for layer in self.layers:
            img = layer(img, scale)
            outputs.append(img)
        return torch.stack(outputs).mean(0)


class AlongsideIt(Network):
    """Blocks change a tensor that they do not return."""

    class block(Block):
        def forward(self, x: Tensor, scale: Tensor, pooled: Tensor) -> Tensor:  # type: ignore[override]
            pooled += x.mean(1)
            return super().forward(x, scale)

    def through(self, img: Tensor, txt: Tensor, scale: Tensor) -> Tensor:
        pooled = torch.zeros_like(img[:, 0])
        for layer in self.layers:
            img = layer(img, scale, pooled)
        return img + pooled[:, None]


class Twice(Network):
    """Every block runs twice."""

    def through(self, img: Tensor, txt: Tensor, scale: Tensor) -> Tensor:
        for layer in self.layers:
            img = layer(layer(img, scale), scale)
        return img


class Unused(Network):
    """The list is not called: its parts are."""

    def through(self, img: Tensor, txt: Tensor, scale: Tensor) -> Tensor:
        layer: Any
        for layer in self.layers:
            img = img + layer.down(layer.up(img).relu())
        return img


class Random(Network):
    """It is another in every call."""

    def through(self, img: Tensor, txt: Tensor, scale: Tensor) -> Tensor:
        img = super().through(img, txt, scale)
        return img + torch.randn_like(img)


class RaisesInARehearsal(Network):
    """It relies on what a block left behind."""

    class block(Block):
        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            self.left = x.mean()
            return super().forward(x, scale)

    def through(self, img: Tensor, txt: Tensor, scale: Tensor) -> Tensor:
        for layer in self.layers:
            img = layer(img, scale) * 1.0
        return img + sum(layer.__dict__.pop("left") for layer in self.layers)


BAD = {
    Shrinks: generic.SIZES,
    ReadsAll: generic.DIFFERENT,
    AlongsideIt: generic.DIFFERENT,
    Twice: generic.NOT_CALLED,
    Unused: generic.NOT_CALLED,
    Random: generic.DIFFERENT,
    RaisesInARehearsal: generic.DIFFERENT,
}


def sampled(studio: Any, model: Any, method: Any = None, **how: Any) -> tuple[Tensor, Any]:
    reports: list[Any] = []
    out = studio.sample(model if method is None else attach(model, method, (reports.append,)), steps=STEPS, **how)
    return out, reports[0] if reports else None


class Residual:
    """What the list of blocks adds, put in its place by hand: in the skipped evaluations of a run whose pattern is ALTERNATING."""

    def __init__(self, network: Any, pattern: list[bool]) -> None:
        self.network, self.pattern, self.calls = network, pattern, 0
        self.own, self.kept = network.through, None
        network.through = self

    def __call__(self, img: Tensor, txt: Tensor, scale: Tensor) -> Tensor:
        computed = self.pattern[self.calls]
        self.calls += 1
        both = torch.cat((txt, img), 1)
        first, *rest = self.network.layers
        entered = first(both, scale)
        if computed:
            left = entered
            for layer in rest:
                left = layer(left, scale)
            self.kept = left - entered
        return (entered + self.kept)[:, txt.shape[1] :]


def test_a_skip_is_prefix_and_residual(studio):
    out, report = sampled(studio, model_of(Network), every(2))
    assert [e.computed for e in report.evaluations] == ALTERNATING
    by_hand = model_of(Network)
    Residual(by_hand.model.diffusion_model, ALTERNATING)
    torch.testing.assert_close(out, sampled(studio, by_hand)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", GOOD)
def test_it_skips_and_leaves_nothing_behind(studio, kind, subtests):
    model = model_of(kind)
    plain, _ = sampled(studio, model)
    layers = model.model.diffusion_model.layers
    methods: dict[str, Any] = {
        "every second": every(2),
        "the last block runs, too": every(2, 1, 1),
        "First Block Cache": firstblock_of("Custom", threshold=1e9, warmup=1),
        "DBCache": dbcache_of("Custom", fn=1, bn=1, threshold=1e9, warmup=1),
        "TeaCache": teacache_of("Custom", threshold=1e9, warmup=1, polynomial="Flux"),
    }
    for name, method in methods.items():
        with subtests.test(name):
            out, report = sampled(studio, model, method)
            assert report.skipped >= 2
            assert [n for n in report.notes if n.startswith(FOUND)] and not set(report.warnings) - {UNSEEN}
            assert len(report.notes) == (2 if name == "TeaCache" else 1)
            assert out.isfinite().all() and not torch.equal(out, plain)
            assert all("forward" not in vars(layer) for layer in layers)
    assert torch.equal(sampled(studio, model)[0], plain)


@pytest.mark.parametrize("kind", GOOD)
def test_never_skipping_changes_nothing(studio, kind):
    model = model_of(kind)
    out, report = sampled(studio, model, firstblock_of("Custom", threshold=0.0, warmup=1))
    assert report.computed == STEPS
    assert torch.equal(out, sampled(studio, model)[0])


def test_conditionings_that_run_one_after_the_other(studio):
    model = model_of(Network)
    model.model.memory_required = lambda *_, **__: 1e18
    out, report = sampled(studio, model, every(2))
    assert [e.computed for e in report.evaluations] == ALTERNATING
    assert len(report.notes) == 1
    torch.testing.assert_close(out, sampled(studio, model_of(Network), every(2))[0], rtol=1e-4, atol=1e-5)


def test_a_run_can_teach_what_its_blocks_do(studio, user):
    model = model_of(Network)
    _, first = sampled(studio, model, magcache_of("Custom", threshold=1e9, warmup=1))
    assert (first.computed == STEPS and "saved" in first.hint) or "calibrated" in first.hint
    _, second = sampled(studio, model, magcache_of("Custom", threshold=1e9, warmup=1))
    assert second.skipped


@pytest.mark.parametrize("kind", BAD)
def test_blocks_that_cannot_be_left_out_are_not(studio, kind):
    model = model_of(kind)
    torch.manual_seed(1)
    plain, _ = sampled(studio, model)
    torch.manual_seed(1)
    out, report = sampled(studio, model, every(2))
    assert report.computed == STEPS
    assert report.notes[0].startswith(REFUSED) and BAD[kind] in report.notes[0]
    assert report.notes[0] in report.warnings
    if kind is not Random:
        assert torch.equal(out, plain)
    assert all("forward" not in vars(layer) for layer in model.model.diffusion_model.layers)


def test_the_check_notices_a_stream_that_is_not_restored(studio, monkeypatch):
    """Without the copy that is put in place, what comes out is something else."""
    monkeypatch.setattr(generic._Rehearsal, "enter", lambda self, base, look, copy=False: dict(base))
    _, report = sampled(studio, model_of(Network), every(2))
    assert report.computed == STEPS and generic.DIFFERENT in report.notes[0]


class Few(Network):
    def __init__(self) -> None:
        super().__init__(3)


class Small(Network):
    """Most of it is elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Linear(1000, 1000)


@pytest.mark.parametrize("kind", [Few, Small])
def test_a_model_without_such_a_list_is_refused(kind):
    with pytest.raises(StepCacheError, match=r"not known.*no list of equal blocks.*MeanCache.* work with every model"):
        attach(model_of(kind), every(2))


def test_the_largest_list_is_taken():
    class Both(Network):
        def __init__(self) -> None:
            super().__init__()
            self.refiner = nn.ModuleList(Block(8) for _ in range(9))

    support = block_support_of(every(2), model_of(Both).model.diffusion_model)
    assert support.family.stacks[0].at == "layers" and support.total == DEPTH
    assert 1 / DEPTH < support.share < 1  # what is beside the list always runs


# ComfyUI's own models, as if there were no records

KNOWN = ["QwenImage (Edit)", "SD3", "Lumina2 (Z-Image)", "PiD", "WAN21_Vace", "LTXAV", "MiniMaxH3"]
NOT = ["SeedVR2", "BaseModel (SD 1)"]


@pytest.fixture
def without_records(monkeypatch) -> Callable[[], None]:
    return lambda: monkeypatch.setattr(families, "_KNOWN", {})


@pytest.mark.parametrize("tiny", [t for t in zoo.here(zoo.MODELS) if t.name in (*KNOWN, *NOT)], ids=str)
def test_without_its_record_a_model_comes_out_as_with_it(tiny, without_records):
    subject = Subject(tiny)
    recorded, _ = subject.patched(every(2))
    without_records()
    out, report = subject.patched(every(2))
    if tiny.name in NOT:
        assert report.computed == len(subject.pattern) and report.notes[0].startswith(REFUSED)
        assert same(out, subject.plain)
        return
    assert [e.computed for e in report.evaluations] == subject.pattern
    assert len(report.notes) == 1 and not report.warnings
    for ours, theirs in zip(out, recorded, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
