"""The delta rule over one chunk of one head, forward and backward, in the WY form (see `chunked`).

The state is kept transposed, ``[V,K]``. With ``A`` the strictly lower scores of keys with keys, times beta, the rows
``u = (I + A)^-1 beta (v - k S)`` are what the chunk writes: ``S`` grows by ``k^T u``. ``docs/kernels.md`` derives it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops.delta_rule import chunked
from seqmodels.ops.pallas.algebra import Marks, dot, iotas, to_column, to_row
from seqmodels.ops.pallas.chip import Chip, triangular_inverse
from seqmodels.ops.pallas.decay import ScalarDecay, VectorDecay


@dataclasses.dataclass(frozen=True)
class DeltaCell:
    """See `recurrence` for what a cell is.

    Columns are q, k, v and, if the decay is per key channel, the log-decay; rows are beta and, if there is one per
    token, the log-decay.
    """

    scale: float
    dtype: Any  # of matrix operands: float32 or bfloat16
    decay: str  # "none", "scalar" or "vector"
    chip: Chip

    @property
    def kinds(self) -> tuple[str, ...]:
        return ("key", "key", "value", "gate") if self.decay == "vector" else ("key", "key", "value")

    @property
    def rows(self) -> int:
        return 2 if self.decay == "scalar" else 1

    def chunked(self, columns, rows, state, segment_ids, num_segments):
        """The same in XLA; second derivatives are taken from it."""
        (q, k, v, *gate), (beta, *row), options = columns, rows, {"num_segments": num_segments, "chunk_size": None}
        log_decay = next(iter((*gate, *row)), None)
        return chunked.run(q, k, v, beta, log_decay, state, segment_ids, scale=self.scale, **options)

    def _prepare(self, marks: Marks, columns: tuple[Array, ...], rows: tuple[Array, ...], state: Array) -> _Chunk:
        q, k, v = columns[:3]
        if self.decay == "vector":
            decay = VectorDecay(columns[3], marks, self.dtype, self.chip)
        else:
            decay = ScalarDecay(rows[1] if self.decay == "scalar" else None, marks, self.dtype)
        beta = to_column(rows[0])
        i, j = iotas(k.shape[0])
        keys = jnp.where(i > j, decay.scores(k, k), 0.0)
        inverse = triangular_inverse(beta * keys, self.dtype, self.chip)
        error = v - dot(k * decay.enter, state, "nt", self.dtype)
        written = dot(inverse, beta * error, "nn", self.dtype)
        return _Chunk(decay, beta, keys, inverse, error, written, decay.scores(q, k))

    def forward(
        self, marks: Marks, columns: tuple[Array, ...], rows: tuple[Array, ...], state: Array
    ) -> tuple[Array, Array]:
        """``out [C,V]`` and the next state ``[V,K]``."""
        q, k, _ = columns[:3]
        chunk = self._prepare(marks, columns, rows, state)
        decay = chunk.decay
        out = dot(q * decay.enter, state, "nt", self.dtype) + dot(chunk.scores, chunk.written, "nn", self.dtype)
        return self.scale * out, decay.keep * state + dot(chunk.written, k * decay.leave, "tn", self.dtype)

    def backward(
        self,
        marks: Marks,
        columns: tuple[Array, ...],
        rows: tuple[Array, ...],
        state: Array,
        d_out: Array,
        d_state: Array,
    ) -> tuple[tuple[Array, ...], tuple[Array, ...], Array]:
        """Gradients of the columns, of the rows and of the incoming state, from those of `forward`'s results."""
        q, k, _ = columns[:3]
        chunk = self._prepare(marks, columns, rows, state)
        decay, beta, d_out = chunk.decay, chunk.beta, self.scale * d_out
        product = lambda a, b, contract: dot(a, b, contract, self.dtype)  # noqa: E731

        d_written = product(chunk.scores, d_out, "tn") + product(k * decay.leave, d_state, "nt")
        d_scores = jnp.where(marks.causal, product(d_out, chunk.written, "nt"), 0.0)
        dq, dk, pairs = decay.scores_gradient(d_scores, q, k, chunk.scores)

        d_target = product(chunk.inverse, d_written, "tn")  # of beta * error
        i, j = iotas(k.shape[0])
        d_low = jnp.where(marks.causal & (i > j), -product(d_target, chunk.written, "nt"), 0.0)  # of beta * keys
        d_beta = jnp.sum(d_low * chunk.keys, axis=1, keepdims=True)
        d_beta += jnp.sum(d_target * chunk.error, axis=1, keepdims=True)
        dk_left, dk_right, key_pairs = decay.scores_gradient(beta * d_low, k, k, chunk.keys)

        d_error = beta * d_target
        dq_enter = decay.enter * product(d_out, state, "nn")
        dk_enter = -decay.enter * product(d_error, state, "nn")
        dk_leave = decay.leave * product(chunk.written, d_state, "nn")
        d_before = decay.keep * d_state + product(d_out, q * decay.enter, "tn")
        d_before -= product(d_error, k * decay.enter, "tn")
        gradients = (dq + dq_enter, dk + dk_left + dk_right + dk_enter + dk_leave, d_error)
        if self.decay == "none":
            return gradients, (to_row(d_beta),), d_before
        pairs = jax.tree.map(jnp.add, pairs, key_pairs)
        d_keep = decay.keep * jnp.sum(state * d_state, axis=0, keepdims=True)
        d_decay = decay.gradient(pairs, q * dq_enter + k * dk_enter, k * dk_leave, d_keep)
        if self.decay == "vector":
            return (*gradients, d_decay), (to_row(d_beta),), d_before
        return gradients, (to_row(d_beta), d_decay), d_before


@dataclasses.dataclass(frozen=True)
class _Chunk:
    """What both passes compute first."""

    decay: ScalarDecay | VectorDecay
    beta: Array  # [C,1]
    keys: Array  # [C,C] strictly lower scores of keys with keys
    inverse: Array  # [C,C]
    error: Array  # [C,V] value minus what the incoming state predicts
    written: Array  # [C,V]
    scores: Array  # [C,C] of queries with keys
