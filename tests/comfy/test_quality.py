"""The point of it all: with as many evaluations, the picture is closer to the full run's than plain sampling's is."""

from __future__ import annotations

import pytest
import torch

from skipstone.tests.thorough import params

from .floors import OVER_PLAIN, SAME_PICTURE

SAMPLERS = ("heun", "dpmpp_2m", "uni_pc", "euler_ancestral", "dpmpp_2m_sde", "res_multistep")
PAIRS = [
    ("a frog on a white background", 3),
    ("a banana on a black background", 4),
    ("a red apple on a blue background", 2),
]


@pytest.fixture(scope="session")
def studio(demo):
    """How good a picture is shows with a trained model alone."""
    return demo


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(
    ("steps", "preset"),
    [(20, "Balanced"), (20, "Turbo")]
    + [
        pytest.param(steps, preset, marks=pytest.mark.thorough)
        for steps, preset in ((20, "Quality"), (50, "Balanced"), (50, "Turbo"))
    ],
)
def test_closer_to_the_full_run_than_as_many_plain_steps(studio, meancache, steps, preset):
    model, reports = meancache(preset=preset)
    cached, plain = [], []
    for text, seed in PAIRS if steps < 50 else PAIRS[:2]:
        prompt = studio.prompt(text)
        full = studio.full(text, seed=seed, steps=steps)
        cached.append(distance(studio.sample(model, prompt, seed=seed, steps=steps), full))
        plain.append(distance(studio.full(text, seed=seed, steps=reports[-1].computed), full))
    # of all pairs: any one may fall to the other side of a choice that it makes
    assert sum(cached) < OVER_PLAIN * sum(plain)
    assert max(cached) < SAME_PICTURE  # whatever the model: never another picture


def test_also_where_guidance_is_strong_and_the_sampler_extrapolates(studio, meancache):
    """As people sample with SDXL. The network pulls wrong latents back: what extrapolates and corrects as well overshoots."""
    how = {"steps": 20, "sampler": "dpmpp_2m", "cfg": 6.0}
    model, reports = meancache(preset="Balanced", calibration="auto")
    cached, plain = [], []
    for text, seed in PAIRS:
        full = studio.full(text, seed=seed, **how)
        cached.append(distance(studio.sample(model, studio.prompt(text), seed=seed, **how), full))
        plain.append(distance(studio.full(text, seed=seed, **{**how, "steps": reports[-1].computed}), full))
    assert sum(cached) < OVER_PLAIN * sum(plain)


@pytest.mark.parametrize("sampler", params(SAMPLERS, {"dpmpp_2m", "uni_pc", "euler_ancestral", "res_multistep"}))
def test_other_samplers_are_not_led_astray(studio, meancache, sampler):
    model, reports = meancache(preset="Quality")
    text, seed = PAIRS[0]
    out = studio.sample(model, studio.prompt(text), seed=seed, steps=16, sampler=sampler)
    assert reports[0].skipped > 0
    assert distance(out, studio.full(text, seed=seed, steps=16, sampler=sampler)) < SAME_PICTURE


def test_closer_than_by_saying_the_last_answer_again(studio, meancache):
    errors = {}
    for predictor in ("auto", "reuse"):
        model, _ = meancache(preset="Custom", budget=0.5, predictor=predictor)
        outs = [
            (studio.sample(model, studio.prompt(text), seed=seed, steps=20), text, seed) for text, seed in PAIRS[:2]
        ]
        errors[predictor] = sum(distance(out, studio.full(text, seed=seed, steps=20)) for out, text, seed in outs)
    assert errors["auto"] < errors["reuse"]


def test_a_higher_budget_is_closer(studio, meancache):
    text, seed = PAIRS[0]
    full, prompt = studio.full(text, seed=seed, steps=20), studio.prompt(text)
    errors = []
    for budget in (0.3, 0.5, 0.8):
        model, _ = meancache(preset="Custom", budget=budget)
        errors.append(distance(studio.sample(model, prompt, seed=seed, steps=20), full))
    assert errors == sorted(errors, reverse=True)
