"""A static method costs no host sync, an adaptive one at most one an evaluation (law 8), and no sigma is ever guessed wrong.

There is no GPU here. What would wait for one is counted where it is asked for, and the copy that arrives without waiting is
played by fakes: at once, late, never, or wrong.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from types import FrameType, FunctionType
from typing import Any

import comfy.samplers
import folder_paths
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import skipstone.patch.step.sigmas
from skipstone.core.step.policies import StepMask
from skipstone.nodes.easycache import easycache_of, ucache_of
from skipstone.nodes.meancache import method_of
from skipstone.nodes.spectrum import spectrum_of
from skipstone.nodes.taylorseer import taylorseer_of
from skipstone.patch.step.samplers import evaluated_sigmas

pytestmark = pytest.mark.filterwarnings("ignore:::(comfy|torchsde)")  # their own, and none of ours

STEPS = 10
KNOWN = ["euler", "dpmpp_2m", "res_multistep", "heun", "euler_ancestral"]
MASK = StepMask(tuple(i not in (4, 5, 7) for i in range(STEPS)))
STATIC: dict[str, Any] = {
    "MeanCache": lambda: method_of("Turbo"),
    "MeanCache without costs": lambda: method_of("Turbo", calibration="off"),
    "MeanCache as released": lambda: method_of(
        "Custom", schedule="Z-Image 13", predictor="average velocity (released)"
    ),
    "MeanCache by JVP": lambda: method_of("Custom", budget=0.5, predictor="average velocity (paper)"),
    "Spectrum": lambda: spectrum_of("Turbo"),
    "Spectrum as in stable-diffusion.cpp": lambda: spectrum_of("stable-diffusion.cpp"),
    "TaylorSeer": lambda: taylorseer_of("Turbo"),
    "TaylorSeer as published": lambda: taylorseer_of("as published"),
    "EasyCache with a static mask": lambda: easycache_of("Custom", threshold=0.1, warmup=0, step_mask=MASK),
}
ADAPTIVE: dict[str, Any] = {
    "EasyCache": lambda: easycache_of("Turbo"),
    "EasyCache as published": lambda: easycache_of("as published"),
    "EasyCache as in ComfyUI": lambda: easycache_of("as in ComfyUI"),
    "EasyCache with a dynamic mask": lambda: easycache_of("Turbo", step_mask=StepMask(MASK.steps, policy="dynamic")),
    "UCache": lambda: ucache_of("Turbo"),
    "UCache in absolute numbers": lambda: ucache_of("Custom", threshold=0.5, relative=False),
}


# counting

# what reads a device's value on the host, as the dispatcher calls it; and what does so unseen by the dispatcher of a CPU
WAITS_BELOW = {
    "_local_scalar_dense",
    "equal",
    "is_nonzero",
    "nonzero",
    "masked_select",
    "unique",
    "_unique2",
    "allclose",
}
WAITS_ABOVE = {"tolist", "numpy", "cpu", "__array__", "synchronize"}


def ours():
    """Is whoever has just called into torch a function of the pack? Then it is the pack that waits, and not ComfyUI."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if not module.startswith("torch") and module != __name__:
            # Readback reads at once what is on the host, and never waits for a device: tests/core/test_readback.py
            return module.startswith("skipstone.") and module != "skipstone.core.step.readback"
        if module == __name__ and frame.f_code.co_name not in ("__torch_dispatch__", "__torch_function__", "ours"):
            return False  # one of the fakes
        frame = frame.f_back
    return False


def masks(args):
    """Does an indexing go by a mask? How many elements that takes only the device knows."""
    lists = [a for a in args if isinstance(a, list | tuple)]
    return any(isinstance(t, torch.Tensor) and t.dtype == torch.bool for indices in lists for t in indices)


class Below(TorchDispatchMode):
    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if (name in WAITS_BELOW or (name.startswith("index") and masks(args))) and ours():
            self.found.append(name)
        return func(*args, **(kwargs or {}))


class Above(TorchFunctionMode):
    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in WAITS_ABOVE and ours():
            self.found.append(func.__name__)
        return func(*args, **(kwargs or {}))


