"""Run a matrix-state recurrence chunk by chunk: what `linear_attention` and `delta_rule` share.

An op turns the tokens of a chunk into an affine map of the state (`Chunk`), for all chunks at once by matmuls. Only
``S' = transition S + added`` is sequential. Chunks are handled in groups whose inner values are computed again in the
backward pass, so that memory is that of the inputs and of one state per group.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops import decay, segments

# Tokens per chunk, unless the caller says otherwise: a CPU spends its time on C x C elements, not on matmuls.
CHUNK = {"cpu": 32, "default": 64}
WIDE = 64  # rows or columns of the state beyond which a CPU's matmuls pay for longer chunks
# Elements of one [tokens,B,H,K] array that are worked on at a time: a CPU likes its cache, accelerators want them all.
GROUP = {"cpu": 2**16, "default": 2**24}


class Chunk(NamedTuple):
    """A chunk as a function of the state S before it. Leading axes ``...`` are ``[n,B,H]``."""

    transition: Array  # [...,K,1] (a diagonal) or [...,K,K]
    added: Array  # [...,K,V]: the state after the chunk is transition S + added
    local: Array  # [...,C,V]
    query: Array  # [...,C,K]: outputs are local + query S


class Visibility(NamedTuple):
    """Which tokens of a chunk meet; documents and the order of time. Leading axes ``[n,B,1]`` or ``[1,1,1]``."""

    pairs: Array  # [...,C,C] bool: row i sees column j, i >= j
    before: Array | None  # [...,C,1] bool: the token sees the state before the chunk; None: all do
    after: Array | None  # [...,C,1] bool: the token belongs to the document that the chunk ends with
    through: Array | None  # [...,1,1] bool: the state before the chunk outlives it

    def enter(self, g: Array | None) -> Array | float:
        """Decay from the border before the chunk to each token."""
        return _decay(None if g is None else decay.within(g, after=False), self.before)

    def leave(self, g: Array | None) -> Array | float:
        """Decay from each token to the end of the chunk."""
        return _decay(None if g is None else decay.within(g, after=True), self.after)

    def whole(self, g: Array | None, like: Array) -> Array:
        """Decay of the state over the chunk, ``[...,K,1]`` or ``[...,1,1]``; `like` is any array of the chunks."""
        total = None if g is None else jnp.swapaxes(jnp.sum(g, axis=-2, keepdims=True), -1, -2)
        return jnp.broadcast_to(_decay(total, self.through), (*like.shape[:-2], 1 if g is None else g.shape[-1], 1))


def _decay(log: Array | None, visible: Array | None) -> Array | float:
    if log is None:
        return 1.0 if visible is None else visible.astype(jnp.float32)
    return jnp.exp(log if visible is None else jnp.where(visible, log, -jnp.inf))


Local = Callable[[tuple, Visibility], Chunk]


def chunk_length(chunk_size: int | None, T: int, width: int) -> int:
    """Tokens per chunk: a power of two, no longer than needed. `width` is the larger of K and V."""
    if chunk_size is not None and chunk_size & (chunk_size - 1):
        raise ValueError(f"chunk_size={chunk_size} is not a power of two, expected 1, 2, 4, ... such as 64")
    usual = CHUNK["default"] if width > WIDE else CHUNK.get(jax.default_backend(), CHUNK["default"])
    return min(chunk_size or usual, 1 << (T - 1).bit_length())


def run(
    local: Local,
    inputs: tuple,
    state: Array,
    segment_ids: Array | None,
    num_segments: int | None,
    chunk_size: int | None,
) -> tuple[Array, Array]:
    """Outputs ``[B,T,H,V]`` and the state after the last token.

    Args:
      local: an op's chunk, from its inputs as ``[n,B,H,C,X]``.
      inputs: arrays ``[B,T,H,X]`` or ``None``, all of which are zero for a token that must have no effect.
      state: ``[B,H,K,V]`` or ``[B,S,H,K,V]``.
      segment_ids, num_segments, chunk_size: as in the ops.
    """
    T = inputs[0].shape[1]
    C = chunk_length(chunk_size, T, max(state.shape[-2:]))
    if num_segments is not None:
        return _run_segments(local, inputs, state, segment_ids, num_segments, C)
    if segment_ids is None:
        return _run_groups(local, inputs, state, None, None, C)[:2]
    real = (segment_ids != 0)[:, :, None, None]
    inputs = jax.tree.map(lambda x: jnp.where(real, x, 0), inputs)
    out, state, _ = _run_groups(local, inputs, state, segments.document_index(segment_ids), None, C)
    return jnp.where(real, out, 0), state  # they are 0 already; this stops a NaN among their cotangents


def _run_segments(local, inputs, table, segment_ids, num_segments, C):
    layout = segments.regroup(segment_ids, num_segments, C)
    rows = jnp.arange(table.shape[0])[:, None]
    held = table.at[rows, layout.segment].get(mode="fill", fill_value=0)  # [B,N,H,K,V]
    zero = jnp.zeros_like(table[:, 0])
    out, _, after = _run_groups(local, jax.tree.map(layout.gather, inputs), zero, None, (layout.first, held), C)
    ends = jnp.where(layout.last, layout.segment, num_segments)
    table = table.at[rows, ends].set(after, mode="drop")
    return layout.scatter(out), table


def _run_groups(local, inputs, state, document, resets, C):
    """Chunks in time order: outputs, the last state, and with `resets` the state after every chunk ``[B,N,H,K,V]``.

    `document` ``[B,T]`` numbers documents from 0; `resets` is ``(first [B,N], held [B,N,H,K,V])``: which
    chunks start from a state of their own, and from which one.
    """
    B, T = inputs[0].shape[:2]
    H, K, V = state.shape[-3:]
    N = -(-T // C)
    limit = GROUP.get(jax.default_backend(), GROUP["default"])
    groups = -(-N // max(1, limit // max(1, B * H * C * max(K, V))))
    n = -(-N // groups)

    def grouped(x: Array, length: int, mode: str = "constant") -> Array:  # [B,T or N,...] -> [G,B,n*C or n,...]
        x = jnp.pad(x, [(0, 0), (0, groups * length - x.shape[1])] + [(0, 0)] * (x.ndim - 2), mode=mode)
        return jnp.moveaxis(x.reshape(B, groups, length, *x.shape[2:]), 1, 0)

    def group(carry, xs):
        state, current = carry
        inputs, document, resets = xs
        inputs = jax.tree.map(lambda x: _split(x, n, H).astype(state.dtype), inputs)
        seen, current = _visibility(document, current, n, C)
        chunk = local(inputs, seen)
        state, before, after = _recur(chunk, state, resets)
        out = chunk.local + jnp.einsum("...ck,...kv->...cv", chunk.query, before)
        out = out.transpose(1, 0, 3, 2, 4).reshape(B, n * C, H, -1)
        return (state, current), (out, after)

    xs = (
        jax.tree.map(lambda x: grouped(x, n * C), inputs),
        None if document is None else grouped(document, n * C, "edge"),
        None if resets is None else jax.tree.map(lambda x: grouped(x, n), resets),
    )
    current = None if document is None else jnp.zeros(B, jnp.int32)
    (state, _), (out, after) = jax.lax.scan(jax.checkpoint(group, prevent_cse=False), (state, current), xs)
    out = jnp.moveaxis(out, 0, 1).reshape(B, -1, H, V)[:, :T]
    if after is not None:
        after = jnp.moveaxis(after, 2, 0).reshape(B, -1, H, K, V)[:, :N]
    return out, state, after


def _split(x: Array, n: int, H: int) -> Array:
    """``[B,n*C,Hk,X] -> [n,B,H,C,X]``."""
    x = x.reshape(x.shape[0], n, -1, *x.shape[2:]).transpose(1, 0, 3, 2, 4)
    return jnp.repeat(x, H // x.shape[2], axis=2)


def _visibility(document: Array | None, current: Array | None, n: int, C: int) -> tuple[Visibility, Array | None]:
    """Masks of the chunks in ``document [B,n*C]``, and the document that the last one ends with."""
    causal = jnp.tril(jnp.ones((C, C), bool))
    if document is None or current is None:
        return Visibility(causal[None, None, None], None, None, None), None
    document = jnp.moveaxis(document.reshape(-1, n, C), 1, 0)[:, :, None, :, None]  # [n,B,1,C,1]
    end = document[..., -1:, :]
    begin = jnp.concatenate([current[None, :, None, None, None], end[:-1]])
    pairs = causal & (document == jnp.swapaxes(document, -1, -2))
    return Visibility(pairs, document == begin, document == end, begin == end), end[-1, :, 0, 0, 0]


def _recur(chunk: Chunk, state: Array, resets: tuple[Array, Array] | None) -> tuple[Array, Array, Array | None]:
    """The last state, the states before ``[n,B,H,K,V]``, and with `resets` also those after the chunks."""
    diagonal = chunk.transition.shape[-1] == 1
    if resets is not None:
        resets = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), resets)

    def step(state, xs):
        transition, added, resets = xs
        if resets is not None:
            first, held = resets
            state = jnp.where(first[:, None, None, None], held, state)
        new = (transition * state if diagonal else transition @ state) + added
        return new, (state, None if resets is None else new)

    state, (before, after) = jax.lax.scan(step, state, (chunk.transition, chunk.added, resets))
    return state, before, after


def token_decay(log_decay: Array | None, v: Array) -> Array | None:
    """Log-decay of every token as ``[B,T,H,1]`` or ``[B,T,H,K]``.

    -inf becomes -1e30, whose exponential is 0 as well, and which a mask of zeros can multiply.
    """
    if log_decay is None:
        return None
    if log_decay.ndim < 4:
        log_decay = jnp.broadcast_to(log_decay, v.shape[:3])[..., None]
    return jnp.maximum(log_decay, -1e30)
