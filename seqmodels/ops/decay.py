"""Decays inside a chunk, without ever dividing by one: every exponent is a sum of log-decays between two tokens.

With log-decays ``g`` and tokens ``j <= i``, token ``j`` weighs ``exp(g_{j+1} + ... + g_i)`` at token ``i``. As a
difference of cumulative sums the exponent would lose those bits of weak decays that a strong one (-1e4) before them
swallows, and ``exp(-cumsum)`` overflows. So sums are taken over exactly the tokens between.

Shapes have leading axes ``...`` (chunks, batch, heads), then the chunk ``C``. Log-decays are ``[...,C,1]`` (scalar),
``[...,C,K]`` (vector), or ``None``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from seqmodels.axes import Array
from seqmodels.ops.triangular import join_lower

BASE = 16  # tokens per block whose pairs are scored by one masked matmul
HIGHEST = jax.lax.Precision.HIGHEST


def within(g: Float[Array, "*lead C X"], after: bool) -> Float[Array, "*lead C X"]:
    """Sums over a chunk: of the tokens up to and including each (``after=False``), or after each."""
    at = jnp.arange(g.shape[-2])
    mask = at[:, None] < at if after else at[:, None] >= at
    return jnp.einsum("ij,...jx->...ix", mask.astype(g.dtype), g, precision=HIGHEST)


def between(g: Float[Array, "*lead C 1"]) -> Float[Array, "*lead C C"]:
    """The sum of the tokens after j up to i, 0 unless i > j."""
    at = jnp.arange(g.shape[-2])
    mask = (at[:, None, None] > at) & (at[:, None, None] <= at[:, None])  # [l,i,j]
    return jnp.einsum("...l,lij->...ij", g[..., 0], mask.astype(g.dtype), precision=HIGHEST)


def scores(
    rows: Float[Array, "*lead C K"],
    cols: Float[Array, "*lead C K"],
    g: Float[Array, "*lead C X"] | None,
    visible: Bool[Array, "..."],
) -> Float[Array, "*lead C C"]:
    """``sum_k rows[i,k] cols[j,k] decay[i,j,k]`` where `visible` (a subset of i >= j), else 0.

    Args:
      rows, cols: ``[...,C,K]``.
      g: log-decays ``[...,C,1]``, ``[...,C,K]`` or ``None``.
      visible: bool, broadcastable to ``[...,C,C]``.
    """
    if g is not None and g.shape[-1] == cols.shape[-1]:
        return jnp.where(visible, _vector_scores(rows, cols, g), 0)
    products = _products(rows, cols)
    if g is None:
        return jnp.where(visible, products, 0)
    return products * jnp.exp(jnp.where(visible, between(g), -jnp.inf))


def _vector_scores(rows: Array, cols: Array, g: Array) -> Array:
    """Pairs i >= j by halves: rows of a second half meet columns of the first half, both decayed to the border.

    Block size h doubles from 1 to C/2, so that every pair is met once, at its own border, with exponents <= 0. Leading
    axes are flattened to M: XLA:CPU of jaxlib 0.10.2 crashes in fused reductions of rank 7.
    """
    *lead, C, K = rows.shape
    h = min(BASE, C)
    rows, cols, g = (x.reshape(-1, C // h, h, K) for x in (rows, cols, g))
    found = _block_scores(rows, cols, g)  # [M,N,h,h]
    upto, after = within(g, after=False), within(g, after=True)  # [M,N,h,K]: sums in a block, to and from its borders
    while h < C:
        rows, cols, upto, after = (x.reshape(-1, C // (2 * h), 2, h, K) for x in (rows, cols, upto, after))
        low = _products(rows[:, :, 1] * jnp.exp(upto[:, :, 1]), cols[:, :, 0] * jnp.exp(after[:, :, 0]))
        found = join_lower(found.reshape(-1, C // (2 * h), 2, h, h), low)
        total = upto[..., -1:, :]
        upto = jnp.concatenate([upto[:, :, 0], upto[:, :, 1] + total[:, :, 0]], axis=2)
        after = jnp.concatenate([after[:, :, 0] + total[:, :, 1], after[:, :, 1]], axis=2)
        h *= 2
    return found.reshape(*lead, C, C)


def _block_scores(rows: Array, cols: Array, g: Array) -> Array:
    """The same within small blocks, all sizes L at once in one masked matmul. [M,N,h,h]"""
    M, N, h, K = g.shape
    found = jnp.sum(rows * cols, axis=-1, keepdims=True) * jnp.eye(h, dtype=g.dtype)
    if h == 1:
        return found
    sides, pairs = _borders(h)
    sides = jnp.broadcast_to(sides.reshape(-1, h).astype(g.dtype), (M, N, sides.size // h, h))
    weight = jnp.exp(jnp.matmul(sides, g, precision=HIGHEST)).reshape(M, N, -1, h, K)  # [M,N,L,h,K]
    met = _products(rows[:, :, None] * weight, cols[:, :, None] * weight)  # [M,N,L,h,h]
    return found + jnp.sum(jnp.where(pairs, met, 0), axis=2)


def _products(rows: Array, cols: Array) -> Array:
    return jnp.einsum("...ik,...jk->...ij", rows, cols)


def _borders(h: int) -> tuple[Array, Array]:
    """For blocks that double from 2 to h tokens, L in number: the tokens between a token and the middle ``[L,h,h]``
    float, and the pairs that meet over the middle ``[L,h,h]`` bool."""
    at = np.arange(h)
    size = 2 ** np.arange(1, h.bit_length())[:, None]
    middle = at // size * size + size // 2  # [L,h]: the first token of the second half
    second = at >= middle
    i, j = at[:, None], at
    upto = second[..., None] & (j >= middle[..., None]) & (j <= i)
    after = ~second[..., None] & (j < middle[..., None]) & (j > i)
    pairs = second[..., None] & ~second[:, None] & (middle[..., None] == middle[:, None])
    return jnp.asarray(upto | after, jnp.float32), jnp.asarray(pairs)
