"""Nodes that act in a range of sigma: CFGOverride, at whose edge the negative begins or ends, and BlockSparseAttention, at whose edge the
model computes otherwise."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from skipstone.nodes.easycache import easycache_of
from skipstone.nodes.firstblock import firstblock_of
from skipstone.nodes.taylorseer import taylorseer_of
from skipstone.patch.step.sparse_attention import sparse_ranges

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


def test_ranges_are_read_from_whatever_overrides_the_attention():
    assert sparse_ranges({}) == ()
    assert sparse_ranges({"optimized_attention_override": torch.nn.functional.scaled_dot_product_attention}) == ()
    assert sparse_ranges({"optimized_attention_override": lambda func, *args, **kwargs: func(*args)}) == ()
    first = override_of(SparseAttention(0.9, 0.1), None)
    second = override_of(SparseAttention(0.8, 0.2), first)
    assert sparse_ranges({"optimized_attention_override": second}) == ((0.8, 0.2), (0.9, 0.1))

    def early() -> Any:
        def override() -> Any:
            return patch

        ranges = sparse_ranges({"optimized_attention_override": override})
        patch = SparseAttention(1.0, 0.0)
        return ranges

    assert early() == ()
