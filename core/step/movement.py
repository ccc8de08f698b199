"""Whether a latent moves from one evaluation to the next as the model's outputs say.

The part of a movement that the outputs do not explain is noise that the sampler added, or shows another part of the latent. Both classes
look at a subsample of at most SAMPLE elements.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .history import HostMemory
from .indicators.reading import subsample
from .readback import Readback

PAST = 8  # evaluations that a sampler may combine into the next latent: four steps of two
# share of a movement beyond which the unexplained part is noise: multistep and Runge-Kutta samplers leave none
NOISE = 0.5
# cosine between D and what is left over, beyond which D contains it: on the demo's Flux below 0.05 for denoised latents, above 0.4 for
# velocities that are handed through as D, and rising from 0.06 to 0.5 where the latent is rolled from step to step
FOLLOWS = 0.12
ROUNDING = 1e-3  # share of the latent
JUMP = 1.0  # share of the latent beyond which it is another part of it; 1.4 between latents that have nothing in common
# a jump also exceeds the deviation of the whole latent by this factor: samplers that add noise move the whole latent
LIKE_THE_WHOLE = 1.25

Array = NDArray[np.float64]


class NoiseWatch:
    """Finds out whether a sampler adds noise, and whether D contains it. One evaluation's values are read in one host sync.

    Deterministic samplers make the next latent as a linear combination of earlier latents and outputs. The part of the latent that no
    combination of the last PAST evaluations explains is noise.
    """

    def __init__(self) -> None:
        self.noisy = False  # noise was added to the latent
        self.follows = False  # twice in a row D contained it, so it is no denoised latent and cannot be predicted
        self.past: list[tuple[Array, ...]] = []  # latent and every D, oldest first
        self._seen: tuple[Tensor, ...] = ()  # of the last evaluation: latent and every D
        self._computed = True  # D is the model's own
        self._left: Array | None = None  # the noise in its latent
        self._followed: list[bool] = []  # of the last evaluations with noise: D contained it

    @property
    def ready(self) -> bool:
        """Whether enough evaluations were observed to tell: two, and one more where there is noise."""
        return len(self.past) > 1 + self.noisy

    def observe_output(self, x: Tensor, denoised: object, computed: bool = True) -> None:
        """The evaluation's latent and the D that the sampler received, or several, as LanPaint's. computed: it is the model's own. A D of
        another shape than x's ends what was observed so far."""
        several = denoised if isinstance(denoised, tuple | list) else (denoised,)
        if not several or not all(isinstance(d, Tensor) and d.shape == x.shape for d in several):
            self._restart()
            return
        self._seen, self._computed = tuple(map(subsample, (x, *several))), computed

    def observe_input(self, x: Tensor) -> None:
        """The next evaluation's latent."""
        if not self._seen:
            return
        now = subsample(x)
        if now.shape != self._seen[0].shape:
            self._restart()
            return
        before, denoised, *others, after = torch.stack((*self._seen, now)).cpu().double().numpy()
        self._seen = ()
        if self._left is not None and self._computed:
            share = abs(denoised @ self._left) / max(np.linalg.norm(denoised) * np.linalg.norm(self._left), 1e-30)
            self._followed = [*self._followed[-1:], bool(share > FOLLOWS)]
            self.follows = self.follows or self._followed == [True, True]
        self.past = [*self.past[1 - PAST :], (before, denoised, *others)]
        basis = np.stack([v for values in self.past for v in values], 1)
        # the normal equations, which take a tenth of the time
        weights, *_ = np.linalg.lstsq(basis.T @ basis, basis.T @ after, rcond=1e-12)
        left = after - basis @ weights
        moved = np.linalg.norm(after - before)
        noise = np.linalg.norm(left) > max(NOISE * moved, ROUNDING * np.linalg.norm(after))
        self._left = left if noise else None
        self.noisy = self.noisy or bool(noise)

    def _restart(self) -> None:
        """Drop the evaluations observed so far: the next latent does not follow from them."""
        self.past.clear()
        self._seen, self._left = (), None


@dataclass(frozen=True)
class Seen:
    """Subsamples of a latent and of its D, at sigma."""

    x: Tensor
    denoised: Tensor
    sigma: float

    @classmethod
    def of(cls, x: Tensor, denoised: Tensor, sigma: float) -> Seen:
        return cls(subsample(x), subsample(denoised), sigma)

    def unexplained(self, x: Tensor, sigma: float) -> Tensor | None:
        """The share of the latent x at `sigma` that an Euler step from here does not explain, a scalar; None for another shape."""
        now = subsample(x)
        if now.shape != self.x.shape:
            return None
        expected = self.x + (sigma - self.sigma) / self.sigma * (self.x - self.denoised)
        return torch.dist(now, expected) / torch.linalg.vector_norm(now)


class Continuity:
    """For calls of the model whose latent nothing names: finds out whether it is the same part of the whole latent at every evaluation.

    Each slot's latent is compared with what its last one should have become, and the deviation with that of the whole latent. On a device
    with a queue the result is known one or two evaluations later.
    """

    def __init__(self, memory: HostMemory | None = None) -> None:
        self.memory = memory or HostMemory()
        self.jumped = False
        self._whole: Seen | None = None
        self._parts: dict[Hashable, Seen] = {}
        self._pending: list[Readback] = []

    def observe_whole(self, x: Tensor, denoised: object, sigma: float) -> None:
        """The whole latent and its D, at the end of an evaluation."""
        valid = isinstance(denoised, Tensor) and denoised.shape == x.shape and sigma > 0
        self._whole = Seen.of(x, denoised, sigma) if isinstance(denoised, Tensor) and valid else None

    def observe_part(self, slot: Hashable, x: Tensor, denoised: Tensor, sigma: float) -> None:
        """A slot's latent and its D, computed or predicted."""
        if sigma > 0:
            self._parts[slot] = Seen.of(x, denoised, sigma)

    def check(self, slot: Hashable, x: Tensor, whole: Tensor | None, sigma: float) -> None:
        """Compare a slot's latent x, at sigma, with its last one; `whole` is the whole latent, None where it is not known."""
        last = self._parts.get(slot)
        deviation = last.unexplained(x, sigma) if last else None
        if deviation is not None:
            usual = self._whole.unexplained(whole, sigma) if self._whole and whole is not None else None
            if usual is not None:
                deviation = deviation * (deviation > LIKE_THE_WHOLE * usual)
            found = Readback.largest(deviation, self.memory)
            if isinstance(found, Readback):
                self._pending.append(found)
            else:
                self._found(float(deviation) if found is None else found)
        while self._pending and (value := self._pending[0].get()) is not None:
            self._pending.pop(0)
            self._found(value)

    def _found(self, deviation: float) -> None:
        self.jumped = self.jumped or deviation > JUMP
