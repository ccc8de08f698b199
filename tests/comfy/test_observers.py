"""Recording, learning and reporting never end a run or change its picture (law 14)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP

from skipstone.core.step.calibration.block_profile import BlockProfiler
from skipstone.core.step.calibration.gram_recorder import GramRecorder
from skipstone.core.step.modalities import Modalities
from skipstone.core.step.movement import Continuity, NoiseWatch
from skipstone.core.step.published.coefficients import MEASURED
from skipstone.core.step.report.builder import ReportBuilder
from skipstone.core.step.report.report import Report
from skipstone.nodes.auto import auto_of
from skipstone.nodes.easycache import easycache_of
from skipstone.nodes.firstblock import firstblock_of
from skipstone.nodes.meancache import method_of
from skipstone.nodes.taylorseer import taylorseer_of
from skipstone.nodes.teacache import teacache_of
from skipstone.patch.step import run_log, run_setup
from skipstone.patch.step.attach import attach

pytestmark = [
    pytest.mark.usefixtures("user"),
    pytest.mark.filterwarnings("ignore:::(comfy|torchsde)"),  # their own, and none of ours
]

STEPS = 6
ERRORS = [RuntimeError("of torch"), MemoryError(), KeyError("k"), OSError("disk full")]


@pytest.fixture
def learning(studio, cached):
    """A run that is recorded: (picture, report)."""

    def run(model=None, **how):
        patched, reports = cached(method_of(preset="Speed", calibration="calibrate"), model or studio.model)
        return studio.sample(patched, **{"steps": STEPS, **how}), reports[0]

    return run


def raising(error):
    """A function that raises a new error of this kind: one that outlives its test would keep the run alive by its traceback."""

    def fail(*args, **kwargs):
        raise type(error)(*error.args)

    return fail


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize(
    "where",
    [(GramRecorder, "observe"), (GramRecorder, "gram"), (run_setup, "keep"), (run_setup, "observe")],
    ids=lambda w: f"{w[0].__name__.split('.')[-1]}.{w[1]}",
)
def test_a_failing_recording_changes_nothing(studio, learning, monkeypatch, where, error):
    monkeypatch.setattr(*where, raising(error))
    out, report = learning()
    assert torch.equal(out, studio.full(steps=STEPS))
    assert report.finished and report.skipped == 0
    assert any("teaches nothing" in n or "could not be recorded" in n for n in report.notes)


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize(
    "where",
    [(GramRecorder, "observe"), (GramRecorder, "observe_passes"), (GramRecorder, "gram"), (run_setup, "keep_partial")],
    ids=lambda w: f"{w[0].__name__.split('.')[-1]}.{w[1]}",
)
def test_a_failing_recording_of_a_run_that_skips_changes_nothing(studio, cached, user, monkeypatch, where, error):
    steps = 10
    wanted = studio.sample(cached(method_of(preset="Speed", calibration="default"), studio.model)[0], steps=steps)
    monkeypatch.setattr(*where, raising(error))
    patched, reports = cached(method_of(preset="Speed", calibration="auto"), studio.model)
    assert torch.equal(studio.sample(patched, steps=steps), wanted)
    assert reports[0].finished and reports[0].skipped > 0 and reports[0].notes == []
    assert not list(user.rglob("*.partial.json"))


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_a_failing_report_changes_nothing(studio, learning, monkeypatch, caplog, error):
    monkeypatch.setattr(ReportBuilder, "close", raising(error))
    out, _ = learning()
    assert torch.equal(out, studio.full(steps=STEPS))
    assert "the report of MeanCache failed" in caplog.text


METHODS: dict[str, Any] = {
    "Auto": auto_of("Balanced", first_run="skip at once"),
    "MeanCache": method_of("Speed"),
    "EasyCache": easycache_of("Custom", threshold=10.0, warmup=2),
    "TaylorSeer": taylorseer_of("Balanced"),
    "First Block Cache": firstblock_of("Custom", threshold=100.0, warmup=2),
}
OBSERVERS = [
    (NoiseWatch, "observe_input"),
    (NoiseWatch, "observe_output"),
    (Modalities, "observe"),
    (Modalities, "errors"),
    (ReportBuilder, "close"),
    (run_log, "write"),
    (run_setup, "observe"),
    (run_setup, "join"),
]


def euler_of_a_pack(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Under a name that nobody knows, so that it is watched."""
    for sigma, after in pairwise(sigmas):
        denoised = model(x, sigma * x.new_ones([x.shape[0]]), **(extra_args or {}))
        x = x + (x - denoised) / sigma * (after - sigma)
    return x


