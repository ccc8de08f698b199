"""Costs of the user's own models: recorded by full runs and by runs that skip, used for runs with other settings, and kept as files that
are trusted with nothing."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import comfy.sd
import folder_paths
import pytest
import torch
from comfy.patcher_extension import WrappersMP

from skipstone.core.step.calibration.costs import shipped
from skipstone.core.step.calibration.gram import Gram
from skipstone.nodes.meancache import method_of
from skipstone.patch.step import model_fingerprint as fingerprints
from skipstone.patch.step.model_fingerprint import fingerprint

try:
    from comfy import quant_ops
except ImportError:  # an earlier ComfyUI
    quant_ops = SimpleNamespace()

pytestmark = [
    pytest.mark.usefixtures("user"),
    pytest.mark.filterwarnings("ignore:::(comfy|torchsde)"),  # their own, and none of ours
]

STEPS = 10
LEARNED = "; runs recorded: "
DEFAULT = shipped(True)[0].recipe


def kept(user):
    """The calibrations that are there, by name; the recipes beside them are as many."""
    folder = user / "skipstone" / "calibration"
    files = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    recipes = [f for f in files if f.endswith(".recipe.json")]
    grams = [f for f in files if f not in recipes]
    assert {f.split(".")[0] for f in recipes} == {f.split(".")[0] for f in grams}
    return [folder / f for f in grams]


@pytest.fixture
def sampled(studio, cached, tiny_flux):
    """One run of MeanCache: `out, report = sampled("auto", cfg=1.0)`."""

    def run(calibration, model=None, *, widgets=None, positive=None, **how):
        values = {"preset": "Speed", "calibration": calibration, **(widgets or {})}
        patched, reports = cached(method_of(**values), model or tiny_flux)
        return studio.sample(patched, positive, **{"steps": STEPS, **how}), reports[0]

    return run


@pytest.fixture
def full(studio, tiny_flux):
    """What the unpatched model gives."""

    def run(model=None, **how):
        return studio.sample(model or tiny_flux, **{"steps": STEPS, **how})

    return run


def notes(report):
    return " | ".join(report.notes)


# auto


def test_the_first_run_is_the_unpatched_models_and_says_why(user, sampled, full):
    out, report = sampled("calibrate")
    assert torch.equal(out, full())
    assert report.skipped == 0
    assert LEARNED in notes(report)
    (path,) = kept(user)
    assert path.stem.isalnum() and len(path.stem) == 32
    gram = Gram.from_json(path.read_text("utf-8"))
    assert gram.runs == 1
    assert len(gram.times) == STEPS
    recipe = json.loads(path.with_name(f"{path.stem}.recipe.json").read_text("utf-8"))
    assert (recipe["steps"], recipe["sampler"], recipe["cfg"]) == (STEPS, "sample_euler", "3 (CFGGuider)")


def test_a_run_that_learns_is_not_told_to_take_a_faster_preset(sampled):
    _, report = sampled("calibrate")
    assert "to skip more" not in notes(report)


def test_the_second_run_skips_by_what_was_learned(user, sampled, full):
    sampled("calibrate")
    (path,) = kept(user)
    before = path.read_bytes()
    out, report = sampled("calibrate")
    assert report.skipped > 0
    assert not torch.equal(out, full())
    assert report.costs == Gram.from_json(before.decode()).recipe
    for word in ("Flux", "sample_euler", f"{STEPS} steps", "CFG 3", "16x16"):
        assert word in report.costs
    assert report.error is not None and 0 < report.error < 1
    assert report.notes == []
    assert path.read_bytes() == before  # and is not learned from again
    assert len(kept(user)) == 1


def test_what_was_learned_is_what_is_followed(user, sampled):
    """Costs that say that nothing happens before the last third put the computed steps there."""
    sampled("calibrate", steps=20, cfg=1.0)
    _, learned = sampled("calibrate", steps=20, cfg=1.0)
    (path,) = kept(user)
    data = json.loads(path.read_text("utf-8"))
    n = len(data["times"])
    moves = torch.rand(n, 64, generator=torch.Generator().manual_seed(0))
    moves[: 2 * n // 3] = moves[0]  # the same over and over
    products = (moves @ moves.T / moves.square().sum(1).max())[tuple(torch.triu_indices(n, n))]
    path.write_text(json.dumps({**data, "products": products.tolist()}), "utf-8")
    _, told = sampled("calibrate", steps=20, cfg=1.0)
    assert told.planned != learned.planned
    late = [s for s in told.planned if 2 <= s < n - 1]
    assert late and min(late) >= n // 2


def test_a_report_is_json_with_what_was_learned(sampled):
    sampled("calibrate")
    _, report = sampled("calibrate")
    told = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert told["costs"] == report.costs and told["error"] == report.error


@pytest.mark.parametrize(
    "sampler", ["dpmpp_2m", "res_multistep", "heun", "euler_ancestral", "dpmpp_sde", "uni_pc", "lcm"]
)
def test_with_other_samplers(user, sampled, full, sampler):
    out, first = sampled("calibrate", sampler=sampler)
    assert torch.equal(out, full(sampler=sampler))
    assert LEARNED in notes(first)
    out, second = sampled("calibrate", sampler=sampler)
    assert torch.isfinite(out).all()
    assert second.skipped > 0
    assert sampler.replace("_", "") in second.costs.replace("_", "")
    assert len(kept(user)) == 1


@pytest.mark.parametrize("sampler", ["dpm_fast", "dpm_adaptive"])
def test_a_sampler_that_makes_steps_of_its_own_does_not_run_in_full_for_ever(sampled, sampler):
    """Where costs cannot be learned the default ones are taken, at the second run at the latest."""
    sampled("calibrate", sampler=sampler)
    _, report = sampled("calibrate", sampler=sampler)
    assert report.skipped > 0


def test_with_a_model_that_predicts_noise(user, sampled, full, tiny_unet):
    how: dict[str, Any] = {"scheduler": "karras", "latent": torch.zeros(1, 4, 8, 8), "cfg": 1.0}
    out, first = sampled("calibrate", tiny_unet, **how)
    assert torch.equal(out, full(tiny_unet, **how))
    _, second = sampled("calibrate", tiny_unet, **how)
    assert first.skipped == 0 and second.skipped > 0
    assert second.error is not None and 0 < second.error < 1
    (path,) = kept(user)
    assert all(0 <= t <= 1 for t in Gram.from_json(path.read_text("utf-8")).times)


# what another recipe is


def other(how, tiny_flux):
    if how == "a LoRA":
        return {"model": with_lora(tiny_flux)}
    return {
        "CFG": {"cfg": 4.0},
        "CFG 1": {"cfg": 1.0},
        "steps": {"steps": STEPS + 2},
        "the sampler": {"sampler": "dpmpp_2m"},
        "the scheduler": {"scheduler": "beta"},
        "the size": {"latent": torch.zeros(1, 16, 32, 32)},
        "less than full denoise": {"denoise": 0.6},
    }[how]


OTHERS = ["CFG", "CFG 1", "steps", "the sampler", "the scheduler", "the size", "less than full denoise", "a LoRA"]


@pytest.mark.parametrize("first", ["auto", "calibrate"])
@pytest.mark.parametrize("how", OTHERS)
def test_no_change_of_settings_costs_a_run_in_full(user, sampled, tiny_flux, how, first):
    """Law 16: what is known of the model is used across settings, also where the first run was asked to be computed in full."""
    sampled(first)
    for _ in range(2):
        _, report = sampled(first, **other(how, tiny_flux))
        assert report.skipped > 0 and not report.learning
        assert "Flux, sample_" in report.costs
        assert report.notes == []


def test_every_run_skips_and_the_first_ones_teach(user, sampled):
    _, first = sampled("auto")
    assert first.skipped > 0 and first.notes == [] and first.costs == DEFAULT
    (path,) = kept(user)
    assert path.name.endswith(".partial.json")
    for run in range(2, 9):
        _, report = sampled("auto", seed=run)
        assert report.skipped > 0 and report.notes == []
        assert "Flux, sample_euler" in report.costs
    grams = [Gram.from_data(data) for data in json.loads(path.read_text("utf-8"))]
    assert sum(gram.runs for gram in grams) == 8
    assert all(len(gram.times) < STEPS and gram.passes == 2 for gram in grams)
    before = path.read_bytes()
    _, ninth = sampled("auto", seed=9)
    _, tenth = sampled("auto", seed=10)
    assert path.read_bytes() == before and ninth.planned == tenth.planned, "from then on the plan stays"


def test_what_is_recorded_of_a_run_that_skips_is_what_it_computed(user, sampled):
    _, report = sampled("auto", cfg=1.0)
    (path,) = kept(user)
    (gram,) = (Gram.from_data(data) for data in json.loads(path.read_text("utf-8")))
    computed = [e.sigma for e in report.evaluations if e.computed]
    assert gram.passes == 1 and gram.times == pytest.approx(computed, abs=1e-5)


def test_a_run_that_computes_everything_anyway_records_nothing(user, sampled):
    _, report = sampled("auto", steps=4, widgets={"preset": "Quality"})
    assert report.skipped == 0 and kept(user) == []


def test_the_folder_is_bounded(user, sampled, monkeypatch):
    from skipstone.patch.step import calibration

    monkeypatch.setattr(calibration, "MOST_RECIPES", 3)
    for steps in range(8, 13):
        sampled("auto", steps=steps)
    names = {p.name.split(".")[0] for p in kept(user)}
    assert len(names) == 3
    _, report = sampled("auto", steps=12)
    assert "12 steps" in report.costs, "the latest are kept"


@pytest.mark.parametrize("how", ["seed", "prompt", "batch", "about the same size", "preset", "a clone"])
def test_what_is_no_other_recipe(user, studio, sampled, tiny_flux, how):
    sampled("calibrate")
    same: dict[str, Any] = {
        "seed": {"seed": 5},
        "prompt": {"positive": studio.prompt("a frog on a white background")},
        "batch": {"noise": studio.noise(batch=2)},
        "about the same size": {"latent": torch.zeros(1, 16, 16, 18)},
        "preset": {"widgets": {"preset": "Turbo"}},
        "a clone": {"model": tiny_flux.clone()},
    }
    _, report = sampled("calibrate", **same[how])
    assert report.skipped > 0
    assert report.notes == []
    assert len(kept(user)) == 1


# record


def test_record_averages_runs(user, sampled, full, tmp_path):
    outs = [sampled("record", seed=seed) for seed in (1, 2)]
    for seed, (out, report) in zip((1, 2), outs, strict=True):
        assert torch.equal(out, full(seed=seed))
        assert LEARNED in notes(report)
    (path,) = kept(user)
    both = Gram.from_json(path.read_text("utf-8"))
    assert both.runs == 2
    alone = []
    for seed in (1, 2):
        folder_paths.set_user_directory(str(tmp_path / str(seed)))
        sampled("record", seed=seed)
        alone.append(Gram.from_json(kept(tmp_path / str(seed))[0].read_text("utf-8")).products)
    assert abs(alone[0] - alone[1]).max() > 1e-4
    assert both.products == pytest.approx((alone[0] + alone[1]) / 2, abs=1e-5)
    folder_paths.set_user_directory(str(user))
    _, report = sampled("calibrate")
    assert report.skipped > 0


# default and off


@pytest.mark.parametrize("calibration", ["default", "off"])
def test_what_learns_nothing(user, sampled, calibration):
    for _ in range(2):
        _, report = sampled(calibration)
        assert report.skipped > 0
        assert report.notes == []
    assert not user.exists()


def test_default_takes_the_costs_that_are_shipped(sampled):
    sampled("calibrate")
    _, report = sampled("default")
    assert report.costs == DEFAULT != ""
    assert report.error is not None and report.error > 0


@pytest.mark.parametrize("steps", [8, 20, 31])
def test_off_looks_at_no_costs_and_spaces_the_steps_evenly(sampled, steps):
    _, report = sampled("off", widgets={"preset": "Custom", "budget": 0.4, "warmup": 0}, steps=steps, cfg=1.0)
    assert report.costs == "" and report.error is None
    assert report.planned == [e.step for e in report.evaluations if e.computed]
    assert report.planned[0] == 0 and report.planned[-1] == steps - 1
    assert report.computed == int(0.4 * steps)
    gaps = [b - a for a, b in zip(report.planned, report.planned[1:], strict=False)]
    assert max(gaps) - min(gaps) <= 1


def test_a_published_schedule_needs_no_costs(user, sampled):
    for calibration in ("auto", "calibrate", "record"):
        _, report = sampled(calibration, widgets={"preset": "Custom", "schedule": "Z-Image 13"}, steps=20, cfg=1.0)
        assert report.skipped > 0
    assert not user.exists()


@pytest.mark.parametrize("calibration", ["calibrate", "record"])
def test_where_nothing_can_be_skipped_nothing_is_learned(user, studio, cached, tiny_flux, calibration):
    model, reports = cached(method_of("Speed", calibration=calibration), tiny_flux)
    for sigmas in ([], [0.5], [1.0, 0.0], [1.0, 0.5, 0.7, 0.2, 0.0]):
        studio.sample_custom(model, sigmas)
    assert all(r.skipped == 0 for r in reports)
    assert kept(user) == []


# hostile files


def changed(**values):
    return lambda data: json.dumps({**data, **values})


HOSTILE: dict[str, Any] = {
    "cut off": lambda data: json.dumps(data)[:-40],
    "empty": lambda data: "",
    "another JSON": lambda data: '{"version": 3, "nodes": []}',
    "a list": lambda data: json.dumps([data]),
    "a text": lambda data: '"times"',
    "null": lambda data: "null",
    "a number": lambda data: "1e999",
    "no JSON": lambda data: "import os",
    "binary": lambda data: bytes(range(256)) * 8,
    "deeply nested": lambda data: "[" * 100_000,
    "deeply nested within": lambda data: '{"times": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "NaN": lambda data: changed(products=[float("nan"), *data["products"][1:]])(data),
    "infinite": lambda data: changed(products=[float("inf"), *data["products"][1:]])(data),
    "huge products": lambda data: changed(products=[p * 1e300 for p in data["products"]])(data),
    "huge whole numbers": lambda data: changed(times=[10**400, *data["times"][1:]])(data),
    "products below what a square can be": lambda data: changed(products=[-1.0] * len(data["products"]))(data),
    "negative times": lambda data: changed(times=[t - 1 for t in data["times"]])(data),
    "times that are no share of noise": lambda data: changed(times=[t * 50 for t in data["times"]])(data),
    "times that rise": lambda data: changed(times=data["times"][::-1])(data),
    "times that stand still": lambda data: changed(times=[0.5] * len(data["times"]))(data),
    "times that are texts": lambda data: changed(times=["now"] * len(data["times"]))(data),
    "times of times": lambda data: changed(times=[data["times"]])(data),
    "times by name": lambda data: changed(times=dict(enumerate(data["times"])))(data),
    "too many times": lambda data: changed(times=[1 - i / 1e5 for i in range(5000)])(data),
    "products of another length": lambda data: changed(products=data["products"][:-1])(data),
    "runs without end": lambda data: json.dumps(data).replace('"runs": 1', '"runs": Infinity'),
    "no run": changed(runs=0),
    "runs that are none": changed(runs="many"),
    "of something else": changed(kept="../../etc/passwd"),
    "of a list": changed(kept=["velocity"]),
}


@pytest.fixture(scope="module")
def genuine(studio, tiny_flux, tmp_path_factory):
    """The name and content of the file that a first run leaves, and its recipe."""
    from skipstone.patch.step.attach import attach

    place, before = tmp_path_factory.mktemp("genuine"), folder_paths.get_user_directory()
    folder_paths.set_user_directory(str(place))
    studio.sample(attach(tiny_flux, method_of("Speed", calibration="calibrate")), steps=STEPS)
    folder_paths.set_user_directory(before)
    (path,) = kept(place)
    recipe = path.with_name(f"{path.stem}.recipe.json")
    return path.name, json.loads(path.read_text("utf-8")), recipe.read_text("utf-8")


@pytest.fixture
def planted(user, genuine):
    """Puts something where a calibration would be: `path = planted("[]")`."""

    def plant(content):
        path = user / "skipstone" / "calibration" / genuine[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(f"{path.stem}.recipe.json").write_text(genuine[2], "utf-8")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return plant


def test_a_genuine_file_is_used(planted, genuine, sampled):
    """So that the tests below are about what they seem to be about."""
    planted(json.dumps(genuine[1]))
    _, report = sampled("calibrate")
    assert report.costs == genuine[1]["recipe"] and report.notes == []


@pytest.mark.parametrize("how", HOSTILE)
def test_a_file_that_is_none_of_ours_is_refused_and_left_in_place(planted, genuine, sampled, how):
    content = HOSTILE[how](genuine[1])
    path = planted(content)
    before = path.read_bytes()
    out, report = sampled("calibrate")
    assert torch.isfinite(out).all()
    assert report.skipped > 0  # by the default costs
    assert report.costs == DEFAULT
    (note,) = report.notes
    assert path.name in note and "cannot be used" in note and "built-in costs" in note
    assert len(note) < 1000
    assert path.read_bytes() == before


@pytest.mark.parametrize("scale", [0.1, 0.5])
def test_a_recording_of_other_times_is_left_out(planted, genuine, sampled, scale):
    planted(changed(times=[t * scale for t in genuine[1]["times"]])(genuine[1]))
    _, report = sampled("auto")
    assert report.skipped > 0 and report.costs == DEFAULT


def test_a_file_that_is_too_large_is_not_even_read(planted, sampled):
    path = planted("")
    os.truncate(path, 1 << 40)
    _, report = sampled("calibrate")
    assert "too large" in notes(report)
    assert report.skipped > 0 and report.costs == DEFAULT


def test_a_folder_in_the_place_of_the_file(planted, sampled, full):
    path = planted("")
    path.unlink()
    path.mkdir()
    out, report = sampled("calibrate")
    assert report.skipped > 0 or torch.equal(out, full())
    assert report.notes and report.finished


@pytest.mark.parametrize("content", ["", "{}", "null", "[7]", '[{"times": [1, 0.5]}]', "[" * 100_000, b"\xff\xfe"])
def test_recorded_runs_that_are_none_of_ours_are_refused_and_left_in_place(planted, genuine, sampled, content):
    path = planted(json.dumps(genuine[1])).with_name(genuine[0].replace(".json", ".partial.json"))
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = path.read_bytes()
    _, report = sampled("auto")
    assert report.skipped > 0 and path.read_bytes() == before
    assert any(path.name in note and "cannot be used" in note for note in report.notes)


@pytest.mark.parametrize("content", ["", "[]", "null", "{", "[" * 100_000, b"\xff\xfe", '{"model": 7}'])
def test_recipes_that_are_none_of_ours_are_passed_over(user, sampled, content):
    place = user / "skipstone" / "calibration"
    place.mkdir(parents=True)
    (place / "foreign.recipe.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    _, report = sampled("calibrate")
    assert LEARNED in notes(report)
    assert "foreign" not in notes(report)


def test_a_foreign_recipe_cannot_put_lines_into_the_log(user, sampled):
    sampled("calibrate")
    (path,) = kept(user)
    recipe = path.with_name(f"{path.stem}.recipe.json")
    data = json.loads(recipe.read_text("utf-8"))
    recipe.write_text(json.dumps({**data, "cfg": "7\nERROR: all is lost\x1b[31m" * 1000}), "utf-8")
    _, report = sampled("calibrate", cfg=5.0)
    assert all(len(note) < 1000 and note.isprintable() for note in report.notes)


# where nothing can be kept


@pytest.fixture
def unwritable(user):
    """No folder can be made in a user directory that is a file: true for whoever runs the tests, root too."""
    user.write_text("not a folder", "utf-8")
    return user


def test_a_user_directory_that_cannot_be_written_to(unwritable, sampled, full):
    out, report = sampled("calibrate")
    assert report.finished
    assert report.skipped > 0 or torch.equal(out, full())
    assert any("could not be recorded" in n or "built-in costs" in n for n in report.notes)


def test_where_nothing_can_be_kept_not_every_run_is_in_full(unwritable, sampled):
    """Or the node would never make anything faster there."""
    sampled("calibrate")
    _, report = sampled("calibrate")
    assert report.skipped > 0


@pytest.mark.parametrize("error", [RuntimeError, comfy.model_management.InterruptProcessingException])
@pytest.mark.parametrize("calibration", ["calibrate", "record"])
def test_a_run_that_did_not_finish_teaches_nothing(user, sampled, calibration, error):
    def callback(step, *_):
        if step == STEPS - 2:
            raise error()

    with pytest.raises(error):
        sampled(calibration, callback=callback)
    assert kept(user) == []
    _, report = sampled(calibration)
    assert LEARNED in notes(report)
    assert Gram.from_json(kept(user)[0].read_text("utf-8")).runs == 1


def test_a_run_of_no_numbers_teaches_nothing(user, sampled, tiny_flux):
    broken = tiny_flux.clone()
    broken.add_wrapper_with_key(
        WrappersMP.DIFFUSION_MODEL, "broken", lambda executor, *a, **k: executor(*a, **k) * float("nan")
    )
    _, report = sampled("calibrate", broken)
    assert kept(user) == []
    assert "could not be recorded" in notes(report)


# which model it is


def with_lora(model, seed=0, strength=1.0):
    """All of the model's matrices changed, by a LoRA under the names that trainers give them."""
    generator, weights = torch.Generator().manual_seed(seed), {}
    for name, weight in model.model.diffusion_model.named_parameters():
        if weight.ndim == 2 and "blocks" in name:
            key = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
            weights[f"{key}.lora_up.weight"] = torch.randn(weight.shape[0], 2, generator=generator) * 0.05
            weights[f"{key}.lora_down.weight"] = torch.randn(2, weight.shape[1], generator=generator) * 0.05
    patched = comfy.sd.load_lora_for_models(model, None, weights, strength, 0.0)[0]
    assert len(patched.patches) == len(weights) // 2
    return patched


