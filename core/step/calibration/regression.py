"""Reads a recording at other times by Gaussian process regression, with the shipped costs as the covariance.

A Gram matrix is the covariance of a model's outputs over time. That of other models predicts the outputs between recorded times, and the
errors of these predictions, better than a line through the recorded ones does. (C. E. Rasmussen and C. K. I. Williams, Gaussian
Processes for Machine Learning, MIT Press 2006, https://gaussianprocess.org/gpml/chapters/.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .gram import Array, Gram

# of the observations, as a share of their mean variance; ten times more or less do as well. The outputs of a run that skipped differ by up
# to 9% from those on a full run's trajectory (bench/choices.md)
NOISE, NOISE_OF_SKIPS = 1e-5, 1e-3
MOST = 128  # recorded times that are looked at; bounds the work on a hostile file
FEWEST = 4  # recorded times without which the covariance cannot be scaled


def read(recording: Gram, times: Array, priors: Sequence[Gram], full: bool = True) -> Array:
    """The recording's products between `times`, shape (N, N).

    With recorded values y at the times a, the values elsewhere have the mean W y, W = K[:, a] (K[a, a] + noise)^-1, and the covariance
    K - W K[a, :] (eqs. 2.25 and 2.26). K is the mean of the priors, and the covariance is scaled to the recording at each time, because
    models differ in how far they can be predicted.

    Parameters
    ----------
    recording: of one pass, times shape (n,).
    times: falling, shape (N,).
    priors: of one pass, of the recorded value.
    full: all steps of the recorded runs were computed.
    """
    chosen = np.unique(np.linspace(0, len(recording.times) - 1, MOST).round().astype(int))
    known, products = recording.times[chosen], recording.products[np.ix_(chosen, chosen)]
    n = len(known)
    if n < FEWEST:
        return recording.at(times)
    covariance = mean_at(priors, np.concatenate((known, times)))
    noise = (NOISE if full else NOISE_OF_SKIPS) * np.trace(covariance[:n, :n]) / n
    observed = covariance[:n, :n] + np.eye(n) * noise
    inverse = np.linalg.inv(observed)
    weights = covariance[n:, :n] @ inverse
    rest = covariance[n:, n:] - weights @ covariance[:n, n:]
    size = np.sqrt(_scale(inverse, known, products, times))
    return np.asarray(weights @ products @ weights.T + (rest + rest.T) / 2 * np.outer(size, size))


def mean_at(priors: Sequence[Gram], times: Array) -> Array:
    """The mean of the priors' products between `times`, each relative to its trace."""
    return np.mean([relative(prior.at(times)) for prior in priors], 0)


def relative(products: Array) -> Array:
    """Products divided by their trace."""
    return products / max(float(np.trace(products)), 1e-30)


def _scale(inverse: Array, known: Array, products: Array, times: Array) -> Array:
    """The recording's variance at `times`, relative to the covariance's, shape (N,).

    At each recorded time but the first and the last: the squared error of predicting it from the others, relative to the predicted one
    (eq. 5.12). Its logarithm is interpolated between these times: a model can be harder to predict early and easier late.
    """
    variance = 1 / inverse.diagonal()
    error = (inverse @ products @ inverse).diagonal() * variance**2
    ratio = np.maximum(error[1:-1] / variance[1:-1], max(1e-12 * float(products.diagonal().max()), 1e-30))
    return np.asarray(np.exp(np.interp(-times, -known[1:-1], np.log(ratio))))
