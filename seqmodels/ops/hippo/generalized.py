"""HiPPO for any basis of a window."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float64
from numpy.polynomial import legendre

from seqmodels.ops.checks import positive

Functions = Callable[[Float64[np.ndarray, "L"]], Float64[np.ndarray, "L n"]]


def transition_of_basis(
    kernel: Functions, basis: Functions, window: float, *, nodes: int = 256, tolerance: float = 1e-6
) -> tuple[Float64[np.ndarray, "n n"], Float64[np.ndarray, "n"]]:
    """State matrices of a system whose state is ``x_i(t) = integral over [0, window] of kernel_i(s) u(t - s)``.

    Integration by parts gives ``x' = A x + B u`` once the input at the far end of the window is replaced by what the
    state remembers of it, ``sum_k x_k basis_k(window)``: ``B = kernel(0)`` and
    ``A_ik = integral of kernel_i' basis_k - kernel_i(window) basis_k(window)``. For the usual case of a weight w and
    functions g orthonormal under it, ``kernel = w g`` and ``basis = g``. Derivatives outside the span of the kernels
    are projected on it. Legendre polynomials give LegT. Generalised bases: arXiv 2206.12037.

    Args:
      kernel: maps lags [L] in [0, window] to [L, n], smooth.
      basis: maps lags [L] to the decoding functions [L, n], biorthogonal to `kernel` on the window.
      window: length of the window > 0.
      nodes: quadrature points; functions must be resolved by polynomials of degree ``nodes - 1``.
      tolerance: largest departure from biorthogonality.

    Returns:
      ``A`` [n, n] and ``B`` [n], float64.

    Raises:
      ValueError: a window that is not positive, functions that are not biorthogonal.
    """
    positive("nodes", nodes)
    if not 0 < window < np.inf:
        raise ValueError(f"window={window!r}, expected a positive finite length")
    x, weights = legendre.leggauss(nodes)
    lags, weights = 0.5 * window * (x + 1), 0.5 * window * weights
    k, g = kernel(lags), basis(lags)
    gram = k.T @ (weights[:, None] * g)
    error = float(np.max(np.abs(gram - np.eye(len(gram)))))
    if not error <= tolerance:
        raise ValueError(f"kernel and basis miss biorthogonality by {error:.3g}, expected at most {tolerance:.3g}")
    ends = np.array([0.0, window])
    k_ends, g_ends = kernel(ends), basis(ends)
    derivative = _derivative(k, x) * (2 / window)
    a = derivative.T @ (weights[:, None] * g) - np.outer(k_ends[1], g_ends[1])
    return a, k_ends[0]


def _derivative(values: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Derivatives [M, n] at the Gauss nodes `x` [M] of the polynomials through `values` [M, n]."""
    degrees = np.arange(len(x))
    vandermonde = legendre.legvander(x, len(x) - 1)
    _, weights = legendre.leggauss(len(x))
    coefficients = (degrees + 0.5)[:, None] * (vandermonde.T @ (weights[:, None] * values))
    return vandermonde[:, :-1] @ legendre.legder(coefficients)