def test_a_model_is_known_again_whatever_is_loaded(studio, tiny_flux):
    """A LoRA is merged into the very weights that the MODEL without it shares, as long as it is loaded."""
    lora = with_lora(tiny_flux)
    comfy.model_management.unload_all_models()
    plain, changed = fingerprint(tiny_flux), fingerprint(lora)
    assert plain != changed
    layer = tiny_flux.model.diffusion_model.double_blocks[0].img_attn.qkv
    as_it_was = layer.weight.clone()
    studio.sample(lora, steps=2)
    assert not torch.equal(layer.weight, as_it_was), "the LoRA was to be merged by now"
    assert fingerprint(lora) == fingerprint(lora.clone()) == changed
    assert fingerprint(tiny_flux) == fingerprint(tiny_flux.clone()) == plain
    studio.sample(tiny_flux, steps=2)
    assert torch.equal(layer.weight, as_it_was)
    assert (fingerprint(tiny_flux), fingerprint(lora)) == (plain, changed)
    comfy.model_management.unload_all_models()
    assert (fingerprint(tiny_flux), fingerprint(lora)) == (plain, changed)


def test_what_was_learned_with_a_lora_is_found_while_it_is_loaded_and_after(user, studio, sampled, tiny_flux):
    lora = with_lora(tiny_flux)
    reports = [sampled("calibrate", m)[1] for m in (tiny_flux, lora, tiny_flux, lora, lora, tiny_flux)]
    assert [r.skipped > 0 for r in reports] == [False, True, True, True, True, True]
    assert "Flux, sample_euler" in reports[1].costs, "a LoRA's costs are about those of the model without it"
    assert len({p.name.split(".")[0] for p in kept(user)}) == 2


