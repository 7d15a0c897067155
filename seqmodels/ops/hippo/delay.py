"""How well a memory can give back its input of some time ago: the best any linear read-out can do."""

from __future__ import annotations

import numpy as np

from seqmodels.ops.checks import positive
from seqmodels.ops.hippo.discretize import discretize
from seqmodels.ops.hippo.measures import Measure, transition


def delay_error(
    measure: str | Measure,
    n: int,
    lag: int,
    dt: float,
    *,
    band: float = 0.5,
    method: str = "bilinear",
    frequencies: int = 2048,
) -> float:
    """Least mean square error of ``c . x_t`` as an estimate of ``u_{t - lag}`` for band-limited noise of unit power.

    A floor for trained read-outs: no linear layer on the same state does better. Window measures fall off a cliff once
    the window, ``window / dt`` samples, is shorter than `lag`.

    Args:
      measure: a name or a :class:`Measure`.
      n: state size.
      lag: delay in samples > 0.
      dt: step size.
      band: share of the frequencies up to Nyquist's that the input holds, from 0 upwards.
      method: see :func:`discretize`.
      frequencies: points of the even grid over the band; must resolve ``exp(-i w lag)``.

    Returns:
      The error in [0, 1]; 1 means that nothing is known.

    Raises:
      ValueError: `band` outside (0, 1], a `lag` the grid does not resolve, and what :func:`discretize` refuses.
    """
    positive("lag", lag)
    if not 0 < band <= 1:
        raise ValueError(f"band={band!r}, expected a number in (0, 1]")
    if frequencies < 2 * lag * band:
        raise ValueError(f"frequencies={frequencies}, expected at least {int(2 * lag * band)} to resolve lag={lag}")
    a_bar, b_bar = discretize(*transition(measure, n), dt, method)
    omega = np.pi * band * (np.arange(frequencies) + 0.5) / frequencies
    response = _response(a_bar, b_bar, omega)
    target = np.exp(-1j * omega * lag)
    stacked = np.concatenate([np.real(response), np.imag(response)])
    wanted = np.concatenate([np.real(target), np.imag(target)])
    readout = np.linalg.lstsq(stacked, wanted, rcond=None)[0]
    return float(np.mean((stacked @ readout - wanted) ** 2) * 2)


def _response(a_bar: np.ndarray, b_bar: np.ndarray, omega: np.ndarray) -> np.ndarray:
    """Frequency response [F, n], ``(1 - z A)^-1 B`` at ``z = exp(-i omega)``, by back substitution in a Schur basis."""
    from scipy.linalg import schur

    factors = schur(a_bar, output="complex")
    triangle, unitary = factors[0], factors[1]
    rotated, z = unitary.conj().T @ b_bar, np.exp(-1j * omega)
    solved = np.zeros((len(omega), len(b_bar)), complex)
    for i in reversed(range(len(b_bar))):
        solved[:, i] = (rotated[i] + z * (solved[:, i + 1 :] @ triangle[i, i + 1 :])) / (1 - z * triangle[i, i])
    return solved @ unitary.T
