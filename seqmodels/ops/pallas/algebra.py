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
    total = None
    for _ in range(passes):
        head = jax.lax.bitcast_convert_type(a, jnp.int32) & jnp.int32(-65536)
        head = jax.lax.bitcast_convert_type(head, jnp.float32)  # the upper 8 bits of the mantissa
        a = a - head
        part = dot(head, bits, "nn", jnp.bfloat16)
        total = part if total is None else total + part
    assert total is not None
    return total


def iotas(size: int) -> tuple[Array, Array]:
    """Row and column index of a ``[size,size]`` matrix, int32."""
    shape = (size, size)
    return jax.lax.broadcasted_iota(jnp.int32, shape, 0), jax.lax.broadcasted_iota(jnp.int32, shape, 1)


def to_column(row: Array) -> Array:
    """``[1,C]`` -> ``[C,1]``."""
    i, j = iotas(row.shape[1])
    return jnp.sum(jnp.where(i == j, row, 0.0), axis=1, keepdims=True)


class Marks(NamedTuple):
    """Who sees whom within a chunk; ``None`` where every token does."""

    causal: Array  # [C,C] bool: token i sees token j (j <= i, same document, both real)
    real: Array | None  # [C,1] bool: not padding
    enter: Array | None  # [C,1] bool: the token continues the document of the incoming state
    leave: Array | None  # [C,1] bool: the token belongs to the document of the outgoing state
    keep: Array | None  # [1,1] bool: no document starts in this chunk


def chunk_marks(row: Array | None, size: int) -> Marks:
    """Masks of a chunk from its marks ``[1,C]`` (see `recurrence.document_marks`), or of a chunk without any."""
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


class Decay(NamedTuple):
    """Decays within a chunk, already masked."""

    pair: Array  # [C,C]: from token j to token i, 0 where i does not see j
    enter: Array  # [C,1] or [C,K]: from the incoming state to token i
    leave: Array  # [C,1] or [C,K]: from token j to the outgoing state
    keep: Array  # [1,1] or [1,K]: from the incoming to the outgoing state


def no_decay(marks: Marks) -> Decay:
    """Only the masks."""
    one = jnp.ones((marks.causal.shape[0], 1), jnp.float32)
    keep = jnp.ones((1, 1), jnp.float32)
    return Decay(
        jnp.where(marks.causal, 1.0, 0.0), where(marks.enter, one), where(marks.leave, one), where(marks.keep, keep)
    )


def scalar_decay(row: Array, marks: Marks) -> Decay:
    """Decays from the log-decays ``[1,C]`` of a chunk.

    The exponent of a pair is the sum of what lies between the two, added up without any difference of running sums, so
    a decay of -1e4 somewhere in the chunk costs the other pairs no digit.
    """
    row = jnp.maximum(row, FLOOR)
    i, j = iotas(row.shape[1])
    until = jnp.where(j <= i, row, 0.0)
    between = dot_bits(until, jnp.where(i > j, 1.0, 0.0))
    after = jnp.sum(jnp.where(j > i, row, 0.0), axis=1, keepdims=True)
    return Decay(
        jnp.where(marks.causal, jnp.exp(jnp.where(marks.causal, between, FLOOR)), 0.0),
        where(marks.enter, jnp.exp(jnp.sum(until, axis=1, keepdims=True))),
        where(marks.leave, jnp.exp(after)),
        where(marks.keep, jnp.exp(jnp.sum(row, axis=1, keepdims=True))),
    )


def scalar_decay_gradient(pair: Array, enter: Array, leave: Array, keep: Array, dtype: jnp.dtype) -> Array:
    """Gradient ``[1,C]`` of the log-decays from the gradients of the four exponents of `Decay`.

    A log-decay is part of a pair's exponent if it lies after j and not after i, so its gradient is the sum over a
    rectangle of the pair gradients; no difference of large sums is taken.
    """
    i, j = iotas(pair.shape[0])
    before = dot_bits(jnp.where(i > j, pair, 0.0), jnp.where(i < j, 1.0, 0.0), 3 if dtype == jnp.float32 else 2)
    return jnp.sum(jnp.where(i >= j, before + enter, leave), axis=0, keepdims=True) + keep
