"""The cost of each edge of a schedule for a given predictor, computed from a Gram matrix of full runs.

The cost of edge (a, b, c) is the root mean square of the displacement error of skipping b+1 .. c-1 when the two anchors before are a and b.
It generalises MeanCache's stability deviation (https://arxiv.org/abs/2601.19961, Eq. 13) to any predictor that is linear in the history.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..calibration.gram import Gram
from ..clock import Clock, Grid
from ..plan import Plan
from ..predictors import Line, Predictor
from ..trajectory import Trajectory

Array = NDArray[np.float64]

ROUNDING = 1e-5  # differences of times that float32 can make


def edge_costs(predictor: Predictor, grid: Grid, costs: Gram) -> Array:
    """cost[a, b, c] for the grid's N steps: float64, shape (N, N, N + 1); undefined unless a <= b < c.

    cost[b, b, c] is the cost of an edge whose anchor has no predecessor, cost[a, b, N] that of skipping all steps after b. Where sigma is
    not a share of noise, errors are those of x / (1 + sigma), the latent of the equivalent flow.
    """
    h, gram = moves(grid, costs), costs.on(grid)
    line = predictor.line
    cost = _two_anchors(line, grid, h, gram) if line else _walked(predictor, grid, h, gram)
    divisor = scale(grid)
    return cost / np.append(divisor, divisor[-1:])


def displacement(grid: Grid, costs: Gram) -> float:
    """The root mean square displacement of the latent over the whole run, in the unit of edge_costs."""
    h = moves(grid, costs) / scale(grid)
    return max(float(h @ costs.on(grid) @ h), 1e-12) ** 0.5


def edge_weights(grid: Grid) -> Array:
    """Factors on the cost of the edges that start at each step, shape (N,).

    Edge costs are those on a full run's trajectory, which a run with skips leaves. An early error grows until the end, 4 to 5 times as much
    where more than 0.9 of the latent is noise; late edges start from anchors that carry all earlier errors. The constants were chosen on
    three small models.
    """
    t = np.maximum(grid.times[:-1], 0.01)
    return np.asarray(np.where(t > 0.9 + ROUNDING, 2.0, 1.0) * t**-0.25)


def moves(grid: Grid, costs: Gram) -> Array:
    """The latent's displacement at each step for one unit of the recorded value, shape (N,)."""
    sigmas = np.asarray(grid.sigmas)
    h = np.diff(sigmas)
    # d = (x - D) / sigma: an error of D is divided by sigma
    return h / np.maximum(sigmas[:-1], 1e-6) if costs.kept == "denoised" else h


def scale(grid: Grid) -> Array:
    """The divisor at each step that turns the latent into that of a flow, shape (N,)."""
    sigmas = np.asarray(grid.sigmas[:-1])
    return np.ones_like(sigmas) if grid.flow else 1 + sigmas


def _two_anchors(line: Line, grid: Grid, h: Array, gram: Array) -> Array:
    """In closed form, for predictions on a line through the anchors a and b."""
    n = len(gram)
    u = np.array([grid.along(line.at)(s) for s in grid.sigmas[:n]])
    # S_c = sum of h_i d_i below c: the true displacement from b to c is S_c - S_b
    below = np.tril(np.ones((n + 1, n)), -1) * h
    sd = below @ gram  # <S_c, d_i>
    ss = sd @ below.T  # <S_c, S_c'>
    a, b, c = np.ogrid[:n, :n, : n + 1]
    # sum of h over the skipped steps i = b+1 .. c-1, and their first moment about u_b
    reach = np.concatenate(([0.0], np.cumsum(h)))
    moment = np.concatenate(([0.0], np.cumsum(h * u)))
    inside = np.maximum(c > b, 0) * (reach[c] - reach[b + 1])
    first = np.maximum(c > b, 0) * (moment[c] - moment[b + 1]) - u[b] * inside
    true = ss[c, c] - 2 * ss[c, b] + ss[b, b]

    # the predicted displacement of the edge is x d_b + y d_a
    gap = u[b] - u[a]
    slope = np.divide(1.0, gap, out=np.zeros(gap.shape), where=gap != 0)
    pull = line.slope * slope * first
    x, y = h[b] + inside + pull, -pull
    square = x * x * gram[b, b] + y * y * gram[a, a] + 2 * x * y * gram[a, b]
    square = square - 2 * (x * (sd[c, b] - sd[b, b]) + y * (sd[c, a] - sd[b, a])) + true
    return np.sqrt(np.maximum(square, 0))


def _walked(predictor: Predictor, grid: Grid, h: Array, gram: Array) -> Array:
    """By running the predictor from every anchor b, on the trajectory of a full run; independent of a."""
    n = len(gram)
    cost = np.zeros((n, n + 1))
    for b in range(n):
        trajectory = Trajectory(max(predictor.depth, 1))
        prediction = predictor.start(Plan(grid))
        clock = Clock(grid)
        for i in range(b + 1):
            clock.tick(grid.sigmas[i])
            trajectory.computed(i, grid.sigmas[i])
            prediction.computed(trajectory)
        miss = np.zeros(n)
        for c in range(b + 1, n + 1):
            cost[b, c] = max(float(miss @ gram @ miss), 0.0) ** 0.5
            if c == n:
                break
            clock.tick(grid.sigmas[c])
            weights = prediction.weights(clock, trajectory)
            trajectory.predicted(c, grid.sigmas[c], weights)
            miss[c] -= h[c]
            for k, w in weights.items():
                miss[k] += h[c] * w
    return np.broadcast_to(cost, (n, n, n + 1))
