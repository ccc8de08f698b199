"""Peak-suppressed shortest path (MeanCache, https://arxiv.org/abs/2601.19961, Eq. 15): which steps to compute, given each edge's cost.

Edge (a, b, c) skips the steps between anchors b and c, where a is the anchor before b. The path minimises the sum of cost ** gamma over its
edges with at most B computed evaluations; gamma > 1 suppresses peaks. Solved exactly by dynamic programming over (a, b, evaluations used),
in O(B N^3) time and O(N^3) memory.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Paths:
    """The best path for every budget up to `budget`.

    Parameters
    ----------
    cost: shape (N, N, N): cost[a, b, c] for a < b < c, and cost[b, b, c] where b has no predecessor; inf for an edge that is not allowed.
        Adjacent steps (c = b + 1) skip nothing and cost nothing.
    budget: evaluations computed at most; at least the number of forced steps.
    gamma: exponent of the costs.
    forced: shape (N,): steps that are computed in any case. The first and the last always are.
    weight: factor on the cost of the edges that start at b: shape (N,), or a number.
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
            best, came = _extended(best, price)
            self._came.append(came)
            self._states.append(best)
            self._ends.append(float(best[:, n - 1].min()))

    def best(self, budget: int | None = None) -> tuple[int, ...]:
        """The steps to compute, ascending: at most `budget` of them, and the fewest among equally good paths."""
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
        """The objective: the sum over its edges of (weight * cost) ** gamma."""
        return float(sum(self._price[a, b, c] for a, b, c in zip((path[0], *path), path, path[1:], strict=False)))

    def error(self, path: tuple[int, ...]) -> float:
        """The root of the sum of squared edge costs: the path's error if those of its edges are independent."""
        return float(self.squares(np.array([path]))[0] ** 0.5)

    def squares(self, paths: NDArray[np.intp]) -> Array:
        """The sum of squared edge costs of each path, shape (B, K) to (B,)."""
        before = np.concatenate((paths[:, :1], paths), 1)[:, :-2]
        b, c = paths[:, :-1], paths[:, 1:]
        costs = np.where(c > b + 1, self.cost[before, b, c], 0)
        return np.asarray((costs**2).sum(1))


def _extended(best: Array, price: Array) -> tuple[Array, NDArray[np.intp]]:
    """The cheapest paths by their last two anchors (b, c), one anchor longer than `best` by (a, b), and the a of each; (N, N) both."""
    n = len(best)
    longer, came = np.full((n, n), np.inf), np.zeros((n, n), np.intp)
    for b in range(n - 1):  # only a <= b < c
        through = best[: b + 1, b, None] + price[: b + 1, b, b + 1 :]
        came[b, b + 1 :] = through.argmin(0)
        longer[b, b + 1 :] = through.min(0)
    return longer, came


def solve(
    cost: Array, budget: int, gamma: float, forced: NDArray[np.bool_], weight: Array | float = 1.0
) -> tuple[int, ...]:
    """The steps to compute, ascending, `budget` of them at most; see Paths."""
    return Paths(cost, budget, gamma, forced, weight).best()
