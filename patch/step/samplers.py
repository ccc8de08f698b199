"""A sampler's kind, by the name of its function in comfy.k_diffusion.sampling; unknown samplers are observed while they run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...core.step.calibration.recipe import noisy
from ...core.step.predictors import Integrator

EULER = {"sample_euler"}  # ComfyUI's "euler" and "ddim"

# these choose their own steps between the first sigma and the last one above zero
ADAPTIVE_STEPS = {"dpm_fast_function", "dpm_adaptive_function"}

# these evaluate the model once a step, at the step's sigma ...
ONCE = {
    "sample_euler", "sample_euler_ancestral", "sample_euler_cfg_pp", "sample_euler_ancestral_cfg_pp", "sample_lms",
    "sample_dpmpp_2m", "sample_dpmpp_2m_cfg_pp", "sample_dpmpp_2m_sde", "sample_dpmpp_2m_sde_gpu",
    "sample_dpmpp_2m_sde_heun", "sample_dpmpp_2m_sde_heun_gpu", "sample_dpmpp_3m_sde",
    "sample_dpmpp_3m_sde_gpu", "sample_ddpm", "sample_lcm", "sample_ipndm", "sample_ipndm_v", "sample_deis",
    "sample_res_multistep", "sample_res_multistep_cfg_pp", "sample_res_multistep_ancestral",
    "sample_res_multistep_ancestral_cfg_pp", "sample_gradient_estimation", "sample_gradient_estimation_cfg_pp",
    "sample_er_sde", "sample_sa_solver",
}  # fmt: skip
# ... these also at the next step's sigma, except in the last step ...
TWICE = {"sample_heun", "sample_exp_heun_2_x0", "sample_exp_heun_2_x0_sde"}
# ... and these as often per step, at sigmas that depend on the step
ELSEWHERE = {
    "sample_dpm_2": 2, "sample_dpm_2_ancestral": 2, "sample_dpmpp_2s_ancestral": 2, "sample_dpmpp_2s_ancestral_cfg_pp": 2,
    "sample_dpmpp_sde": 2, "sample_dpmpp_sde_gpu": 2, "sample_heunpp2": 3, "sample_seeds_2": 2, "sample_seeds_3": 3,
    "sample_sa_solver_pece": 2,
}  # fmt: skip

KNOWN = ONCE | ADAPTIVE_STEPS | TWICE | ELSEWHERE.keys()
# of samplers that are in none of the tables, by the name of their function: evaluations per step, and whether they add noise
_observed: dict[str, int] = {}
_adds_noise: dict[str, bool] = {}


def function_of(sampler: object) -> str:
    """The name of a SAMPLER's function; "" where it has none."""
    return getattr(getattr(sampler, "sampler_function", None), "__name__", "")


def _churns(sampler: object) -> bool:
    options = getattr(sampler, "extra_options", None) or {}
    return options.get("s_churn", 0) > 0


def _identity(sampler: object) -> str:
    """The qualified names of an unknown SAMPLER's class and function: two packs may use one name."""
    parts = (type(sampler), getattr(sampler, "sampler_function", None))
    return " ".join(f"{getattr(p, '__module__', '')}.{getattr(p, '__qualname__', '')}" for p in parts if p)


def adaptive_steps(sampler: object) -> bool:
    """True if the SAMPLER chooses its own steps between the first sigma and the last."""
    return function_of(sampler) in ADAPTIVE_STEPS


def evaluations_per_step(sampler: object) -> int:
    """Evaluations of the model per step. For an unknown SAMPLER: as in its last run, and 1 before that."""
    name = function_of(sampler)
    if name in ONCE or name in ADAPTIVE_STEPS:
        return 1
    if name in TWICE:
        return 2
    return ELSEWHERE.get(name) or _observed.get(_identity(sampler), 1)


def foreign(sampler: object) -> bool:
    """True if nothing is known of the SAMPLER: it is not ComfyUI's own, and its function has none of the names above."""
    function = getattr(sampler, "sampler_function", None) or type(sampler)
    return function_of(sampler) not in KNOWN and not str(getattr(function, "__module__", "")).startswith("comfy.")


def observe(sampler: object, evaluations: int, steps: int, noisy: bool = False) -> None:
    """A run of `steps` finished after so many evaluations. noisy: noise was added between them."""
    if function_of(sampler) not in KNOWN and steps > 1:
        _observed[_identity(sampler)] = max(round(evaluations / steps), 1)
        _adds_noise[_identity(sampler)] = noisy


def second_order(sampler: object) -> bool:
    """True if the SAMPLER evaluates the model more than once a step and adds no noise."""
    return evaluations_per_step(sampler) > 1 and integrator_of(sampler) != "sde"


def run_sigmas(sampler: object, sigmas: list[float]) -> list[float]:
    """The sigmas that the SAMPLER steps between: without the final zero where it never reaches it."""
    return sigmas[:-1] if adaptive_steps(sampler) and sigmas[-1:] == [0.0] else sigmas


def evaluated_sigmas(sampler: Any, sigmas: Sequence[float]) -> list[float] | None:
    """The sigmas of all evaluations in order, for a SAMPLER that is known to use the grid's; None for others."""
    name, steps = function_of(sampler), list(sigmas[:-1])
    if _churns(sampler):
        return None
    if name in ONCE:
        return steps
    if name in TWICE:
        return [s for pair in zip(steps, sigmas[1:], strict=True) for s in pair if s > 0]
    return None


def integrator_of(sampler: object) -> Integrator:
    """The kind of a ComfyUI SAMPLER. For one of another pack: "unknown", or "sde" if its last run added noise."""
    name = function_of(sampler)
    options = getattr(sampler, "extra_options", None) or {}
    if noisy(name) or _churns(sampler) or options.get("eta", 0) > 0:
        return "sde"
    if foreign(sampler):
        return "sde" if _adds_noise.get(_identity(sampler)) else "unknown"
    if name in EULER:
        return "euler"
    # CFG++ moves the latent by another prediction than the one it returns
    return "multistep" if name in ONCE and not name.endswith("cfg_pp") else "ode"
