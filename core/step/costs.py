"""What each edge of a schedule would cost with the predictor that will run, told from a Gram matrix of derivatives.

Cost of edge (a, b, c): the root mean square of the displacement error that skipping b+1 .. c-1 makes, when the anchors before it
are a and b. All terms come from full runs, as in MeanCache's stability deviation (arXiv 2601.19961, Eq. 13), but for the
predictor at hand instead of its own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .clock import Clock, Grid
from .plan import Plan
from .predictors import Corrected, Linear, Predictor, Reuse
from .track import Track

Array = NDArray[np.float64]


def edge_costs(predictor: Predictor, times: Array, gram: Array) -> Array:
    """cost[a, b, c], shape (N, N, N), for N evaluations at the falling `times` (N + 1 of them) with Gram matrix `gram` (N, N).

    cost[b, b, c] is that of an edge whose anchor has none before it. Meaningless where not a <= b < c.
    """
    if isinstance(predictor, Reuse | Linear | Corrected):
        # a corrected edge is scored by what it does before it is mended: schedules solved so ran better, by 1 to 3 dB,
        # than those that counted only what the correction leaves
        return _two_anchors(predictor, times, gram)
    return _walked(predictor, times, gram)


def _two_anchors(predictor: Reuse | Linear | Corrected, t: Array, gram: Array) -> Array:
    n = len(gram)
    dt = np.diff(t)
    # S_c = sum of dt_i d_i below c: the true displacement from b to c is S_c - S_b
    below = np.tril(np.ones((n, n)), -1) * dt
    sd = below @ gram  # <S_c, d_i>
    ss = sd @ below.T  # <S_c, S_c'>
    a, b, c = np.ogrid[:n, :n, :n]
    # what the skipped steps i = b+1 .. c-1 weigh, and their first moment about t_b
    reach = np.concatenate(([0.0], np.cumsum(dt)))[:n]
    moment = np.concatenate(([0.0], np.cumsum(dt * t[:-1])))[:n]
    inside = np.maximum(c > b, 0) * (reach[c] - reach[np.minimum(b + 1, n - 1)])
    first = np.maximum(c > b, 0) * (moment[c] - moment[np.minimum(b + 1, n - 1)]) - t[b] * inside
    true = ss[c, c] - 2 * ss[c, b] + ss[b, b]

    # the edge is predicted as x d_b + y d_a
    gap = t[b] - t[a]
    slope = np.divide(1.0, gap, out=np.zeros(gap.shape), where=gap != 0)
    pull = (0.0 if isinstance(predictor, Reuse) else predictor.slope) * slope * first
    x, y = dt[b] + inside + pull, -pull
    square = x * x * gram[b, b] + y * y * gram[a, a] + 2 * x * y * gram[a, b]
    square = square - 2 * (x * (sd[c, b] - sd[b, b]) + y * (sd[c, a] - sd[b, a])) + true
    return np.sqrt(np.maximum(square, 0))


def _walked(predictor: Predictor, t: Array, gram: Array) -> Array:
    """By running the predictor itself from every anchor b, on the track of a full run; independent of a."""
    n = len(gram)
    grid = Grid.of([float(v) for v in t])
    cost = np.full((n, n), 0.0)
    for b in range(n):
        track = Track(max(predictor.depth, 1))
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
            h = grid.sigmas[c + 1] - grid.sigmas[c]
            miss[c] -= h
            for k, w in weights.items():
                miss[k] += h * w
    return np.broadcast_to(cost, (n, n, n))
