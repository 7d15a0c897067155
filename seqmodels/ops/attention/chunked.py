"""`attention` in blocks with an online softmax: O(T) memory, also in the backward pass, which computes weights again.

Queries and keys are cut into blocks, and one loop walks over the list of block pairs in which something can be visible.
Where the order is the default one that list is static: half of all pairs for causal attention, a band for a window. The
method is Rabe & Staats 2021 (arXiv:2112.05682) and Dao et al. 2022 (arXiv:2205.14135).
"""

from __future__ import annotations

import functools
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from seqmodels.axes import Array, accumulate_dtype
from seqmodels.ops import segments
from seqmodels.ops.attention import reference
from seqmodels.ops.attention.mask import Tokens, tokens, visible, visible_blocks

BLOCK = 128  # 64 to 256 do equally well on the CPU
FEW = 8  # so many queries against a cache are served at once; with more, blocks are faster from 32 tokens up


class Plan(NamedTuple):
    """Static description of a call."""

    causal: bool
    window: int | None
    scale: float
    in_order: bool  # the index of a token in its array is its position


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
    few = q.shape[1] <= FEW and chunk_size is None
    if few or 0 in (q.shape[1], k.shape[1]):
        options = {"causal": causal, "window": window, "scale": scale, "chunk_size": None}
        return reference.run(q, k, v, sink, segment_ids, kv_segment_ids, positions, kv_positions, **options)
    queries, keys = tokens(segment_ids, kv_segment_ids, positions, kv_positions)
    in_order = queries.positions is None and keys.positions is None
    plan = Plan(causal, window, scale, in_order)
    block = BLOCK if chunk_size is None else chunk_size
    if not in_order or window is None or queries.ids is None:
        return _blockwise(q, k, v, sink, queries, keys, plan, block)
    # A window counts real tokens, so that a band holds it only once padding has been moved out of the way.
    order = segments.regroup((queries.ids != 0).astype(jnp.int32), 1, 1)
    q, k, v = (order.gather(x) for x in (q, k, v))
    packed = Tokens(order.gather(queries.ids), None)
    return order.scatter(_blockwise(q, k, v, sink, packed, packed, plan, block))


