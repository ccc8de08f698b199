"""What each edge of a schedule would cost with the predictor that will run, told from a Gram matrix of what full runs said.

Cost of edge (a, b, c): the root mean square of the displacement error that skipping b+1 .. c-1 makes, when the anchors before it
are a and b. All terms come from full runs, as in MeanCache's stability deviation (arXiv 2601.19961, Eq. 13), but for the
predictor at hand instead of its own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..calibration.gram import Gram
from ..clock import Clock, Grid
from ..plan import Plan
from ..predictors import Corrected, Linear, Predictor, Reuse
from ..trajectory import Trajectory

Array = NDArray[np.float64]


def edge_costs(predictor: Predictor, grid: Grid, costs: Gram) -> Array:
    """cost[a, b, c], shape (N, N, N), for the grid's N evaluations.

    cost[b, b, c] is that of an edge whose anchor has none before it. Meaningless where not a <= b < c. Errors of models
    whose sigma is not a share of noise are those of x / (1 + sigma), the latent of the flow that they amount to.
    """
    h, gram = _moves(grid, costs), costs.on(grid)
    if isinstance(predictor, Corrected):
        predictor = predictor.candidates[len(predictor.candidates) // 2]
    if isinstance(predictor, Reuse | Linear | Corrected):
        # a corrected edge is scored by what it does before it is mended: schedules solved so ran better, by 1 to 3 dB,
        # than those that counted only what the correction leaves
        cost = _two_anchors(predictor, grid, h, gram)
    else:
        cost = _walked(predictor, grid, h, gram)
    return cost / _scale(grid)


def size(grid: Grid, costs: Gram) -> float:
    """The root mean square of what the whole run moves the latent by, in the measure of edge_costs."""
    h = _moves(grid, costs) / _scale(grid)
    return max(float(h @ costs.on(grid) @ h), 1e-12) ** 0.5


def weights(grid: Grid) -> Array:
    """By how much more an edge that starts at each step matters than it costs on a full run's track, shape (N,).

    A run with skips leaves that track. An early error grows until the end (4 to 5 times as much as a late one where more than 0.9
    of the latent is noise: one edge of a full run skipped at a time, small Flux); and late edges go by anchors that carry the
    errors of all those before them. 2 and the exponent were chosen on 6 pairs each of three small models (euler, 50 steps, 10 to 25
    computed), where they gain 2 dB on average, and lose in two of fifteen cases.
    """
    t = np.maximum(grid.times[:-1], 0.01)
    return np.asarray(np.where(t > 0.9, 2.0, 1.0) * t**-0.25)


def _moves(grid: Grid, costs: Gram) -> Array:
    """By how much the latent moves at each step for one unit of what was kept, shape (N,)."""
    sigmas = np.asarray(grid.sigmas)
    h = np.diff(sigmas)
    # an error of D is one of -1/sigma in the derivative
    return h / np.maximum(sigmas[:-1], 1e-6) if costs.kept == "denoised" else h


def _scale(grid: Grid) -> Array:
    """What the latent at each step is divided by to be that of a flow, shape (N,)."""
    sigmas = np.asarray(grid.sigmas[:-1])
    return np.ones_like(sigmas) if grid.flow else 1 + sigmas


def _two_anchors(predictor: Reuse | Linear | Corrected, grid: Grid, h: Array, gram: Array) -> Array:
    n = len(gram)
    coordinate = "sigma" if isinstance(predictor, Reuse) else predictor.at
    u = np.array([grid.along(coordinate)(s) for s in grid.sigmas[:n]])
    # S_c = sum of h_i d_i below c: the true displacement from b to c is S_c - S_b
    below = np.tril(np.ones((n, n)), -1) * h
    sd = below @ gram  # <S_c, d_i>
    ss = sd @ below.T  # <S_c, S_c'>
    a, b, c = np.ogrid[:n, :n, :n]
    # what the skipped steps i = b+1 .. c-1 weigh, and their first moment about u_b
    reach = np.concatenate(([0.0], np.cumsum(h)))[:n]
    moment = np.concatenate(([0.0], np.cumsum(h * u)))[:n]
    inside = np.maximum(c > b, 0) * (reach[c] - reach[np.minimum(b + 1, n - 1)])
    first = np.maximum(c > b, 0) * (moment[c] - moment[np.minimum(b + 1, n - 1)]) - u[b] * inside
    true = ss[c, c] - 2 * ss[c, b] + ss[b, b]

    # the edge is predicted as x d_b + y d_a
    gap = u[b] - u[a]
    slope = np.divide(1.0, gap, out=np.zeros(gap.shape), where=gap != 0)
    pull = (0.0 if isinstance(predictor, Reuse) else predictor.slope or 0.0) * slope * first
    x, y = h[b] + inside + pull, -pull
    square = x * x * gram[b, b] + y * y * gram[a, a] + 2 * x * y * gram[a, b]
    square = square - 2 * (x * (sd[c, b] - sd[b, b]) + y * (sd[c, a] - sd[b, a])) + true
    return np.sqrt(np.maximum(square, 0))


def _walked(predictor: Predictor, grid: Grid, h: Array, gram: Array) -> Array:
    """By running the predictor itself from every anchor b, on the track of a full run; independent of a."""
    n = len(gram)
    cost = np.full((n, n), 0.0)
    for b in range(n):
        track = Trajectory(max(predictor.depth, 1))
        prediction = predictor.start(Plan(grid))
        clock = Clock(grid)
        for i in range(b + 1):
            clock.tick(grid.sigmas[i])
            track.computed(i, grid.sigmas[i])
            prediction.computed(track)
        miss = np.zeros(n)
        for c in range(b + 1, n):
            cost[b, c] = max(float(miss @ gram @ miss), 0.0) ** 0.5
            clock.tick(grid.sigmas[c])
            weights = prediction.weights(clock, track)
            track.predicted(c, grid.sigmas[c], weights)
            miss[c] -= h[c]
            for k, w in weights.items():
                miss[k] += h[c] * w
    return np.broadcast_to(cost, (n, n, n))