def counted(model):
    """A clone of a MODEL, and what the pack waited for in each evaluation of its runs, by name; last what it waited for after
    them."""
    evaluations: list[list[str]] = []
    found: list[str] = []
    clone = model.clone()

    def told():
        evaluations.append(found[:])
        found.clear()

    def predict_noise(executor, *args, **kwargs):
        try:
            return executor(*args, **kwargs)
        finally:
            told()

    def sampler_sample(executor, *args, **kwargs):
        with Below(found), Above(found):
            out = executor(*args, **kwargs)
        told()
        return out

    clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "count", predict_noise)
    clone.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "count", sampler_sample)
    return clone, evaluations


class Fake:
    """A value on its way to the host: there once `late` more of its kind were sent after it, and `wrong` by so much."""

    late, wrong, sent = 0, 0.0, 0

    def __init__(self, value):
        self.value = float(value.flatten()[0]) + self.wrong
        type(self).sent += 1
        self.number = self.sent

    @classmethod
    def of(cls, value, memory):
        return cls(value)

    def get(self):
        return self.value if self.sent - self.number >= self.late else None


def a_device(monkeypatch, late=0, wrong=0.0):
    """From here on the sampler's sigmas are on a device, as far as the pack can tell."""
    monkeypatch.setattr(skipstone.patch.step.sigmas, "waits", lambda value: True)
    monkeypatch.setattr(
        skipstone.patch.step.sigmas, "Readback", type("Readback", (Fake,), {"late": late, "wrong": wrong})
    )


# law 8


@pytest.mark.parametrize(
    ("how", "sampler"),
    [(how, s) for how in STATIC for s in (KNOWN if " " not in how or "mask" in how else ("euler", "heun"))],
)
def test_a_static_method_never_waits(studio, cached, tiny_flux, monkeypatch, how, sampler):
    a_device(monkeypatch)
    patched, reports = cached(STATIC[how](), tiny_flux)
    model, waited = counted(patched)
    studio.sample(model, steps=STEPS, sampler=sampler)
    assert reports[0].skipped > 0
    assert len(waited) == len(reports[0].evaluations) + 1
    assert [w for w in waited if w] == []


@pytest.mark.parametrize(
    ("how", "sampler"), [(how, s) for how in ADAPTIVE for s in (KNOWN if " " not in how else ("euler", "heun"))]
)
def test_an_adaptive_method_waits_once_an_evaluation_at_most(studio, cached, tiny_flux, monkeypatch, how, sampler):
    a_device(monkeypatch)
    patched, reports = cached(ADAPTIVE[how](), tiny_flux)
    model, waited = counted(patched)
    studio.sample(model, steps=12, sampler=sampler)
    asked = [e.indicator is not None for e in reports[0].evaluations]
    assert any(asked)
    # where it was read, and nowhere else
    assert [len(w) for w in waited] == [*asked, 0]


@pytest.mark.parametrize("how", ["MeanCache", "Spectrum", "TaylorSeer"])
def test_regional_prompts_ranges_and_a_batch_cost_no_wait_either(studio, cached, tiny_flux, monkeypatch, how):
    from nodes import ConditioningCombine, ConditioningSetArea, ConditioningSetTimestepRange

    (area,) = ConditioningSetArea().append(studio.prompt(), width=64, height=128, x=0, y=0, strength=1.0)
    (late,) = ConditioningSetTimestepRange().set_range(studio.prompt("a frog on a white background"), 0.4, 1.0)
    (prompts,) = ConditioningCombine().combine([*studio.prompt(), *area], late)
    a_device(monkeypatch)
    patched, reports = cached(STATIC[how](), tiny_flux)
    model, waited = counted(patched)
    studio.sample(model, prompts, noise=studio.noise(batch=2), steps=16)
    assert reports[0].skipped > 0
    assert [w for w in waited if w] == []


