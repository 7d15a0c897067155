"""What every op shares about ``segment_ids``.

``segment_ids [B,T]`` int32: 0 is padding, a change of non-zero id starts a new document. Two readings exist:

* *documents* (``num_segments=None``): one running state, reset at document starts. `document_index` numbers the
  documents so that two tokens may interact iff their indices are equal and neither is padding.
* *segments* (``num_segments=S``): every id owns a state. `regroup` sorts tokens by id (stably, so time order is
  kept) and lays every segment out from a chunk border, so that a chunk belongs to one segment only.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Int, Shaped

from seqmodels.axes import Array


def last_real(ids: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """For every position the id of the last non-padding token at or before it, 0 where there is none."""
    time = jnp.arange(ids.shape[1], dtype=jnp.int32)
    newest = jax.lax.cummax(jnp.where(ids != 0, time, -1), axis=1)
    return jnp.where(newest < 0, 0, jnp.take_along_axis(ids, jnp.maximum(newest, 0), axis=1))


def starts(segment_ids: Int[Array, "B T"]) -> Bool[Array, "B T"]:
    """True at the first token of every document but the first one."""
    if segment_ids.shape[1] == 0:
        return jnp.zeros(segment_ids.shape, bool)
    held = last_real(segment_ids)
    before = jnp.pad(held, ((0, 0), (1, 0)))[:, :-1]
    return (segment_ids != 0) & (before != 0) & (segment_ids != before)


def document_index(segment_ids: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Index of the document that is current at every position, from 0, padding included.

    The first document has index 0, so incoming state is visible exactly where the index is 0.
    """
    return jnp.cumsum(starts(segment_ids).astype(jnp.int32), axis=1)


class Regrouped(NamedTuple):
    """A chunk-aligned order of tokens in ``P = N * C`` places; see `regroup`."""

    source: Int[Array, "B P"]  # the token that stands at a place, T where the place is empty
    place: Int[Array, "B T"]  # the place of a token, P for padding
    segment: Int[Array, "B N"]  # the zero-based segment of every chunk, S for unused chunks
    first: Bool[Array, "B N"]  # the chunk begins its segment
    last: Bool[Array, "B N"]  # the chunk ends its segment

    def gather(self, x: Shaped[Array, "B T *D"]) -> Shaped[Array, "B P *D"]:
        """Tokens to their places; empty places hold zeros."""
        return move(x, self.source, self.place)

    def scatter(self, y: Shaped[Array, "B P *D"]) -> Shaped[Array, "B T *D"]:
        """Places back to the tokens' order; padding gets zeros."""
        return move(y, self.place, self.source)

    @property
    def ids(self) -> Int[Array, "B P"]:
        """1 where a token stands, 0 where the place is empty."""
        return (self.source < self.place.shape[1]).astype(jnp.int32)


def _take(x: Array, index: Array) -> Array:
    return jax.vmap(lambda row, i: row.at[i].get(mode="fill", fill_value=0))(x, index)


def move(x: Shaped[Array, "B T *D"], index: Int[Array, "B P"], inverse: Int[Array, "B T"]) -> Shaped[Array, "B P *D"]:
    """`_take`, with the gather by `inverse` as its transpose: several times faster on the CPU than the scatter-add."""
    return _moved(x, index, inverse) if jnp.issubdtype(x.dtype, jnp.inexact) else _take(x, index)


@jax.custom_vjp
def _moved(x: Array, index: Array, inverse: Array) -> Array:
    return _take(x, index)


_moved.defvjp(
    lambda x, index, inverse: (_take(x, index), inverse),
    lambda inverse, g: (_take(g, inverse), None, None),
)


def regroup(segment_ids: Int[Array, "B T"], num_segments: int, multiple: int, limit: int | None = None) -> Regrouped:
    """Lay the segments of ``segment_ids [B,T]`` (ids 0..S) out one after the other, each from a multiple of `multiple`.

    The length ``P`` is static: ``ceil(T / C) + min(S, T)`` chunks at most are ever needed, with T replaced by `limit`
    where the caller knows that a row has no more real tokens than that.
    """
    B, T = segment_ids.shape
    most = T if limit is None else min(T, limit)
    chunks = -(-most // multiple) + min(num_segments, most)
    P = chunks * multiple
    key = jnp.where(segment_ids == 0, num_segments + 1, segment_ids)
    order = jnp.argsort(key, axis=1, stable=True).astype(jnp.int32)  # [B,T] sorted tokens, padding last
    count = jnp.sum(
        segment_ids[:, :, None] == jnp.arange(1, num_segments + 1)[None, None], axis=1, dtype=jnp.int32
    )  # [B,S]
    used = -(-count // multiple)
    begin = (jnp.cumsum(used, axis=1) - used) * multiple  # [B,S] first place of a segment
    before = jnp.cumsum(count, axis=1) - count
    rank = jnp.argsort(order, axis=1).astype(jnp.int32)  # [B,T] where a token stands in the sorted order
    zero_based = jnp.clip(segment_ids - 1, 0, num_segments - 1)
    pick = lambda table: jnp.take_along_axis(table, zero_based, axis=1)  # noqa: E731
    place = jnp.where(segment_ids == 0, P, pick(begin) + rank - pick(before))
    source = jnp.full((B, P + 1), T, jnp.int32)
    source = jax.vmap(lambda row, at: row.at[at].set(jnp.arange(T, dtype=jnp.int32), mode="drop"))(source, place)[:, :P]
    number = jnp.arange(chunks)
    ends = jnp.cumsum(used, axis=1)  # [B,S]
    segment = jnp.sum(number[None, :, None] >= ends[:, None, :], axis=-1, dtype=jnp.int32)  # [B,chunks]
    held = jnp.clip(segment, 0, num_segments - 1)
    live = segment < num_segments
    first = live & (jnp.take_along_axis(begin, held, axis=1) == number[None] * multiple)
    last = live & (jnp.take_along_axis(ends, held, axis=1) == number[None] + 1)
    return Regrouped(source, place, segment, first, last)
