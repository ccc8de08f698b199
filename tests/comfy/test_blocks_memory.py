"""Memory of block-level methods: device, size, the reservation made with ComfyUI, and behaviour when memory runs out."""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.sampler_helpers
import pytest
import torch
from comfy.patcher_extension import WrappersMP

from skipstone.core.step.history import History
from skipstone.core.step.report.report import Report
from skipstone.patch.blocks.hook import ELSEWHERE, NO_MORE, OOM, BlockHook
from skipstone.patch.blocks.resolver import block_support_of
from skipstone.patch.step.attach import attach
from skipstone.patch.step.sigmas import SigmaReader
from skipstone.tests.comfy import zoo
from skipstone.tests.comfy.block_observer import (
    Raises,
    every,
    inner_part,
    insides,
    last_part,
    outer_part,
    sample,
    untouched,
)
from skipstone.tests.comfy.test_slots import windows

STEPS = 6


@pytest.fixture(scope="module")
def flux(small_flux):
    """A MODEL of 2 + 3 blocks."""
    return small_flux(depth=2, depth_single_blocks=3)


@pytest.fixture(params=["flux", "unet"])
def model(request, flux, tiny_unet):
    return flux if request.param == "flux" else tiny_unet


def on_a_gpu(model):
    """As a test has it: on another device than the host, as PyTorch sees it."""
    other = model.clone()
    other.load_device = torch.device("cpu", 0)
    return other


def oom():
    return torch.OutOfMemoryError("no memory, as a test has it")


@pytest.fixture(autouse=True)
def histories(monkeypatch):
    """Those that are alive."""
    made: weakref.WeakSet[History] = weakref.WeakSet()
    begin = History.__init__

    def init(self, *args):
        begin(self, *args)
        made.add(self)

    monkeypatch.setattr(History, "__init__", init)
    return made


def held_by(histories):
    """Those that hold on to something."""
    return [h for h in histories if h.anchors]


def held(histories):
    """Values that they hold on to."""
    return [value for h in histories for value in h.anchors.values()]


@pytest.mark.parametrize("where", [outer_part, last_part], ids=["before the decision", "after it"])
def test_memory_that_runs_out_in_a_skipped_step(studio, model, cached, where, histories):
    """It is computed in full, with nothing kept: here the picture is the unpatched model's."""
    patched, reports = cached(every(2), model)
    plain, holding = sample(studio, model, steps=3), []
    with Raises(where(model), 2, oom()) as raises:
        watch = where(model).register_forward_pre_hook(lambda *_: holding.append(len(held(histories))))
        out = sample(studio, patched, steps=3)
        watch.remove()
    assert torch.equal(out, plain)
    assert raises.calls == 4
    assert holding[1] == 0  # of the calls that came through: the second try of the second step
    assert [e.computed for e in reports[0].evaluations] == [True, True, True]
    assert reports[0].evaluations[1].reason == ("history" if where is outer_part else "memory")
    assert reports[0].notes[0] == OOM


def test_memory_that_runs_out_after_another_batch_was_predicted(studio, flux, cached):
    """The evaluation stays a skipped one in the report: its first conditioning was predicted. The next one is computed."""
    patched, reports = cached(every(3), flux)
    with Raises(last_part(flux), 4, oom()) as raises:  # two batches a step: the second one of the second step
        out = studio.sample(patched, negative=studio.long_prompt, steps=4)
    assert raises.calls == 8 + 1
    assert torch.isfinite(out).all()
    assert [e.computed for e in reports[0].evaluations] == [True, False, True, True]
    assert reports[0].evaluations[2].reason == "history"
    assert reports[0].notes[0] == OOM


def test_memory_that_runs_out_in_a_computed_step(studio, model, cached):
    patched, reports = cached(every(2), model)
    with Raises(inner_part(model), 2, oom()):
        assert torch.isfinite(sample(studio, patched, steps=6)).all()
    # the third step is computed in full, and as nothing is left to skip with, so is the one after it
    assert [e.computed for e in reports[0].evaluations] == [True, False, True, True, True, True]
    assert reports[0].evaluations[3].reason == "history"
    assert reports[0].notes == [OOM, ELSEWHERE]


