"""The definition of `long_conv`: a loop over time that holds the last inputs."""

from __future__ import annotations

import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops.scan import scan_tokens


def run(
    x: Array, kernel: Array, state: Array | None, segment_ids: Array | None, *, num_segments: int | None
) -> tuple[Array, Array]:
    """``x [B,T,D]``, ``kernel [L,D]``, state ``[B,L-1,D]``, all in one dtype -> ``(y [B,T,D], state)``."""
    if state is None:
        lead = (x.shape[0],) if num_segments is None else (x.shape[0], num_segments)
        state = jnp.zeros((*lead, kernel.shape[0] - 1, x.shape[2]), x.dtype)

    def step(held, x_t):
        window = jnp.concatenate([held, x_t[:, None]], axis=1)  # [B,L,D]
        return window[:, 1:], jnp.sum(window * kernel[::-1][None], axis=1)

    return scan_tokens(step, state, x, segment_ids=segment_ids, num_segments=num_segments)
