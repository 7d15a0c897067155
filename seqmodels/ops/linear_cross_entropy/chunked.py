"""`linear_cross_entropy` in blocks of the vocabulary and of the tokens, with logits recomputed in the backward pass.

A block of the vocabulary takes `rows` consecutive entries from each of `lanes` equal parts of it. The order of the
vocabulary does not matter to a logsumexp, and an embedding sharded over its rows stays where it is: every shard takes
part in every block. Blocks of tokens are strided for the same reason. A problem that is one block is the plain form.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqmodels.axes import Array, accumulate_dtype
from seqmodels.ops.linear_cross_entropy import reference

LANES = 16  # a vocabulary sharded 16 ways or less is never gathered
ROWS = 4096  # vocabulary entries of a block, unless `chunk_size` says otherwise
TILE = 8  # rows of a TPU tile
LOGITS = 2**24  # logits of a block per device


class Plan(NamedTuple):
    """How the problem is cut: ``vocab <= lanes * blocks * rows`` and ``tokens <= token_blocks * tokens_per_block``."""

    lanes: int
    blocks: int
    rows: int
    token_blocks: int
    label_smoothing: float
    z_loss: float
    softcap: float | None


class Stats(NamedTuple):
    """What a token remembers of the logits seen so far, each [N]."""

    top: Array  # largest logit
    mass: Array  # sum of exp(logit - top)
    hit: Array  # the target's logit
    total: Array  # sum of logits


class Part(NamedTuple):
    """One block of the vocabulary."""

    embedding: Array  # [R,D], R = lanes * rows
    bias: Array | None  # [R]
    index: Array  # [R] int32: which entries these are; at or above the vocabulary's size for padding


def run(
    hidden: Array,
    embedding: Array,
    bias: Array | None,
    targets: Array,
    *,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    gradient_filter: float | None = None,
    chunk_size: int | None = None,
) -> Array:
    """Loss of every token ``[N]``; arguments as in the reference. Nothing is filtered."""
    lanes, blocks, rows = _cut_vocabulary(embedding.shape[0], chunk_size)
    devices = max(1, jax.sharding.get_abstract_mesh().size)
    token_blocks = max(1, -(-targets.shape[0] * lanes * rows // (LOGITS * devices)))
    if blocks == token_blocks == 1:
        options = {"label_smoothing": label_smoothing, "z_loss": z_loss, "softcap": softcap}
        return reference.run(hidden, embedding, bias, targets, **options)
    plan = Plan(lanes, blocks, rows, token_blocks, label_smoothing, z_loss, softcap)
    return _losses(plan, hidden, embedding, bias, targets)


def _cut_vocabulary(vocab: int, chunk_size: int | None) -> tuple[int, int, int]:
    """``lanes, blocks, rows`` for a chunk size; without one, a cut that needs no padding if there is one."""
    if vocab <= (chunk_size or 2 * ROWS):
        return 1, 1, vocab
    lanes = min(LANES, chunk_size or LANES)
    if chunk_size is not None:
        blocks = -(-vocab // (lanes * (chunk_size // lanes)))
    else:
        least = -(-vocab // ROWS)
        fits = (n for tile in (TILE, 1) for n in range(least, 2 * least) if vocab % (lanes * n * tile) == 0)
        blocks = next(fits, least)
    return lanes, blocks, -(-vocab // (lanes * blocks))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _losses(plan: Plan, hidden: Array, embedding: Array, bias: Array | None, targets: Array) -> Array:
    return _forward(plan, hidden, embedding, bias, targets)[0]


def _forward(plan: Plan, hidden: Array, embedding: Array, bias: Array | None, targets: Array):
    vocab = embedding.shape[0]
    dtype = accumulate_dtype(hidden, embedding)
    table, tokens, wanted = _table(plan, embedding, bias), _blocks(plan, hidden), _blocks(plan, targets, fill=-1)

    def vocabulary(stats: Stats, block: Array):
        part = _part(plan, table, block)
        token = lambda x: _update(x[2], _logits(plan, x[0], part, vocab), x[1], part, vocab)  # noqa: E731
        return jax.lax.map(token, (tokens, wanted, stats)), None

    zeros = jnp.zeros(wanted.shape, dtype)
    start = Stats(jnp.full(wanted.shape, -jnp.inf, dtype), zeros, zeros, zeros)
    stats, _ = jax.lax.scan(vocabulary, start, jnp.arange(plan.blocks))
    stats = Stats(*(_join(x, targets.shape[0]) for x in stats))
    lse = stats.top + jnp.log(stats.mass)
    loss = lse - (1 - plan.label_smoothing) * stats.hit + plan.z_loss * lse**2
    if plan.label_smoothing:
        loss = loss - plan.label_smoothing / vocab * stats.total
    return loss, (hidden, embedding, bias, targets, lse)


def _backward(plan: Plan, residuals, cotangent: Array):
    hidden, embedding, bias, targets, lse = residuals
    vocab = embedding.shape[0]
    table = _table(plan, embedding, bias)
    tokens = tuple(_blocks(plan, x) for x in (hidden, targets, lse, cotangent))

    def vocabulary(carry, block: Array):
        d_hidden, d_table = carry
        part = _part(plan, table, block)

        def token(sums, x):
            (h, target, norm, weight), d_h = x
            g = _logit_gradient(plan, _logits(plan, h, part, vocab), target, norm, weight, part, vocab)
            d_h_here, d_rows, d_bias = _products(g, h, part)
            return (sums[0] + d_rows, None if d_bias is None else sums[1] + d_bias), d_h + d_h_here

        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, lse.dtype), (part.embedding, part.bias))
        sums, d_hidden = jax.lax.scan(token, zeros, (tokens, d_hidden))
        return (d_hidden, jax.tree.map(functools.partial(_write, plan, block), d_table, sums)), None

    start = (jnp.zeros(tokens[0].shape, lse.dtype), jax.tree.map(jnp.zeros_like, table))
    (d_hidden, d_table), _ = jax.lax.scan(vocabulary, start, jnp.arange(plan.blocks))
    d_embedding, d_bias = jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:])[:vocab], d_table)
    return _join(d_hidden, hidden.shape[0]).astype(hidden.dtype), d_embedding, d_bias, None


_losses.defvjp(_forward, _backward)


def _logits(plan: Plan, hidden: Array, part: Part, vocab: int) -> Array:
    """Capped logits of one block, -inf in padded columns: after the cap, which would make them finite. [N,R]"""
    dtype = accumulate_dtype(hidden, part.embedding)
    logits = jnp.einsum("nd,rd->nr", hidden, part.embedding, preferred_element_type=dtype)
    if part.bias is not None:
        logits = logits + part.bias[None].astype(dtype)
    if plan.softcap is not None:
        logits = plan.softcap * jnp.tanh(logits / plan.softcap)
    if plan.lanes * plan.blocks * plan.rows > vocab:
        logits = jnp.where(part.index[None] < vocab, logits, -jnp.inf)
    return logits


def _update(stats: Stats, logits: Array, targets: Array, part: Part, vocab: int) -> Stats:
    """Online logsumexp over one more block; a bias of -inf may leave nothing of it."""
    top = jnp.maximum(stats.top, jnp.max(logits, axis=-1))
    base = jnp.where(top == -jnp.inf, 0, top)
    mass = stats.mass * jnp.exp(stats.top - base) + jnp.sum(jnp.exp(logits - base[:, None]), axis=-1)
    hit = stats.hit + jnp.sum(jnp.where(targets[:, None] == part.index[None], logits, 0), axis=-1)
    total = stats.total + jnp.sum(jnp.where(part.index[None] < vocab, logits, 0), axis=-1)
    return Stats(top, mass, hit, total)


def _logit_gradient(
    plan: Plan, logits: Array, targets: Array, lse: Array, cotangent: Array, part: Part, vocab: int
) -> Array:
    """Gradient of the losses with respect to one block of logits before the cap. [N,R]"""
    share = jnp.exp(logits - lse[:, None]) * (1 + 2 * plan.z_loss * lse)[:, None]
    g = share - jnp.where(targets[:, None] == part.index[None], 1 - plan.label_smoothing, 0)
    if plan.label_smoothing:
        g = g - jnp.where(part.index[None] < vocab, plan.label_smoothing / vocab, 0)
    if plan.softcap is not None:
        g = g * (1 - jnp.where(part.index[None] < vocab, logits / plan.softcap, 0) ** 2)
    return g * cotangent[:, None]


def _products(g: Array, hidden: Array, part: Part) -> tuple[Array, Array, Array | None]:
    """Gradients of the block's hidden states [N,D], rows [R,D] and biases [R] from that of its logits [N,R]."""
    narrow = g.astype(jnp.result_type(hidden, part.embedding))
    d_hidden = jnp.einsum("nr,rd->nd", narrow, part.embedding, preferred_element_type=g.dtype)
    d_rows = jnp.einsum("nr,nd->rd", narrow, hidden, preferred_element_type=g.dtype)
    return d_hidden, d_rows, None if part.bias is None else jnp.sum(g, axis=0)


