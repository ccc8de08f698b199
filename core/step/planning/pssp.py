"""Peak-suppressed shortest path (MeanCache, arXiv 2601.19961, Eq. 15): which steps to compute, given what each edge costs.

An edge (a, b, c) skips from anchor b to anchor c when the anchor before b is a. Its cost is the size of the displacement
error that the predictor would make there. The path minimises the sum of cost ** gamma over its edges with at most B
computed evaluations; gamma > 1 suppresses peaks. Solved exactly by dynamic programming over (a, b, evaluations used).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Paths:
    """The best path for every budget up to `budget`.

    cost: (N, N, N), cost[a, b, c] for a < b < c, and cost[b, b, c] where b has no predecessor; inf where an edge may not be.
    forced: (N,), steps that must be computed; step 0 and the last one always are. Where the forced steps alone are more
    than `budget`, they are the answer. Adjacent steps (c = b + 1) skip nothing and cost nothing. weight: (N,), by how much more an
    edge that starts at b matters than its cost says.
    """

    def __init__(
        self, cost: Array, budget: int, gamma: float, forced: NDArray[np.bool_], weight: Array | float = 1.0
    ) -> None:
        n = self.n = len(cost)
        self.cost = cost
        self._price = price = np.full((n, n, n), np.inf)
        forced = forced.copy()
        forced[[0, -1]] = True
        self.least = int(forced.sum())
        self.budget = min(max(budget, self.least), n)
        a, b, c = np.ogrid[:n, :n, :n]
        before = np.cumsum(np.r_[0, forced])  # forced steps below an index
        free = before[c] - before[np.minimum(b + 1, n)] == 0  # no forced step strictly between b and c
        allowed = ((a < b) | ((a == b) & (b == 0))) & (b < c) & free
        weight = np.broadcast_to(weight, n)[None, :, None]
        np.power(cost * weight, gamma, out=price, where=allowed & (cost > 0))
        price[allowed & (cost <= 0)] = 0.0
        price[np.broadcast_to(allowed & (c == b + 1), price.shape)] = 0.0

        best = np.full((n, n), np.inf)  # over (a, b): cheapest way to have anchors ..., a, b
        best[0, 0] = 0.0
        self._came: list[NDArray[np.intp]] = []
        self._ends: list[float] = [best[:, n - 1].min() if n > 1 else 0.0]
        self._states = [best]
        for _ in range(self.budget - 1):
            through = best[:, :, None] + price
            self._came.append(through.argmin(0))
            best = through.min(0)
            self._states.append(best)
            self._ends.append(float(best[:, n - 1].min()))

    def best(self, budget: int | None = None) -> tuple[int, ...]:
        """The steps to compute, ascending: at most `budget` of them, the fewest among equals."""
        budget = self.budget if budget is None else min(max(budget, self.least), self.budget)
        used = int(np.argmin(self._ends[:budget]))  # evaluations - 1
        path = [self.n - 1]
        if used:
            b = int(self._states[used][:, self.n - 1].argmin())
            c = self.n - 1
            for k in range(used, 0, -1):
                path.append(b)
                b, c = int(self._came[k - 1][b, c]), b
        return tuple(sorted(set(path)))

    def price(self, path: tuple[int, ...]) -> float:
        """What the search makes least: the sum of its edges' weighed costs to the power of gamma."""
        return float(sum(self._price[a, b, c] for a, b, c in zip((path[0], *path), path, path[1:], strict=False)))

    def error(self, path: tuple[int, ...]) -> float:
        """The root of the summed squares of the path's edge costs: what its errors come to if they are independent."""
        edges = zip((path[0], *path), path, path[1:], strict=False)
        return float(sum(self.cost[a, b, c] ** 2 for a, b, c in edges if c > b + 1) ** 0.5)


def solve(
    cost: Array, budget: int, gamma: float, forced: NDArray[np.bool_], weight: Array | float = 1.0
) -> tuple[int, ...]:
    """The steps to compute, ascending, `budget` of them at most; see Paths."""
    return Paths(cost, budget, gamma, forced, weight).best()
