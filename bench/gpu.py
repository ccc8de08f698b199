"""What the pretend device of tests/accelerator stands for, checked on a real NVIDIA GPU.

make bench-gpu   (at most six minutes; random weights; writes bench-output/gpu.json and gpu.txt)

Each check is a function that returns figures and raises AssertionError where one is not what it should be; one that fails ends no
other. Without a GPU this says so and ends with exit code 0.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rigs import LTXAV, RIGS, Flux, Rig, Wan, randomize

OUTPUT = Path(__file__).resolve().parent.parent / "bench-output"
LIMIT = 340.0  # seconds: no further check is begun
MIB = 1 << 20
LITTLE = 4 << 30  # bytes that are left in the check with little memory
ENCODED = (1024, 1024)  # pixels of the encoded picture

Figures = dict[str, Any]
Check = Callable[[Rig], Figures]
CHECKS: dict[str, tuple[Check, tuple[type[Rig], ...]]] = {}


def check(*rigs: type[Rig]) -> Callable[[Check], Check]:
    """Registers a check, with the models that it is made on: the first of RIGS where none is named."""

    def registered(function: Check) -> Check:
        CHECKS[function.__name__] = (function, rigs or RIGS[:1])
        return function

    return registered


def methods(rig: Rig) -> dict[str, Any]:
    """Static ones and adaptive ones, of both levels; those of them that the model is checked with."""
    from skipstone.core.step.indicators.blocks import FirstBlockChange
    from skipstone.core.step.method import Blocks, Method
    from skipstone.core.step.policies import Interval, Threshold, Warmup
    from skipstone.core.step.predictors import Linear, Reuse, Taylor

    static = {
        "blocks, reuse": Method("Every", "3", (Interval(1, 3),), Reuse(), blocks=Blocks(1, 0, "none")),
        "blocks, line": Method("Every", "3", (Interval(2, 3),), Linear(), blocks=Blocks(1, 0, "none")),
        "blocks, taylor": Method("Every", "3", (Interval(3, 3),), Taylor(2), blocks=Blocks(1, 0, "none")),
        "output, line": Method("Every", "3", (Interval(2, 3),), Linear()),
    }
    adaptive = {
        "blocks, first block": Method(
            "Below", "9", (Warmup(2), Threshold(9.0)), Reuse(), indicator=FirstBlockChange(), blocks=Blocks(1, 0)
        )
    }
    every = {**static, **adaptive}
    return {name: every[name] for name in rig.methods or every}


@contextmanager
def without_gc() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@check(*RIGS)
def equal_wherever_it_is_kept(rig: Rig) -> Figures:
    """A run without skips is the plain one, as far as that equals itself; residuals in main memory change nothing. All methods skip."""
    plain = rig.run(None)[0]
    noise = float((rig.run(None)[0] - plain).abs().max())
    from skipstone.core.step.policies import Warmup

    never = replace(methods(rig)["blocks, taylor"], policies=(Warmup(1000),))
    off = float((rig.run(never)[0] - plain).abs().max())
    found = {"plain against itself": noise, "never skipping against plain": off}
    for name, method in methods(rig).items():
        runs = [rig.run(replace(method, history_device=d)) for d in ("gpu", "cpu", "auto")]
        assert all(report.skipped for _, report, _ in runs), (name, [report.notes for _, report, _ in runs])
        found[name] = max(float((latent - runs[0][0]).abs().max()) for latent, _, _ in runs[1:])
    assert off <= noise and all(v <= noise for k, v in found.items() if k in methods(rig)), found
    return found


@check()
def no_waits_in_the_loop(rig: Rig) -> Figures:
    """PyTorch's own debug mode raises at what has the host wait, but for ComfyUI's own."""
    import warnings

    from comfy.patcher_extension import WrappersMP

    found: Figures = {}
    for name, method in methods(rig).items():
        from skipstone.patch.step.attach import attach

        reports: list[Any] = []
        model = attach(rig.model, method, (reports.append,))
        ours: list[str] = []

        def inside(executor: Any, *args: Any, ours: list[str] = ours, **kwargs: Any) -> Any:
            torch.cuda.set_sync_debug_mode("warn")
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                out = executor(*args, **kwargs)
            torch.cuda.set_sync_debug_mode("default")
            ours += [f"{w.filename}:{w.lineno}" for w in caught if "skipstone" in w.filename]
            return out

        model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "bench", inside)
        rig.sample(model)
        asked = sum(e.indicator is not None for e in reports[0].evaluations)
        found[name] = {"waits": len(ours), "indicator asked": asked, "where": sorted(set(ours))}
        assert len(ours) <= asked, found[name]
    return found


@check(*RIGS)
def device_memory(rig: Rig) -> Figures:
    """Bytes above the plain run's at the peak, against those that ComfyUI was told of; none after the run (gc off)."""
    import comfy.sampler_helpers

    told: list[float] = []
    prepare = comfy.sampler_helpers._prepare_sampling

    def look(model: Any, shape: Any, *args: Any, **kwargs: Any) -> Any:
        told.append(shape[0] * model.memory_required([1, *shape[1:]]))
        return prepare(model, shape, *args, **kwargs)

    def used(method: Any) -> tuple[float, int, int]:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        rig.run(method)
        return told.pop(), torch.cuda.max_memory_allocated() - before, torch.cuda.memory_allocated() - before

    found: Figures = {}
    comfy.sampler_helpers._prepare_sampling = look
    try:
        with without_gc():
            used(None)
            plain = used(None)
            for name, method in methods(rig).items():
                cached = used(replace(method, history_device="gpu"))
                found[name] = {
                    "told MiB": round((cached[0] - plain[0]) / MIB, 1),
                    "peak MiB": round((cached[1] - plain[1]) / MIB, 1),
                    "left bytes": cached[2],
                }
    finally:
        comfy.sampler_helpers._prepare_sampling = prepare
    for name, row in found.items():
        assert row["left bytes"] == 0, (name, row)
        assert row["peak MiB"] <= row["told MiB"] + 1, (name, row)
    return found


