"""Linear attention over one chunk of one head, forward and backward: what a kernel runs between its loads and stores.

The state is kept transposed, ``[V,K]``, so that a decay per key channel scales lanes. ``docs/kernels.md`` derives it.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops.linear_attention import chunked
from seqmodels.ops.pallas import halving
from seqmodels.ops.pallas.algebra import Marks, dot, no_decay, scalar_decay, scalar_decay_gradient, where

_chunked = functools.partial(chunked.run, chunk_size=None)


@dataclasses.dataclass(frozen=True)
class ScalarCell:
    """No decay (`row` is ``None``), or one log-decay per token in ``row [1,C]``."""

    scale: float
    dtype: Any  # of matrix operands: float32 or bfloat16
    rows: int  # 1 with a decay, 0 without
    kinds = ("key", "key", "value")

    def chunked(self, columns, rows, state, segment_ids, num_segments):
        """The same in XLA; second derivatives are taken from it."""
        (q, k, v), log_decay = columns, rows[0] if rows else None
        return _chunked(q, k, v, log_decay, state, segment_ids, scale=self.scale, num_segments=num_segments)

    def forward(self, marks: Marks, columns: tuple[Array, ...], row: Array | None, state: Array) -> tuple[Array, Array]:
        """``q, k [C,K], v [C,V]``, ``state [V,K]`` -> ``out [C,V]`` and the next state."""
        q, k, v = columns
        decay = no_decay(marks) if row is None else scalar_decay(row, marks)
        weights = dot(q, k, "nt", self.dtype) * decay.pair
        out = dot(weights, v, "nn", self.dtype) + decay.enter * dot(q, state, "nt", self.dtype)
        return self.scale * out, decay.keep * state + dot(v, k * decay.leave, "tn", self.dtype)

    def backward(
        self, marks: Marks, columns: tuple[Array, ...], row: Array | None, state: Array, d_out: Array, d_state: Array
    ) -> tuple[tuple[Array, ...], Array | None, Array]:
        """Gradients of the columns, of the row and of the incoming ``state``, from those of `forward`'s results."""
        q, k, v = columns
        decay = no_decay(marks) if row is None else scalar_decay(row, marks)
        d_out = self.scale * d_out
        raw = dot(q, k, "nt", self.dtype)
        d_weights = dot(d_out, v, "nt", self.dtype)
        d_raw = d_weights * decay.pair
        dq_state = decay.enter * dot(d_out, state, "nn", self.dtype)
        dk_state = decay.leave * dot(v, d_state, "nn", self.dtype)
        dq = dot(d_raw, k, "nn", self.dtype) + dq_state
        dk = dot(d_raw, q, "tn", self.dtype) + dk_state
        dv = dot(raw * decay.pair, d_out, "tn", self.dtype) + decay.leave * dot(k, d_state, "nt", self.dtype)
        d_before = decay.keep * d_state + dot(d_out, decay.enter * q, "tn", self.dtype)
        if row is None:
            return (dq, dk, dv), None, d_before
        d_row = scalar_decay_gradient(
            d_raw * raw,
            jnp.sum(q * dq_state, axis=1, keepdims=True),
            jnp.sum(k * dk_state, axis=1, keepdims=True),
            decay.keep * jnp.sum(jnp.sum(state * d_state, axis=0, keepdims=True), axis=1, keepdims=True),
            self.dtype,
        )
        return (dq, dk, dv), d_row, d_before


@dataclasses.dataclass(frozen=True)
class VectorCell:
    """One log-decay per token and key channel, ``[C,K]``, the fourth column."""

    scale: float
    dtype: Any
    rows = 0
    kinds = ("key", "key", "value", "gate")

    def chunked(self, columns, rows, state, segment_ids, num_segments):
        """As `ScalarCell.chunked`."""
        q, k, v, log_decay = columns
        return _chunked(q, k, v, log_decay, state, segment_ids, scale=self.scale, num_segments=num_segments)

    def forward(self, marks: Marks, columns: tuple[Array, ...], row: None, state: Array) -> tuple[Array, Array]:
        """As `ScalarCell.forward`."""
        q, k, v, log_decay = columns
        decay = halving.halve(log_decay)
        weights = halving.scores(q, k, decay, marks.causal, self.dtype)
        q_enter, k_leave = where(marks.enter, q * decay.enter), where(marks.leave, k * decay.leave)
        out = dot(weights, v, "nn", self.dtype) + dot(q_enter, state, "nt", self.dtype)
        return self.scale * out, where(marks.keep, decay.keep) * state + dot(v, k_leave, "tn", self.dtype)

    def backward(
        self, marks: Marks, columns: tuple[Array, ...], row: None, state: Array, d_out: Array, d_state: Array
    ) -> tuple[tuple[Array, ...], None, Array]:
        """As `ScalarCell.backward`."""
        q, k, v, log_decay = columns
        decay = halving.halve(log_decay)
        keep = where(marks.keep, decay.keep)
        d_out = self.scale * d_out
        weights = halving.scores(q, k, decay, marks.causal, self.dtype)
        q_enter, k_leave = where(marks.enter, q * decay.enter), where(marks.leave, k * decay.leave)
        d_weights = jnp.where(marks.causal, dot(d_out, v, "nt", self.dtype), 0.0)
        dq, dk, d_levels = halving.scores_gradient(d_weights, q, k, decay, self.dtype)
        dq_state = where(marks.enter, decay.enter * dot(d_out, state, "nn", self.dtype))
        dk_state = where(marks.leave, decay.leave * dot(v, d_state, "nn", self.dtype))
        dv = dot(weights, d_out, "tn", self.dtype) + dot(k_leave, d_state, "nt", self.dtype)
        d_before = keep * d_state + dot(d_out, q_enter, "tn", self.dtype)
        d_keep = keep * jnp.sum(state * d_state, axis=0, keepdims=True)
        d_log_decay = halving.halve_gradient(d_levels, q * dq_state, k * dk_state, d_keep)
        return (dq + dq_state, dk + dk_state, dv, d_log_decay), None, d_before
