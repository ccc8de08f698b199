"""Every method on a device, wherever it keeps what it keeps and however the model is sampled: right, without waiting, and with nothing
left behind though the garbage collector is off."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from comfy.patcher_extension import WrappersMP

from skipstone.nodes import dbcache, dicache, easycache, firstblock, magcache, meancache, spectrum, taylorseer, teacache
from skipstone.patch.step.attach import attach
from skipstone.tests.comfy.test_slots import windows
from skipstone.tests.thorough import params

pytestmark = [pytest.mark.usefixtures("no_gc", "user"), pytest.mark.filterwarnings("ignore:::(comfy|torchsde)")]

STEPS = 7
STATIC: dict[str, Any] = {
    "MeanCache": lambda: meancache.method_of("Turbo", calibration="default"),
    "Spectrum": lambda: spectrum.spectrum_of("Custom", warmup=2),
    "TaylorSeer": lambda: taylorseer.taylorseer_of("Turbo"),
    "TaylorSeer at the blocks": lambda: taylorseer.taylorseer_of("Custom", interval=3, warmup=2, level="blocks"),
    "MagCache": lambda: magcache.magcache_of("Custom", warmup=1, threshold=9.0, ratios="Flux"),
}
ADAPTIVE: dict[str, Any] = {
    "EasyCache": lambda: easycache.easycache_of("Custom", threshold=9.0, warmup=1),
    "UCache": lambda: easycache.ucache_of("Custom", threshold=9.0, start_percent=0.0, end_percent=1.0, warmup=1),
    "First Block Cache": lambda: firstblock.firstblock_of("Custom", threshold=9.0, warmup=1),
    "DBCache": lambda: dbcache.dbcache_of("Custom", fn=1, bn=1, threshold=9.0, warmup=1),
    "Cache-DiT": lambda: dbcache.cachedit_of("Custom", fn=1, threshold=9.0, warmup=1),
    "TeaCache": lambda: teacache.teacache_of("Custom", threshold=9.0, warmup=1, polynomial="Flux"),
    "DiCache": lambda: dicache.dicache_of("Custom", threshold=9.0, warmup=1),
}
METHODS = STATIC | ADAPTIVE
# one of each kind: planned, by interval, of the blocks, by threshold
QUICK = ("MeanCache", "Spectrum", "TaylorSeer at the blocks", "First Block Cache", "DBCache", "TeaCache")


@pytest.fixture(scope="module")
def flux(small_flux):
    return small_flux(depth=1, depth_single_blocks=2)


@pytest.fixture
def sampling(studio):
    """How a MODEL is sampled, by name: `sampling["heun"](model)`."""

    def run(model: Any, **how: Any) -> torch.Tensor:
        return studio.sample(model, steps=STEPS, **how)

    return {
        "euler": run,
        "heun": lambda model: run(model, sampler="heun", cfg=1.0),
        "conditionings apart": lambda model: run(model, negative=studio.long_prompt),
        "windows": lambda model: run(windows(model, "standard_static", 3, 8, 4), cfg=1.0),
    }


WAYS = {"euler": torch.bfloat16, "heun": torch.float16, "conditionings apart": torch.float16, "windows": torch.bfloat16}


class Waits:
    """Of each evaluation of a MODEL, what the pack waited for; last what came after the last one began."""

    def __init__(self, device: Any, model: Any) -> None:
        self.device = device
        self.begun: list[int] = []
        self.model = model.clone()
        self.model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "waits", self.begin)

    def begin(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        self.begun.append(len(self.device.syncs))
        out = executor(*args, **kwargs)
        self.end = len(self.device.syncs)
        return out

    def ours(self) -> list[list[str]]:
        spans = zip(self.begun, [*self.begun[1:], self.end], strict=True)
        return [
            [f"{s.kind} in {s.module}:{s.line}" for s in self.device.syncs[a:b] if s.module.startswith("skipstone.")]
            for a, b in spans
        ]


@pytest.mark.parametrize("name", params(METHODS, QUICK))
def test_every_method(flux, sampling, accelerator, name):
    gpu = accelerator()
    memory, pinned = gpu.device.memory, gpu.device.pinned
    models = {dtype: gpu.put(flux, dtype) for dtype in {torch.float32, *WAYS.values()}}
    runs = [(way, dtype, where) for way, dtype in WAYS.items() for where in ("gpu", "cpu")]
    pictures: dict[Any, torch.Tensor] = {}
    for way, dtype, where in [("euler", torch.float32, "auto"), ("euler", torch.float32, "cpu"), *runs]:
        reports: list[Any] = []
        method = replace(METHODS[name](), history_device=where)
        waits = Waits(gpu.device, attach(models[dtype], method, (reports.append,)))
        before = memory.live
        gpu.device.syncs.clear()
        picture = sampling[way](waits.model)
        about, (report,) = f"{name}, {way}, {dtype}, {where}", reports
        assert report.skipped > 0, about
        assert memory.live == before, f"{about}: {memory.live - before} bytes stay behind"
        assert pinned.held == 0, f"{about}: {pinned.held} bytes of page-locked memory stay behind"
        assert not gpu.device.pending, about
        assert picture.isfinite().all(), about
        for found, evaluation in zip(waits.ours(), report.evaluations, strict=True):
            assert len(found) <= (name in ADAPTIVE and evaluation.indicator is not None), f"{about}: {found}"
        # where it is kept changes nothing
        assert torch.equal(pictures.setdefault((way, dtype), picture), picture), about
    model = attach(flux, METHODS[name]())
    gpu.device.__exit__(None, None, None)
    try:
        assert torch.equal(pictures["euler", torch.float32], sampling["euler"](model))
    finally:
        gpu.device.__enter__()
