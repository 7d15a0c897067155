"""Linear attention over one chunk of one head, forward and backward: what a kernel runs between its loads and stores.

The state is kept transposed, ``[V,K]``, so that a decay per key channel scales lanes. ``docs/kernels.md`` derives it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops.linear_attention import chunked
from seqmodels.ops.pallas.algebra import Marks, dot
from seqmodels.ops.pallas.chip import Chip
from seqmodels.ops.pallas.decay import ScalarDecay, VectorDecay


@dataclasses.dataclass(frozen=True)
class LinearCell:
    """See `recurrence` for what a cell is.

    Columns are q, k, v and, if the decay is per key channel, the log-decay; the row is the log-decay of a token if
    there is one.
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
        return int(self.decay == "scalar")

    def chunked(self, columns, rows, state, segment_ids, num_segments):
        """The same in XLA; second derivatives are taken from it."""
        (q, k, v, *gate), options = columns, {"num_segments": num_segments, "chunk_size": None}
        log_decay = next(iter((*gate, *rows)), None)
        return chunked.run(q, k, v, log_decay, state, segment_ids, scale=self.scale, **options)

    def _decay(self, columns: tuple[Array, ...], rows: tuple[Array, ...], marks: Marks) -> ScalarDecay | VectorDecay:
        if self.decay == "vector":
            return VectorDecay(columns[3], marks, self.dtype, self.chip)
        return ScalarDecay(next(iter(rows), None), marks, self.dtype)

    def forward(
        self, marks: Marks, columns: tuple[Array, ...], rows: tuple[Array, ...], state: Array
    ) -> tuple[Array, Array]:
        """``out [C,V]`` and the next state ``[V,K]``."""
        q, k, v = columns[:3]
        decay = self._decay(columns, rows, marks)
        out = dot(decay.scores(q, k), v, "nn", self.dtype) + dot(q * decay.enter, state, "nt", self.dtype)
        return self.scale * out, decay.keep * state + dot(v, k * decay.leave, "tn", self.dtype)

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
        q, k, v = columns[:3]
        decay = self._decay(columns, rows, marks)
        d_out, scores = self.scale * d_out, decay.scores(q, k)
        d_scores = jnp.where(marks.causal, dot(d_out, v, "nt", self.dtype), 0.0)
        dq, dk, pairs = decay.scores_gradient(d_scores, q, k, scores)
        dq_enter = decay.enter * dot(d_out, state, "nn", self.dtype)
        dk_leave = decay.leave * dot(v, d_state, "nn", self.dtype)
        dv = dot(scores, d_out, "tn", self.dtype) + dot(k * decay.leave, d_state, "nt", self.dtype)
        d_before = decay.keep * d_state + dot(d_out, q * decay.enter, "tn", self.dtype)
        gradients = (dq + dq_enter, dk + dk_leave, dv)
        if self.decay == "none":
            return gradients, (), d_before
        d_keep = decay.keep * jnp.sum(state * d_state, axis=0, keepdims=True)
        d_decay = decay.gradient(pairs, q * dq_enter, k * dk_leave, d_keep)
        return ((*gradients, d_decay), (), d_before) if self.decay == "vector" else (gradients, (d_decay,), d_before)