@pytest.mark.parametrize("device", ["auto", "gpu"])
def test_after_memory_has_run_out_residuals_go_to_main_memory(studio, flux, cached, histories, device):
    """Wherever they were to be kept."""
    model = on_a_gpu(flux)
    patched, reports = cached(every(2, history_device=device), model)
    kept: list[Any] = []

    def callback(step, *_):
        kept.append({h.device for h in held_by(histories)})

    with Raises(inner_part(model), 3, oom()):
        studio.sample(patched, steps=10, cfg=1.0, callback=callback)
    assert kept[0] == ({None} if device == "auto" else {model.load_device})
    assert kept[-2] == {torch.device("cpu")}
    assert reports[0].notes == [OOM, ELSEWHERE]
    assert [e.computed for e in reports[0].evaluations[-4:]] == [True, False, True, True]


def test_memory_that_runs_out_again(studio, model, cached, histories):
    """Nothing is kept any longer then, rather than have every step run twice."""
    patched, reports = cached(every(2), model)
    kept: list[int] = []
    # in the third step and in the fifth; the second of them does not see the call in which the first raises
    with Raises(inner_part(model), 2, oom()), Raises(inner_part(model), 4, oom()) as raises:
        out = sample(studio, patched, steps=9, callback=lambda *_: kept.append(len(held(histories))))
    assert reports[0].notes[:3] == [OOM, ELSEWHERE, NO_MORE]
    assert [n for n, e in enumerate(reports[0].evaluations) if not e.computed] == [1]
    assert kept[4:] == [0] * 5
    assert raises.calls == 8 + 1
    assert torch.isfinite(out).all()


def test_memory_that_runs_out_without_our_doing(studio, flux, cached):
    """The second try fails as well: the error is the user's to see, and nothing stays behind."""
    patched, reports = cached(every(2), flux)
    before = insides(flux)

    def always(*_):
        raise oom()

    handle = inner_part(flux).register_forward_pre_hook(always)
    with pytest.raises(torch.OutOfMemoryError):
        studio.sample(patched, steps=3)
    handle.remove()
    untouched(before, insides(flux))
    assert not reports[0].finished


def test_a_controlnets_lists_are_whole_again_for_the_second_try(studio, tiny_unet, cached):
    """A UNet pops from them."""

    def controlled(apply, given):
        control = {
            "input": [],
            "middle": [torch.full((1, 64, 4, 4), 0.3)],
            "output": [torch.full((1, 32, 8, 8), 0.2)] + [None] * 3,
        }
        return apply(given["input"], given["timestep"], **{**given["c"], "control": control})

    model = tiny_unet.clone()
    model.set_model_unet_function_wrapper(controlled)
    plain = sample(studio, model, steps=3)
    assert not torch.equal(plain, sample(studio, tiny_unet, steps=3))
    with Raises(last_part(model), 2, oom()):
        assert torch.equal(sample(studio, cached(every(2), model)[0], steps=3), plain)


def free(monkeypatch, amount):
    monkeypatch.setattr(
        comfy.model_management,
        "get_free_memory",
        lambda dev=None, torch_free_too=False: (amount, amount) if torch_free_too else amount,
    )


def test_what_is_kept_of_a_conditioning_holds_on_to_no_other(studio, model, cached, histories):
    """Two are run together: a part of what they gave would keep the whole of it."""
    kept: list[Any] = []
    callback = lambda *_: kept.extend((v.nbytes, v.untyped_storage().nbytes()) for v in held(histories))  # noqa: E731
    sample(studio, cached(every(2), model)[0], callback=callback)
    assert len(kept) == 2 * STEPS
    assert all(own == whole for own, whole in kept)


@pytest.mark.parametrize(
    ("name", "suffix", "tokens"),
    [
        ("Flux (Kontext)", 0, {12}),
        ("Flux (Kontext)", 1, {12 + 12 + 5, 12 + 12 + 7}),  # blocks after the last that is left out read everything
        ("QwenImage (Edit)", 0, {12}),
        ("Lumina2 (Z-Image, references)", 0, {16}),  # filled up to a multiple of 8
        ("AuraFlow", 0, {12}),
    ],
)
def test_only_what_is_read_is_kept(name, suffix, tokens, histories):
    """Text and reference pictures are read by no one after the last block."""
    tiny = next((m for m in zoo.MODELS if m.name == name), None)
    if tiny is None or not hasattr(comfy.model_base, tiny.base):
        pytest.skip("this ComfyUI has no such model")
    kept: set[int] = set()

    def predict_noise(executor, *args, **kwargs):
        out = executor(*args, **kwargs)
        kept.update(v.shape[1] for v in held(histories))
        return out

    model = tiny.build()
    patched = attach(model, every(2, 1, suffix))
    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "look", predict_noise)
    with torch.inference_mode():
        zoo.sample(tiny, patched, *tiny.conds(model), steps=3)
    assert kept == tokens


