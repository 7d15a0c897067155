"""The definition of `short_conv`: a loop over time that holds the last inputs."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops.scan import scan_tokens


def run(
    x: Array,
    weight: Array,
    bias: Array | None,
    state: Array,
    segment_ids: Array | None,
    resets: Array | None,
    *,
    activation: str | None,
    num_segments: int | None,
) -> tuple[Array, Array]:
    """``x [B,T,D]``, ``weight [W,D]``, state ``[B,W-1,D]``, all in one dtype -> ``(y [B,T,D], state)``."""

    def step(held, x_t):
        window = jnp.concatenate([held, x_t[:, None]], axis=1)  # [B,W,D]
        y = jnp.einsum("bwd,wd->bd", window, weight)
        if bias is not None:
            y = y + bias[None]
        return window[:, 1:], jax.nn.silu(y) if activation == "silu" else y

    return scan_tokens(step, state, x, segment_ids=segment_ids, num_segments=num_segments, resets=resets)
