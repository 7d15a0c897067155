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
    """``x [B,T,D]``, ``weight [W,D]``, state ``[B,W-1,D]`` -> ``(y [B,T,D], state)``; works in the state's dtype."""
    weight = weight.astype(state.dtype)

    def step(held, x_t):
        window = jnp.concatenate([held, x_t[:, None]], axis=1)  # [B,W,D]
        y = jnp.einsum("bwd,wd->bd", window, weight)
        if bias is not None:
            y = y + bias[None].astype(y.dtype)
        return window[:, 1:], jax.nn.silu(y) if activation == "silu" else y

    where = {"segment_ids": segment_ids, "num_segments": num_segments, "resets": resets}
    y, after = scan_tokens(step, state, x.astype(state.dtype), **where)
    return y.astype(x.dtype), after
