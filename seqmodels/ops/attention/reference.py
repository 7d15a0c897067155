"""The definition of `attention`: a masked softmax over all keys at once."""

from __future__ import annotations

import jax.numpy as jnp

from seqmodels.axes import Array, accumulate_dtype
from seqmodels.ops.attention.mask import tokens, visible


def run(
    q: Array,
    k: Array,
    v: Array,
    sink: Array | None,
    segment_ids: Array | None,
    kv_segment_ids: Array | None,
    positions: Array | None,
    kv_positions: Array | None,
    *,
    causal: bool,
    window: int | None,
    scale: float,
    chunk_size: int | None,
) -> Array:
    """``q [B,T,H,K]``, ``k [B,S,Hk,K]``, ``v [B,S,Hk,V]`` -> ``[B,T,H,V]`` in `q`'s dtype."""
    del chunk_size
    queries, keys = tokens(segment_ids, kv_segment_ids, positions, kv_positions)
    dtype = accumulate_dtype(q, k, v)
    batch, length, heads, size = q.shape
    groups = k.shape[2]
    grouped = q.astype(dtype).reshape(batch, length, groups, heads // groups, size) * scale
    logits = jnp.einsum("btgrk,bsgk->bgrts", grouped, k.astype(dtype))
    seen = visible(queries.filled(q.shape[1]), keys.filled(k.shape[1]), causal=causal, window=window)
    logits = jnp.where(seen[:, None, None], logits, -jnp.inf)
    extra = jnp.full((*logits.shape[:-1], 1), -jnp.inf, dtype)
    if sink is not None:
        extra = jnp.broadcast_to(sink.astype(dtype).reshape(1, groups, -1, 1, 1), extra.shape)
    logits = jnp.concatenate([logits, extra], axis=-1)
    highest = jnp.max(logits, axis=-1, keepdims=True)
    highest = jnp.where(jnp.isfinite(highest), highest, 0.0)  # a row that sees nothing
    weights = jnp.exp(logits - highest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights = (weights / jnp.where(total == 0, 1.0, total))[..., :-1]
    out = jnp.einsum("bgrts,bsgv->btgrv", weights, v.astype(dtype))
    return out.reshape(batch, length, heads, v.shape[-1]).astype(q.dtype)
