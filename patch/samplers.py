"""What kind of integrator a sampler is, from its function's name in k_diffusion: data, so that a new sampler is a new word."""

from __future__ import annotations

from ..core.step.predictors import Integrator

EULER = {"sample_euler"}  # ComfyUI's "euler" and "ddim"
# samplers that add noise between evaluations have one of these in their name
NOISY = ("ancestral", "sde", "ddpm", "lcm", "seeds", "sa_solver", "restart", "stochastic")

# these choose their own steps, from the first sigma to the last above zero, and stop there
STOP_SHORT = {"dpm_fast_function", "dpm_adaptive_function"}


def stepped(sampler: object, sigmas: list[float]) -> list[float]:
    """Of a run's sigmas those that the SAMPLER steps between: without the final zero where it never goes there."""
    name = getattr(getattr(sampler, "sampler_function", None), "__name__", "")
    return sigmas[:-1] if name in STOP_SHORT and sigmas[-1:] == [0.0] else sigmas


def integrator_of(sampler: object) -> Integrator:
    """The kind of a ComfyUI SAMPLER. Unknown ones are taken for deterministic: that presumes the least."""
    name = getattr(getattr(sampler, "sampler_function", None), "__name__", "")
    options = getattr(sampler, "extra_options", None) or {}
    if any(word in name for word in NOISY) or options.get("s_churn", 0) > 0 or options.get("eta", 0) > 0:
        return "sde"
    return "euler" if name in EULER else "ode"