def test_learning_costs_no_wait(studio, cached, tiny_flux, monkeypatch, tmp_path):
    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path))
    a_device(monkeypatch)
    patched, reports = cached(method_of("Turbo", calibration="record"), tiny_flux)
    model, waited = counted(patched)
    studio.sample(model, steps=STEPS)
    assert "; runs recorded: " in " ".join(reports[0].notes)
    assert [w for w in waited if w] == []


@pytest.mark.parametrize("sampler", ["dpm_2", "dpmpp_sde", "uni_pc"])
def test_where_a_samplers_sigmas_cannot_be_told_they_are_read_once(studio, cached, tiny_flux, monkeypatch, sampler):
    a_device(monkeypatch)
    patched, reports = cached(STATIC["MeanCache"](), tiny_flux)
    model, waited = counted(patched)
    studio.sample(model, steps=STEPS, sampler=sampler)
    assert reports[0].skipped > 0
    assert {len(w) for w in waited[:-1]} == {1}


def test_the_count_does_see_what_the_pack_waits_for(studio, cached, tiny_flux):
    """On the CPU the sigma is simply read: once an evaluation, and an indicator is read besides."""
    for method, most in ((STATIC["MeanCache"](), 1), (ADAPTIVE["EasyCache"](), 2)):
        model, waited = counted(cached(method, tiny_flux)[0])
        studio.sample(model, steps=STEPS)
        assert {w for evaluation in waited for w in evaluation} == {"_local_scalar_dense"}
        assert min(len(w) for w in waited[:-1]) == 1
        assert max(len(w) for w in waited[:-1]) == most


WAYS: dict[str, Any] = {
    "tolist": lambda t: t.tolist(),
    "cpu": lambda t: t.cpu(),
    "any": lambda t: bool(t.any()),
    "nonzero": lambda t: t.nonzero(),
    "a mask": lambda t: t[t > 0],
    "equal": lambda t: t.equal(t + 1),
    "max": lambda t: float(t.max()),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_count_does_see_other_ways_to_wait(studio, cached, tiny_flux, monkeypatch, way):
    """As if a function of the pack did so."""
    look = FunctionType(WAYS[way].__code__, {**globals(), "__name__": "skipstone.core.somewhere"})

    def waiting(executor, x, *args, **kwargs):
        look(x)
        return executor(x, *args, **kwargs)

    a_device(monkeypatch)
    patched, _ = cached(STATIC["MeanCache"](), tiny_flux)
    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "waiting", waiting)
    model, waited = counted(patched)
    studio.sample(model, steps=2)
    assert [len(w) for w in waited] == [1, 1, 0]


# the sigma that is foreseen


def foreseen(name):
    return evaluated_sigmas(comfy.samplers.sampler_object(name), [1.0, 0.5, 0.0]) is not None


FORESEEN = [name for name in comfy.samplers.SAMPLER_NAMES if foreseen(name)]


def test_the_usual_samplers_are_foreseen():
    assert set(KNOWN) < set(FORESEEN)


@pytest.mark.parametrize("sampler", FORESEEN)
def test_samplers_look_where_they_are_said_to_look(studio, watched, tiny_flux, tiny_unet, sampler):
    """All of their evaluations, in order, with both kinds of model, also where a run stops or begins in the middle."""
    made = comfy.samplers.sampler_object(sampler)
    for model, channels, scheduler in ((tiny_flux, 16, "simple"), (tiny_unet, 4, "karras")):
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, 5)
        latent = torch.zeros(1, channels, 4, 4)
        for grid in (sigmas[:-2], sigmas[2:]):
            watching, watch = watched(model)
            comfy.sample.sample_custom(
                watching, torch.ones_like(latent), 1.0, made, grid, studio.prompt(), studio.prompt(""), latent,
                disable_pbar=True, seed=1,
            )  # fmt: skip
            assert [e.sigma for e in watch.evaluations] == pytest.approx(
                evaluated_sigmas(made, grid.tolist()), rel=5e-4
            )


