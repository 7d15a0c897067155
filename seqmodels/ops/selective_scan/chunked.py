"""`selective_scan` in pure XLA: chunk by chunk, each computed again in the backward pass.

A gradient keeps the inputs and one state per chunk; the states of all tokens, N times the size of the inputs, exist for
one chunk at a time. Inside, the state is ``[B,G,N,M]`` with the M channels of a group last: that is what vectorises.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops import segments
from seqmodels.ops.linear_scan.chunked import solve


def chunk_length(chunk_size: int | None, T: int) -> int:
    """Tokens per chunk: by default such that the states inside a chunk weigh about as much as those between chunks."""
    balanced = max(16, math.isqrt(T) // 2)
    return min(T, chunk_size or 1 << balanced.bit_length() - 1)


class Parameters(NamedTuple):
    """What does not depend on the token, by groups of M channels; ``None`` where there is none."""

    A: Array  # [1,G,N,M]
    D: Array | None  # [1,G,M]
    delta_bias: Array | None  # [1,G,M]


class Tokens(NamedTuple):
    """Inputs with time and batch in front: ``[C,B,...]`` within a chunk."""

    x: Array  # [...,G,M]
    dt: Array  # [...,G,M]
    B: Array  # [...,G,N]
    C: Array  # [...,G,N]
    z: Array | None  # [...,G,M]
    real: Array | None  # [...] bool
    fresh: Array | None  # [...] bool: a new document starts from a zero state


def run(
    x: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array | None,
    z: Array | None,
    delta_bias: Array | None,
    state: Array,
    segment_ids: Array | None,
    *,
    softplus: bool,
    num_segments: int | None,
    chunk_size: int | None,
) -> tuple[Array, Array]:
    """As the op, with B and C ``[B,T,G,N]`` and a state; outputs in the dtype of `x`."""
    T, G, size = x.shape[1], B.shape[2], chunk_length(chunk_size, x.shape[1])
    split = lambda leaf: leaf.reshape(*leaf.shape[:-1], G, -1)  # noqa: E731
    inputs = (split(x), split(dt), B, C, None if z is None else split(z))
    parameters = Parameters(
        split(A.astype(state.dtype).T).swapaxes(0, 1)[None],
        *(None if leaf is None else split(leaf.astype(state.dtype))[None] for leaf in (D, delta_bias)),
    )
    pack = lambda h: jnp.moveaxis(h.reshape(*h.shape[:-2], G, -1, h.shape[-1]), -1, -2)  # noqa: E731
    unpack = lambda h: jnp.moveaxis(h, -1, -2).reshape(*h.shape[:-3], *A.shape)  # noqa: E731
    walk = lambda *args: _walk(parameters, *args, size=size, softplus=softplus)  # noqa: E731
    if num_segments is not None and segment_ids is not None:
        y, after = _segments(walk, inputs, pack(state), segment_ids, num_segments, size)
    else:
        fresh = None if segment_ids is None else segments.starts(segment_ids)
        y, after, _ = walk(inputs, segment_ids, fresh, pack(state), None)
        y = y[:, :T]
    return y.reshape(x.shape), unpack(after)


def _segments(walk, inputs, table, segment_ids, num_segments, size):
    """Every segment in chunks of its own, which start from, and leave, the segment's entry in ``table [B,S,...]``."""
    layout = segments.regroup(segment_ids, num_segments, size)
    rows = jnp.arange(table.shape[0])[:, None]
    held = table.at[rows, layout.segment].get(mode="fill", fill_value=0)
    gathered = jax.tree.map(layout.gather, inputs)
    y, _, after = walk(gathered, layout.ids, None, jnp.zeros_like(table[:, 0]), (layout.first, held))
    ends = jnp.where(layout.last, layout.segment, num_segments)
    return layout.scatter(y), table.at[rows, ends].set(after, mode="drop")


