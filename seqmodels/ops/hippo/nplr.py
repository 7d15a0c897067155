"""Normal-plus-low-rank and diagonal forms of the HiPPO matrices, for S4 and S4D."""

from __future__ import annotations

import numpy as np
from jaxtyping import Complex128, Float64

from seqmodels.errors import suggest
from seqmodels.ops.checks import positive
from seqmodels.ops.hippo.measures import Measure, as_measure, check_size, degree_norms, fourier_jump, transition

DIAGONAL_FORMS = ("lin", "inv", "legs", "fout")


def rank_correction(measure: str | Measure, n: int) -> Float64[np.ndarray, "rank n"]:
    """The low-rank term ``P`` that makes ``A + P^T P`` a normal matrix.

    The normal matrix is a multiple of the identity plus a skew-symmetric one. Rank 2 for ``legt``, 1 for the others
    (all zeros for ``legsd`` and ``fourier_diag``, which are normal already). Section C of arXiv 2111.00396.

    Raises:
      ValueError: a measure without such a form (``lmu``, and ``glagt`` with ``alpha != 0``), unknown measure, bad `n`.
    """
    measure = as_measure(measure)
    check_size(measure, n)
    name = measure.name
    if name == "legs":
        return np.sqrt(0.5) * degree_norms(n)[None]
    if name == "legt":
        p = np.zeros((2, n))
        p[0, 1::2] = p[1, 0::2] = 1.0
        return p * np.sqrt(0.5) * degree_norms(n)
    if name in ("lagt", "tlagt") or (name == "glagt" and measure.alpha == 0):
        return np.full((1, n), np.sqrt(0.5))
    if name in ("legsd", "fourier_diag"):
        return np.zeros((1, n))
    if name in ("fourier", "fourier2", "fourier_decay"):
        return np.sqrt({"fourier": 1.0, "fourier2": 2.0, "fourier_decay": 0.5}[name]) * fourier_jump(n)[None]
    fix = "use 'legt', the same system up to scaling" if name == "lmu" else "use alpha=0"
    raise ValueError(f"measure {name!r} with alpha={measure.alpha} has no normal-plus-low-rank form; {fix}")


def nplr(
    measure: str | Measure, n: int
) -> tuple[
    Complex128[np.ndarray, "half"],
    Complex128[np.ndarray, "rank half"],
    Complex128[np.ndarray, "half"],
    Complex128[np.ndarray, "2*half half"],
]:
    """Diagonal-plus-low-rank form of a measure: ``A = V (diag(W) - P P^*) V^*`` over both conjugate halves.

    Only one of each conjugate pair is returned; with ``pairs(x) = [x, conj(x)]`` along the state axis the identity
    holds for ``pairs(W)``, ``pairs(P)``, ``pairs(V)``, and ``pairs(V)`` is unitary. Eigenvectors are defined up to a
    phase each, so only products such as ``conj(P) * B`` can be compared between programs.

    Args:
      measure: a name or a :class:`Measure` that has a :func:`rank_correction`.
      n: even state size.

    Returns:
      ``W`` [n/2] eigenvalues of ``A + P^T P`` with imaginary part <= 0, ascending in it; ``P`` [rank, n/2] and
      ``B`` [n/2] in the eigenbasis, B not clipped; ``V`` [n, n/2] eigenvectors in columns. All complex128.

    Raises:
      ValueError: odd `n`, a measure without this form, unknown measure.
    """
    _check_even(n)
    a, b = transition(measure, n)
    p = rank_correction(measure, n)
    normal = a + p.T @ p
    shift = np.mean(np.diag(normal))
    frequencies, v = _skew_eigenvectors(0.5 * (normal - normal.T))
    return shift + 1j * frequencies, p @ v.conj(), b @ v.conj(), v


def diagonal(form: str, n: int) -> tuple[Complex128[np.ndarray, "half"], Complex128[np.ndarray, "half"]]:
    """Initial diagonal state matrix of S4D (arXiv 2206.11893), one of each conjugate pair.

    Args:
      form: ``lin`` (``-1/2 + i pi k``), ``inv`` (``-1/2 + i (n/pi) (n/(2k+1) - 1)``), or ``legs`` and ``fout``, the
        eigenvalues and inputs of :func:`nplr` with the low-rank term dropped.
      n: even state size, both conjugate halves counted.

    Returns:
      Eigenvalues [n/2] and input weights ``B`` [n/2] (ones for ``lin`` and ``inv``), complex128. ``B`` of ``legs`` is
      that of the published models, twice what theory wants: the measure ``legsd`` has the half.

    Raises:
      ValueError: unknown form, odd `n`.
    """
    _check_even(n)
    k = np.arange(n // 2)
    if form == "lin":
        return -0.5 + 1j * np.pi * k, np.ones(n // 2, complex)
    if form == "inv":
        return -0.5 + 1j * (n / np.pi) * (n / (2 * k + 1) - 1), np.ones(n // 2, complex)
    if form in ("legs", "fout"):
        w, _, b, _ = nplr(form, n)
        return w, b
    hint = suggest(str(form), DIAGONAL_FORMS)
    raise ValueError(f"form={form!r} is unknown, expected one of {', '.join(DIAGONAL_FORMS)}{hint}")


def _check_even(n: int) -> None:
    positive("n", n)
    if n % 2:
        raise ValueError(f"n={n} is odd, expected an even state size, for conjugate pairs; use n={n + 1}")


def _skew_eigenvectors(skew: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Half of the eigenpairs ``skew v = i w v`` of a real skew-symmetric matrix, n even: ``w <= 0`` ascending, ``v``.

    Two-dimensional null spaces (a Fourier basis has one) are split into pairs of a complex vector and its conjugate.
    """
    w, v = np.linalg.eigh(-1j * skew)
    negative = w < -1e-10 * max(np.max(np.abs(w)), 1.0)
    half, count = skew.shape[0] // 2, int(np.sum(negative))
    if count == half:
        return w[negative], v[:, negative]
    null = v[:, count : skew.shape[0] - count]
    _, real = np.linalg.eigh(np.real(null @ null.conj().T))  # the projector's eigenvalues: zeros, then ones
    real = real[:, -null.shape[1] :]
    pairs = (real[:, 0::2] + 1j * real[:, 1::2]) / np.sqrt(2.0)
    return np.concatenate([w[negative], np.zeros(half - count)]), np.concatenate([v[:, negative], pairs], axis=1)
