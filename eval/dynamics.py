"""How well a generated trajectory has the geometry and the spectrum of the true one.

The measures of dynamical-systems reconstruction, as in AL-RNN (arXiv:2410.14240): a Kullback-Leibler divergence between
two distributions over state space, in nats, and a Hellinger distance between power spectra. Time means nothing to the
first and everything to the second; neither asks that two chaotic trajectories agree point by point.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

LAPLACE = 1e-5
"""Added to the count of every bin, so that a bin which one side never visits costs a finite amount."""


def state_space_divergence(
    truth: Float[np.ndarray, "T N"], generated: Float[np.ndarray, "U N"], bins: int = 30
) -> float:
    """``D_stsp``: KL(truth || generated) between joint histograms of ``bins ** N`` bins.

    Every channel is divided evenly from a tenth of the truth's standard deviation below its least value to as much
    above its greatest one. Generated rows outside (and those that are not finite) are missing inside: they stay in the
    denominator. Without that a run which leaves the attractor for good would score like an even histogram, which on
    Lorenz-63 is better than most models do.

    Args:
      truth, generated: trajectories; their lengths may differ, and the shorter ones give larger values.
      bins: per channel.

    Returns:
      Nats, >= 0 (but for rounding), and 0 for equal histograms.

    Raises:
      ValueError: the channels differ, the histogram would have more than 10 channels (use `mixture_divergence`), or the
        truth has no range to divide: a channel that is constant or not finite.
    """
    channels = _channels(truth, generated)
    if channels > 10:
        raise ValueError(f"truth has {channels} channels, expected at most 10; use mixture_divergence")
    bad = np.flatnonzero(~np.isfinite(truth).all(0) | (truth.max(0) <= truth.min(0)))
    if len(bad):
        raise ValueError(f"truth: channels {bad.tolist()} are constant or not finite; leave them out")
    margin = 0.1 * truth.std(0)
    low, high = truth.min(0) - margin, truth.max(0) + margin
    p, q = (_histogram(rows, low, high, bins) for rows in (truth, generated))
    return float(np.sum(p * np.log(p / q)))


def _histogram(rows: np.ndarray, low: np.ndarray, high: np.ndarray, bins: int) -> np.ndarray:
    """Probabilities of the bins ``[bins ** N]``; what is missing to one lies outside of them."""
    total = len(rows)
    rows = rows[np.isfinite(rows).all(1)]
    cells = np.floor((np.clip(rows, low - 1, high + 1) - low) / (high - low) * bins).astype(np.int64)
    cells = cells[((cells >= 0) & (cells < bins)).all(1)]
    shape = (bins,) * rows.shape[1]
    counts = np.bincount(np.ravel_multi_index(tuple(cells.T), shape), minlength=bins ** len(shape)) + LAPLACE
    return counts / (total + LAPLACE * len(counts))


def mixture_divergence(
    truth: Float[np.ndarray, "T N"],
    generated: Float[np.ndarray, "U N"],
    variance: float = 1.0,
    *,
    points: int = 10_000,
    draws: int = 1_000,
    seed: int = 0,
) -> float:
    """``D_stsp`` for many channels: Gaussian mixtures centred on the points of the trajectories, by Monte Carlo.

    Args:
      truth, generated: trajectories, of which at most `points` rows, evenly spaced, become centres.
      variance: of every component, in every direction.
      points: most components per mixture.
      draws: samples of the truth's mixture.
      seed: of the samples.

    Returns:
      The mean of ``log p - log q``, in nats; it may be slightly below 0. Generated rows that are not finite, or too
      large to be squared, count as mass that lies nowhere; infinite if all are.

    Raises:
      ValueError: the channels differ.
    """
    _channels(truth, generated)
    with np.errstate(over="ignore"):
        kept = generated[np.isfinite((generated**2).sum(1))]
    if not len(kept):
        return float("inf")
    p, q = _thin(truth, points), _thin(kept, points)
    random = np.random.default_rng(seed)
    samples = p[random.integers(len(p), size=draws)] + np.sqrt(variance) * random.standard_normal((draws, p.shape[1]))
    lost = np.log(len(kept) / len(generated))
    return float(np.mean(_log_density(samples, p, variance) - _log_density(samples, q, variance)) - lost)


def _thin(rows: np.ndarray, points: int) -> np.ndarray:
    return rows[np.linspace(0, len(rows) - 1, min(points, len(rows))).astype(int)]


def _log_density(samples: np.ndarray, centres: np.ndarray, variance: float) -> np.ndarray:
    """Log-density of an equal-weight mixture, but for a constant that all mixtures share."""
    square = (samples**2).sum(1)[:, None] + (centres**2).sum(1) - 2 * samples @ centres.T
    exponent = -square / (2 * variance)
    top = exponent.max(1)
    return top + np.log(np.exp(exponent - top[:, None]).mean(1))


def spectral_distance(
    truth: Float[np.ndarray, "T N"], generated: Float[np.ndarray, "T N"], smoothing: float = 20.0
) -> float:
    """``D_H``: Hellinger distance between smoothed power spectra, averaged over channels.

    Args:
      truth, generated: trajectories of one length; every channel is standardised first.
      smoothing: standard deviation of the Gaussian over frequencies, in bins; 0 for none.

    Returns:
      In [0, 1]; a channel that is constant or not finite counts as 1.

    Raises:
      ValueError: the shapes differ.
    """
    if truth.shape != generated.shape:
        raise ValueError(f"generated has shape {generated.shape}, expected {truth.shape} of truth; cut the longer one")
    pairs = zip(_spectrum(truth, smoothing).T, _spectrum(generated, smoothing).T)
    distances = [np.sqrt(0.5 * ((np.sqrt(p) - np.sqrt(q)) ** 2).sum()) for p, q in pairs]
    return float(np.mean([1.0 if np.isnan(distance) else distance for distance in distances]))


def _spectrum(rows: np.ndarray, smoothing: float) -> np.ndarray:
    """Normalised power ``[T // 2 + 1, N]``; NaN where there is none."""
    from scipy.ndimage import gaussian_filter1d

    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        deviation = np.where(np.ptp(rows, axis=0) > 0, rows.std(0), np.nan)  # of equal rows rounding may leave some
        power = np.abs(np.fft.rfft((rows - rows.mean(0)) / deviation, axis=0)) ** 2
        smooth = gaussian_filter1d(power, smoothing, axis=0) if smoothing else power
        return smooth / smooth.sum(0)


def _channels(truth: np.ndarray, generated: np.ndarray) -> int:
    if truth.ndim != 2 or generated.ndim != 2 or truth.shape[1] != generated.shape[1]:
        raise ValueError(
            f"truth {truth.shape} and generated {generated.shape} must be [T,N] and [U,N]; transpose or reshape them"
        )
    for name, rows in (("truth", truth), ("generated", generated)):
        if not len(rows):
            raise ValueError(f"{name} has no rows; give at least one")
    return truth.shape[1]