def _walk(parameters, inputs, ids, fresh, state, resets, *, size, softplus):
    """Chunks in time order: outputs ``[B,P,G,M]`` (P is T or more), the last state, the states after the chunks.

    `resets` is ``(first [B,chunks], held [B,chunks,...])``: chunks that start from a state of their own. The states
    after the chunks are ``None`` without it.
    """
    B, T = inputs[0].shape[:2]
    spare = -T % size
    ids = jnp.ones((B, T), jnp.int32) if ids is None and spare else ids
    x, dt, inward, outward, z = inputs
    tokens = Tokens(x, dt, inward, outward, z, None if ids is None else ids != 0, fresh)

    def time_major(leaf: Array) -> Array:  # [chunks,C,B,...]
        leaf = jnp.pad(leaf, ((0, 0), (0, spare), *[(0, 0)] * (leaf.ndim - 2)))
        return jnp.moveaxis(leaf.reshape(B, -1, size, *leaf.shape[2:]), 0, 2)

    resets = None if resets is None else jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), resets)

    @jax.checkpoint
    def chunk(state, tokens, resets):
        if resets is not None:
            first, held = resets
            state = jnp.where(first.reshape(-1, 1, 1, 1), held, state)
        return _chunk(parameters, state, tokens, softplus)

    def step(state, xs):
        after, y = chunk(state, *xs)
        return after, (y, None if resets is None else after)

    state, (y, after) = jax.lax.scan(step, state, (jax.tree.map(time_major, tokens), resets))
    y = jnp.moveaxis(y, 2, 0).reshape(B, -1, *y.shape[3:])
    return y, state, None if after is None else jnp.moveaxis(after, 0, 1)


def _chunk(parameters: Parameters, state: Array, tokens: Tokens, softplus: bool) -> tuple[Array, Array]:
    """The state after a chunk, and its outputs ``[C,B,G,M]`` in the dtype of ``tokens.x``."""
    A, D, bias = parameters
    real, dtype = tokens.real, tokens.x.dtype
    wide = lambda leaf: _where(real, leaf.astype(state.dtype))  # noqa: E731
    x, dt, B, C = map(wide, (tokens.x, tokens.dt, tokens.B, tokens.C))
    dt = dt if bias is None else dt + bias[None]
    dt = _where(real, jax.nn.softplus(dt) if softplus else dt)
    state, y = jax.lax.platform_dependent(A, state, (dt, dt * x, B, C, tokens.fresh), cpu=_stepwise, default=_parallel)
    y = y if D is None else y + D[None] * x
    y = y if tokens.z is None else y * jax.nn.silu(wide(tokens.z))
    return state, _where(real, y).astype(dtype)


def _where(mask: Array | None, x: Array) -> Array:
    """`x` where ``mask [C,B]`` holds, else 0."""
    return x if mask is None else jnp.where(mask.reshape(*mask.shape, *[1] * (x.ndim - 2)), x, 0)


def _stepwise(A: Array, state: Array, tokens: tuple) -> tuple[Array, Array]:
    """Token by token: forward, nothing of size N is stored beyond the state, which stays in a core's cache.

    Sums and products with an outer axis are written as contractions, whose transposes are contractions again: XLA's own
    reductions over the N states made a gradient five times slower on the CPU.
    """
    ones = jnp.ones(A.shape[2], A.dtype)

    def step(h, token):
        dt, u, B, C, fresh = token
        h = h if fresh is None else jnp.where(fresh.reshape(-1, 1, 1, 1), 0, h)
        decay = jnp.exp(jnp.einsum("bgm,n->bgnm", dt, ones) * A)
        h = decay * h + jnp.einsum("bgm,bgn->bgnm", u, B)
        return h, jnp.einsum("bgnm,bgn->bgm", h, C)

    return jax.lax.scan(step, state, tokens)


def _parallel(A: Array, state: Array, tokens: tuple) -> tuple[Array, Array]:
    """All tokens of the chunk at once, in logarithmic depth."""
    dt, u, B, C, fresh = tokens
    decay = jnp.exp(dt[..., None, :] * A[None])  # [C,B,G,N,M]
    decay = decay if fresh is None else jnp.where(fresh.reshape(*fresh.shape, 1, 1, 1), 0, decay)
    batch_major = lambda leaf: jnp.moveaxis(leaf, 0, 1)  # noqa: E731
    h = batch_major(solve(batch_major(decay), batch_major(u[..., None, :] * B[..., None]), state, None))
    return h[-1], jnp.sum(h * C[..., None], axis=-2)