def test_main_memory_is_not_where_the_model_is_offloaded_to(studio, flux, cached, histories):
    """With --highvram that is its GPU."""
    model = flux.clone()
    model.offload_device = torch.device("cpu", 0)  # another one, as PyTorch sees it
    patched, _ = cached(every(2, history_device="cpu"), model)
    devices: list[Any] = []
    studio.sample(patched, steps=4, cfg=1.0, callback=lambda *_: devices.extend(h.device for h in histories))
    assert devices and all(d == torch.device("cpu") and d.index is None for d in devices)


@pytest.mark.parametrize("device", ["auto", "gpu", "cpu"])
def test_where_residuals_are_kept_changes_nothing(studio, model, cached, device):
    plain = sample(studio, cached(every(2), model)[0])
    patched, reports = cached(every(2, history_device=device), model)
    assert torch.equal(sample(studio, patched), plain)
    assert reports[0].notes == []


def test_where_there_is_no_room_for_them_they_go_to_main_memory(studio, model, cached, monkeypatch, histories):
    plain = sample(studio, cached(every(2), model)[0], cfg=1.0)
    free(monkeypatch, 1 << 10)
    patched, reports = cached(every(2), on_a_gpu(model))
    devices: list[Any] = []
    out = sample(studio, patched, cfg=1.0, callback=lambda step, *_: devices.extend(h.device for h in histories))
    torch.testing.assert_close(out, plain)
    assert set(devices) == {model.offload_device}
    assert reports[0].notes == [ELSEWHERE]


def test_a_model_on_the_cpu_has_nowhere_else_to_keep_them(studio, flux, cached, monkeypatch):
    free(monkeypatch, 1 << 10)
    patched, reports = cached(every(2), flux)
    sample(studio, patched)
    assert reports[0].notes == []


def test_what_has_room_stays_and_what_has_none_goes(studio, flux, cached, monkeypatch, histories):
    """Of three windows' residuals two fit."""
    patched, reports = cached(every(2), windows(on_a_gpu(flux), "standard_static", 3, 8, 4))
    kept: list[Any] = []

    def callback(step, *_):
        if step == 0:
            kept.extend((h.device, sum(v.nbytes for v in h.anchors.values())) for h in histories)

    plain = studio.sample(patched, steps=STEPS, cfg=1.0, callback=callback)
    assert [device for device, _ in kept] == [None] * 3
    smallest, _, largest = sorted(size for _, size in kept)
    assert largest < 1.5 * smallest
    free(monkeypatch, 5 * smallest // 2)  # less than ComfyUI was told of
    kept.clear()
    torch.testing.assert_close(studio.sample(patched, steps=STEPS, cfg=1.0, callback=callback), plain)
    assert sorted(str(device) for device, _ in kept) == ["None", "None", "cpu"]
    assert [r.notes for r in reports] == [[], [ELSEWHERE]]


def test_windows_that_move_on_let_their_residuals_go(studio, flux, cached, histories):
    patched, _ = cached(every(1), windows(flux, "standard_uniform"))
    calls: list[int] = []
    counts: list[tuple[int, int]] = []

    def callback(*_):
        counts.append((len(held(histories)), len(calls)))
        calls.clear()

    handle = flux.model.diffusion_model.register_forward_pre_hook(lambda *_: calls.append(1))
    studio.sample(patched, cfg=1.0, steps=8, callback=callback)
    handle.remove()
    assert all(kept == windows > 1 for kept, windows in counts)


@pytest.mark.parametrize("name", ["Flux", "WAN21", "HiDreamO1", "LTXAV", "BaseModel (SD 1)"])
def test_comfyui_is_told_of_the_residuals_size_before_the_run(name, monkeypatch, histories):
    """It makes room for them, as for a larger batch; for those that go to main memory it need not."""
    tiny = next((m for m in zoo.MODELS if m.name == name), None)
    if tiny is None or not hasattr(comfy.model_base, tiny.base):
        pytest.skip("this ComfyUI has no such model")
    told: list[float] = []
    sizes: list[int] = []
    prepare = comfy.sampler_helpers._prepare_sampling

    def look(model, noise_shape, *args, **kwargs):
        told.append(noise_shape[0] * model.memory_required([1, *noise_shape[1:]]))
        return prepare(model, noise_shape, *args, **kwargs)

    def predict_noise(executor, *args, **kwargs):
        out = executor(*args, **kwargs)
        sizes.append(sum(v.nbytes for v in held(histories)))
        return out

    model = tiny.build()
    conds = tiny.conds(model)
    model.model.memory_usage_factor = 1e-6  # what tiny models take, beside which their residuals are something
    monkeypatch.setattr(comfy.sampler_helpers, "_prepare_sampling", look)
    for patched in (attach(model, every(2)), attach(model, every(2, history_device="cpu")), model):
        clone = patched.clone()
        clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "look", predict_noise)
        with torch.inference_mode():
            zoo.sample(tiny, clone, *conds, steps=4)
    auto, cpu, plain = told
    assert cpu == plain
    assert 0.4 < (auto - plain) / max(sizes) < 2.5


