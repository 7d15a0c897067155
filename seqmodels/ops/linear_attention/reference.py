"""Linear attention as its definition: one token after the other."""

from __future__ import annotations

import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops.scan import scan_tokens


def run(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array | None,
    state: Array,
    segment_ids: Array | None,
    *,
    scale: float,
    num_segments: int | None,
    chunk_size: int | None,
) -> tuple[Array, Array]:
    """See `linear_attention`; `chunk_size` has no meaning here."""
    inputs = token_inputs(q, k, v, log_decay, state.dtype)

    def step(S, token):
        q, k, v, log_decay = token
        S = jnp.exp(log_decay) * S + k[..., :, None] * v[..., None, :]
        return S, scale * jnp.sum(S * q[..., :, None], axis=-2)

    out, state = scan_tokens(step, state, inputs, segment_ids, num_segments)
    return out.astype(v.dtype), state


def token_inputs(
    q: Array, k: Array, v: Array, log_decay: Array | None, dtype: jnp.dtype
) -> tuple[Array, Array, Array, Array]:
    """Inputs in the accumulation dtype: heads repeated, and the log-decay of every token as ``[B,T,H,K or 1,1]``."""
    B, T, H = v.shape[:3]
    q, k = (jnp.repeat(x.astype(dtype), H // x.shape[2], axis=2) for x in (q, k))
    log_decay = jnp.zeros(H, dtype) if log_decay is None else log_decay.astype(dtype)
    if log_decay.ndim == 1:
        log_decay = jnp.broadcast_to(log_decay, (B, T, H))
    log_decay = log_decay[..., None] if log_decay.ndim == 4 else log_decay[..., None, None]
    return q, k, v.astype(dtype), log_decay
