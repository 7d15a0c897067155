"""A bounded memory of written tokens, and attention to it.

Some tokens are written - those that a router activates, those that are worth a note - and a query sees the last M
tokens written before it, however long ago that was. Written tokens stand packed in a line behind those of earlier
calls; the last M of the line are the state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqmodels.axes import Array, accumulate_dtype
from seqmodels.mixers.base import Entry
from seqmodels.ops.segments import document_index

FEWEST = 64  # queries of a block, if there are so many


def document_numbers(entry: Entry) -> tuple[Array, Array]:
    """Numbers ``[B,T]`` of the tokens' documents in this call, from 1, 0 at padding; and the current one ``[B]``."""
    if entry.segment_ids is None:
        numbers = jnp.ones_like(entry.positions)
        return numbers, numbers[:, 0] if numbers.shape[1] else jnp.ones(numbers.shape[0], jnp.int32)
    numbers = document_index(entry.segment_ids) + 1
    current = jnp.max(numbers, axis=1, initial=1)
    return jnp.where(entry.segment_ids != 0, numbers, 0), current


class WorkingMemory(NamedTuple):
    """The last M written tokens of the current document, oldest first; empty places stand in front."""

    rows: tuple[Array, ...]  # [B,M,·] each: what is kept of a token
    seat: Array  # [B,M] int32: position of the token in its document plus one, 0 where the place is empty

    @staticmethod
    def empty(batch: int, size: int, *widths: int, dtype: Any = jnp.float32) -> WorkingMemory:
        """M = `size` empty places, with one array per width."""
        rows = tuple(jnp.zeros((batch, size, width), dtype) for width in widths)
        return WorkingMemory(rows, jnp.zeros((batch, size), jnp.int32))

    def extended(self, rows: Sequence[Array], seat: Array, document: Array) -> Line:
        """The memory, which belongs to document 1, and behind it P newly packed tokens.

        Args:
          rows: ``[B,P,·]`` each.
          seat: ``[B,P]`` position of the token in its document plus one.
          document: ``[B,P]`` number of its document in this call, from 1; 0 at empty places, which stand at the end.
        """
        held = (self.seat > 0).astype(jnp.int32)
        line = lambda old, new: jnp.concatenate([old, new.astype(old.dtype)], axis=1)  # noqa: E731
        joined = tuple(line(old, new) for old, new in zip(self.rows, rows, strict=True))
        return Line(joined, line(self.seat, seat), line(held, document))


class Line(NamedTuple):
    """M + P places: the tokens of a `WorkingMemory` of size M, and those of this call."""

    rows: tuple[Array, ...]  # [B,M+P,·]
    seat: Array  # [B,M+P] int32
    document: Array  # [B,M+P] int32, 0 at empty places

    def memory(self, size: int, count: Array, current: Array) -> WorkingMemory:
        """The memory afterwards: the last `size` places up to the ``count [B]``-th new one.

        Tokens that do not belong to the document ``current [B]`` are dropped.
        """
        at = count[:, None] + jnp.arange(size, dtype=jnp.int32)
        keep = jnp.take_along_axis(self.document, at, axis=1) == current[:, None]
        rows = tuple(
            jnp.where(keep[..., None], jnp.take_along_axis(row, at[..., None], axis=1), 0) for row in self.rows
        )
        return WorkingMemory(rows, jnp.where(keep, jnp.take_along_axis(self.seat, at, axis=1), 0))


class Windows(NamedTuple):
    """What the queries of N blocks of C queries may see: W places per block."""

    rows: tuple[Array, ...]  # [B,N,W,·]
    seen: Array  # [B,N,C,W] bool
    distance: Array  # [B,N,C,W] int32: written tokens from the place to the last one that the query sees
    seat: Array  # [B,N,W] int32

    def beside(self, other: Windows) -> Windows:
        """What the same queries may see of this line and of `other`."""
        join = lambda name, axis: jnp.concatenate([getattr(self, name), getattr(other, name)], axis=axis)  # noqa: E731
        rows = tuple(jnp.concatenate(pair, axis=2) for pair in zip(self.rows, other.rows, strict=True))
        return Windows(rows, join("seen", 3), join("distance", 3), join("seat", 2))


def windows(line: Line, rank: Array, document: Array, span: int) -> Windows:
    """Windows of queries; the query at ``rank`` r sees the places ``r .. r + span - 1`` of its own document.

    Args:
      line: places.
      rank: ``[B,T]`` int32, from one query to the next higher by 0 or 1.
      document: ``[B,T]`` int32, 0: sees nothing.
      span: places that a query sees.
    """
    size = max(1, min(rank.shape[1], max(span, FEWEST)))
    rank, document = blocks(rank, size, "edge"), blocks(document, size)  # [B,N,C]
    first = rank[:, :, :1]
    at = first + jnp.arange(size + span - 1, dtype=jnp.int32)  # [B,N,W]
    take = jax.vmap(lambda row, at: row.at[at].get(mode="fill", fill_value=0))
    offset = at[:, :, None, :] - rank[..., None]
    same = take(line.document, at)[:, :, None, :] == document[..., None]
    seen = (offset >= 0) & (offset < span) & same & (document[..., None] != 0)
    return Windows(tuple(take(row, at) for row in line.rows), seen, span - 1 - offset, take(line.seat, at))


Weights = Callable[[Array, Array], Array]
"""From scores and a mask, ``[B,N,C,W]``, to the weights of the places, zero where the mask is false."""


def softmax(scores: Array, seen: Array) -> Array:
    """Softmax over the places that are seen; all zero where none is."""
    scores = jnp.where(seen, scores, -jnp.inf)
    highest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - jnp.where(jnp.isfinite(highest), highest, 0.0))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return weights / jnp.where(total == 0, 1.0, total)


def squared_relu(scores: Array, seen: Array) -> Array:
    """``relu(score)²``, not normalised."""
    return jnp.where(seen, jnp.square(jax.nn.relu(scores)), 0.0)


def attend(
    q: Array, k: Array, v: Array, seen: Array, *, scale: float, bias: Array | None = None, weights: Weights = softmax
) -> Array:
    """``Σ weights(scale q kᵀ + bias) v`` over the windows, in the dtype of `v`.

    Args:
      q: ``[B,T,K]``.
      k, v: ``[B,N,W,K]``, ``[B,N,W,V]``, as `windows` gives rows.
      seen: ``[B,N,C,W]`` bool.
      scale: of the scores.
      bias: ``[B,N,C,W]``.
      weights: from scores to weights.

    Returns:
      ``[B,T,V]``; zero for a query that sees nothing.
    """
    dtype = accumulate_dtype(q)
    scores = scale * jnp.einsum("bnck,bnwk->bncw", blocks(q, seen.shape[2]), k, preferred_element_type=dtype)
    scores = scores if bias is None else scores + bias
    mixed = weights(scores, seen).astype(v.dtype)
    out = jnp.einsum("bncw,bnwv->bncv", mixed, v, preferred_element_type=dtype).astype(v.dtype)
    batch, number, size, width = out.shape
    return out.reshape(batch, number * size, width)[:, : q.shape[1]]


def blocks(x: Array, size: int, mode: str = "constant") -> Array:
    """``[B,T,...] -> [B,N,C,...]``: queries in blocks of C = `size`, the end filled up as `jnp.pad` does in `mode`."""
    batch, length, *rest = x.shape
    spare = -length % size
    if spare:
        x = jnp.pad(x, ((0, 0), (0, spare), *[(0, 0)] * len(rest)), mode=mode)
    return x.reshape(batch, (length + spare) // size, size, *rest)