@pytest.fixture
def told(flux, monkeypatch):
    """The bytes that are reserved with ComfyUI: `told(model)`."""

    def ask(model=flux, conds=None, unused="", device=None):
        reach = block_support_of(every(2), model.model.diffusion_model)
        run: Any = SimpleNamespace(device=device, trajectory=SimpleNamespace(anchors=1))
        hook = BlockHook(run, SigmaReader(None, [1.0, 0.0]), reach, None)
        hook.unused = unused
        monkeypatch.setattr(model.model, "memory_usage_factor", 1e-6)
        shape = hook.prepare_sampling(
            lambda _, shape, conds: shape, model, [1, 16, 16, 16], conds or {"positive": [{}]}
        )
        assert (shape[0] > 1) == (hook.told > 0)
        return hook.told

    return ask


def test_comfyui_is_told_of_residuals_that_are_to_stay_on_the_gpu(told):
    assert told(device=torch.device("cuda")) == told() > 0
    assert told(device=torch.device("cpu")) == 0


def test_comfyui_is_told_of_streams_and_not_of_quantized_weights(told, flux, monkeypatch):
    """Weights in float8 are cast as they are used: what flows through the blocks is twice as wide."""
    full = told()
    monkeypatch.setattr(flux.model, "manual_cast_dtype", torch.bfloat16)
    monkeypatch.setattr(flux.model.diffusion_model, "dtype", torch.float8_e4m3fn)
    assert told() == full // 2  # from float32


def test_comfyui_is_not_told_of_conditionings_that_do_not_run(told):
    both: dict[str, list[dict[str, Any]]] = {"positive": [{}], "negative": [{}]}
    assert told(conds=both) == 2 * told(conds=both, unused="negative")


def test_nothing_is_reserved_for_a_model_on_several_gpus(told, flux):
    """There nothing is skipped at block level."""
    spread = flux.clone()
    spread.set_additional_models("multigpu", [flux.clone()])
    assert told(spread) == 0 < told()


def memory_of(free):
    return SimpleNamespace(get_free_memory=free)


def no_memory(device):
    raise RuntimeError("no such device, as a test has it")


@pytest.mark.parametrize(
    ("patcher", "free", "where"),
    [
        (memory_of(lambda device: 1000), 0, None),  # the patcher counts weights that can be moved out
        (memory_of(lambda device: 90), 1000, "cpu"),
        (memory_of(lambda device: 0), 1000, "cpu"),
        (memory_of(no_memory), 1000, "cpu"),
        (None, 1000, None),
        (None, 90, "cpu"),
    ],
)
def test_what_comfyui_made_room_for_has_room(flux, monkeypatch, patcher, free, where):
    """Reserved memory stays on the device of the model, even if it is more than a quarter of the free memory."""
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda device: free)
    run: Any = SimpleNamespace(
        device=None, trajectory=SimpleNamespace(anchors=1), histories={}, report=Report("", "", 1)
    )
    hook = BlockHook(run, SigmaReader(None, [1.0, 0.0]), block_support_of(every(2), flux.model.diffusion_model), None)
    hook.patcher, hook.told = patcher, 200
    hook.choose_device(torch.device("cpu"), [torch.zeros(50)], [])
    assert run.device == (where and torch.device(where))
    assert run.report.notes == ([ELSEWHERE] if where else [])
