"""Peak-suppressed shortest path (MeanCache, arXiv 2601.19961, Eq. 15): which steps to compute, given what each edge costs.

An edge (a, b, c) skips from anchor b to anchor c when the anchor before b is a. Its cost is the size of the displacement
error that the predictor would make there. The path minimises the sum of cost ** gamma over its edges with at most B
computed evaluations; gamma > 1 suppresses peaks. Solved exactly by dynamic programming over (a, b, evaluations used).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def solve(cost: Array, budget: int, gamma: float, forced: NDArray[np.bool_]) -> tuple[int, ...]:
    """The steps to compute, ascending, `budget` of them at most.

    cost: (N, N, N), cost[a, b, c] for a < b < c, and cost[b, b, c] where b has no predecessor; inf where an edge may not be.
    forced: (N,), steps that must be computed; step 0 and the last one always are. Where the forced steps alone are more
    than `budget`, they are the answer. Adjacent steps (c = b + 1) skip nothing and cost nothing.
    """
    n = len(cost)
    forced = forced.copy()
    forced[[0, -1]] = True
    budget = min(max(budget, int(forced.sum())), n)
    price = np.full((n, n, n), np.inf)
    a, b, c = np.ogrid[:n, :n, :n]
    before = np.cumsum(np.r_[0, forced])  # forced steps below an index
    free = before[c] - before[np.minimum(b + 1, n)] == 0  # no forced step strictly between b and c
    allowed = ((a < b) | ((a == b) & (b == 0))) & (b < c) & free
    np.power(cost, gamma, out=price, where=allowed & (cost > 0))
    price[allowed & (cost <= 0)] = 0.0
    price[np.broadcast_to(allowed & (c == b + 1), price.shape)] = 0.0

    best = np.full((n, n), np.inf)  # over (a, b): cheapest way to have anchors ..., a, b
    best[0, 0] = 0.0
    came: list[NDArray[np.intp]] = []
    ends: list[float] = [best[:, n - 1].min() if n > 1 else 0.0]
    states = [best]
    for _ in range(budget - 1):
        through = best[:, :, None] + price
        came.append(through.argmin(0))
        best = through.min(0)
        states.append(best)
        ends.append(float(best[:, n - 1].min()))
    used = int(np.argmin(ends))  # evaluations - 1; the fewest among equals
    path = [n - 1]
    if used:
        b_ = int(states[used][:, n - 1].argmin())
        c_ = n - 1
        for k in range(used, 0, -1):
            path.append(b_)
            b_, c_ = int(came[k - 1][b_, c_]), b_
    return tuple(sorted(set(path)))
