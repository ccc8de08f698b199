"""The nodes of block-level methods: the values of each preset and widget, and their effect on a real model."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from skipstone.core.step.clock import Clock
from skipstone.core.step.indicators.blocks import FirstBlockChange, Modulated, Probed
from skipstone.core.step.method import Blocks, Method
from skipstone.core.step.policies import Accumulator, Mask, PerModel, Ratios, RunContext, StepMask, Threshold, Total
from skipstone.core.step.predictors import Linear, ProbeAligned, Reuse, Taylor
from skipstone.core.step.published.coefficients import MAGCACHE, TEACACHE, rows
from skipstone.nodes import dbcache, dicache, firstblock, magcache, taylorseer, teacache
from skipstone.patch.blocks.resolver import unsupported_reason
from skipstone.patch.errors import StepCacheError
from skipstone.patch.families.base import Argument, Family
from skipstone.patch.step.attach import attach
from skipstone.tests.core.grids import flow

from .floors import SAME_PICTURE

OF: dict[str, Any] = {
    "First Block Cache": firstblock.firstblock_of,
    "DBCache": dbcache.dbcache_of,
    "Cache-DiT": dbcache.cachedit_of,
    "TeaCache": teacache.teacache_of,
    "MagCache": magcache.magcache_of,
    "DiCache": dicache.dicache_of,
}
FOUR = ("Quality", "Balanced", "Speed", "Turbo")
PRESETS = {
    "First Block Cache": [*FOUR, "auto", "as in WaveSpeed"],
    "DBCache": [*FOUR, "as in cache-dit"],
    "Cache-DiT": [*FOUR, "stable-diffusion.cpp"],
    "TeaCache": [*FOUR, "as published"],
    "MagCache": [*FOUR, "as published"],
    "DiCache": [*FOUR, "as published"],
}
EVERY = [(name, preset) for name, presets in PRESETS.items() for preset in presets]
LEARNS = ("TeaCache", "MagCache")
STEPS = 16

pytestmark = pytest.mark.filterwarnings("ignore:::(comfy|torchsde)")  # their own, and none of ours


@pytest.fixture(scope="module")
def flux(small_flux):
    """Two double and two single blocks."""
    return small_flux(depth=2, depth_single_blocks=2)


@pytest.fixture(scope="module")
def plain(studio, flux):
    """The unpatched MODEL's latent, sampled once for each kind of run: `plain(cfg=1.0)`."""
    without = studio.of(flux)
    return lambda **how: without.full(**{"steps": STEPS, **how})


@pytest.fixture(scope="module")
def taught(studio, flux):
    """A MODEL with the method on it, and its reports: `model, reports = taught("TeaCache", cfg=1.0)`. TeaCache and MagCache find the
    block profile that they need: it is recorded by the first run, or carried over from a run of another kind."""
    known = set()

    def patched(name, preset="Speed", **how):
        reports: list[Any] = []
        model = attach(flux, OF[name](preset), (reports.append,))
        kind = tuple(sorted(how.items()))
        if name in LEARNS and kind not in known:
            studio.sample(model, **{"steps": STEPS, **how})
            reports.clear()
            known.add(kind)
        return model, reports

    return patched


@pytest.fixture(scope="module")
def fresh(studio, taught):
    """Latent and report of a MODEL that was never sampled before, once for each kind of run: `fresh("DBCache", "Turbo", cfg=1.0)`."""
    known: dict[Any, tuple[torch.Tensor, Any]] = {}

    def run(name, preset="Speed", **how):
        key = (name, preset, *sorted(how.items()))
        if key not in known:
            model, reports = taught(name, preset, **how)
            known[key] = studio.sample(model, **{"steps": STEPS, **how}), reports[0]
        return known[key][0].clone(), known[key][1]

    return run


def rule(method: Method, network: Any = None) -> Any:
    """The policy that decides, for a model of this kind."""
    policy: Any = method.policies[-1]
    return policy.choose(network or {}) if isinstance(policy, PerModel) else policy


