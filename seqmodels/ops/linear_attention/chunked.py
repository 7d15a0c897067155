"""Linear attention by chunks: matmuls inside, one elementwise step between."""

from __future__ import annotations

import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops import chunking, decay
from seqmodels.ops.chunking import Chunk, Visibility


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
    """See `linear_attention`."""

    def local(inputs: tuple, seen: Visibility) -> Chunk:
        q, k, v, g = inputs
        q = q * scale
        scores = decay.scores(q, k, g, seen.pairs)
        return Chunk(
            transition=seen.whole(g, k),
            added=jnp.einsum("...ck,...cv->...kv", k * seen.leave(g), v),
            local=scores @ v,
            query=q * seen.enter(g),
        )

    inputs = (q, k, v, chunking.token_decay(log_decay, v))
    out, state = chunking.run(local, inputs, state, segment_ids, num_segments, chunk_size)
    return out.astype(v.dtype), state
