"""The definition of `selective_scan`: a loop over time."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops.scan import scan_tokens


def run(
    x: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array | None,
    z: Array | None,
    delta_bias: Array | None,
    state: Array,
    segment_ids: Array | None,
    *,
    softplus: bool,
    num_segments: int | None,
    chunk_size: int | None,
) -> tuple[Array, Array]:
    """As the op, with B and C ``[B,T,G,N]`` and a state; outputs in the state's dtype."""
    del chunk_size
    wide = lambda tree: jax.tree.map(lambda leaf: leaf.astype(state.dtype), tree)  # noqa: E731
    A, D, delta_bias = wide((A, D, delta_bias))
    share = x.shape[-1] // B.shape[2]  # channels per group

    def step(h, token):
        x_t, dt_t, B_t, C_t, z_t = wide(token)
        B_t, C_t = (jnp.repeat(rows, share, axis=1) for rows in (B_t, C_t))  # [B,D,N]
        dt_t = dt_t if delta_bias is None else dt_t + delta_bias[None]
        dt_t = jax.nn.softplus(dt_t) if softplus else dt_t
        h = jnp.exp(dt_t[..., None] * A[None]) * h + (dt_t * x_t)[..., None] * B_t
        y = jnp.sum(h * C_t, axis=-1)
        y = y if D is None else y + D[None] * x_t
        return h, y if z_t is None else y * jax.nn.silu(z_t)

    return scan_tokens(step, state, (x, dt, B, C, z), segment_ids=segment_ids, num_segments=num_segments)