def _table(plan: Plan, embedding: Array, bias: Array | None) -> tuple[Array, Array | None]:
    """The embedding and the bias cut into ``[lanes, blocks, rows, ...]``."""
    size = plan.lanes * plan.blocks * plan.rows

    def cut(x: Array) -> Array:
        padded = jnp.pad(x, ((0, size - x.shape[0]), *[(0, 0)] * (x.ndim - 1)))
        return padded.reshape(plan.lanes, plan.blocks, plan.rows, *x.shape[1:])

    return cut(embedding), None if bias is None else cut(bias)


def _part(plan: Plan, table: tuple[Array, Array | None], block: Array) -> Part:
    pick = lambda x: jax.lax.dynamic_index_in_dim(x, block, axis=1, keepdims=False).reshape(-1, *x.shape[3:])  # noqa: E731
    lane = jnp.arange(plan.lanes, dtype=jnp.int32)[:, None]
    index = (lane * plan.blocks + block.astype(jnp.int32)) * plan.rows + jnp.arange(plan.rows, dtype=jnp.int32)[None]
    embedding, bias = jax.tree.map(pick, table)
    return Part(embedding, bias, index.reshape(-1))


def _write(plan: Plan, block: Array, table: Array, rows: Array) -> Array:
    """Put the gradient of one block [R,...] where `_part` took the block from."""
    value = rows.reshape(plan.lanes, 1, plan.rows, *rows.shape[1:]).astype(table.dtype)
    return jax.lax.dynamic_update_slice_in_dim(table, value, block, axis=1)


def _blocks(plan: Plan, x: Array, fill: float = 0) -> Array:
    """``[N,...]`` to ``[token_blocks, n, ...]``, strided; missing tokens hold `fill`."""
    count = plan.token_blocks
    padding = -x.shape[0] % count
    padded = jnp.pad(x, ((0, padding), *[(0, 0)] * (x.ndim - 1)), constant_values=fill)
    return jnp.swapaxes(padded.reshape(-1, count, *x.shape[1:]), 0, 1)


def _join(blocks: Array, length: int) -> Array:
    """Undo `_blocks`."""
    return jnp.swapaxes(blocks, 0, 1).reshape(-1, *blocks.shape[2:])[:length]