@pytest.mark.parametrize(("name", "preset"), EVERY)
def test_every_preset_is_plain_data(name, preset):
    method = OF[name](preset)
    assert (method.name, method.variant, method.level) == (name, preset, "blocks")
    assert method == OF[name](preset)
    assert method.calibration == ("auto" if name in LEARNS else "default")


@pytest.mark.parametrize(("name", "preset"), [(n, p) for n, p in EVERY if p in (*FOUR, "auto")])
def test_every_preset_fires_on_a_model_that_nobody_has_published_anything_for(fresh, plain, name, preset):
    out, report = fresh(name, preset, cfg=1.0, sampler="euler")
    full = plain(cfg=1.0)
    assert report.skipped > 0
    assert torch.isfinite(out).all()
    assert not torch.equal(out, full)
    assert (out - full).norm() < SAME_PICTURE * full.norm()
    assert (report.threshold is not None) == (name != "MagCache")


@pytest.mark.parametrize("sampler", ["euler", "heun"])
@pytest.mark.parametrize("name", OF)
def test_faster_presets_skip_no_less(fresh, name, sampler):
    skipped = [fresh(name, preset, cfg=1.0, sampler=sampler)[1].skipped for preset in FOUR]
    assert skipped == sorted(skipped)
    assert skipped[-1] > skipped[0] > 0


FLUX = {"image_model": "flux", "hidden_size": 3072, "vec_in_dim": 768}
HUNYUAN = {"image_model": "hunyuan_video", "vec_in_dim": 768}


def test_first_block_cache_has_published_thresholds_where_there_are_and_typical_changes_elsewhere():
    assert [rule(firstblock.firstblock_of(p), FLUX).threshold for p in FOUR] == pytest.approx(
        [0.06, 0.0804, 0.12, 0.18]
    )
    assert [rule(firstblock.firstblock_of(p), HUNYUAN).threshold for p in FOUR] == pytest.approx(
        [0.05, 0.067, 0.1, 0.15]
    )
    typical = [rule(firstblock.firstblock_of(p)).typical for p in FOUR]
    assert typical == sorted(typical) and typical[0] > 1
    auto = firstblock.firstblock_of("auto")
    assert rule(auto, FLUX) == rule(auto) == rule(firstblock.firstblock_of("Balanced"))
    wave = firstblock.firstblock_of("as in WaveSpeed")
    assert rule(wave, FLUX) == rule(wave) == Threshold(0.12)
    assert wave.predictor == Reuse()


def test_first_block_cache_by_hand():
    method = firstblock.firstblock_of("Custom", 0.3, "typical changes", "reuse", 3, 0.1, 0.9, 5, "cpu")
    assert rule(method) == Threshold(typical=0.3)
    assert method.blocks == Blocks(1, 0)
    assert (method.predictor, method.history_device, method.indicator) == (Reuse(), "cpu", FirstBlockChange())
    assert rule(firstblock.firstblock_of("Custom", 0.3)) == Threshold(0.3)
    assert isinstance(firstblock.firstblock_of("Custom").predictor, Linear)


def test_dbcache_by_hand():
    method = dbcache.dbcache_of(
        "Custom", 3, 2, 0.2, "relative change", "taylor", 2, "index", max_cached=7, warmup=5, max_skips=2
    )
    assert method.blocks == Blocks(3, 2)  # as many as were asked for, or an error
    assert method.predictor == Taylor(2, "index")
    assert Total(7) in method.policies
    assert rule(method) == Threshold(0.2)
    assert rule(dbcache.dbcache_of("as in cache-dit")) == Threshold(0.08)
    assert dbcache.dbcache_of("as in cache-dit").predictor == Reuse()
    published = dbcache.dbcache_of("as in cache-dit").blocks
    assert published is not None
    assert (published.prefix, published.suffix, published.fit) == (8, 0, True)


