"""How a sampler carries the model's outputs into the latent."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Response:
    """The latent's displacement for one unit of each step's output (x - D) / sigma.

    Samplers that extrapolate from earlier outputs (dpmpp_2m, res_multistep) let an output count for more in its own step than the change of
    sigma, and take some of it back in the next ones.

    Parameters
    ----------
    total: at the end of the run, N values.
    at_once: at the end of the output's own step, N values.
    """

    total: tuple[float, ...]
    at_once: tuple[float, ...]
