"""Decays within a chunk: none or one per token (`ScalarDecay`), or one per token and key channel (`VectorDecay`).

Both offer the same to a cell, so that a cell is written once:

* ``enter``, ``leave``, ``keep``: factors from the incoming state to a token, from a token to the outgoing state, from
  the incoming to the outgoing state; they broadcast over ``[C,K]`` (``keep`` over ``[V,K]``) and hold the masks of
  `Marks`;
* ``scores(a, b)``: ``sum_k a_ik b_jk decay(j -> i)_k`` where i sees j, 0 elsewhere;
* ``scores_gradient(d, a, b, scores) -> (da, db, pairs)`` for a masked `d`; `pairs` are gradients of exponents, which
  add up over several scores;
* ``gradient(pairs, enter, leave, keep)``: the gradient of the log-decays, from `pairs` and the gradients of the
  exponents of the three factors, given per channel: ``[C,K], [C,K], [1,K]``.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops.pallas import halving
from seqmodels.ops.pallas.algebra import FLOOR, Marks, dot, dot_bits, iotas, where
from seqmodels.ops.pallas.chip import Chip


class ScalarDecay:
    """From the log-decays ``[1,C]`` of a chunk, or from ``None`` for no decay.

    The exponent of a pair is the sum of what lies between the two, added up without any difference of running sums, so
    a decay of -1e4 somewhere in the chunk costs the other pairs no digit.
    """

    def __init__(self, row: Array | None, marks: Marks, dtype: jnp.dtype):
        self.dtype, size = dtype, marks.causal.shape[0]
        if row is None:
            one = jnp.ones((size, 1), jnp.float32)
            self.pair, enter, leave, keep = jnp.where(marks.causal, 1.0, 0.0), one, one, jnp.ones((1, 1), jnp.float32)
        else:
            row = jnp.maximum(row, FLOOR)
            i, j = iotas(size)
            until = jnp.where(j <= i, row, 0.0)
            between = dot_bits(until, jnp.where(i > j, 1.0, 0.0))
            self.pair = jnp.where(marks.causal, jnp.exp(jnp.where(marks.causal, between, FLOOR)), 0.0)
            enter = jnp.exp(jnp.sum(until, axis=1, keepdims=True))
            leave = jnp.exp(jnp.sum(jnp.where(j > i, row, 0.0), axis=1, keepdims=True))
            keep = jnp.exp(jnp.sum(row, axis=1, keepdims=True))
        self.enter, self.leave, self.keep = (
            where(marks.enter, enter),
            where(marks.leave, leave),
            where(marks.keep, keep),
        )

    def scores(self, a: Array, b: Array) -> Array:
        return dot(a, b, "nt", self.dtype) * self.pair

    def scores_gradient(self, d: Array, a: Array, b: Array, scores: Array) -> tuple[Array, Array, Any]:
        raw = d * self.pair
        return dot(raw, b, "nn", self.dtype), dot(raw, a, "tn", self.dtype), d * scores

    def gradient(self, pairs: Any, enter: Array, leave: Array, keep: Array) -> Array:
        """``[1,C]``: a log-decay is part of a pair's exponent if it lies after j and not after i, so its gradient is
        the sum over a rectangle of the pair gradients; no difference of large sums is taken."""
        i, j = iotas(pairs.shape[0])
        passes = 3 if self.dtype == jnp.float32 else 2
        before = dot_bits(jnp.where(i > j, pairs, 0.0), jnp.where(i < j, 1.0, 0.0), passes)
        enter, leave, keep = (jnp.sum(x, axis=1, keepdims=True) for x in (enter, leave, keep))
        return jnp.sum(jnp.where(i >= j, before + enter, leave), axis=0, keepdims=True) + keep


class VectorDecay:
    """From the log-decays ``[C,K]`` of a chunk, see `halving`."""

    def __init__(self, log_decay: Array, marks: Marks, dtype: jnp.dtype, chip: Chip):
        self.dtype, self.causal, self.chip = dtype, marks.causal, chip
        self.halved = halving.halve(log_decay, chip)
        self.enter = where(marks.enter, self.halved.enter)
        self.leave = where(marks.leave, self.halved.leave)
        self.keep = where(marks.keep, self.halved.keep)

    def scores(self, a: Array, b: Array) -> Array:
        return halving.scores(a, b, self.halved, self.causal, self.dtype)

    def scores_gradient(self, d: Array, a: Array, b: Array, scores: Array) -> tuple[Array, Array, Any]:
        return halving.scores_gradient(d, a, b, self.halved, self.dtype)

    def gradient(self, pairs: Any, enter: Array, leave: Array, keep: Array) -> Array:
        """``[C,K]``."""
        return halving.halve_gradient(pairs, enter, leave, keep, self.chip)