def test_the_presets_fewer_blocks_for_more_speed():
    fns = [b.prefix for b in (dbcache.dbcache_of(p).blocks for p in FOUR) if b]
    assert fns == sorted(fns, reverse=True)


def test_more_blocks_than_the_model_has_is_an_error_that_says_how_many_there_are(flux):
    for of in (dbcache.dbcache_of, dbcache.cachedit_of):
        with pytest.raises(StepCacheError, match=r"(?s)8 \+ 0 blocks.*has 4"):
            attach(flux, of("Custom", fn=8))
        attach(flux, of("Balanced"))
        attach(flux, of("Custom", fn=2, bn=1))
    with pytest.raises(StepCacheError, match=r"9 \+ 0 blocks"):
        attach(flux, dicache.dicache_of("Custom", probe=9))


def skipped_steps(reports):
    return [e.step for e in reports[-1].evaluations if not e.computed]


@pytest.mark.parametrize("name", ["DBCache", "Cache-DiT"])
def test_warmup_totals_and_rows_are_in_force(studio, cached, flux, name):
    """In stable-diffusion.cpp's cache-dit warmup, mask, totals and rows are read and not heeded."""
    rows_of = {"max_skips": 2} if name == "DBCache" else {"skip_interval": 2}
    model, reports = cached(OF[name]("Custom", fn=1, threshold=50.0, warmup=5, max_cached=5, **rows_of), flux)
    studio.sample(model, steps=STEPS, cfg=1.0)
    assert skipped_steps(reports) == [5, 6, 8, 9, 11]
    assert [e.reason for e in reports[0].evaluations[12:15]] == ["total"] * 3


def test_cache_dits_mask_is_in_force(studio, cached, flux):
    steps = StepMask(name="ultra").on(flow(STEPS))
    holes = [i for i, c in enumerate(steps) if not c and i >= 3 and i < STEPS - 1]
    for policy, threshold, wanted in (("static", 0.0, holes), ("dynamic", 0.0, []), ("dynamic", 50.0, holes)):
        method = dbcache.cachedit_of(
            "Custom", fn=1, threshold=threshold, warmup=3, skip_interval=0, mask="ultra", mask_policy=policy
        )
        model, reports = cached(method, flux)
        studio.sample(model, steps=STEPS, cfg=1.0)
        assert skipped_steps(reports) == wanted


def test_a_step_mask_that_is_connected_goes_before_cache_dits_own():
    own = StepMask((True, False))
    method = dbcache.cachedit_of("Custom", mask="fast", step_mask=own)
    assert [p.mask for p in method.policies if isinstance(p, Mask)] == [own]


def test_cache_dit_forecasts(studio, cached, flux):
    """TaylorSeer's derivatives are kept in stable-diffusion.cpp, and never used."""
    outs = []
    for order in (1, 2):
        method = dbcache.cachedit_of("Custom", fn=1, threshold=50.0, warmup=6, order=order, skip_interval=3)
        assert method.predictor == Taylor(order, "log-SNR")
        outs.append(studio.sample(cached(method, flux)[0], steps=STEPS, cfg=1.0))
    reuse = dbcache.dbcache_of("Custom", fn=1, threshold=50.0, warmup=6, predictor="none", max_skips=3)
    outs.append(studio.sample(cached(reuse, flux)[0], steps=STEPS, cfg=1.0))
    assert all(not torch.equal(a, b) for a, b in pairwise(outs))


def test_cache_dit_as_documented_by_stable_diffusion_cpp():
    method = dbcache.cachedit_of("stable-diffusion.cpp")
    assert rule(method) == Threshold(0.08)
    assert method.predictor == Taylor(1, "index")
    assert method.blocks is not None and (method.blocks.prefix, method.blocks.suffix) == (8, 0)


def test_teacache_has_the_recommended_thresholds_where_there_are():
    for row in rows(TEACACHE):
        if row.network and "threshold" in row.data:
            told = [rule(teacache.teacache_of(p), row.network).threshold / row.data["threshold"] for p in FOUR]
            assert told == pytest.approx([0.5, 0.75, 1.0, 1.5])
            assert rule(teacache.teacache_of("as published"), row.network) == Accumulator(row.data["threshold"])