@pytest.mark.parametrize("sampler", [*KNOWN, "lcm"])
@pytest.mark.parametrize("method", ["MeanCache", "UCache"])
def test_foreseen_or_read_the_picture_is_the_same(studio, cached, tiny_flux, monkeypatch, method, sampler):
    """Whether the copies arrive at once, late, or never."""

    def sampled():
        model, reports = cached({**STATIC, **ADAPTIVE}[method](), tiny_flux)
        out = studio.sample(model, steps=STEPS, sampler=sampler)
        return out, [(e.sigma, e.computed, e.reason, e.indicator) for e in reports[0].evaluations]

    plain, told = sampled()
    assert not all(computed for _, computed, *_ in told)
    for late in (0, 1, 4, 1000):
        a_device(monkeypatch, late)
        out, same = sampled()
        assert torch.equal(out, plain), late
        assert same == told, late


def test_the_sigma_that_noisy_samplers_move_a_little_is_no_other(studio, cached, tiny_flux, monkeypatch):
    """They start a hair below pure noise; nothing is dropped for that."""
    outs = []
    for device in (False, True):
        if device:
            a_device(monkeypatch)
        model, reports = cached(STATIC["MeanCache"](), tiny_flux)
        outs.append(studio.sample(model, steps=STEPS, sampler="dpmpp_2m_sde"))
        assert [e.reason for e in reports[0].evaluations].count("history") == 0
        assert reports[0].skipped > 0
    assert (outs[0] - outs[1]).norm() < 1e-3 * outs[0].norm()


# samplers that lie about their name


def euler(model, x, sigmas, extra_args):
    for a, b in pairwise(sigmas):
        d = (x - model(x, a * x.new_ones(len(x)), **extra_args)) / a
        x = x + d * (b - a)
    return x


