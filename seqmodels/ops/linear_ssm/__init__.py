"""Linear time-invariant state-space models: one system per channel, diagonal or dense."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Float, Inexact, Int

from seqmodels.axes import Array, accumulate_dtype
from seqmodels.ops import checks
from seqmodels.ops.dispatch import Implementation, dispatch
from seqmodels.ops.linear_ssm import chunked, matrix, reference
from seqmodels.ops.linear_ssm.dplr import dplr_kernel as dplr_kernel
from seqmodels.ops.linear_ssm.dplr import dplr_system as dplr_system

IMPLEMENTATIONS = {"chunked": Implementation(chunked.run), "reference": Implementation(reference.run)}


def linear_ssm(
    x: Float[Array, "B T D"],
    a: Inexact[Array, "D N"] | Float[Array, "D N N"],
    b: Inexact[Array, "D N"],
    c: Inexact[Array, "D N"],
    *,
    state: Inexact[Array, "B D N"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    impl: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Float[Array, "B T D"], Inexact[Array, "B D N"]]:
    """``h_t = a h_{t-1} + b x_t``, ``y_t = Re sum_n c_n h_t``, every channel with a (discrete) system of its own.

    S4D (arXiv:2206.11893) is this with a diagonal `a`, S4 (arXiv:2111.00396) with a dense one. The chunked form
    convolves inside chunks and hands the state on between them: the work is linear in T, and the states of single
    tokens, N times the size of `x`, never exist. `ssm_kernel` gives the same as a convolution.

    Args:
      x: ``[B,T,D]``.
      a: ``[D,N]``, real or complex, the diagonals; or ``[D,N,N]``, real matrices. No eigenvalue outside the unit disc.
      b, c: ``[D,N]``, real or complex for a diagonal `a`, real for a dense one. For one half of conjugate pairs pass
        ``2 * c``.
      state: ``[B,D,N]``, complex if `a` or `b` is; ``None`` means zeros.
      segment_ids: ``[B,T]`` integers, 0 is padding; see ``docs/design.md``. (Segments with states of their own,
        ``num_segments``, are not served.)
      impl: an implementation's name, or ``"auto"``.
      chunk_size: tokens per chunk, a power of two. ``None`` chooses.

    Returns:
      ``y [B,T,D]`` in the dtype of `x`, zero at padding, and the state after the last token in float32 or complex64
      (float64, complex128 for inputs of such precision).

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    sizes: dict[str, int] = {}
    checks.match("x", x, "B T D", sizes)
    checks.floating(x=x)
    _check(a, b, c, sizes)
    checks.segment_ids(segment_ids, None, sizes)
    matrix.check_chunk_size(chunk_size)
    dtype = accumulate_dtype(x, a, b)
    if state is None:
        state = jnp.zeros((x.shape[0], *b.shape), dtype)
    checks.match("state", state, "B D N", sizes)
    if jnp.iscomplexobj(state) and not jnp.issubdtype(dtype, jnp.complexfloating):
        raise ValueError(
            f"state has dtype {state.dtype} but a and b are real, expected a real state; pass its real part"
        )
    if 0 in x.shape[:2]:
        return x, state.astype(dtype)
    wide = accumulate_dtype(x, a.real, b.real, c.real)
    y, after = dispatch(
        "linear_ssm",
        impl,
        IMPLEMENTATIONS,
        x.astype(wide),
        a,
        b,
        c,
        state.astype(dtype),
        checks.canonical_ids(segment_ids, None),
        chunk_size=chunk_size,
    )
    return y.astype(x.dtype), after


def ssm_kernel(
    a: Inexact[Array, "D N"] | Float[Array, "D N N"],
    b: Inexact[Array, "D N"],
    c: Inexact[Array, "D N"],
    length: int,
) -> Float[Array, "L D"]:
    """The first `length` values of ``Re sum_n c_n a^l b_n``: ``long_conv(x, ssm_kernel(...))`` is `linear_ssm`.

    For a diagonal `a` this is a product with a Vandermonde matrix. Powers are taken in two levels, so that what is held
    at a time has ``sqrt(length) * N`` elements per channel and not ``length * N``.

    Args:
      a, b, c: as in `linear_ssm`.
      length: L >= 1.

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    _check(a, b, c, {})
    checks.positive("length", length)
    inner = 1 << ((length - 1).bit_length() + 1) // 2
    dtype = accumulate_dtype(a, b, c)
    a, b, c = (leaf.astype(dtype) for leaf in (a, b, c))
    steps = matrix.krylov(a, b, inner)
    strides = matrix.krylov(matrix.transpose(matrix.power(a, inner)), c, -(-length // inner))
    kernel = matrix.contract("qdn,ldn->qld", strides, steps)
    return kernel.reshape(-1, kernel.shape[2])[:length]


def _check(a: Array, b: Array, c: Array, sizes: dict[str, int]) -> None:
    checks.is_array("a", a)
    checks.match("b", b, "D N", sizes)
    dense = jnp.ndim(a) == 3
    checks.match("a", a, "D N N" if dense else "D N", sizes)
    checks.match("c", c, "D N", sizes)
    for name, array in (("a", a), ("b", b), ("c", c)):
        if not jnp.issubdtype(array.dtype, jnp.inexact):
            raise ValueError(f"{name} has dtype {array.dtype}, expected floating point or complex; cast with .astype")
    if dense:
        checks.floating(a=a, b=b, c=c)