@check()
def page_locked_memory(rig: Rig) -> Figures:
    """What is locked at the peak and after a run, and how fast it is copied."""
    stats = getattr(torch.cuda, "host_memory_stats", None)
    method = replace(methods(rig)["blocks, taylor"], history_device="cpu")
    rig.run(method)
    found: Figures = {}
    if stats is not None:
        found["peak MiB"] = round(stats().get("allocated_bytes.peak", 0) / MIB, 1)
        found["after MiB"] = round(stats().get("allocated_bytes.current", 0) / MIB, 1)
    value = torch.ones(387 * MIB, dtype=torch.bfloat16, device=rig.cuda)
    from skipstone.core.step.history import History, HostMemory

    memory = HostMemory()
    kept = History(torch.device("cpu"), memory)
    for name in ("first copy", "second copy"):
        torch.cuda.synchronize()
        began = time.perf_counter()
        kept.observe(0, value, ())
        torch.cuda.synchronize()
        found[f"{name} to the host GB/s"] = round(value.nbytes / (time.perf_counter() - began) / 1e9, 1)
    began = time.perf_counter()
    back = kept.combine({0: 0.5}, rig.cuda)
    torch.cuda.synchronize()
    found["prediction from the host GB/s"] = round(value.nbytes / (time.perf_counter() - began) / 1e9, 1)
    assert bool((back == 0.5).all())
    kept.clear()
    memory.close()
    if stats is not None:
        assert stats().get("allocated_bytes.current", 0) <= MIB, found
    return found