def test_another_lora_or_strength_is_another_model(tiny_flux):
    prints = [
        fingerprint(m)
        for m in (tiny_flux, with_lora(tiny_flux), with_lora(tiny_flux, 1), with_lora(tiny_flux, strength=0.5))
    ]
    assert len(set(prints)) == 4
    assert fingerprint(with_lora(tiny_flux)) == prints[1]


def test_the_same_weights_in_another_object_are_the_same_model(small_flux, tiny_flux):
    assert fingerprint(small_flux()) == fingerprint(tiny_flux)


SIZES = {"two blocks": {}, "as many blocks as Flux has": {"depth": 19, "depth_single_blocks": 38}}


@pytest.mark.parametrize("which", ["img_attn.qkv.weight", "linear1.weight", "img_mlp.2.weight", ".bias"])
@pytest.mark.parametrize("size", SIZES)
def test_a_model_with_other_weights_is_another_model(small_flux, size, which):
    """As a fine-tune has them, or a checkpoint that a LoRA was merged into: of some kind of layer, in every block."""
    model = small_flux(hidden_size=32, num_heads=1, **SIZES[size])
    before = fingerprint(model)
    with torch.no_grad():
        for name, weight in model.model.diffusion_model.named_parameters():
            if name.endswith(which):
                weight.mul_(1.01)
    assert fingerprint(model) != before