def sampled_with(studio, method, model=None, listeners=(), watchers=()):
    """(picture, report) of ten steps of it."""
    reports: list[Report] = []
    patched = attach(model or studio.model, method, (reports.append, *listeners), watchers)
    sigmas = torch.linspace(1, 0, 11)
    return studio.sample_custom(patched, sigmas, sampler=comfy.samplers.KSAMPLER(euler_of_a_pack)), reports[0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("where", OBSERVERS, ids=lambda w: f"{w[0].__name__.split('.')[-1]}.{w[1]}")
def test_whoever_looks_on_and_fails_changes_no_picture(studio, monkeypatch, where, method):
    wanted, report = sampled_with(studio, METHODS[method])
    assert report.skipped > 0
    monkeypatch.setattr(*where, raising(RuntimeError("of torch")))
    assert torch.equal(sampled_with(studio, METHODS[method])[0], wanted)


@pytest.mark.parametrize("method", METHODS)
def test_a_failing_listener_and_a_failing_indicator_of_progress_change_no_picture(studio, method):
    wanted, _ = sampled_with(studio, METHODS[method])
    fail = raising(RuntimeError("of a page"))
    assert torch.equal(sampled_with(studio, METHODS[method], listeners=(fail,), watchers=(fail,))[0], wanted)


def on_a_copy(model):
    """A pack that runs the model on a copy of the latent, and does not say that it is all of it."""

    def wrapper(executor, inner, conds, x, timestep, options):
        return executor(inner, conds, x.clone(), timestep, options)

    other = model.clone()
    other.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "another pack", wrapper)
    return other


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["check", "observe_part", "observe_whole"])
def test_where_parts_cannot_be_compared_all_is_computed(studio, monkeypatch, name, method):
    """Without the comparison it is not known which part of the latent a call is about."""
    model = on_a_copy(studio.model)
    plain = studio.sample_custom(model, torch.linspace(1, 0, 11), sampler=comfy.samplers.KSAMPLER(euler_of_a_pack))
    assert sampled_with(studio, METHODS[method], model)[1].skipped > 0
    monkeypatch.setattr(Continuity, name, raising(RuntimeError("of torch")))
    picture, report = sampled_with(studio, METHODS[method], model)
    assert torch.equal(picture, plain)
    assert report.skipped == 0 and "parts of the latent" in report.advice


def test_the_error_that_ended_a_run_is_not_hidden_by_one_of_its_report(studio, cached, monkeypatch):
    monkeypatch.setattr(ReportBuilder, "close", raising(RuntimeError("of the report")))
    patched, _ = cached(method_of(preset="Speed", calibration="off"), studio.model)

    def interrupted(step, *_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        studio.sample(patched, steps=STEPS, callback=interrupted)


def sampled_in_pairs(studio, model, steps=STEPS):
    """A picture with a guider that returns two latents, as LanPaint's does, and a sampler of unknown name that uses both."""

    class Guider(comfy.samplers.CFGGuider):
        def predict_noise(self, x, *args, **kwargs):
            denoised = super().predict_noise(x, *args, **kwargs)
            return denoised, 0.9 * denoised

    def sampler_of_a_pack(model, x, sigmas, extra_args=None, callback=None, disable=None):
        for sigma, after in pairwise(sigmas):
            first, second = model(x, sigma * x.new_ones([x.shape[0]]), **(extra_args or {}))
            x = x + (x - (first + second) / 2) / sigma * (after - sigma)
        return x

    guider = Guider(model)
    guider.set_conds(studio.prompt(), studio.prompt(""))
    guider.set_cfg(3.0)
    kind = comfy.samplers.KSAMPLER(sampler_of_a_pack)
    return guider.sample(studio.noise(), torch.zeros_like(studio.noise()), kind, torch.linspace(1, 0, steps + 1))


def test_a_guider_that_returns_two_latents_teaches_nothing(studio):
    plain = sampled_in_pairs(studio, studio.model)
    reports: list[Report] = []
    patched = attach(studio.model, method_of(preset="Speed", calibration="calibrate"), (reports.append,))
    assert torch.equal(sampled_in_pairs(studio, patched), plain)
    assert any("one tensor of the latent's shape" in note for note in reports[0].notes)


@pytest.mark.parametrize("method", METHODS)
def test_with_a_guider_that_returns_two_latents_steps_are_skipped(studio, method):
    reports: list[Report] = []
    patched = attach(studio.model, METHODS[method], (reports.append,))
    assert sampled_in_pairs(studio, patched, 12).isfinite().all()
    assert reports[0].skipped > 2


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("name", ["observe", "profile"])
def test_a_failing_block_profile_changes_nothing(studio, cached, monkeypatch, name, error):
    """TeaCache measures its coefficients in a full run of a model that has no published ones."""
    monkeypatch.setattr(BlockProfiler, name, raising(error))
    patched, reports = cached(teacache_of("Custom", polynomial=MEASURED), studio.model)
    assert torch.equal(studio.sample(patched, steps=STEPS), studio.full(steps=STEPS))
    assert reports[0].finished and reports[0].skipped == 0
    assert any("teaches nothing" in n or "could not be recorded" in n for n in reports[0].notes)


def test_a_latent_that_changes_its_size_teaches_nothing(studio, learning):
    def grows(model, x, sigmas, extra_args=None, callback=None, disable=None):
        for i, (sigma, after) in enumerate(pairwise(sigmas)):
            if i == 3:
                x = torch.nn.functional.interpolate(x, scale_factor=2)
            denoised = model(x, sigma * x.new_ones([x.shape[0]]), **(extra_args or {}))
            x = x + (x - denoised) / sigma * (after - sigma)
        return x

    reports: list[Report] = []
    patched = attach(studio.model, method_of(preset="Speed", calibration="calibrate"), (reports.append,))
    kind = comfy.samplers.KSAMPLER(grows)
    sigmas = torch.linspace(1, 0, STEPS + 1)
    out = studio.sample_custom(patched, sigmas, sampler=kind)
    assert torch.equal(out, studio.sample_custom(studio.model, sigmas, sampler=kind))
    assert any("the latent's size changed" in note for note in reports[0].notes)


def test_a_recorded_run_says_that_it_is_one(learning):
    _, report = learning()
    assert {str(e.reason) for e in report.evaluations} == {"calibration"}
