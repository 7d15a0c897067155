"""Algebra on one chunk of one head: plain functions on two-dimensional arrays, the same in every kernel.

Rows ``[1,C]`` hold one number per token along lanes, columns ``[C,1]`` along sublanes. Everything is float32 except the
operands of matrix products, which are cast to the kernel's input dtype (bfloat16 products in one pass, float32 ones at
full precision). Nothing here knows about Pallas beyond what lowers there.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqmodels.axes import Array

FLOOR = -1e30  # stands for a log-decay of -inf: its exponential is 0 too, and sums of it stay finite


def dot(a: Array, b: Array, contract: str, dtype: jnp.dtype) -> Array:
    """``a @ b`` ("nn"), ``a @ b.T`` ("nt") or ``a.T @ b`` ("tn") in float32, with operands of `dtype`."""
    axes = {"nn": (1, 0), "nt": (1, 1), "tn": (0, 0)}[contract]
    precision = jax.lax.Precision.HIGHEST if dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    return jax.lax.dot_general(
        a.astype(dtype),
        b.astype(dtype),
        (((axes[0],), (axes[1],)), ((), ())),
        precision=precision,
        preferred_element_type=jnp.float32,
    )


def dot_bits(a: Array, bits: Array, passes: int = 3) -> Array:
    """``a @ bits`` for a matrix of zeros and ones: three bfloat16 passes are as exact as float32 (two keep 16 bits)."""
    total = jnp.zeros((a.shape[0], bits.shape[1]), jnp.float32)
    for _ in range(passes):
        head = upper_bits(a)
        total, a = total + dot(head, bits, "nn", jnp.bfloat16), a - head
    return total


def upper_bits(a: Array) -> Array:
    """The part of a float32 that a bfloat16 holds. By bits: XLA may drop a cast there and back."""
    bits = jax.lax.bitcast_convert_type(a, jnp.int32) & jnp.int32(-65536)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def iotas(size: int) -> tuple[Array, Array]:
    """Row and column index of a ``[size,size]`` matrix, int32."""
    shape = (size, size)
    return jax.lax.broadcasted_iota(jnp.int32, shape, 0), jax.lax.broadcasted_iota(jnp.int32, shape, 1)


def odd_rows(size: int, level: int) -> Array:
    """Rows ``[C,1]`` that lie in an odd block of ``2**level``."""
    return (jax.lax.broadcasted_iota(jnp.int32, (size, 1), 0) >> level) & 1 == 1


def to_column(row: Array) -> Array:
    """``[1,C]`` -> ``[C,1]``."""
    i, j = iotas(row.shape[1])
    return jnp.sum(jnp.where(i == j, row, 0.0), axis=1, keepdims=True)


def to_row(column: Array) -> Array:
    """``[C,1]`` -> ``[1,C]``."""
    i, j = iotas(column.shape[0])
    return jnp.sum(jnp.where(i == j, column, 0.0), axis=0, keepdims=True)


class Marks(NamedTuple):
    """Who sees whom within a chunk; ``None`` where every token does."""

    causal: Array  # [C,C] bool: token i sees token j (j <= i, same document, both real)
    real: Array | None  # [C,1] bool: not padding
    enter: Array | None  # [C,1] bool: the token continues the document of the incoming state
    leave: Array | None  # [C,1] bool: the token belongs to the document of the outgoing state
    keep: Array | None  # [1,1] bool: no document starts in this chunk


def chunk_marks(row: Array | None, size: int) -> Marks:
    """Masks of a chunk from its marks ``[1,C]`` (see `marks.document_marks`), or of a chunk without any."""
    i, j = iotas(size)
    if row is None:
        return Marks(i >= j, None, None, None, None)
    column = to_column(row)
    final = jnp.max(jnp.abs(row), axis=1, keepdims=True)  # [1,1] the document that is current at the end
    along = jnp.broadcast_to(row, (size, size))
    return Marks((i >= j) & (along == column) & (along > 0), column > 0, column == 1, column == final, final == 1)


def where(mask: Array | None, x: Array) -> Array:
    """`x` where `mask` holds, else 0."""
    return x if mask is None else jnp.where(mask, x, 0.0)


def double_inverses(inverse: Array, low: Array, small: int, dtype: jnp.dtype) -> Array:
    """``(I + low)^-1`` for strictly lower-triangular ``low [C,C]``, from `inverse`, that of its blocks of ``2**small``.

    ``[[X, 0], [L, Y]]^-1 = [[X, 0], [-Y L X, Y]]`` doubles the blocks, all at once, until one is left.
    """
    i, j = iotas(low.shape[0])
    product = dot_halves if dtype == jnp.bfloat16 else lambda a, b: dot(a, b, "nn", jnp.float32)
    for level in range(small, low.shape[0].bit_length() - 1):
        corner = jnp.where((i > j) & (((i ^ j) >> level) == 1), low, 0.0)
        inverse = inverse - product(inverse, product(corner, inverse))
    return inverse


def dot_halves(a: Array, b: Array) -> Array:
    """``a @ b`` with 16 bits of mantissa, in three bfloat16 passes instead of float32's six."""
    heads = [upper_bits(x) for x in (a, b)]
    tails = [x - head for x, head in zip((a, b), heads)]
    terms = ((heads[0], heads[1]), (heads[0], tails[1]), (tails[0], heads[1]))
    return sum((dot(x, y, "nn", jnp.bfloat16) for x, y in terms), jnp.zeros_like(a))