QUANTIZED = [
    name
    for name in (
        "TensorCoreFP8Layout",
        "TensorCoreFP8E5M2Layout",
        "TensorCoreNVFP4Layout",
        "TensorCoreMXFP8Layout",
        "TensorWiseINT8Layout",
        "TensorCoreConvRotW4A4Layout",
    )
    if hasattr(quant_ops, "QuantizedTensor")
]


def quantized(layout, factor=1.0, count=3):
    """A MODEL, as far as its fingerprint goes, of weights that are stored in `layout`."""
    generator = torch.Generator().manual_seed(0)
    network = torch.nn.Module()
    for i in range(count):
        weight = torch.randn(256, 256, generator=generator).to(torch.bfloat16) * factor
        stored = quant_ops.QuantizedTensor.from_float(weight, layout)
        network.register_parameter(f"weight{i}", torch.nn.Parameter(stored, requires_grad=False))
    model: Any = torch.nn.Module()
    model.diffusion_model = network
    return SimpleNamespace(model=model, patches={}, patches_uuid=1, backup={}, hook_backup={})


@pytest.mark.parametrize("layout", QUANTIZED)
def test_a_quantized_model_is_known_without_being_dequantized(layout, monkeypatch):
    """For the sake of a few numbers of each weight."""
    try:
        model, same, other = quantized(layout), quantized(layout), quantized(layout, 1.5)
    except Exception as error:
        pytest.skip(f"cannot be made here: {error}")

    def dequantized(*_: Any, **__: Any) -> Any:
        raise AssertionError("it was dequantized")

    monkeypatch.setattr(quant_ops.QuantizedTensor, "dequantize", dequantized)
    assert fingerprint(model) == fingerprint(same) != fingerprint(other)


