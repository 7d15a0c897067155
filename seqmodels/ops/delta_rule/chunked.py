"""The delta rule by chunks, in the WY form of arXiv 2406.06484 and 2412.06464.

With ``u_i = beta_i (v_i - prediction_i)`` the state after token i is ``decay S + sum_{j<=i} decay k_j u_j^T``, so the
rows ``u`` of a chunk solve ``(I + A) u = beta (v - decayed k S)``, where ``A_ij = beta_i k_i.k_j decay_ij`` for i > j.
"""

from __future__ import annotations

import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops import chunking, decay
from seqmodels.ops.chunking import Chunk, Visibility
from seqmodels.ops.triangular import unit_lower_inverse


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
    """See `delta_rule`."""

    def local(inputs: tuple, seen: Visibility) -> Chunk:
        q, k, v, g, beta = inputs
        q, enter = q * scale, seen.enter(g)
        inverse = unit_lower_inverse(jnp.tril(decay.scores(k * beta, k, g, seen.pairs), -1))
        u = inverse @ (beta * v)  # [...,C,V] of a zero state
        w = inverse @ (beta * k * enter)  # [...,C,K]: u - w S is that of the state S
        attention = decay.scores(q, k, g, seen.pairs)
        leaving = jnp.swapaxes(k * seen.leave(g), -1, -2)
        return Chunk(
            transition=seen.whole(g, k) * jnp.eye(k.shape[-1], dtype=k.dtype) - leaving @ w,
            added=leaving @ u,
            local=attention @ u,
            query=q * enter - attention @ w,
        )

    inputs = (q, k, v, chunking.token_decay(log_decay, v), beta[..., None])
    out, state = chunking.run(local, inputs, state, segment_ids, num_segments, chunk_size)
    return out.astype(v.dtype), state
