"""`long_conv` in pure XLA: tokens are put in line, carried inputs first and padding last, and the line is convolved."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops import segments
from seqmodels.ops.long_conv.causal import convolve


def run(
    x: Array, kernel: Array, state: Array | None, segment_ids: Array | None, *, num_segments: int | None
) -> tuple[Array, Array]:
    """``x [B,T,D]``, ``kernel [L,D]``, state ``[B,L-1,D]`` or ``None``, all in one dtype -> ``(y [B,T,D], state)``."""
    carried = kernel.shape[0] - 1
    if 0 in x.shape[:2]:
        lead = (x.shape[0],) if num_segments is None else (x.shape[0], num_segments)
        return x, jnp.zeros((*lead, carried, x.shape[2]), x.dtype) if state is None else state
    if segment_ids is None:
        line = x if state is None else jnp.concatenate([state, x], axis=1)
        y = convolve(line, kernel)[:, line.shape[1] - x.shape[1] :]
        return y, jnp.pad(line, ((0, 0), (max(0, carried - line.shape[1]), 0), (0, 0)))[:, -carried or line.shape[1] :]
    ids, one = segment_ids, num_segments is None
    count = 1 if num_segments is None else num_segments
    if one and state is not None:
        state = state[:, None]
    key = (ids != 0).astype(jnp.int32) if one else ids
    y, state = _in_line(x, kernel, state, key, segments.document_index(ids) if one else None, count)
    return y, state[:, 0] if one else state


def _in_line(
    x: Array, kernel: Array, state: Array | None, key: Array, document: Array | None, num_segments: int
) -> tuple[Array, Array]:
    """Segments ``key [B,T]`` one after the other, each led by its inputs ``state [B,S,L-1,D]``, padding at the end.

    A line of one segment may hold several documents, numbered from 0 by ``document [B,T]``; the state belongs to 0.
    """
    B, T, D = x.shape
    carried = kernel.shape[0] - 1
    lead = 0 if state is None else carried
    if state is not None:
        x = jnp.concatenate([state.reshape(B, -1, D), x], axis=1)
        owners = jnp.repeat(jnp.arange(1, num_segments + 1, dtype=jnp.int32), lead)
        key = jnp.concatenate([jnp.broadcast_to(owners, (B, owners.size)), key], axis=1)
    label = key if document is None else jnp.pad(document, ((0, 0), (lead, 0)))
    order = segments.regroup(key, num_segments, 1)
    line = order.gather(x)
    label = jax.lax.cummax(order.gather(label), axis=1)  # empty places at the end stay with the last document
    y = order.scatter(convolve(line, kernel, label))[:, x.shape[1] - T :]
    count = jnp.sum(key[:, :, None] == jnp.arange(1, num_segments + 1)[None, None], axis=1, dtype=jnp.int32)
    return y, _newest(line, label if document is not None else None, count, carried)


def _newest(line: Array, label: Array | None, count: Array, carried: int) -> Array:
    """The last inputs ``[B,S,L-1,D]`` of segments with ``count [B,S]`` places each, zeros where there are too few."""
    at = jnp.arange(-carried, 0, dtype=jnp.int32)
    own = count[..., None] + at >= 0  # [B,S,L-1]
    place = jnp.where(own, jnp.cumsum(count, axis=1)[..., None] + at, 0).reshape(line.shape[0], -1)
    held = jax.vmap(lambda row, at: row[at])(line, place).reshape(*own.shape, line.shape[2])
    if label is not None:
        own = own & (jnp.take_along_axis(label, place, axis=1).reshape(own.shape) == label[:, -1:, None])
    return jnp.where(own[..., None], held, 0)