def windows(method: Method, network: Any, steps: int = 20) -> list[int]:
    """The steps that a method of a model of this kind leaves to its rule."""
    context = RunContext(flow(steps), Reuse(), network=network)
    left = []
    started = [p.start(context) for p in method.policies[:-1]]
    for step, sigma in enumerate(context.grid.sigmas[:-1]):
        clock = Clock(context.grid)
        clock.tick(sigma)
        if all(p.decide(clock, lambda: None) is None for p in started):
            left.append(step)
    return left


def test_teacache_keeps_to_the_steps_that_are_recommended():
    """Flux Kontext's authors skip from 20% to 90% of the steps; for Flux they say nothing, and there our presets' own window counts."""
    kontext = {**FLUX, "reference": True}
    assert windows(teacache.teacache_of("as published"), kontext) == [*range(4, 18)]
    assert windows(teacache.teacache_of("as published"), FLUX) == [*range(1, 20)]
    assert windows(teacache.teacache_of("Speed"), kontext) == [*range(4, 18)]
    assert windows(teacache.teacache_of("Speed"), FLUX) == [*range(4, 20)]
    assert windows(teacache.teacache_of("Custom", start_percent=0.1), kontext) == [*range(2, 20)]


def test_a_polynomial_of_what_no_block_sees_is_a_guess_and_says_so(studio, cached, flux):
    for name, guess in (("Wan 2.1 t2v 14B", True), ("HiDream dev", True), ("Wan 2.1 t2v 14B, ret_mode", False)):
        model, reports = cached(teacache.teacache_of("Custom", 1e9, name), flux)
        studio.sample(model, steps=4, cfg=1.0)
        assert [n for n in reports[0].notes if "a rough guess" in n and name in n] == reports[0].notes
        assert bool(reports[0].notes) == guess


def test_a_tea_cache_cannot_leave_out_a_block_that_must_run():
    family = Family("Example", (), min_prefix=1, modulated=Argument("e"))
    assert "must always run" in unsupported_reason(teacache.teacache_of(), family)
    assert not unsupported_reason(magcache.magcache_of(), family)
    assert not unsupported_reason(firstblock.firstblock_of(), family)


@pytest.mark.parametrize("of", [dbcache.dbcache_of, dbcache.cachedit_of])
def test_in_few_steps_a_presets_warmup_leaves_half_of_them(of):
    for preset in FOUR:
        assert windows(of(preset), {}, steps=8)[:4] == [4, 5, 6, 7]
    assert windows(of("Quality"), {}) == [*range(8, 20)]
    assert windows(of("Custom", warmup=8), {}, steps=8) == []


def test_teacache_by_hand():
    method = teacache.teacache_of("Custom", 0.3, "Mochi", "reuse", 2, 0.1, 0.8, 4)
    assert (method.indicator, rule(method), method.predictor) == (Modulated("Mochi"), Accumulator(0.3), Reuse())
    assert method.blocks == Blocks(0, 0, "modulated")
    with pytest.raises(ValueError, match="polynomial is one of auto, measured, Flux Kontext"):
        teacache.teacache_of("Custom", polynomial="tomorrow")


def test_teacaches_window_is_of_the_steps(studio, cached, flux):
    """Of 16, the steps 4 to 11; and nothing that was added up before is held against the first of them."""
    method = teacache.teacache_of("Custom", 900.0, "Flux", start_percent=0.25, end_percent=0.75)
    model, reports = cached(method, flux)
    studio.sample(model, steps=STEPS, cfg=1.0)
    assert skipped_steps(reports) == list(range(4, 12))


