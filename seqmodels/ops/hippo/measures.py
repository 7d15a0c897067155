"""The measures: linear systems ``x' = A x + B u`` whose state holds the coefficients of the input's past in a basis."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float64

from seqmodels.errors import suggest
from seqmodels.ops.checks import positive

_ALIASES = {"fout": "fourier", "foud": "fourier_diag"}
_DEFAULTS = {
    "lagt": {"beta": 1.0},
    "tlagt": {"beta": 1.0},
    "glagt": {"alpha": 0.0, "beta": 0.01},
    "lmu": {"theta": 1.0},
}
_WINDOWS = {"legt": 2.0, "fourier": 2.0, "fourier2": 1.0, "fourier_decay": 2.0, "fourier_diag": 1.0}


@dataclass(frozen=True)
class Measure:
    """A measure and its parameters. Parameters left out take their defaults; those a measure lacks are refused.

    ========================== ================================================================== ==============
    name                       what its state holds                                               window (time)
    ========================== ================================================================== ==============
    ``legs``                   Legendre coefficients in ``e^-s``: exponentially weighted past      all
    ``legt``                   Legendre coefficients of the last window (half speed)               2
    ``lmu``                    the same window in the Legendre Memory Unit's scaling               `theta` (1)
    ``lagt``                   Laguerre functions, flat weight; `beta` scales B                    all
    ``tlagt``                  Laguerre polynomials, weight ``e^(-beta s)``                        all
    ``glagt``                  generalised Laguerre, weight ``s^-alpha e^(-beta s)``               all
    ``fourier`` (``fout``)     Fourier series of the last window (half speed)                      2
    ``fourier2``               the same at full speed                                              1
    ``fourier_decay``          Fourier series of the past wrapped on a period, 1/3 weight per turn 2
    ``fourier_diag`` (``foud``) the same with weight ``e^(-s/2)``: a diagonal system               1
    ``legsd``                  ``legs`` without its low-rank part, B halved; see below             all
    ========================== ================================================================== ==============

    `s` is the lag, time counted backwards from now. As n grows the kernels of ``legsd`` tend to those of ``legs`` when
    averaged, as any smooth input does, but not at each moment: spikes of height about 1 remain.

    HiPPO, arXiv 2008.07669; How to Train Your HiPPO, arXiv 2206.12037.

    Raises:
      ValueError: unknown name, a parameter that the measure does not have, or one out of its range.
    """

    name: str
    alpha: float | None = None
    beta: float | None = None
    theta: float | None = None

    def __post_init__(self) -> None:
        name = _ALIASES.get(self.name, self.name)
        known = (*_TRANSITIONS, *_ALIASES)
        if name not in _TRANSITIONS:
            hint = suggest(str(name), known)
            raise ValueError(f"measure={self.name!r} is unknown, expected one of {', '.join(known)}{hint}")
        object.__setattr__(self, "name", name)
        defaults = _DEFAULTS.get(name, {})
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            if field.name not in defaults and value is not None:
                takes = f"it takes {' and '.join(defaults)}" if defaults else "it has no parameters"
                raise ValueError(f"{field.name}={value!r} does not belong to measure {name!r}; {takes}")
            if value is None:
                object.__setattr__(self, field.name, defaults.get(field.name))
        for key, value in self.parameters.items():
            if key == "alpha" and not -1 < value < 1:
                raise ValueError(f"alpha={value!r}, expected a number between -1 and 1, both excluded")
            if key != "alpha" and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{key}={value!r}, expected a positive number")

    @property
    def parameters(self) -> dict[str, float]:
        """The parameters that the measure has, by name."""
        return {name: getattr(self, name) for name in _DEFAULTS.get(self.name, {})}

    @property
    def window(self) -> float:
        """Length of the past that the basis spans, in units of time; infinite for the weights without an end."""
        return self.parameters.get("theta", _WINDOWS.get(self.name, math.inf))


def as_measure(measure: str | Measure) -> Measure:
    """The :class:`Measure` of that name with default parameters, or `measure` itself."""
    return measure if isinstance(measure, Measure) else Measure(measure)


def transition(
    measure: str | Measure,
    n: int,
    *,
    alpha: float | None = None,
    beta: float | None = None,
    theta: float | None = None,
) -> tuple[Float64[np.ndarray, "n n"], Float64[np.ndarray, "n"]]:
    """State matrices of a HiPPO measure.

    Args:
      measure: a name (see :class:`Measure`), or a `Measure`.
      n: state size; even for the Fourier measures.
      alpha, beta, theta: the measure's parameters, where it has them.

    Returns:
      ``A`` [n, n] and ``B`` [n], float64, of ``x' = A x + B u``.

    Raises:
      ValueError: unknown measure, foreign or impossible parameter, impossible `n`.
    """
    if isinstance(measure, str):
        measure = Measure(measure, alpha, beta, theta)
    elif (alpha, beta, theta) != (None, None, None):
        raise ValueError(f"parameters given beside {measure}; put them into the Measure")
    check_size(measure, n)
    return _TRANSITIONS[measure.name](measure, n)


def check_size(measure: Measure, n: int) -> None:
    """`n` is a positive int, and even for a Fourier measure, whose states are cosine-sine pairs."""
    positive("n", n)
    if measure.name.startswith("fourier") and n % 2:
        raise ValueError(f"n={n} is odd, expected an even state size for measure {measure.name!r}; use n={n + 1}")


def degree_norms(n: int) -> np.ndarray:
    """``sqrt(2 i + 1)`` [n]: what makes the Legendre polynomials on a unit interval orthonormal."""
    return np.sqrt(2.0 * np.arange(n) + 1.0)


def fourier_jump(n: int) -> np.ndarray:
    """Values at lag 0 [n] of the orthonormal Fourier basis: 1, 0, then sqrt 2 (cosine) and 0 (sine) in turns."""
    jump = np.zeros(n)
    jump[0::2] = math.sqrt(2.0)
    jump[0] = 1.0
    return jump


def laguerre_norms(n: int, alpha: float) -> np.ndarray:
    """``sqrt(Gamma(i + alpha + 1) / i!)`` [n], the norms of the generalised Laguerre polynomials."""
    return np.array([math.exp(0.5 * (math.lgamma(i + alpha + 1) - math.lgamma(i + 1))) for i in range(n)])


def glagt_scale(alpha: float, beta: float) -> float:
    """The factor that gives the weight ``s^-alpha e^(-beta s)`` mass one, under a square root."""
    return math.exp(-0.5 * math.lgamma(1 - alpha)) * beta ** ((1 - alpha) / 2)


def _rotation(n: int, frequency: float) -> np.ndarray:
    """Block-diagonal generator of rotations, the k-th pair (cosine, sine) at angular speed ``k * frequency``."""
    speeds = np.stack([frequency * np.arange(n // 2), np.zeros(n // 2)], axis=-1).reshape(-1)[:-1]
    return np.diag(speeds, -1) - np.diag(speeds, 1)


def _legs(_: Measure, n: int) -> tuple[np.ndarray, np.ndarray]:
    r = degree_norms(n)
    return -np.tril(np.outer(r, r), -1) - np.diag(np.arange(n) + 1.0), r


def _legsd(measure: Measure, n: int) -> tuple[np.ndarray, np.ndarray]:
    a, r = _legs(measure, n)
    return a + 0.5 * np.outer(r, r), 0.5 * r


def _alternating(n: int) -> np.ndarray:
    """``(-1)^(row - column)`` [n, n]."""
    signs = (-1.0) ** np.arange(n)
    return np.outer(signs, signs)


def _legt(_: Measure, n: int) -> tuple[np.ndarray, np.ndarray]:
    r = degree_norms(n)
    signs = np.tril(np.ones((n, n))) + np.triu(_alternating(n), 1)
    return -0.5 * np.outer(r, r) * signs, 0.5 * r


def _lmu(measure: Measure, n: int) -> tuple[np.ndarray, np.ndarray]:
    rates = (2.0 * np.arange(n) + 1.0) / measure.parameters["theta"]
    signs = -np.tril(_alternating(n)) - np.triu(np.ones((n, n)), 1)
    return rates[:, None] * signs, rates * (-1.0) ** np.arange(n)


def _lagt(measure: Measure, n: int) -> tuple[np.ndarray, np.ndarray]:
    return 0.5 * np.eye(n) - np.tril(np.ones((n, n))), np.full(n, measure.parameters["beta"])


def _tlagt(measure: Measure, n: int) -> tuple[np.ndarray, np.ndarray]:
    beta = measure.parameters["beta"]
    return 0.5 * (1 - beta) * np.eye(n) - np.tril(np.ones((n, n))), np.full(n, beta)


def _glagt(measure: Measure, n: int) -> tuple[np.ndarray, np.ndarray]:
    alpha, beta = measure.parameters["alpha"], measure.parameters["beta"]
    norms = laguerre_norms(n, alpha)
    at_zero = norms**2 / math.gamma(1 + alpha)  # generalised Laguerre polynomials at lag 0
    a = -0.5 * (1 + beta) * np.eye(n) - np.tril(np.ones((n, n)), -1)
    return a * norms / norms[:, None], at_zero / norms * glagt_scale(alpha, beta)


def _fourier(_: Measure, n: int) -> tuple[np.ndarray, np.ndarray]:
    b = fourier_jump(n)
    return _rotation(n, np.pi) - np.outer(b, b), b


def _fourier2(measure: Measure, n: int) -> tuple[np.ndarray, np.ndarray]:
    a, b = _fourier(measure, n)
    return 2 * a, 2 * b


def _fourier_decay(_: Measure, n: int) -> tuple[np.ndarray, np.ndarray]:
    b = fourier_jump(n)
    return _rotation(n, np.pi) - 0.5 * np.outer(b, b), 0.5 * b


def _fourier_diag(_: Measure, n: int) -> tuple[np.ndarray, np.ndarray]:
    return _rotation(n, 2 * np.pi) - 0.5 * np.eye(n), fourier_jump(n)


_TRANSITIONS: dict[str, Callable[[Measure, int], tuple[np.ndarray, np.ndarray]]] = {
    "legs": _legs,
    "legt": _legt,
    "lagt": _lagt,
    "tlagt": _tlagt,
    "glagt": _glagt,
    "lmu": _lmu,
    "legsd": _legsd,
    "fourier": _fourier,
    "fourier2": _fourier2,
    "fourier_decay": _fourier_decay,
    "fourier_diag": _fourier_diag,
}
