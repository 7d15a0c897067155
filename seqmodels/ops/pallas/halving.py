"""Decays with one rate per key channel, by halving.

The pairs ``i > j`` of a chunk fall into log2(C) levels: at level b (a power of two) i lies in an odd block of b tokens
and j in the even block before it. With the border between the two blocks as the point of reference, the decay of the
pair is ``exp(from the border to i) * exp(from j to the border)``: two factors in (0, 1] whose exponents are sums of
log-decays, never differences, so no decay is too strong and every level is one matrix product.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops.pallas.algebra import FLOOR, dot, iotas, odd_rows
from seqmodels.ops.pallas.chip import Chip


class Halved(NamedTuple):
    """Exponentials of a chunk's log-decays ``[C,K]``."""

    levels: tuple[Array, ...]  # [C,K] per level: decay between a token and its border of that level
    enter: Array  # [C,K]: from the start of the chunk up to and including the token
    leave: Array  # [C,K]: after the token to the end of the chunk
    keep: Array  # [1,K]: the whole chunk


def halve(log_decay: Array, chip: Chip) -> Halved:
    """Sums of ``log_decay [C,K]`` (C a power of two) to the borders of every level, exponentiated."""
    upto = total = jnp.maximum(log_decay, FLOOR)  # within the token's block: up to the token, all of it
    after = jnp.zeros_like(upto)  # within the block, after the token
    size, levels = upto.shape[0], []
    for level in range(size.bit_length() - 1):
        odd, other = odd_rows(size, level), chip.swap(total, level)
        levels.append(jnp.exp(jnp.where(odd, upto, after)))
        upto, after, total = upto + jnp.where(odd, other, 0.0), after + jnp.where(odd, 0.0, other), total + other
    return Halved(
        tuple(levels), jnp.exp(upto), jnp.exp(after), jnp.exp(jnp.max(total, axis=0, keepdims=True))
    )  # equal rows


def halve_gradient(levels: list[Array], enter: Array, leave: Array, keep: Array, chip: Chip) -> Array:
    """Gradient of the log-decays from the gradients of the exponents of `Halved` (the transpose of `halve`)."""
    size = enter.shape[0]
    upto, after = enter, leave
    first = jax.lax.broadcasted_iota(jnp.int32, (size, 1), 0) == 0
    total = jnp.where(first, jnp.broadcast_to(keep, enter.shape), 0.0)
    for level in reversed(range(len(levels))):
        odd, mine = odd_rows(size, level), levels[level]
        total = total + chip.swap(total + jnp.where(odd, upto, after), level)
        upto, after = upto + jnp.where(odd, mine, 0.0), after + jnp.where(odd, 0.0, mine)
    return upto + total


def _level_of(size: int, level: int) -> Array:
    """Pairs ``[C,C]`` of a level."""
    i, j = iotas(size)
    return (i > j) & (((i ^ j) >> level) == 1)


def scores(q: Array, k: Array, decay: Halved, causal: Array, dtype: jnp.dtype) -> Array:
    """``sum_k q_ik k_jk exp(decay from j to i)`` for the pairs that `causal` allows, 0 elsewhere. [C,C]"""
    size = q.shape[0]
    i, j = iotas(size)
    out = jnp.where(i == j, jnp.sum(q * k, axis=1, keepdims=True), 0.0)
    for level, to_border in enumerate(decay.levels):
        out = jnp.where(_level_of(size, level), dot(q * to_border, k * to_border, "nt", dtype), out)
    return jnp.where(causal, out, 0.0)


def scores_gradient(
    d_scores: Array, q: Array, k: Array, decay: Halved, dtype: jnp.dtype
) -> tuple[Array, Array, list[Array]]:
    """Gradients of q, of k, and of the exponents of every level, from the (masked) gradient of `scores`."""
    size = q.shape[0]
    i, j = iotas(size)
    diagonal = jnp.sum(jnp.where(i == j, d_scores, 0.0), axis=1, keepdims=True)
    dq, dk, levels = diagonal * k, diagonal * q, []
    for level, to_border in enumerate(decay.levels):
        mine = jnp.where(_level_of(size, level), d_scores, 0.0)
        dq_level = dot(mine, k * to_border, "nn", dtype) * to_border
        dk_level = dot(mine, q * to_border, "tn", dtype) * to_border
        levels.append(q * dq_level + k * dk_level)
        dq, dk = dq + dq_level, dk + dk_level
    return dq, dk, levels
