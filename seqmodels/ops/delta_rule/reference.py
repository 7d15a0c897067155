"""The delta rule as its definition: one token after the other."""

from __future__ import annotations

import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops.linear_attention.reference import token_inputs
from seqmodels.ops.scan import scan_tokens


def run(
    q: Array,
    k: Array,
    v: Array,
    beta: Array,
    log_decay: Array | None,
    state: Array,
    segment_ids: Array | None,
    *,
    scale: float,
    num_segments: int | None,
    chunk_size: int | None,
) -> tuple[Array, Array]:
    """See `delta_rule`; `chunk_size` has no meaning here."""
    inputs = (*token_inputs(q, k, v, log_decay, state.dtype), beta.astype(state.dtype))

    def step(S, token):
        q, k, v, log_decay, beta = token
        S = jnp.exp(log_decay) * S
        predicted = jnp.sum(S * k[..., :, None], axis=-2)
        S = S + k[..., :, None] * (beta[..., None] * (v - predicted))[..., None, :]
        return S, scale * jnp.sum(S * q[..., :, None], axis=-2)

    out, state = scan_tokens(step, state, inputs, segment_ids, num_segments)
    return out.astype(v.dtype), state