def elsewhere(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """A sampler with steps of its own, of which only the first is on the grid."""
    return euler(model, x, torch.cat((sigmas[:1], (sigmas[:-1] + sigmas[1:]) / 2, sigmas[-1:])), extra_args)


def later_elsewhere(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """On the grid for six steps, and off the grid from the seventh on."""
    own = torch.cat((sigmas[:6], torch.linspace(float(sigmas[5]), float(sigmas[-1]), 9)[1:]))
    return euler(model, x, own, extra_args)


def twice(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Two evaluations a step, as Heun's."""
    for a, b in pairwise(sigmas):
        ones = x.new_ones(len(x))
        d = (x - model(x, a * ones, **extra_args)) / a
        if b > 0:
            ahead = x + d * (b - a)
            d = (d + (ahead - model(ahead, b * ones, **extra_args)) / b) / 2
        x = x + d * (b - a)
    return x


def shifted(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """The second evaluation alone is somewhere else."""
    own = sigmas.clone()
    own[1] = own[1] * 0.97
    return euler(model, x, own, extra_args)


LIARS = (elsewhere, later_elsewhere, twice, shifted)


def named_euler(function):
    """The function as a SAMPLER under the name of ComfyUI's euler."""

    def sample_euler(*args, **kwargs):
        return function(*args, **kwargs)

    return comfy.samplers.KSAMPLER(sample_euler)


def sigmas_of(steps=16):
    return torch.linspace(1, 0, steps + 1)


SPARSE: dict[str, Any] = {"preset": "Custom", "predictor": "reuse", "budget": 0.4, "warmup": 1}


@pytest.mark.parametrize("liar", LIARS)
def test_found_out_at_once_nothing_is_ever_wrong(studio, cached, watched, tiny_flux, monkeypatch, liar):
    """Every sigma in the report is the one that there was."""
    a_device(monkeypatch)
    patched, reports = cached(method_of(**SPARSE), tiny_flux)
    model, watch = watched(patched)
    out = studio.sample_custom(model, sigmas_of(), sampler=named_euler(liar))
    assert torch.isfinite(out).all()
    watch.agrees_with(reports[0])
    assert reports[0].skipped > 0
    assert answered_from_the_past(watch, 0) > 0


def answered_from_the_past(watch, first):
    """From evaluation `first` on every skipped one says the last velocity that the model was asked for since, again; how many did."""
    last, count = {}, 0
    for evaluation in watch.evaluations[first:]:
        for call in evaluation.calls:
            for i, d in enumerate(call.out):
                if call.ran:
                    last[i] = (call.x - d) / call.sigma
                else:
                    torch.testing.assert_close(d, call.x - last[i] * call.sigma, atol=1e-5, rtol=1e-4)
                    count += 1
    return count


@pytest.mark.parametrize("late", [1, 2, 3])
@pytest.mark.parametrize("liar", LIARS)
def test_found_out_late_nothing_wrong_is_said_from_then_on(studio, cached, watched, tiny_flux, monkeypatch, liar, late):
    """What was kept until then is dropped: the next is computed, and predictions are made from what follows."""
    a_device(monkeypatch, late)
    patched, reports = cached(method_of(**SPARSE), tiny_flux)
    model, watch = watched(patched)
    out = studio.sample_custom(model, sigmas_of(), sampler=named_euler(liar))
    assert torch.isfinite(out).all()
    told, true = [e.sigma for e in reports[0].evaluations], [e.sigma for e in watch.evaluations]
    assert len(told) == len(true)
    assert [e.computed for e in reports[0].evaluations] == watch.computed
    wrong = [i for i, (a, b) in enumerate(zip(told, true, strict=True)) if abs(a - b) > 2e-3 * b]
    assert wrong, "it was to be taken for another"
    found = wrong[0] + late
    assert wrong[-1] < found <= len(true) - 3
    assert told[found:] == true[found:]
    assert watch.computed[found]
    assert answered_from_the_past(watch, found) > 0


def test_a_copy_that_tells_another_value_is_not_believed_either(studio, cached, watched, tiny_flux, monkeypatch):
    """The sampler is honest, what arrives is not what was sent: the sigma is read, and the run goes on."""
    a_device(monkeypatch, late=2, wrong=0.1)
    patched, reports = cached(method_of(**SPARSE), tiny_flux)
    model, watch = watched(patched)
    out = studio.sample(model, steps=16)
    assert torch.isfinite(out).all()
    watch.agrees_with(reports[0])
    assert watch.computed[2]
    assert answered_from_the_past(watch, 0) > 0


def test_once_found_out_every_sigma_is_read(studio, cached, tiny_flux, monkeypatch):
    a_device(monkeypatch)
    model, waited = counted(cached(STATIC["MeanCache"](), tiny_flux)[0])
    studio.sample_custom(model, sigmas_of(), sampler=named_euler(later_elsewhere))
    waits = [len(w) for w in waited[:-1]]
    assert waits == [0] * 6 + [1] * (len(waits) - 6)


@pytest.mark.parametrize("liar", [later_elsewhere, twice])
def test_an_indicator_is_dropped_with_the_rest(studio, cached, watched, tiny_flux, monkeypatch, liar):
    a_device(monkeypatch, late=1)
    patched, reports = cached(easycache_of("Custom", threshold=3.0, warmup=1), tiny_flux)
    model, watch = watched(patched)
    out = studio.sample_custom(model, sigmas_of(), sampler=named_euler(liar))
    assert torch.isfinite(out).all()
    told, true = [e.sigma for e in reports[0].evaluations], [e.sigma for e in watch.evaluations]
    found = max(i for i, (a, b) in enumerate(zip(told, true, strict=True)) if abs(a - b) > 2e-3 * b) + 1
    assert [e.indicator for e in reports[0].evaluations[found : found + 2]] == [None, None]
    assert all(watch.computed[found : found + 2])


@pytest.mark.parametrize("calibration", ["auto", "calibrate"])
def test_what_a_liar_said_is_not_learned(studio, cached, tiny_flux, monkeypatch, tmp_path, calibration):
    """Costs that were recorded at another sigma than it was would spoil the runs of the sampler whose name it has."""
    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path))
    a_device(monkeypatch, late=1)
    model, reports = cached(method_of("Speed", calibration=calibration), tiny_flux)
    studio.sample_custom(model, sigmas_of(), sampler=named_euler(shifted))
    assert list(tmp_path.rglob("*.json")) == []
    assert ("could not be recorded" in " ".join(reports[0].notes)) is (calibration == "calibrate")