def test_magcache_has_the_recommended_values_where_there_are():
    for row in rows(MAGCACHE):
        if row.network and "threshold" in row.data:
            data = row.data
            assert rule(magcache.magcache_of("as published"), row.network) == Ratios(
                data["threshold"], data["retention"], data["most"]
            )
            turbo = rule(magcache.magcache_of("Turbo"), row.network)
            assert turbo.error == data["threshold"] and turbo.max_skips <= data["most"]
            errors = [rule(magcache.magcache_of(p), row.network).error for p in FOUR]
            assert errors == sorted(errors)


def test_magcache_by_hand_and_as_a_schedule_that_is_known_beforehand(studio, cached, flux):
    method = magcache.magcache_of("Custom", 0.3, "Flux", start_percent=0.25, max_skips=3)
    assert rule(method) == Ratios(0.3, table="Flux")
    model, reports = cached(method, flux)
    studio.sample(model, steps=STEPS, cfg=1.0)
    assert reports[0].planned == [i for i in range(STEPS) if i not in skipped_steps(reports)]
    assert min(skipped_steps(reports)) == 4
    with pytest.raises(ValueError, match="table is one of auto, measured, Flux Kontext"):
        magcache.magcache_of("Custom", ratios="tomorrow")


def test_a_model_without_tables_is_learned_in_one_run_for_both(studio, cached, small_flux):
    model = small_flux(depth=1, depth_single_blocks=3)
    tea, tea_reports = cached(teacache.teacache_of("Turbo"), model)
    full = studio.sample(tea, steps=STEPS, cfg=1.0)
    assert torch.equal(full, studio.sample(model, steps=STEPS, cfg=1.0))
    assert any("calibrated. The next run skips steps (setup: " in n for n in tea_reports[0].notes)
    mag, mag_reports = cached(magcache.magcache_of("Turbo"), model)
    for patched, reports in ((tea, tea_reports), (mag, mag_reports)):
        studio.sample(patched, steps=STEPS, cfg=1.0)
        assert reports[-1].skipped > 0
        assert reports[-1].costs == "a run of this model"


@pytest.mark.parametrize(
    "how", [{"steps": STEPS + 4}, {"cfg": 2.0}, {"sampler": "dpmpp_2m"}, {"denoise": 0.7}], ids=str
)
def test_other_settings_of_a_learned_model_cost_no_run_in_full(studio, cached, small_flux, user, how):
    """Law 16."""
    model = small_flux(depth=1, depth_single_blocks=3)
    for of in (teacache.teacache_of("Turbo"), magcache.magcache_of("Turbo")):
        patched, reports = cached(of, model)
        settings: dict[str, Any]
        for settings in ({}, how):
            studio.sample(patched, **{"steps": STEPS, "cfg": 1.0, **settings})
        assert not reports[-1].learning and reports[-1].skipped > 0
        assert reports[-1].costs == "a run of this model"


def test_dicache_by_hand():
    method = dicache.dicache_of("Custom", 0.2, "change beyond the input's", 3, 2.0)
    assert (method.indicator, method.predictor) == (Probed("dy-dx", 2.0), ProbeAligned())
    assert method.blocks == Blocks(3, 0, "states")
    assert rule(method) == Accumulator(0.2)
    published = dicache.dicache_of("as published")
    assert rule(published, FLUX) == Accumulator(0.4)
    assert published.indicator is not None
    most = [
        published.indicator.start(RunContext(flow(9), Reuse(), network=network)).config.max_ratio  # type: ignore[attr-defined]
        for network in (FLUX, {"image_model": "wan2.1"})
    ]
    assert most == [1.5, 2.0]


def test_taylorseer_forecasts_the_blocks_too(studio, cached, flux):
    method = taylorseer.taylorseer_of("Custom", order=2, interval=3, level="blocks")
    assert method.blocks == Blocks(0, 0, "none")
    model, reports = cached(method, flux)
    out = studio.sample(model, steps=STEPS, cfg=1.0)
    assert reports[0].skipped > 0
    other = studio.sample(
        cached(taylorseer.taylorseer_of("Custom", order=2, interval=3), flux)[0], steps=STEPS, cfg=1.0
    )
    assert not torch.equal(out, other)
    assert taylorseer.taylorseer_of("Custom", order=2, interval=3).level == "output"
    assert taylorseer.taylorseer_of("Speed", level="blocks").level == "blocks"


