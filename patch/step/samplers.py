"""What kind of integrator a sampler is, from its function's name in k_diffusion: data, so that a new sampler is a new word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...core.step.predictors import Integrator

EULER = {"sample_euler"}  # ComfyUI's "euler" and "ddim"
# samplers that add noise between evaluations have one of these in their name
NOISY = ("ancestral", "sde", "ddpm", "lcm", "seeds", "sa_solver", "restart", "stochastic")

# these choose their own steps, from the first sigma to the last above zero, and stop there
STOP_SHORT = {"dpm_fast_function", "dpm_adaptive_function"}

# these evaluate the model once a step, at the step's own sigma ...
ONCE = {
    "sample_euler", "sample_euler_ancestral", "sample_euler_cfg_pp", "sample_euler_ancestral_cfg_pp", "sample_lms",
    "sample_dpmpp_2m", "sample_dpmpp_2m_cfg_pp", "sample_dpmpp_2m_sde", "sample_dpmpp_2m_sde_gpu", "sample_dpmpp_3m_sde",
    "sample_dpmpp_3m_sde_gpu", "sample_ddpm", "sample_lcm", "sample_ipndm", "sample_ipndm_v", "sample_deis",
    "sample_res_multistep", "sample_res_multistep_cfg_pp", "sample_res_multistep_ancestral",
    "sample_res_multistep_ancestral_cfg_pp", "sample_gradient_estimation", "sample_gradient_estimation_cfg_pp",
    "sample_er_sde",
}  # fmt: skip
# ... and these a second time at the next one's, but for the last
TWICE = {"sample_heun"}
TWICE_ELSEWHERE = {"sample_dpm_2", "sample_heunpp2"}  # between the steps, or three times


def function_of(sampler: object) -> str:
    """The name of a SAMPLER's function; "" where it has none."""
    return getattr(getattr(sampler, "sampler_function", None), "__name__", "")


def _churns(sampler: object) -> bool:
    options = getattr(sampler, "extra_options", None) or {}
    return options.get("s_churn", 0) > 0


def steps_alone(sampler: object) -> bool:
    """Does the SAMPLER step where it likes between the first sigma and the last?"""
    return function_of(sampler) in STOP_SHORT


def looks_twice(sampler: object) -> bool:
    """Does the SAMPLER evaluate the model twice a step, adding no noise?"""
    return function_of(sampler) in TWICE | TWICE_ELSEWHERE and not _churns(sampler)


def stepped(sampler: object, sigmas: list[float]) -> list[float]:
    """Of a run's sigmas those that the SAMPLER steps between: without the final zero where it never goes there."""
    return sigmas[:-1] if function_of(sampler) in STOP_SHORT and sigmas[-1:] == [0.0] else sigmas


def looks_at(sampler: Any, sigmas: Sequence[float]) -> list[float] | None:
    """The sigmas of all evaluations in their order, where the SAMPLER is known to make them so; else None."""
    name, steps = function_of(sampler), list(sigmas[:-1])
    if _churns(sampler):
        return None
    if name in ONCE:
        return steps
    if name in TWICE:
        return [s for pair in zip(steps, sigmas[1:], strict=True) for s in pair if s > 0]
    return None


def integrator_of(sampler: object) -> Integrator:
    """The kind of a ComfyUI SAMPLER. Unknown ones are taken for deterministic: that presumes the least."""
    name = function_of(sampler)
    options = getattr(sampler, "extra_options", None) or {}
    if any(word in name for word in NOISY) or _churns(sampler) or options.get("eta", 0) > 0:
        return "sde"
    if name in EULER:
        return "euler"
    # CFG++ carries the latent forward by another prediction than the one it is given
    return "multistep" if name in ONCE and not name.endswith("cfg_pp") else "ode"
