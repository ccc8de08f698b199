"""Nodes that act in a range of sigma: CFGOverride, at whose edge the negative begins or ends, and nodes at whose edge the model computes
otherwise, such as BlockSparseAttention, Deep Shrink (PatchModelAddDownscale) and RAUNet."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from skipstone.nodes.easycache import easycache_of
from skipstone.nodes.firstblock import firstblock_of
from skipstone.nodes.taylorseer import taylorseer_of
from skipstone.patch.step.sigma_ranges import ranges_in, sigma_ranges

nodes = pytest.importorskip("comfy_extras.nodes_custom_sampler")
pytestmark = [pytest.mark.usefixtures("user"), pytest.mark.filterwarnings("ignore:::(comfy|torchsde)")]

STEPS = 16
METHODS = {
    "TaylorSeer": lambda: taylorseer_of("Custom", interval=3, warmup=2, order=1),
    "EasyCache": lambda: easycache_of("Custom", threshold=9.0, warmup=2, max_skips=2),
    "First Block Cache": lambda: firstblock_of("Custom", threshold=9.0, warmup=2, max_skips=2),
}


@pytest.fixture(params=METHODS)
def run(request, studio, cached, small_flux, watched):
    """Samples a MODEL with a method on it: `report, watch = run(model)`."""

    def sample(model: Any, cfg: float = 3.0) -> tuple[Any, Any]:
        patched, reports = cached(METHODS[request.param](), model)
        patched, watch = watched(patched)
        out = studio.sample(patched, steps=STEPS, cfg=cfg)
        assert out.isfinite().all()
        return reports[0], watch

    return sample


@pytest.fixture(scope="module")
def flux(small_flux):
    return small_flux(depth=1, depth_single_blocks=2)


def decisions(report: Any) -> list[bool]:
    return [e.computed for e in report.evaluations]


@pytest.mark.skipif(not hasattr(nodes, "CFGOverride"), reason="this ComfyUI has no CFGOverride")
@pytest.mark.parametrize(("start", "end"), [(0.0, 0.5), (0.5, 1.0), (0.3, 0.7), (0.0, 1.0)])
def test_cfg_override(run, flux, start, end):
    """Without the negative skipping goes on; where it begins again, that evaluation is computed."""
    (model,) = nodes.CFGOverride.execute(flux, 1.0, start, end).result
    report, watch = run(model)
    present = [len([c for c in e.calls[0].present if c]) for e in watch.evaluations]
    assert set(present) == ({1} if (start, end) == (0.0, 1.0) else {1, 2})
    told = decisions(report)
    begins = [i for i in range(1, STEPS) if present[i] > present[i - 1]]
    assert all(told[i] for i in begins)
    plain = decisions(run(flux, cfg=1.0)[0])
    assert sum(told) <= sum(plain) + len(begins) + 1
    assert not all(t for t, n in zip(told, present, strict=True) if n == 1)
    ends = [i for i in range(3, STEPS - 1) if present[i] < present[i - 1]]
    assert all(told[i] == plain[i] for i in ends if not begins)


class SparseAttention:
    """As ComfyUI's SparseAttnPatch: what its override of the attention refers to."""

    def __init__(self, start: float, end: float) -> None:
        self.sigma_start, self.sigma_end = start, end
        self.sparse: list[float] = []


