"""Bad input: a clear error or an honest word, never a broken picture."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from comfy.patcher_extension import WrappersMP

from skipstone.nodes.meancache import method_of
from skipstone.patch.errors import StepCacheError
from skipstone.patch.step.attach import attach

NAN = math.nan


@pytest.mark.parametrize("budget", [0.0, -0.1, 1.01, 20.0, NAN, math.inf])
def test_a_budget_that_is_no_share(budget):
    with pytest.raises(ValueError, match=rf"budget.*above 0 and at most 1.*{re.escape(str(budget))}"):
        method_of("Custom", budget=budget)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 17.0, NAN, math.inf])
def test_a_gamma_that_is_no_exponent(gamma):
    with pytest.raises(ValueError, match=rf"gamma.*from 1 to 16.*{re.escape(str(gamma))}"):
        method_of("Custom", gamma=gamma)


@pytest.mark.parametrize("percent", [-0.01, 1.01, NAN])
@pytest.mark.parametrize("name", ["start_percent", "end_percent"])
def test_a_percent_that_is_no_share(name, percent):
    with pytest.raises(ValueError, match=rf"{name}.*from 0 to 1.*{re.escape(str(percent))}"):
        method_of("Custom", **{name: percent})


def test_an_unknown_schedule():
    with pytest.raises(ValueError, match=r"no schedule 'Z-Image 99'.*Z-Image 25"):
        method_of("Custom", schedule="Z-Image 99")


@pytest.mark.parametrize(
    ("name", "known"), [("preset", "Turbo"), ("predictor", "linear"), ("history_device", "gpu")], ids=lambda v: v
)
def test_an_unknown_choice(name, known):
    values: dict[str, Any] = {"preset": "Custom", name: "crystal ball"}
    with pytest.raises(ValueError, match=rf"{name} is one of .*{known}.*not 'crystal ball'"):
        method_of(**values)


@pytest.mark.parametrize("span", [0, -1])
def test_a_span_of_no_step(span):
    with pytest.raises(ValueError, match="span"):
        method_of("Custom", predictor="average velocity (paper)", span=span)


def test_a_preset_does_not_mind_what_the_folded_widgets_hold():
    assert method_of("Speed", budget=0.0, gamma=NAN, schedule="gone", start_percent=7.0) == method_of("Speed")


def test_a_model_that_is_not_for_sampling(studio):
    for thing in (None, "a model", object(), studio.model.model, studio.clip, studio.clip.patcher):
        with pytest.raises(StepCacheError, match=r"MeanCache needs a diffusion MODEL.*loader"):
            attach(thing, method_of())


def test_no_sample_sigmas(studio, meancache):
    """Another pack's sampler may start from options of its own; ours needs nothing that is in them."""

    def forget(executor, guider, sigmas, extra_args, *args, **kwargs):
        del extra_args["model_options"]["transformer_options"]["sample_sigmas"]
        return executor(guider, sigmas, extra_args, *args, **kwargs)

    model, reports = meancache(preset="Turbo")
    forgetful = model.clone()
    forgetful.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "forget", forget)
    assert torch.equal(studio.sample(forgetful), studio.sample(model))
    assert reports[0].skipped > 0


def test_a_listener_that_fails_does_not_take_the_picture_with_it(studio, caplog):
    def broken(report):
        raise RuntimeError("the browser is gone")

    class Gone(Exception):
        pass

    heard: list[Any] = []
    model = attach(studio.model, method_of("Turbo"), (broken, heard.append))
    assert torch.equal(studio.sample(model), studio.sample(attach(studio.model, method_of("Turbo"))))
    assert len(heard) == 1
    failing = model.clone()
    failing.set_model_sampler_post_cfg_function(lambda args: (_ for _ in ()).throw(Gone))
    with pytest.raises(Gone):  # the error that ended the run is the one that is seen
        studio.sample(failing)
    assert "the browser is gone" in caplog.text
