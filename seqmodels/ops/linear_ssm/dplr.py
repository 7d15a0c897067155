"""S4's diagonal-plus-low-rank systems (arXiv:2111.00396), by the bilinear rule: their matrices, and their kernel.

The continuous matrix is ``diag(A) - P P^*`` over both halves of conjugate pairs, of which only one is given. It is
dissipative for every P as long as ``Re A < 0``, so no step size makes it unstable.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Complex, Float

from seqmodels.axes import Array
from seqmodels.ops import checks
from seqmodels.ops.linear_ssm import matrix

BUDGET = 2**22  # elements of the Cauchy matrix that are held at a time


def dplr_system(
    A: Complex[Array, "D n"],
    P: Complex[Array, "rank D n"],
    B: Complex[Array, "D n"],
    C: Complex[Array, "D n"],
    dt: Float[Array, "D"],
) -> tuple[Float[Array, "D N N"], Float[Array, "D N"], Float[Array, "D N"]]:
    """``(a, b, c)`` for `linear_ssm`: the discrete system with real states, real parts first, N = 2 n.

    ``a = 2 R - 1`` and ``b = dt R B`` with ``R = (1 - dt/2 (diag(A) - P P^*))^-1``, which the Sherman-Morrison formula
    gives from its diagonal part, one column of P after the other. The output is ``2 Re(C x)``.

    Args:
      A, B, C: ``[D,n]`` complex, one of each conjugate pair.
      P: ``[rank,D,n]`` complex.
      dt: ``[D]`` step sizes.

    Raises:
      ValueError: shapes do not fit.
    """
    _check(A, P, B, C, dt)
    diagonal = 1 / (1 - 0.5 * dt[:, None] * A)
    spread = lambda values: values[:, :, None] * jnp.eye(values.shape[1], dtype=values.dtype)  # noqa: E731
    re, im = spread(diagonal.real), spread(diagonal.imag)
    resolvent = jnp.concatenate([jnp.concatenate([re, -im], axis=2), jnp.concatenate([im, re], axis=2)], axis=1)
    for column in matrix.planes(P):  # [D,N]
        right = matrix.apply(resolvent, column)
        left = matrix.apply(matrix.transpose(resolvent), column)
        share = dt / (1 + dt * jnp.sum(column * right, axis=1))
        resolvent = resolvent - share[:, None, None] * right[:, :, None] * left[:, None]
    a = 2 * resolvent - jnp.eye(resolvent.shape[1], dtype=resolvent.dtype)
    return a, dt[:, None] * matrix.apply(resolvent, matrix.planes(B)), 2 * matrix.planes(C.conj())


def dplr_kernel(
    A: Complex[Array, "D n"],
    P: Complex[Array, "rank D n"],
    B: Complex[Array, "D n"],
    C: Complex[Array, "D n"],
    dt: Float[Array, "D"],
    length: int,
) -> Float[Array, "L D"]:
    """The first `length` values of the impulse response of `dplr_system`, from its spectrum.

    At the roots of unity ``w`` the spectrum of the truncated kernel is a sum over products of Cauchy matrices,
    ``sum_n dt u_n v_n / ((1 - w) - (1 + w)/2 dt A_n)`` for u of the truncated C and ``P^*`` and v of B and P, from
    which Woodbury's identity eliminates P. Multiplied by ``(1 + w)/2`` as here no denominator vanishes at ``w = -1``.
    The Cauchy matrices are made and summed for some frequencies at a time.

    Args:
      A, P, B, C, dt: as in `dplr_system`.
      length: L >= 1.

    Raises:
      ValueError: shapes do not fit.
    """
    _check(A, P, B, C, dt)
    checks.positive("length", length)
    a, _, c = dplr_system(A, P, B, C, dt)
    steps = jnp.full(1, length, jnp.int32)
    c = c - matrix.advance(matrix.transpose(a), c[None], steps, length)[0]
    re, im = jnp.split(0.5 * c, 2, axis=1)
    left = jnp.concatenate([jax.lax.complex(re, -im)[None], P.conj()])  # [1+rank,D,n]
    right = jnp.concatenate([B[None], P])
    weights = left[:, None] * right[None] * dt[:, None]
    poles = dt[:, None] * A

    def spectrum(angle: Array) -> Array:
        w = jax.lax.complex(jnp.cos(angle), -jnp.sin(angle))  # [F]
        half = 0.5 * (1 + w)
        one = lambda weights, poles: matrix.einsum(  # noqa: E731
            "ijdn,fdn->ijfd", weights, 1 / ((1 - w)[:, None, None] - half[:, None, None] * poles)
        )
        sums = one(weights, poles) + one(weights.conj(), poles.conj())
        for k in range(1, sums.shape[0]):
            sums = sums - half[:, None] * sums[:, k : k + 1] * sums[k : k + 1] / (1 + half[:, None] * sums[k, k])
        return sums[0, 0]

    frequencies = length // 2 + 1
    count = min(frequencies, max(1, BUDGET // A.size))
    angles = 2 * jnp.pi / length * jnp.arange(-(-frequencies // count) * count, dtype=dt.dtype)
    values = jax.lax.map(jax.checkpoint(spectrum), angles.reshape(-1, count))
    return jnp.fft.irfft(values.reshape(-1, A.shape[0])[:frequencies], length, axis=0)


def _check(A: Array, P: Array, B: Array, C: Array, dt: Array) -> None:
    sizes: dict[str, int] = {}
    checks.match("A", A, "D n", sizes)
    checks.match("P", P, "rank D n", sizes)
    for name, array in (("B", B), ("C", C)):
        checks.match(name, array, "D n", sizes)
    checks.match("dt", dt, "D", sizes)
    for name, array in (("A", A), ("P", P), ("B", B), ("C", C)):
        if not jnp.issubdtype(array.dtype, jnp.complexfloating):
            raise ValueError(f"{name} has dtype {array.dtype}, expected complex; pass jax.lax.complex(real, imag)")