def override_of(patch: SparseAttention, previous: Any) -> Any:
    def override(func: Any, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> Any:
        sigma = float(kwargs["transformer_options"]["sigmas"][0])
        if sigma > patch.sigma_start or sigma < patch.sigma_end:
            return func(q, k, v, *args, **kwargs) if previous is None else previous(func, q, k, v, *args, **kwargs)
        patch.sparse.append(sigma)
        return func(q, k, v * 1.05, *args, **kwargs)

    return override


def with_sparse_attention(model: Any, start: float, end: float) -> tuple[Any, SparseAttention]:
    sampling = model.get_model_object("model_sampling")
    patch = SparseAttention(float(sampling.percent_to_sigma(start)), float(sampling.percent_to_sigma(end)))
    patched = model.clone()
    options = patched.model_options["transformer_options"]
    options["optimized_attention_override"] = override_of(patch, options.get("optimized_attention_override"))
    return patched, patch


@pytest.mark.parametrize("spans", [[(0.2, 1.0)], [(0.2, 0.6)], [(0.3, 0.5), (0.55, 0.9)]])
def test_the_edge_of_sparse_attention_is_computed(run, flux, spans):
    model, patches = flux, []
    for start, end in spans:
        model, patch = with_sparse_attention(model, start, end)
        patches.append(patch)
    report, watch = run(model)
    states = [tuple(p.sigma_end <= e.sigma <= p.sigma_start for p in patches) for e in watch.evaluations]
    edges = [i for i in range(1, STEPS) if states[i] != states[i - 1]]
    assert len(edges) >= len(spans)
    told = decisions(report)
    assert all(told[i] for i in edges)
    assert [e.step for e in report.evaluations if e.reason == "conditioning change"] == [
        i for i in edges if 1 < i < STEPS - 1
    ]
    assert report.skipped >= 4
    for patch in patches:
        assert patch.sparse and all(patch.sigma_end <= s <= patch.sigma_start for s in patch.sparse)


def test_the_edge_of_deep_shrink_is_computed(studio, cached, tiny_unet, watched):
    """ComfyUI's own node, for UNets: above sigma_end a block works at half the size."""
    downscale = pytest.importorskip("comfy_extras.nodes_model_downscale").PatchModelAddDownscale
    (shrunk,) = downscale.execute(tiny_unet, 1, 2.0, 0.0, 0.5, True, "bicubic", "bicubic").result
    patched, reports = cached(taylorseer_of("Custom", interval=4, warmup=2, order=1), shrunk)
    patched, watch = watched(patched)
    latent = torch.zeros(1, 4, 16, 16)
    assert studio.sample(patched, steps=STEPS, cfg=1.0, latent=latent).isfinite().all()
    end = float(tiny_unet.get_model_object("model_sampling").percent_to_sigma(0.5))
    edge = next(i for i, e in enumerate(watch.evaluations) if e.sigma < end)
    found = {e.step: e.reason for e in reports[0].evaluations}
    assert found[edge] == "conditioning change"
    assert reports[0].skipped >= 4


class Settings:
    def __init__(self, start: float, end: float) -> None:
        self.start_sigma, self.end_sigma = start, end


class Owner:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def patch(self, h: Any) -> Any:
        return h


def in_closure() -> Any:
    ca_start_sigma, ca_end_sigma = 0.8, 0.2

    def patch(h: Any) -> Any:
        return h if ca_start_sigma > ca_end_sigma else None

    return patch


@pytest.mark.parametrize(
    "patch",
    [
        in_closure(),
        partial(lambda index, settings, h: h, 3, Settings(0.8, 0.2)),
        partial(lambda h, settings: h, settings=Settings(0.8, 0.2)),
        Owner(Settings(0.8, 0.2)).patch,
        override_of(SparseAttention(0.8, 0.2), None),
        SparseAttention(0.8, 0.2),
        SimpleNamespace(sigma_start=0.8, sigma_end=0.2),
    ],
    ids=["closure", "partial", "keyword", "method", "override", "callable object", "object"],
)
def test_ranges_are_found_wherever_a_patch_keeps_them(patch):
    assert ranges_in([{"patches": {"input_block_patch": [patch]}}]) == ((0.8, 0.2),)
    assert ranges_in([{"patches_replace": {"dit": {("single_block", 1): patch}}}]) == ((0.8, 0.2),)


def test_ranges_are_read_from_whatever_overrides_the_attention():
    def of(override: Any) -> Any:
        return ranges_in([{"optimized_attention_override": override}])

    assert ranges_in([{}, None]) == ()
    assert of(torch.nn.functional.scaled_dot_product_attention) == ()
    assert of(lambda func, *args, **kwargs: func(*args)) == ()
    first = override_of(SparseAttention(0.9, 0.1), None)
    second = override_of(SparseAttention(0.8, 0.2), first)
    assert set(of(second)) == {(0.8, 0.2), (0.9, 0.1)}
    several = None
    for i in range(8):
        several = override_of(SparseAttention(0.9, i / 10), several)
    assert set(of(several)) == {(0.9, i / 10) for i in range(8)}

    def early() -> Any:
        def override() -> Any:
            return patch

        ranges = of(override)
        patch = SparseAttention(1.0, 0.0)
        return ranges

    assert early() == ()


def test_what_cannot_be_read_or_never_ends_is_left_out():
    class Unreadable:
        @property
        def __dict__(self) -> Any:  # type: ignore[override]
            raise RuntimeError("no")

    class Endless:
        def __getattr__(self, name: str) -> Any:
            return Endless()

    circle: list[Any] = []
    circle.append(circle)
    patch = SparseAttention(0.8, 0.2)
    endless, deep = Endless(), SimpleNamespace(next=None)
    for _ in range(5000):
        deep = SimpleNamespace(next=deep)
    assert ranges_in([circle, endless, deep, list(range(10**6)), patch]) == ((0.8, 0.2),)
    assert ranges_in([SimpleNamespace(sigma_start="0.8", sigma_end=None), SimpleNamespace(sigma_start=True)]) == ()
    assert sigma_ranges(SimpleNamespace(object_patches={"forward": Unreadable()}), {}) == ()