@check(Flux, LTXAV)
def reported_times(rig: Rig) -> Figures:
    """Reported speed-ups against those of the clock, within 3%."""
    rig.run(None)
    plain = min(rig.run(None)[2] for _ in range(3))
    found: Figures = {}
    for name, method in methods(rig).items():
        runs = [rig.run(method) for _ in range(3)]
        _, report, seconds = min(runs, key=lambda r: r[2])
        true = plain / seconds
        found[name] = {
            "true": round(true, 3),
            "reported": round(report.speedup, 3),
            "deciding ms": round(report.deciding * 1000, 2),
        }
    assert all(abs(f["reported"] / f["true"] - 1) <= 0.03 for f in found.values()), found
    return found


@check()
def knowing_a_model_again(rig: Rig) -> Figures:
    """Milliseconds for 1,000 weights, on the GPU and the CPU, plain and quantized."""
    from types import SimpleNamespace

    from comfy import quant_ops

    from skipstone.patch.step.model_fingerprint import fingerprint

    found: Figures = {}
    for device in ("cpu", "cuda"):
        for layout in (None, "TensorCoreFP8Layout", "TensorCoreNVFP4Layout", "TensorCoreMXFP8Layout"):
            weight = torch.randn(512, 512, device=device).to(torch.bfloat16)
            network: Any = torch.nn.Module()
            try:
                for i in range(1000):
                    stored = weight if layout is None else quant_ops.QuantizedTensor.from_float(weight, layout)
                    network.register_parameter(f"w{i}", torch.nn.Parameter(stored, requires_grad=False))
            except Exception as error:
                found[f"{layout} on {device}"] = f"cannot be made: {error}"
                continue
            model: Any = torch.nn.Module()
            model.diffusion_model = network
            patcher = SimpleNamespace(model=model, patches={}, patches_uuid=1, backup={}, hook_backup={})
            times = []
            for _ in range(2):
                began = time.perf_counter()
                fingerprint(patcher)
                times.append(round((time.perf_counter() - began) * 1000, 1))
            found[f"{layout or 'plain'} on {device}"] = {"first": times[0], "again": times[1]}
            assert times[1] < 50, found
    return found


@check(Flux, Wan)
def compiled(rig: Rig) -> Figures:
    """Compile Model+, default and reduce-overhead: equal within 1% to the same method without it, in two runs each."""
    from skipstone.core.compile_options import EACH_BLOCK, Settings
    from skipstone.patch.compile.model import compile_model
    from skipstone.patch.step.attach import attach

    method = methods(rig)["blocks, first block"]
    expected = rig.run(method)[0]
    found: Figures = {}
    for mode in ("default", "reduce-overhead"):
        model = attach(compile_model(rig.model, Settings(EACH_BLOCK, mode=mode)), method)
        for i in (1, 2):
            torch.cuda.synchronize()
            began = time.perf_counter()
            out = rig.sample(model)
            torch.cuda.synchronize()
            found[f"{mode}, run {i}"] = round(time.perf_counter() - began, 2)
            assert bool(out.isfinite().all())
        del model
        found[f"{mode}, change"] = round(float((out - expected).norm() / expected.norm()), 4)
        assert found[f"{mode}, change"] < 0.01, found
    return found