def test_quantized_layouts_are_among_them():
    assert "TensorCoreFP8Layout" in QUANTIZED or not hasattr(quant_ops, "QuantizedTensor")


def earlier(model):
    """The fingerprint of plain weights, which is part of the names of saved files."""
    digest, samples = hashlib.sha256(), []
    for name, weight in sorted(model.model.diffusion_model.named_parameters()):
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        flat = weight.detach().flatten()
        samples.append(flat[:: max(flat.numel() // 32, 1)][:32].to(torch.float32))
    digest.update(torch.cat(samples).numpy().tobytes())
    return digest.hexdigest()[:32]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_files_of_plain_models_are_found_again(small_flux, dtype):
    model = small_flux(hidden_size=32, num_heads=1)
    model.model.diffusion_model.to(dtype)
    network = model.model.diffusion_model
    network.transposed = torch.nn.Parameter(torch.randn(40, 30).to(dtype).t())
    assert not network.transposed.is_contiguous()
    assert fingerprint(model).weights == earlier(model)


def test_weights_are_looked_at_once(tiny_flux, monkeypatch):
    """Not before every run."""
    looked: list[Any] = []
    sample = fingerprints._sample

    def look(value: Any) -> Any:
        looked.append(1)
        return sample(value)

    monkeypatch.setattr(fingerprints, "_sample", look)
    monkeypatch.setattr(fingerprints, "_FINGERPRINTS", weakref.WeakKeyDictionary())
    lora = with_lora(tiny_flux)
    first = [fingerprint(m) for m in (tiny_flux, lora)]
    assert looked
    looked.clear()
    assert [fingerprint(m.clone()) for m in (tiny_flux, lora)] == first
    assert not looked
    assert len(fingerprints._FINGERPRINTS) == 1


def test_a_model_that_is_gone_is_forgotten(small_flux):
    model = small_flux(hidden_size=32, num_heads=1)
    fingerprint(model)
    before = len(fingerprints._FINGERPRINTS)
    del model
    gc.collect()
    assert len(fingerprints._FINGERPRINTS) < before


# a budget by its error


def test_a_larger_error_allows_fewer_evaluations(sampled):
    computed = []
    for max_error in (1e-9, 0.01, 0.05, 0.2):
        _, report = sampled("default", widgets={"preset": "Custom", "max_error": max_error}, steps=20, cfg=1.0)
        assert report.error is not None and report.error <= max_error
        computed.append(report.computed)
    assert computed == sorted(computed, reverse=True)
    assert computed[0] >= 19
    assert computed[0] > computed[2] > computed[3]


def test_an_error_is_told_from_what_was_learned(user, sampled):
    widgets: dict[str, Any] = {"preset": "Custom", "max_error": 0.05}
    sampled("calibrate", widgets=widgets, steps=20, cfg=1.0)
    _, report = sampled("calibrate", widgets=widgets, steps=20, cfg=1.0)
    assert report.error is not None and report.error <= 0.05
    assert report.costs != DEFAULT
    (path,) = kept(user)
    assert path.parent == Path(folder_paths.get_user_directory(), "skipstone", "calibration")