@pytest.mark.parametrize("name", OF)
def test_never_skipping_is_the_unpatched_model(studio, cached, flux, plain, name):
    values: dict[str, Any] = {"threshold": 0.0}
    if name in LEARNS:
        values["polynomial" if name == "TeaCache" else "ratios"] = "Flux"
    if name in ("DBCache", "Cache-DiT"):
        values["fn"] = 1
    model, reports = cached(OF[name]("Custom", **values), flux)
    assert torch.equal(studio.sample(model, steps=STEPS, cfg=1.0), plain(cfg=1.0))
    assert "nothing was skipped" in reports[0].notes[-1]


@pytest.mark.parametrize("name", OF)
def test_a_step_mask_goes_into_every_one(studio, cached, small_flux, name):
    """And a static one decides alone: no run is computed in full to learn what is not asked."""
    ones = (0, 1, 2, 3, 4, 5, 8, 9, 12, 15)
    mask = StepMask(tuple(i in ones for i in range(STEPS)))
    method = OF[name](step_mask=mask)
    assert [p.mask for p in method.policies if isinstance(p, Mask)] == [mask]
    model, reports = cached(OF[name]("Custom", warmup=0, step_mask=mask), small_flux(depth=4, depth_single_blocks=6))
    studio.sample(model, steps=STEPS, cfg=1.0)
    assert {*skipped_steps(reports)} <= {*range(STEPS)} - {*ones}
    if name in LEARNS:
        assert skipped_steps(reports) == [i for i in range(STEPS) if i not in ones]
        assert reports[0].notes == []


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("First Block Cache", {"threshold": -0.1}, "threshold is at least 0"),
        ("First Block Cache", {"threshold": float("nan"), "unit": "typical changes"}, "threshold is at least 0"),
        ("First Block Cache", {"unit": "miles"}, "unit is one of relative change, typical changes"),
        ("First Block Cache", {"predictor": "tomorrow"}, "predictor is one of line, reuse"),
        ("DBCache", {"fn": 0}, "Fn is the number of first blocks"),
        ("DBCache", {"bn": -1}, "Bn is the number of last blocks"),
        ("DBCache", {"predictor": "taylor", "order": 3}, "1 or 2"),
        ("DBCache", {"coordinate": "tomorrow"}, "coordinate is one of"),
        ("DBCache", {"max_cached": -1}, "max_cached is a number of steps"),
        ("DBCache", {"threshold": -1.0}, "threshold is at least 0"),
        ("Cache-DiT", {"fn": 0}, "Fn is the number of first blocks"),
        ("Cache-DiT", {"skip_interval": -1}, "skip_interval is a number of steps"),
        ("Cache-DiT", {"max_cached": -1}, "max_cached is a number of steps"),
        ("Cache-DiT", {"mask": "tomorrow"}, "mask is one of none, slow"),
        ("Cache-DiT", {"mask_policy": "tomorrow"}, "mask_policy is one of"),
        ("TeaCache", {"threshold": -1.0}, "threshold is at least 0"),
        ("MagCache", {"threshold": float("nan")}, "threshold is at least 0"),
        ("DiCache", {"error": "tomorrow"}, "error is one of"),
        ("DiCache", {"probe": 0}, "at least 1 of them"),
        ("DiCache", {"most_ratio": 0.5}, "most_ratio is a factor from 1"),
        ("DiCache", {"most_ratio": float("nan")}, "most_ratio is a factor from 1"),
        *((name, {"preset": "tomorrow"}, "preset is one of") for name in OF),
        *((name, {"cache_device": "tomorrow"}, "one of auto, gpu, cpu") for name in OF),
        *((name, {"warmup": -1}, "warmup is a number of steps") for name in OF),
        *((name, {"step_mask": "1,0,1"}, "step_mask takes the output of a Step Mask node") for name in OF),
    ],
)
def test_a_bad_value_is_refused_with_what_would_do(name, values, said):
    with pytest.raises(ValueError, match=said):
        OF[name](**{"preset": "Custom", **values})