@check()
def memory_that_runs_out(rig: Rig) -> Figures:
    """A real out-of-memory error in a computed evaluation: the run goes on, and nothing is left."""
    from skipstone.patch.blocks.hook import OOM

    method = replace(methods(rig)["blocks, line"], history_device="gpu")
    rig.run(method)
    torch.cuda.empty_cache()
    before, calls = torch.cuda.memory_allocated(), []
    layer = rig.model.model.diffusion_model.single_blocks[2]

    def short(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            torch.cuda.empty_cache()
            torch.empty(1 << 50, dtype=torch.uint8, device=rig.cuda)  # more than any GPU has

    handle = layer.register_forward_pre_hook(short)
    try:
        picture, report, _ = rig.run(method)
    finally:
        handle.remove()
    del picture
    assert OOM in report.notes, report.notes
    assert torch.cuda.memory_allocated() <= before
    return {"notes": report.notes}


@check()
def little_memory(rig: Rig) -> Figures:
    """With little memory left and both passes of CFG: runs finish, and what is kept goes where there is room for it."""
    from comfy.patcher_extension import WrappersMP

    calls: list[int] = []

    def count(executor: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(len(x))
        return executor(x, *args, **kwargs)

    plain = rig.model
    rig.model = plain.clone()
    rig.model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "bench", count)
    found: Figures = {}
    try:
        for room in (None, LITTLE):
            torch.cuda.empty_cache()
            free, _ = torch.cuda.mem_get_info()
            ballast = None if room is None else torch.empty(max(free - room, 0), dtype=torch.uint8, device=rig.cuda)
            for name in ("blocks, taylor", "output, line"):
                calls.clear()
                picture, report, seconds = rig.run(replace(methods(rig)[name], history_device="auto"), cfg=3.0)
                assert bool(picture.isfinite().all()) and report.finished, name
                found[f"{name}, {'all of it' if room is None else f'{room >> 20} MiB'}"] = {
                    "seconds": round(seconds, 2),
                    "calls": len(calls),
                    "largest batch": max(calls),
                    "skipped": report.skipped,
                    "notes": report.notes,
                }
            del ballast
    finally:
        rig.model = plain
    return found


def encoders() -> tuple[Any, Any]:
    """A CLIP-L and Stable Diffusion's VAE with random weights."""
    import comfy.sd
    from comfy import sd1_clip, supported_models_base
    from comfy.ldm.models.autoencoder import AutoencoderKL

    shape = {
        "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
        "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0,
    }  # fmt: skip
    made = AutoencoderKL(ddconfig=shape, embed_dim=4)
    clip = comfy.sd.CLIP(supported_models_base.ClipTarget(sd1_clip.SD1Tokenizer, sd1_clip.SD1ClipModel))
    for seed, network in enumerate((made, clip.cond_stage_model)):
        randomize(network, seed, torch.device("cpu"))
    return clip, comfy.sd.VAE(sd=made.state_dict())


@check()
def encoded_values(rig: Rig) -> Figures:
    """A hit from every tier is equal to the bit to the value that was computed, and draws no random numbers. Whether encoding twice, or in
    a larger batch, gives equal bits is reported and not checked: it depends on ComfyUI and the device."""
    import tempfile

    from skipstone.core.memo.store import Store
    from skipstone.core.memo.tiers.disk import DiskTier
    from skipstone.core.memo.tiers.memory import MemoryTier
    from skipstone.patch.memo import instance
    from skipstone.patch.memo.encoders import memo_clip, memo_vae

    clip, vae = encoders()
    pixels = torch.rand(4, *ENCODED, 3, generator=torch.Generator().manual_seed(3))
    jobs: dict[str, Callable[[Any, Any, int], Any]] = {
        "picture": lambda clip, vae, batch: vae.encode(pixels[:batch]),
        "text": lambda clip, vae, batch: clip.encode_from_tokens(clip.tokenize("a red apple on a table")),
    }
    found: Figures = {}
    for name, job in jobs.items():
        twice = [job(clip, vae, 1) for _ in range(2)]
        found[f"{name}, equal when encoded twice"] = bool(torch.equal(*twice))
    found["picture, equal in a batch of 4"] = bool(
        torch.equal(jobs["picture"](clip, vae, 4)[:1], vae.encode(pixels[:1]))
    )
    with tempfile.TemporaryDirectory() as folder:
        for tier in (MemoryTier(1 << 30, reserve=0), DiskTier(Path(folder), 1 << 30)):
            store = Store([tier])
            instance.set_store(store)
            assert store.ready(30)  # a tier that does not serve yet is a miss
            try:
                kept = memo_clip(clip), memo_vae(vae)
                for name, job in jobs.items():
                    torch.cuda.synchronize()
                    before, times, values = torch.cuda.get_rng_state(rig.cuda), [], []
                    for _ in range(2):
                        began = time.perf_counter()
                        values.append(job(*kept, 1))
                        times.append(round((time.perf_counter() - began) * 1000, 1))
                        assert store.flush(30)  # what was computed is written in the background
                    told = store.stats.as_dict()
                    found[f"{name}, {type(tier).__name__}"] = {"computed ms": times[0], "hit ms": times[1]}
                    assert torch.equal(*values), name
                    assert torch.equal(before, torch.cuda.get_rng_state(rig.cuda)), name
                    assert sum(kind["hits"] for kind in told["kinds"].values()) > 0, told
            finally:
                instance.set_store(None)
                store.close()
    return found


@check()
def halves(rig: Rig) -> Figures:
    """float16 sums stay finite, and the precision switch by its new name keeps no model from being known."""
    from skipstone.core.step.history import History
    from skipstone.patch.memo.environment import environment_digest

    kept = History()
    for i, value in enumerate((44000.0, 45000.0)):
        kept.observe(i, torch.full((4,), value, dtype=torch.float16, device=rig.cuda), range(9))
    found = kept.combine({0: -0.65, 1: 1.65}, rig.cuda).tolist()
    assert found == [45632.0] * 4, found
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):
        before = matmul.fp32_precision
        matmul.fp32_precision = "tf32"
        environment_digest(rig.cuda)
        matmul.fp32_precision = before
    return {"sum": found[0]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], help=f"of {', '.join(CHECKS)}")
    wanted = parser.parse_args().only
    if not torch.cuda.is_available():
        print("bench-gpu: there is no NVIDIA GPU here, and nothing is checked")
        return 0
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    sys.argv = sys.argv[:1]  # ComfyUI reads its own options from there
    import comfy.model_management

    began = time.perf_counter()
    results: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "dynamic VRAM": bool(getattr(comfy.memory_management, "aimdo_enabled", False)),
        "checks": {},
    }
    for made in RIGS:
        rig: Rig | None = None
        comfy.model_management.unload_all_models()
        for name, (function, rigs) in CHECKS.items():
            if made not in rigs or (wanted and name not in wanted):
                continue
            row = f"{name}, {made.__name__}" if made is not RIGS[0] else name
            if time.perf_counter() - began > LIMIT:
                results["checks"][row] = {"result": "not run", "why": "no time was left"}
                continue
            if rig is None:
                with torch.inference_mode():
                    rig = made()
            results["checks"][row] = outcome(function, rig)
            write(results)
    print(write(results))
    return int(any(row["result"] == "wrong" for row in results["checks"].values()))


