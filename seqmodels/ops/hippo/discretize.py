"""From continuous time to steps, ``x_t = A_bar x_{t-1} + B_bar u_t``, for dense and diagonal systems."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Inexact, Num

from seqmodels.axes import Array
from seqmodels.errors import suggest

METHODS = ("zoh", "bilinear", "forward", "backward", "generalized")
SMALL, TERMS = 0.1, 10
"""Below this size of ``z = dt a`` so many terms of ``(e^z - 1) / z`` are exact even in float64, and the gradient of the
quotient loses digits: its terms cancel, and in float32 the square of a complex divisor underflows."""
_IMPLICIT = {"forward": 0.0, "bilinear": 0.5, "backward": 1.0}


def discretize(
    a: Num[np.ndarray, "... n n"],
    b: Num[np.ndarray, "... n"],
    dt: Any,
    method: str = "zoh",
    *,
    alpha: float | None = None,
) -> tuple[Inexact[np.ndarray, "*lead n n"], Inexact[np.ndarray, "*lead n"]]:
    """Discretise a dense system in float64.

    Args:
      a: [n, n] or [..., n, n] state matrix.
      b: [n] or [..., n] input weights.
      dt: step sizes > 0, a scalar or any shape [...] such as [T] for samples that come at irregular times.
      method: ``zoh`` (input held over the step, exact), ``bilinear`` (Tustin), ``forward`` and ``backward`` Euler, or
        ``generalized``, which mixes the two Eulers by `alpha` (0 is forward, 1/2 bilinear, 1 backward).
      alpha: the implicit share in [0, 1], for ``generalized`` only.

    Returns:
      ``A_bar`` [..., n, n] and ``B_bar`` [..., n].

    Raises:
      ValueError: unknown method, a step that is not positive, shapes that do not fit, `alpha` missing or out of place.
    """
    a, b, dt = np.asarray(a), np.asarray(b), np.asarray(dt, np.float64)
    if a.ndim < 2 or b.ndim < 1 or a.shape[-2:] != (b.shape[-1],) * 2:
        raise ValueError(f"a has shape {a.shape} and b {b.shape}, expected [...,n,n] and [...,n]")
    check_steps(dt)
    n = b.shape[-1]
    share = _implicit_share(method, alpha)
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-1], dt.shape)
    a, b = np.broadcast_to(a, (*batch, n, n)), np.broadcast_to(b, (*batch, n))
    step = np.broadcast_to(dt, batch)[..., None]
    system = step[..., None] * np.concatenate([a, b[..., None]], axis=-1)  # dt [A, B]
    if share is None:
        from scipy.linalg import expm

        last = np.zeros((*batch, 1, n + 1))
        exponential = expm(np.concatenate([system, last], axis=-2))
        return exponential[..., :n, :n], exponential[..., :n, n]
    right = np.concatenate([np.eye(n) + (1 - share) * system[..., :n], system[..., n:]], axis=-1)
    solved = np.linalg.solve(np.eye(n) - share * system[..., :n], right)
    return solved[..., :n], solved[..., n]


def discretize_diagonal(
    a: Any, b: Any, dt: Any, method: str = "zoh", *, alpha: float | None = None
) -> tuple[Inexact[Array | np.ndarray, "*shape"], Inexact[Array | np.ndarray, "*shape"]]:
    """Discretise a diagonal system elementwise; differentiable, and safe at eigenvalues of 0.

    Args:
      a: [..., n] eigenvalues, real or complex.
      b: [..., n] input weights.
      dt: step sizes that broadcast against `a`: ``dt[:, None]`` for one step per channel, ``dt[..., None]`` of shape
        [B, T, 1] for one per sample.
      method, alpha: as in :func:`discretize`.

    Returns:
      ``A_bar`` and ``B_bar`` in the common shape: NumPy arrays when every argument is NumPy or a number, else JAX ones.

    Raises:
      ValueError: unknown method, `alpha` missing or out of place.
    """
    xp = jnp if any(isinstance(x, jax.Array) for x in (a, b, dt)) else np
    share = _implicit_share(method, alpha)
    z = dt * xp.asarray(a)
    if share is None:
        small = xp.abs(z) < SMALL
        near, far = xp.where(small, z, 0.0), xp.where(small, 1.0, z)
        series = xp.ones_like(near)
        for n in range(TERMS, 1, -1):
            series = 1 + near / n * series
        growth = xp.where(small, series, xp.expm1(far) / far)
        return xp.exp(z), b * dt * growth
    denominator = 1 - share * z
    return (1 + (1 - share) * z) / denominator, b * dt / denominator


def check_steps(dt: np.ndarray) -> None:
    """All step sizes are positive and finite."""
    if not np.all(np.isfinite(dt) & (dt > 0)):
        bad = dt[~(np.isfinite(dt) & (dt > 0))].flat[0]
        raise ValueError(f"dt holds {bad}, expected positive step sizes")


def _implicit_share(method: str, alpha: float | None) -> float | None:
    """How much of the step is taken implicitly; ``None`` for ``zoh``."""
    if method not in METHODS:
        hint = suggest(str(method), METHODS)
        raise ValueError(f"method={method!r} is unknown, expected one of {', '.join(METHODS)}{hint}")
    if method != "generalized":
        if alpha is not None:
            raise ValueError(f"alpha={alpha!r} with method={method!r}, expected none; use method='generalized'")
        return _IMPLICIT.get(method)
    if alpha is None or not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha!r}, expected a number in [0, 1] for method='generalized'")
    return float(alpha)
