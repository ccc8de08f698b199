"""The error of a run that skips, by simulating it.

PSSP adds up the errors of single edges, each on a full run's trajectory. The simulated run also corrects an edge's error on the next one,
and its outputs depend on the latent: without guidance an error of the latent mostly remains, with guidance the network corrects it.
Predictions that extrapolate and correct as if there were no such feedback add to it, and the run overshoots (as explicit multistep methods
do where the time step is too long for them: Hairer & Wanner, Solving ODEs II, V.1). bench/choices.md has the measurements.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..calibration.gram import Array, Gram
from ..clock import END, Coordinate, Grid
from ..predictors.linear import spread
from .edge_costs import moves, scale
from .response import Response

# The feedback depends on the direction of the error, by the standard deviation of the data in it. Standard deviation: share of the error.
# The smaller the deviation, the stronger the feedback: runs overshoot first in the directions that have a small share.
DIRECTIONS = {3.0: 12 / 14, 0.5: 1 / 14, 0.1: 1 / 14}
SENSITIVITY = 0.8  # dD/dx of the network, as a share of that of the best denoiser
GUIDED, HIGHEST_CFG = 0.8, 8.0  # feedback that each unit of CFG - 1 adds, up to this CFG

Plans = NDArray[np.intp]  # (B, K): anchors of B plans, ascending


class Simulation:
    """Runs on a grid of N steps, as linear combinations of the recorded outputs.

    Parameters
    ----------
    at: coordinate of the predictor's line.
    grid: the run's.
    costs: Gram matrix of recorded runs, of velocities.
    cfg: guidance.
    ends: the last anchor is the trajectory's last step; otherwise the run goes on to the grid's end.
    breaks: steps at which older anchors are dropped, with what they were to correct.
    response: the sampler's; None: as Euler's method.
    """

    def __init__(
        self,
        at: Coordinate,
        grid: Grid,
        costs: Gram,
        cfg: float = 1.0,
        ends: bool = True,
        breaks: frozenset[int] = frozenset(),
        response: Response | None = None,
    ) -> None:
        self.grid, self.ends, self.breaks = grid, ends, list(breaks)
        self.gram = costs.on(grid)
        euler = moves(grid, costs)
        if response is None:
            response = Response(tuple(euler), tuple(euler))
        self.total, self.place = np.asarray(response.total), np.array([*map(grid.along(at), grid.sigmas[:-1])])
        self.ahead = np.asarray(response.at_once) - self.total
        # of the latent's displacement as the sampler makes it, and as the predictor assumes it
        self.made, self.planned = (Sums(weights, self.place) for weights in (self.total, euler))
        self.scale = float(scale(grid)[-1])
        self.spread = np.array([spread(s, grid.flow) for s in grid.sigmas])
        self.feedback = np.array([feedback(grid, cfg, deviation) for deviation in DIRECTIONS])

    def errors(self, plans: Plans, slope: Array | float, gain: Array | float) -> Array:
        """The mean square error of the latent at the end of the run with each plan, shape (B,).

        slope, gain: of the predictor, see Corrected; numbers or of shape (B,).
        """
        count, steps, kinds = len(plans), self.grid.steps, len(DIRECTIONS)
        if not self.ends:
            plans = np.concatenate((plans, np.full((count, 1), steps)), 1)
        plans = np.tile(plans, (kinds, 1))
        slope, gain = (np.tile(np.broadcast_to(value, count), kinds)[:, None] for value in (slope, gain))
        rate = self.feedback.repeat(count, 0)
        step = np.arange(steps)
        # combinations of the recorded outputs, (B, N). error: of the latent. settled: of the latent, with each output's response in total.
        # owed: the correction that is due. before, planned: of the last edge, its anchor's output and the displacement predicted on it
        error, settled, owed, before, planned = np.zeros((5, len(plans), steps))
        length = mean = np.zeros((len(plans), 1))
        skips = np.zeros((len(plans), 1), bool)
        for k in range(plans.shape[1] - 1):
            a, b, c = plans[:, [max(k - 1, 0)]], plans[:, [k]], plans[:, [k + 1]]
            change = np.take_along_axis(rate, b, 1) * error
            output = change + (step == b)
            # of the edge that ends here: the displacement on the line between its anchors, less the one predicted
            due = before * (length - mean) + output * mean - planned
            fresh = np.isin(b, self.breaks)
            owed = np.where(fresh, 0, np.where(skips, due, owed))

            skips = c > b + 1
            slant = _ratio(slope, self.place[b] - self.place[a], ~fresh) * (output - before)
            length, first = self.planned.between(b, c)
            mean = _ratio(first, self.place[np.minimum(c, steps - 1)] - self.place[b])
            planned = output * length + slant * first
            constant = output + _ratio(gain * self.spread[c], self.spread[b] * length) * owed
            length_made, first_made = self.made.between(b, c)
            true = np.where((b < step) & (step < c), self.total, 0)
            settled = settled + self.total[b] * change + constant * length_made + slant * first_made - true
            newest = np.where(skips, constant + slant * (self.place[c - 1] - self.place[b]) - (step == c - 1), change)
            error = settled + self.ahead[c - 1] * newest
            before = output
        if self.ends:
            error = settled + self.total[-1] * rate[:, -1:] * error
        square = np.einsum("bi,ij,bj->b", error, self.gram, error) / self.scale**2
        return np.asarray(np.array([*DIRECTIONS.values()]) @ np.maximum(square, 0).reshape(kinds, count))


def _ratio(a: Array, b: Array, where: NDArray[np.bool_] | bool = True) -> Array:
    """a / b; 0 where b is, and elsewhere than `where`."""
    return np.divide(a, b, out=np.zeros(np.broadcast(a, b).shape), where=(b != 0) & where)


class Sums:
    """Sums of weights over steps, and their first moments in a coordinate. weights, place: shape (N,)."""

    def __init__(self, weights: Array, place: Array) -> None:
        self.place = place
        self.below = np.concatenate(([0.0], np.cumsum(weights)))
        self.moments = np.concatenate(([0.0], np.cumsum(weights * place)))

    def between(self, b: NDArray[np.intp], c: NDArray[np.intp]) -> tuple[Array, Array]:
        """Over the steps between b and c, without both: the sum, and the first moment about b; shaped as b and c."""
        total = self.below[c] - self.below[b + 1]
        return total, self.moments[c] - self.moments[b + 1] - self.place[b] * total


def feedback(grid: Grid, cfg: float, deviation: float) -> Array:
    """How much the output of each step changes with the latent, shape (N,): (1 - dD/dx) / sigma, where data is normal with this standard
    deviation, and more with guidance. Below 0 errors grow. The constants were chosen on three small models (bench/choices.md).
    """
    sigmas = np.maximum(np.asarray(grid.sigmas[:-1]), END)
    alphas = 1 - sigmas if grid.flow else np.ones_like(sigmas)  # x = alpha * data + sigma * noise
    variance = (deviation * alphas) ** 2 + sigmas**2
    jacobian = SENSITIVITY * deviation**2 * alphas / variance  # dD/dx
    guidance = (min(max(cfg, 1.0), HIGHEST_CFG) - 1) * GUIDED * sigmas**2 / variance / (alphas + sigmas)
    return np.asarray((1 - jacobian + guidance) / sigmas)