def outcome(function: Check, rig: Rig) -> dict[str, Any]:
    """What became of a check, with its figures or why it failed."""
    started = time.perf_counter()
    row: dict[str, Any] = {"result": "right"}
    try:
        row["figures"] = function(rig)
    except Exception as error:
        row |= {"result": "wrong", "why": str(error) or type(error).__name__, "trace": traceback.format_exc()}
    row["seconds"] = round(time.perf_counter() - started, 1)
    return row


def write(results: dict[str, Any]) -> str:
    OUTPUT.mkdir(exist_ok=True)
    (OUTPUT / "gpu.json").write_text(json.dumps(results, indent=1, default=str) + "\n", "utf-8")
    lines = [
        f"{results['gpu']}, torch {results['torch']}, dynamic VRAM {'on' if results['dynamic VRAM'] else 'off'}",
        "",
    ]
    for name, row in results["checks"].items():
        lines.append(f"{row['result']:8} {name.replace('_', ' ')} ({row.get('seconds', 0)} s)")
        lines += [f"         {row['why']}"] if "why" in row else []
        lines += [f"         {key}: {value}" for key, value in row.get("figures", {}).items()]
    text = "\n".join(lines)
    (OUTPUT / "gpu.txt").write_text(text + "\n", "utf-8")
    return text


if __name__ == "__main__":
    raise SystemExit(main())
