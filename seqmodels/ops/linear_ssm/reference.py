"""The definition of `linear_ssm`: a loop over time."""

from __future__ import annotations

import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops.linear_ssm import matrix
from seqmodels.ops.scan import scan_tokens


def run(
    x: Array, a: Array, b: Array, c: Array, state: Array, segment_ids: Array | None, *, chunk_size: int | None
) -> tuple[Array, Array]:
    """As the op, with a state; `x` in the dtype of the computation."""
    del chunk_size

    def step(h, x_t):
        h = (matrix.apply(a, h) + x_t[..., None] * b[None]).astype(state.dtype)
        return h, jnp.sum((h * c[None]).real, axis=-1).astype(x.dtype)

    return scan_tokens(step, state, x, segment_ids=segment_ids)