def _blockwise(
    q: Array, k: Array, v: Array, sink: Array | None, queries: Tokens, keys: Tokens, plan: Plan, block: int
) -> Array:
    batch, length, heads, _ = q.shape
    groups = k.shape[2]
    rows, columns = _even(length, block), _even(k.shape[1], block)
    queries = jax.tree.map(lambda x: _fold(x, rows, 0), queries.filled(length))
    keys = jax.tree.map(lambda x: _fold(x, columns, -1), keys.filled(k.shape[1]))  # filled up with empty slots
    grouped = q.reshape(batch, length, groups, heads // groups, q.shape[3])
    q = jnp.moveaxis(_fold(grouped, rows, 0), 2, 4)  # [N,B,G,R,C,K]
    k, v = (jnp.moveaxis(_fold(x, columns, 0), 2, 3) for x in (k, v))  # [M,B,G,C,K]
    if sink is not None:
        sink = sink.astype(accumulate_dtype(q)).reshape(groups, heads // groups)
    out = cast(Array, _attend(q, k, v, sink, queries, keys, plan))
    out = jnp.moveaxis(out, 4, 2).swapaxes(0, 1)  # [B,N,C,G,R,V]
    return out.reshape(batch, -1, heads, v.shape[-1])[:, :length]


def _even(length: int, block: int) -> int:
    """The size of the fewest blocks of at most `block` tokens, so that little is filled up."""
    return -(-length // -(-length // block))


def _fold(x: Array, size: int, fill: int) -> Array:
    """[B,T,...] -> [N,B,C,...], the end filled up."""
    spare = -x.shape[1] % size
    x = jnp.pad(x, ((0, 0), (0, spare), *[(0, 0)] * (x.ndim - 2)), constant_values=fill)
    return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)


def _block_pairs(q: Array, k: Array, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of blocks of ``q [N,B,G,R,C,K]`` and ``k [M,B,G,C,K]`` in which something can be visible."""
    causal, window = (plan.causal, plan.window) if plan.in_order else (False, None)
    return visible_blocks((q.shape[0], k.shape[0]), (q.shape[4], k.shape[3]), causal=causal, window=window)


def _logits(q: Array, k: Array, queries: Tokens, keys: Tokens, plan: Plan) -> Array:
    """Masked logits of one pair of blocks: [B,G,R,C,C]."""
    logits = jnp.einsum("bgrck,bgdk->bgrcd", q, k, preferred_element_type=accumulate_dtype(q)) * plan.scale
    seen = visible(queries, keys, causal=plan.causal, window=plan.window)
    return jnp.where(seen[:, None, None], logits, -jnp.inf)


def _at(tree, index: Array):
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), tree)


def _put(x: Array, new: Array, index: Array) -> Array:
    return jax.lax.dynamic_update_index_in_dim(x, new.astype(x.dtype), index, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _attend(q: Array, k: Array, v: Array, sink: Array | None, queries: Tokens, keys: Tokens, plan: Plan) -> Array:
    """``q [N,B,G,R,C,K]``, ``k, v [M,B,G,C,.]``, ``sink [G,R]``, tokens ``[N,B,C]`` -> ``[N,B,G,R,C,V]``."""
    return _forward(q, k, v, sink, queries, keys, plan)[0]


def _forward(q: Array, k: Array, v: Array, sink: Array | None, queries: Tokens, keys: Tokens, plan: Plan):
    dtype = accumulate_dtype(q)
    if sink is None:
        highest, total = jnp.full(q.shape[:5], -jnp.inf, dtype), jnp.zeros(q.shape[:5], dtype)
    else:
        highest, total = jnp.broadcast_to(sink[None, None, ..., None], q.shape[:5]), jnp.ones(q.shape[:5], dtype)

    def step(carry, pair):
        i, j = pair
        out, highest, total = _at(carry, i)
        logits = _logits(_at(q, i), _at(k, j), _at(queries, i), _at(keys, j), plan)
        new = jnp.maximum(highest, jnp.max(logits, axis=-1))
        shift = jnp.where(jnp.isfinite(new), new, 0.0)  # rows that have seen nothing yet
        weights = jnp.exp(logits - shift[..., None])
        keep = jnp.exp(highest - shift)
        total = total * keep + jnp.sum(weights, axis=-1)
        add = jnp.einsum("bgrcd,bgdv->bgrcv", weights.astype(v.dtype), _at(v, j), preferred_element_type=dtype)
        out = out * keep[..., None] + add
        return jax.tree.map(lambda x, y: _put(x, y, i), carry, (out, new, total)), None

    out = jnp.zeros((*q.shape[:5], v.shape[-1]), dtype)
    (out, highest, total), _ = jax.lax.scan(step, (out, highest, total), _block_pairs(q, k, plan))
    empty = total == 0
    out = (out / jnp.where(empty, 1.0, total)[..., None]).astype(q.dtype)
    log_total = jnp.where(empty, 0.0, highest + jnp.log(jnp.where(empty, 1.0, total)))
    return out, (q, k, v, sink, queries, keys, out, log_total)


def _backward(plan: Plan, residuals, dout: Array):
    q, k, v, sink, queries, keys, out, log_total = residuals
    dtype = accumulate_dtype(q)
    inner = jnp.sum(dout.astype(dtype) * out.astype(dtype), axis=-1)  # [N,B,G,R,C]

    def step(carry, pair):
        i, j = pair
        dq, dk, dv = carry
        q_i, k_j, v_j, dout_i = _at(q, i), _at(k, j), _at(v, j), _at(dout, i)
        logits = _logits(q_i, k_j, _at(queries, i), _at(keys, j), plan)
        weights = jnp.exp(logits - _at(log_total, i)[..., None])
        multiply = functools.partial(jnp.einsum, preferred_element_type=dtype)
        dv_j = multiply("bgrcd,bgrcv->bgdv", weights.astype(v.dtype), dout_i)
        dweights = multiply("bgrcv,bgdv->bgrcd", dout_i, v_j)
        dlogits = (weights * (dweights - _at(inner, i)[..., None]) * plan.scale).astype(q.dtype)
        dq_i = multiply("bgrcd,bgdk->bgrck", dlogits, k_j)
        dk_j = multiply("bgrcd,bgrck->bgdk", dlogits, q_i)
        carry = (_put(dq, _at(dq, i) + dq_i, i), _put(dk, _at(dk, j) + dk_j, j), _put(dv, _at(dv, j) + dv_j, j))
        return carry, None

    zeros = tuple(jnp.zeros(x.shape, dtype) for x in (q, k, v))
    grads, _ = jax.lax.scan(step, zeros, _block_pairs(q, k, plan))
    dq, dk, dv = (g.astype(x.dtype) for g, x in zip(grads, (q, k, v)))
    dsink = None
    if sink is not None:
        dsink = -jnp.sum(jnp.exp(sink[None, None, ..., None] - log_total) * inner, axis=(0, 1, 4))
    return dq, dk, dv, dsink, None, None


_attend.defvjp(_forward, _backward)
