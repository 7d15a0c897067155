"""`linear_ssm` in pure XLA, by matmuls: a convolution inside chunks, a state for everything before the chunk.

Padding is moved to the end of the row first, so that time passes by one step per place. Chunks that hold more than one
document convolve every document by itself (`long_conv.causal`), let only the first one see the state before the chunk,
and hand on the state of the last one.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops import segments
from seqmodels.ops.linear_scan.chunked import solve
from seqmodels.ops.linear_ssm import matrix
from seqmodels.ops.linear_ssm.matrix import einsum
from seqmodels.ops.long_conv.causal import convolve

CHUNK = 64  # tokens per chunk, unless the caller says otherwise


class Tables(NamedTuple):
    """A system over a chunk of C tokens. K is N, or 2N where the state is complex."""

    kernel: Array  # [C,D]: outputs of inputs in the same chunk
    inward: Array  # [C,D,K]: what a token adds to the state after the chunk
    outward: Array  # [C,D,K]: how a token's output reads the state before the chunk


def run(
    x: Array, a: Array, b: Array, c: Array, state: Array, segment_ids: Array | None, *, chunk_size: int | None
) -> tuple[Array, Array]:
    """As the op, with a state; `x` in the dtype of the computation."""
    T = x.shape[1]
    size = min(chunk_size or CHUNK, 1 << (T - 1).bit_length())
    if segment_ids is None:
        return _line(x, a, b, c, state, None, jnp.full(x.shape[:1], T, jnp.int32), size)
    real = (segment_ids != 0).astype(jnp.int32)
    order = segments.regroup(real, 1, 1)
    label = jax.lax.cummax(order.gather(segments.document_index(segment_ids))[:, :T], axis=1)
    length = jnp.sum(real, axis=1, dtype=jnp.int32)
    y, after = _line(order.gather(x)[:, :T], a, b, c, state, label, length, size)
    places = order.source.shape[1]
    return order.scatter(jnp.pad(y, ((0, 0), (0, places - T), (0, 0)))), after


def tables(a: Array, b: Array, c: Array, size: int) -> Tables:
    """`Tables` of chunks of `size` tokens."""
    steps = matrix.krylov(a, b, size)  # a^l b
    reads = matrix.krylov(matrix.transpose(a), matrix.apply(matrix.transpose(a), c), size)  # c a^(l+1)
    complex_ = jnp.iscomplexobj(a) or jnp.iscomplexobj(b)
    outward = matrix.planes(reads.conj().astype(jnp.result_type(reads, jnp.complex64))) if complex_ else reads.real
    inward = matrix.planes(steps.astype(jnp.result_type(steps, jnp.complex64))) if complex_ else steps
    return Tables(matrix.contract("dn,ldn->ld", c, steps), inward[::-1], outward)


def _line(
    x: Array, a: Array, b: Array, c: Array, state: Array, label: Array | None, length: Array, size: int
) -> tuple[Array, Array]:
    """Tokens ``x [B,T,D]`` without padding up to ``length [B]``, of documents ``label [B,T]`` numbered from 0."""
    B, T, D = x.shape
    table, spare = tables(a, b, c, size), -T % size
    chunks = jnp.pad(x, ((0, 0), (0, spare), (0, 0))).reshape(B, -1, size, D)
    documents = None
    if label is not None:
        documents = jnp.pad(label, ((0, 0), (0, spare)), mode="edge").reshape(B, -1, size)
    flat = lambda leaf: leaf.reshape(-1, *leaf.shape[2:])  # noqa: E731
    y = convolve(flat(chunks), table.kernel, None if documents is None else flat(documents)).reshape(chunks.shape)
    before, entering = _states(chunks, documents, table, matrix.power(a, size), state)
    seen = einsum("idk,bndk->bnid", table.outward, matrix.planes(before))
    if documents is not None:
        seen = jnp.where((documents == entering[..., None])[..., None], seen, 0)
    y = (y + seen).reshape(B, -1, D)[:, :T]
    return y, _last(chunks, documents, table, a, before, entering, length)


def _states(chunks: Array, documents: Array | None, table: Tables, through: Array, state: Array) -> tuple[Array, Array]:
    """The states before the chunks ``[B,n,D,N]``, and the documents ``[B,n]`` that they belong to."""
    keep, entering = None, jnp.zeros(chunks.shape[:2], jnp.int32)
    if documents is not None:
        end = documents[:, :, -1]
        entering = jnp.pad(end, ((0, 0), (1, 0)))[:, :-1]
        chunks = jnp.where((documents == end[..., None])[..., None], chunks, 0)
        keep = end == entering
    added = matrix.unite(einsum("bnjd,jdk->bndk", chunks, table.inward), state.dtype)
    after = _recur(through, added, state, keep)
    return jnp.concatenate([state[:, None], after[:, :-1]], axis=1), entering


def _recur(through: Array, added: Array, state: Array, keep: Array | None) -> Array:
    """``S_n = through S_{n-1} + added_n``, from 0 where ``keep [B,n]`` is false: ``[B,n,D,N]``."""
    if through.ndim == 2:
        factor = jnp.broadcast_to(through.astype(state.dtype), added.shape)
        return solve(factor if keep is None else jnp.where(keep[..., None, None], factor, 0), added, state, None)

    def step(state, chunk):
        added, keep = chunk
        state = state if keep is None else jnp.where(keep[:, None, None], state, 0)
        state = matrix.apply(through, state) + added
        return state, state

    time_major = (jnp.moveaxis(added, 1, 0), None if keep is None else keep.T)
    return jnp.moveaxis(jax.lax.scan(step, state, time_major)[1], 0, 1)


def _last(
    chunks: Array,
    documents: Array | None,
    table: Tables,
    a: Array,
    before: Array,
    entering: Array,
    length: Array,
) -> Array:
    """The state ``[B,D,N]`` after ``length [B]`` tokens: from the chunk that ends there, or would have begun."""
    size = chunks.shape[2]
    number = jnp.maximum(-(-length // size) - 1, 0)
    steps = length - number * size  # in that chunk, 0 only without any token
    pick = lambda leaf: jax.vmap(lambda row, i: row[i])(leaf, number)  # noqa: E731
    tokens, state = pick(chunks), pick(before)
    if documents is not None:
        document = pick(documents)
        own = document == document[:, -1:]
        tokens = jnp.where(own[..., None], tokens, 0)
        fresh = (document[:, -1] != pick(entering)) & (steps > 0)
        state = jnp.where(fresh[:, None, None], 0, state)
    at = jnp.arange(size, dtype=jnp.int32) - (size - steps)[:, None]  # the last token goes to the chunk's end
    tokens = jnp.where((at >= 0)[..., None], jnp.take_along_axis(tokens, jnp.maximum(at, 0)[..., None], axis=1), 0)
    added = matrix.unite(einsum("bjd,jdk->bdk", tokens, table.inward), before.dtype)
    return matrix.advance(a, state, steps, size).astype(before.dtype) + added
