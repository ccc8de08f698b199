"""How well the modalities of a packed latent, such as video with sound, can be predicted: often one of them breaks first."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from .indicators.reading import subsample


class Modalities:
    """Measures the prediction error of each modality where an evaluation is computed, on a subsample of one slot's output.

    The prediction is the line through the last two computed outputs before. Nothing waits for the device until `errors`.

    Parameters
    ----------
    lengths: of the modalities along the packed latent's last dimension; fewer than two are not told apart.
    names: one for each.
    """

    def __init__(self, lengths: Sequence[int], names: Sequence[str]) -> None:
        self.lengths, self.names = list(lengths), list(names)
        self._slot: Hashable | None = None
        # of the last two computed evaluations: sigma, and the subsample of each modality
        self._anchors: list[tuple[float, list[Tensor]]] = []
        self._errors: list[Tensor] = []  # mean square error of each modality, shape (modalities,), by evaluation
        self._sizes: list[Tensor] = []  # mean square of each modality

    def observe(self, slot: Hashable, sigma: float, value: Tensor) -> None:
        """A computed output of a slot, of the packed latent's shape (..., sum of lengths)."""
        if len(self.lengths) < 2 or value.shape[-1] != sum(self.lengths) or sigma <= 0:
            return
        self._slot = slot if self._slot is None else self._slot
        if slot != self._slot:
            return
        now = [subsample(part) for part in value.split(self.lengths, -1)]
        if len(self._anchors) == 2 and self._anchors[0][0] != self._anchors[1][0]:
            (before, old), (last, new) = self._anchors
            reach = (sigma - last) / (last - before)
            pairs = list(zip(now, [b + reach * (b - a) for a, b in zip(old, new, strict=True)], strict=True))
            if all(a.shape == b.shape for a, b in pairs):
                self._errors.append(torch.stack([(a - b).square().mean() for a, b in pairs]))
                self._sizes.append(torch.stack([a.square().mean() for a, _ in pairs]))
        self._anchors = [*self._anchors[-1:], (sigma, now)]

    def clear(self) -> None:
        """Drop the last two outputs: the next output is not on a line with them."""
        self._anchors.clear()

    def errors(self) -> dict[str, float]:
        """The root mean square error of each modality as a share of its own size; empty where nothing was measured."""
        if not self._errors:
            return {}
        error, size = torch.stack(self._errors).mean(0), torch.stack(self._sizes).mean(0)
        found = (error / size.clamp(min=1e-12)).sqrt().tolist()
        return dict(zip(self.names, found, strict=True))
