"""What a kernel is told about the documents and segments of a chunk: the same words on every kind of accelerator."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops import segments


def chunk_length(T: int, limit: int) -> int:
    """A power of two, at least 16 (a tile of bfloat16), at most `limit`, no longer than needed for T tokens."""
    return min(limit, max(16, 1 << (T - 1).bit_length()))


def document_marks(segment_ids: Array | None, B: int, T: int, C: int) -> Array:
    """Marks ``[B,N,1,C]`` float32 that tell a chunk's documents apart without looking at other chunks.

    A real token has the positive number of its document, counted from 1 = the document that was current before the
    chunk; padding, also that after the end, has the negative number of the document it stands in.
    """
    ids = jnp.ones((B, T), jnp.int32) if segment_ids is None else segment_ids
    tail = -T % C
    index = jnp.pad(segments.document_index(ids), ((0, 0), (0, tail)), mode="edge").reshape(B, -1, C)
    real = jnp.pad(ids != 0, ((0, 0), (0, tail))).reshape(B, -1, C)
    before = jnp.pad(index[:, :-1, -1:], ((0, 0), (1, 0), (0, 0)))
    number = (index - before + 1).astype(jnp.float32)
    return jnp.where(real, number, -number)[:, :, None]


def chunk_routes(regrouped: segments.Regrouped, num_segments: int) -> Array:
    """``[B*N]`` int32: ``slot * 8 + live * 4 + first * 2 + last`` of every chunk.

    Unused chunks stay at the state of the last used one and do nothing. A sequence without any token gets a first chunk
    that is not live but carries state 0 through.
    """
    segment = regrouped.segment
    live = segment < num_segments
    slot = jax.lax.cummax(jnp.where(live, segment, 0), axis=1)
    empty = ~live[:, :1] & (jnp.arange(segment.shape[1]) == 0)
    flags = live * 4 + (regrouped.first | empty) * 2 + (regrouped.last | empty)
    return (slot * 8 + flags).astype(jnp.int32).reshape(-1)