def test_what_is_asked_of_a_model_is_started_with_what_is_known_of_it():
    context = RunContext(flow(20), Reuse(), network=FLUX)
    method = teacache.teacache_of("Speed")
    assert method.policies[-1].start(context).threshold == 0.4
    assert method.indicator is not None and method.indicator.start(context).source == "Flux"
    assert not method.requires_profile(FLUX, None) and method.requires_profile({"image_model": "qwen_image"}, None)


@pytest.mark.parametrize("name", OF)
def test_a_second_run_is_as_a_fresh_one(studio, taught, fresh, name):
    model, reports = taught(name)
    other, again = (studio.sample(model, steps=STEPS, seed=seed) for seed in (2, 1))
    assert torch.equal(again, fresh(name)[0])
    assert not torch.equal(again, other)
    assert all(r.skipped for r in reports)


@pytest.mark.parametrize("negative", ["", "a frog on a white background, " * 20], ids=["one call", "two calls"])
@pytest.mark.parametrize("name", OF)
def test_guidance_has_one_decision_and_two_histories(studio, taught, flux, plain, name, negative):
    """With prompts of one length both are run at once, with another length one after the other."""
    how: dict[str, Any] = {"negative": studio.prompt(negative)} if negative else {}
    model, reports = taught(name)
    out = studio.sample(model, steps=STEPS, **how)
    full = studio.sample(flux, steps=STEPS, **how) if how else plain()
    assert reports[0].skipped > 0
    assert len(reports[0].evaluations) == STEPS
    assert (out - full).norm() < SAME_PICTURE * full.norm()


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "res_multistep", "euler_ancestral", "dpmpp_2m_sde"])
@pytest.mark.parametrize("name", OF)
def test_every_kind_of_sampler(fresh, name, sampler):
    out, report = fresh(name, cfg=1.0, sampler=sampler)
    assert torch.isfinite(out).all()
    assert report.skipped > 0
    assert report.evaluations[0].computed
    assert all(e.computed for e in report.evaluations if e.step >= STEPS - 1)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("name", OF)
def test_very_few_steps(fresh, plain, name, steps):
    out, report = fresh(name, steps=steps)
    assert torch.isfinite(out).all()
    assert report.evaluations[0].computed and report.evaluations[-1].computed
    if not report.skipped:
        assert torch.equal(out, plain(steps=steps))


@pytest.mark.parametrize("name", OF)
def test_an_error_in_the_middle_leaves_nothing_behind(studio, taught, fresh, name):
    model, reports = taught(name)

    def callback(step, *_):
        if step == 8:
            raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        studio.sample(model, steps=STEPS, callback=callback)
    assert torch.equal(studio.sample(model, steps=STEPS), fresh(name)[0])
    assert [r.finished for r in reports] == [False, True]


@pytest.mark.parametrize("name", OF)
def test_a_batch_of_two(studio, taught, name):
    noise = studio.noise(batch=2)
    noise[0] = noise[1]  # a decision about both is then the decision about one alone
    model, reports = taught(name)
    out = studio.sample(model, steps=STEPS, noise=noise)
    alone = studio.sample(model, steps=STEPS, noise=noise[1:])
    assert reports[0].skipped > 0
    torch.testing.assert_close(out[1:], alone, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", OF)
def test_where_it_is_kept_changes_nothing(studio, cached, flux, fresh, name):
    expected, _ = fresh(name)
    for device in ("gpu", "cpu"):
        model, _ = cached(OF[name]("Speed", cache_device=device), flux)
        assert torch.equal(studio.sample(model, steps=STEPS), expected)
