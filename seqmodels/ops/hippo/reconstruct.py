"""Online memory of a signal, and the function that a state remembers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Float64, Inexact, Num

from seqmodels.ops.checks import positive
from seqmodels.ops.hippo.discretize import check_steps, discretize
from seqmodels.ops.hippo.measures import (
    Measure,
    as_measure,
    check_size,
    degree_norms,
    glagt_scale,
    laguerre_norms,
    transition,
)


def memory(
    measure: str | Measure,
    n: int,
    signal: Any,
    dt: Any,
    *,
    method: str = "zoh",
    initial_state: Num[np.ndarray, "... n"] | None = None,
) -> Float64[np.ndarray, "*lead T n"]:
    """States of a measure after every sample of a signal.

    Args:
      measure: a name or a :class:`Measure`.
      n: state size.
      signal: [..., T] samples; sample t is held over the step that ends at time t.
      dt: step size in the measure's time, a number, or [T] for samples that come at irregular times.
      method: see :func:`discretize`.
      initial_state: [..., n] state before the first sample; zeros when ``None``.

    Returns:
      States [..., T, n], float64.

    Raises:
      ValueError: unknown measure or method, `dt` neither a number nor [T], steps that are not positive.
    """
    a, b = transition(measure, n)
    signal = _samples(signal)
    length = signal.shape[-1]
    steps = _steps(dt, length)
    state = np.zeros(n) if initial_state is None else np.asarray(initial_state, np.float64)
    state = np.broadcast_to(state, (*signal.shape[:-1], n))
    states = np.empty((*signal.shape, n))
    a_bar = b_bar = np.empty(0)
    for t in range(length):
        if t == 0 or steps[t] != steps[t - 1]:
            a_bar, b_bar = discretize(a, b, steps[t], method)
        state = state @ a_bar.T + signal[..., t, None] * b_bar
        states[..., t, :] = state
    return states


def scaled_memory(n: int, signal: Any, *, method: str = "zoh") -> Float64[np.ndarray, "*lead T n"]:
    """States of LegS in its scale-invariant form, ``x' = (A x + B u) / t``: the whole past in equal weight.

    In the time ``log t`` this is the LegS system with shrinking steps, and before the first sample the past counts as
    constant. Decode the state after sample t with ``basis("legs", n, -log(r))``, r in (0, 1] being the moment as a
    fraction of the elapsed time (1 is now). arXiv 2008.07669.

    Args:
      n: state size.
      signal: [..., T] samples, T >= 1.
      method: see :func:`discretize`.

    Returns:
      States [..., T, n], float64.
    """
    signal = _samples(signal)
    check_size(as_measure("legs"), n)
    length = signal.shape[-1]
    positive("the length of signal", length)
    first = np.zeros((*signal.shape[:-1], 1, n))
    first[..., 0, 0] = signal[..., 0]
    steps = np.log1p(1 / np.arange(1, length))
    rest = memory("legs", n, signal[..., 1:], steps, method=method, initial_state=first[..., 0, :])
    return np.concatenate([first, rest], axis=-2)


def sample_lags(length: int, dt: Any) -> Float64[np.ndarray, "length"]:
    """How long ago each sample was, seen from the end: the middle of the step over which it is held."""
    steps = _steps(dt, length)
    return np.cumsum(steps[::-1])[::-1] - 0.5 * steps


def reconstruct(state: Any, measure: str | Measure, lags: Any) -> Inexact[np.ndarray, "*lead L"]:
    """The remembered function: values [..., L] of the input at `lags` [L] before now, decoded from `state` [..., n].

    Outside the measure's window nothing is remembered and the value is 0. The two wrapped Fourier measures return what
    they hold: the average, over all past periods, of the inputs that share a phase, weighted by decay.

    Raises:
      ValueError: unknown measure, `lags` that are negative or not [L].
    """
    state = np.asarray(state)
    return state @ basis(measure, state.shape[-1], lags).T


def basis(measure: str | Measure, n: int, lags: Any) -> Float64[np.ndarray, "L n"]:
    """Decoding functions ``g_i(s)`` of a measure, [L, n] at `lags` [L]: the input s ago is about ``sum_i x_i g_i(s)``.

    They are biorthogonal to the kernels ``(e^{sA} B)_i`` of the states. Of ``legsd`` they are those of ``legs``, to
    which its kernels tend when averaged. Index 1 of the Fourier bases is dead: its function is zero. Those of
    ``glagt`` with ``alpha < 0`` are singular at lag 0.

    Raises:
      ValueError: unknown measure, `lags` that are negative or not [L].
    """
    measure = as_measure(measure)
    check_size(measure, n)
    lags = np.asarray(lags, np.float64)
    if lags.ndim != 1:
        raise ValueError(f"lags has shape {lags.shape}, expected a vector [L] of times before now")
    if not np.all(lags >= 0):
        raise ValueError(f"lags holds {lags[~(lags >= 0)][0]}, expected times before now, all >= 0")
    inside = lags <= measure.window
    if measure.name.startswith("fourier"):
        values = _fourier_basis(n, lags / measure.window)
        if measure.name == "fourier_diag":
            values = values * ((1 - math.exp(-0.5)) * np.exp(0.5 * np.minimum(lags, measure.window)))[:, None]
    elif measure.name in ("lagt", "tlagt", "glagt"):
        values = _laguerre_basis(measure, n, lags)
    elif measure.name == "lmu":
        values = _legendre(n, np.minimum(lags / measure.window, 1.0))
    else:
        place = np.exp(-lags) if measure.name in ("legs", "legsd") else 1 - np.minimum(lags / measure.window, 1.0)
        values = _legendre(n, place) * degree_norms(n)
    return np.where(inside[:, None], values, 0.0)


def _samples(signal: Any) -> np.ndarray:
    samples = np.asarray(signal, np.float64)
    if samples.ndim == 0:
        raise ValueError("signal has shape (), expected [..., T]; pass a sequence of samples")
    return samples


def _steps(dt: Any, length: int) -> np.ndarray:
    steps = np.asarray(dt, np.float64)
    if steps.shape not in ((), (length,)):
        raise ValueError(f"dt has shape {steps.shape}, expected a number or [T] with T={length}")
    check_steps(steps)
    return np.broadcast_to(steps, (length,))


def _legendre(n: int, place: np.ndarray) -> np.ndarray:
    """Legendre polynomials [L, n] at places [L] of the unit interval."""
    return np.polynomial.legendre.legvander(2 * place - 1, n - 1)


def _fourier_basis(n: int, phase: np.ndarray) -> np.ndarray:
    """Orthonormal Fourier functions [L, n] of the phase [L] in turns: 1, 0, then cosine and sine in turns."""
    angles = 2 * np.pi * np.outer(phase, np.arange(n // 2))
    values = math.sqrt(2.0) * np.stack([np.cos(angles), np.sin(angles)], axis=-1).reshape(len(phase), n)
    values[:, 0] = 1.0
    return values


def _laguerre_basis(measure: Measure, n: int, lags: np.ndarray) -> np.ndarray:
    """Generalised Laguerre polynomials [L, n] times the factor that makes them dual to the measure's kernels."""
    alpha, beta = measure.parameters.get("alpha", 0.0), measure.parameters["beta"]
    with np.errstate(divide="ignore"):
        log_tilt = alpha * np.log(lags) if alpha else 0.0
    rate = {"lagt": 0.5, "tlagt": 0.5 * (1 - beta), "glagt": 0.5 * (1 - beta)}[measure.name]
    scale = glagt_scale(alpha, beta) if measure.name == "glagt" else beta
    current, previous = np.exp(log_tilt - rate * lags) / scale, np.zeros_like(lags)
    columns = []
    for k in range(n):
        columns.append(current)
        following = ((2 * k + 1 + alpha - lags) * current - (k + alpha) * previous) / (k + 1)
        previous, current = current, following
    return np.stack(columns, axis=-1) / laguerre_norms(n, alpha)
