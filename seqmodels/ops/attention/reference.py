"""The definition of `attention`: a masked softmax over all keys at once."""

from __future__ import annotations

import jax.numpy as jnp

from seqmodels.axes import Array, accumulate_dtype
from seqmodels.ops.attention.mask import Tokens, visible


def run(
    q: Array,
    k: Array,
    v: Array,
    sink: Array | None,
    queries: Tokens,
    keys: Tokens,
    *,
    causal: bool,
    window: int | None,
    scale: float,
    chunk_size: int | None,
) -> Array:
    """``q [B,T,H,K]``, ``k [B,S,Hk,K]``, ``v [B,S,Hk,V]`` -> ``[B,T,H,V]`` in `q`'s dtype."""
    del chunk_size
    dtype = accumulate_dtype(q, k, v)
    repeat = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(x.astype(dtype), repeat, axis=2) for x in (k, v))
    logits = jnp.einsum("bthk,bshk->bhts", q.astype(dtype) * scale, k)
    seen = visible(queries.filled(q.shape[1]), keys.filled(k.shape[1]), causal=causal, window=window)
    logits = jnp.where(seen[:, None], logits, -jnp.inf)
    nothing = jnp.full((*logits.shape[:-1], 1), -jnp.inf, dtype)
    extra = nothing if sink is None else jnp.broadcast_to(sink.astype(dtype)[None, :, None, None], nothing.shape)
    logits = jnp.concatenate([logits, extra], axis=-1)
    highest = jnp.max(logits, axis=-1, keepdims=True)
    highest = jnp.where(jnp.isfinite(highest), highest, 0.0)  # a row that sees nothing
    weights = jnp.exp(logits - highest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights = weights / jnp.where(total == 0, 1.0, total)
    return jnp.einsum("bhts,bshv->bthv", weights[..., :-1], v).astype(q.dtype)
