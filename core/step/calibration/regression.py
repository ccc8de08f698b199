"""Reads a recording at other times by Gaussian process regression, with the shipped costs as the covariance.

A Gram matrix is the covariance of a model's outputs over time. Between recorded times, that of other models tells how outputs go on and how
far they deviate from any guess, much better than a line through the recorded ones. (C. E. Rasmussen and C. K. I. Williams, Gaussian
Processes for Machine Learning, MIT Press 2006, https://gaussianprocess.org/gpml/chapters/.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .gram import Gram

NOISE = 1e-5  # of the observations, as a share of their mean variance; 1e-6 to 1e-4 do as well
MOST = 128  # recorded times that are looked at; bounds the work on a hostile file
FEWEST = 4  # recorded times that tell how well the covariance fits

Array = NDArray[np.float64]


def read(recording: Gram, times: Array, priors: Sequence[Gram]) -> Array:
    """The recording's products between `times`, shape (N, N).

    With recorded values y at the times a, the values elsewhere have the mean W y, W = K[:, a] (K[a, a] + noise)^-1, and the covariance
    K - W K[a, :] (eqs. 2.25 and 2.26). K is the mean of the priors, and the covariance is scaled to the recording, because models differ
    in how far they can be predicted.

    Parameters
    ----------
    recording: of one pass, times shape (n,).
    times: falling, shape (N,).
    priors: of one pass, of the recorded value.
    """
    chosen = np.unique(np.linspace(0, len(recording.times) - 1, MOST).round().astype(int))
    known, products = recording.times[chosen], recording.products[np.ix_(chosen, chosen)]
    n = len(known)
    if n < FEWEST:
        return recording.at(times)
    covariance = mean_at(priors, np.concatenate((known, times)))
    observed = covariance[:n, :n] + np.eye(n) * NOISE * np.trace(covariance[:n, :n]) / n
    inverse = np.linalg.inv(observed)
    weights = covariance[n:, :n] @ inverse
    rest = covariance[n:, n:] - weights @ covariance[:n, n:]
    return np.asarray(weights @ products @ weights.T + _scale(inverse, products) * (rest + rest.T) / 2)


def mean_at(priors: Sequence[Gram], times: Array) -> Array:
    """The mean of the priors' products between `times`, each relative to its trace."""
    several = [prior.at(times) for prior in priors]
    return np.mean([products / np.trace(products) for products in several], 0)


def _scale(inverse: Array, products: Array) -> float:
    """The recording's variance, relative to the covariance's: the geometric mean, over the recorded times but the first and the last, of
    the squared error of predicting each from the others, relative to the predicted one (eq. 5.12)."""
    variance = 1 / inverse.diagonal()
    error = (inverse @ products @ inverse).diagonal() * variance**2
    ratio = error[1:-1] / variance[1:-1]
    return float(np.exp(np.log(np.maximum(ratio, 1e-12 * products.diagonal().max())).mean()))
