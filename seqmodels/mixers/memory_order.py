"""The order in which a mixture of memories works: copies of tokens, sorted by the memory that they go to.

A token has k copies, one per memory it chose. A stable sort keeps the copies of a memory in the order of time; every
memory begins at the border of a block, so that a block needs the projections of one memory only. All shapes are static:
there is room for every copy, wherever it goes.

Memories may lie in G groups on different devices (the ``expert`` axis of the mesh). Each group then has rows of its own
and sorts the copies that come to it: rows are ``R = G * B``, group major, so that both factors may be split.
"""

from __future__ import annotations

import contextlib
import math
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.layers.routing import mesh_size
from seqmodels.mixers.parts import Segments
from seqmodels.ops.partition import rules_in_force
from seqmodels.ops.segments import Regrouped, regroup

LARGEST_BLOCK = 128


class MemoryOrder(NamedTuple):
    """See the module's docstring. P places per row, M memories."""

    layout: Regrouped
    segments: Segments  # ids [R,P], count = M / G
    stale: Array | None  # [R,M/G] bool: the memory has seen nothing of the current document
    groups: int  # G
    k: int
    blocks: int  # P / C

    def spread(self, x: Array) -> Array:
        """``[B,T,...] -> [R,P,...]``: every token at the places of its copies, zeros at empty places."""
        return self.layout.gather(_rows(jnp.repeat(x, self.k, axis=1), self.groups))

    def collect(self, y: Array, weight: Array) -> Array:
        """``[R,P,...] -> [B,T,...]``: the sum of a token's copies, times ``weight [B,T,k]``."""
        B, T, k = weight.shape
        copies = self.layout.scatter(y).reshape(self.groups, B, T, k, *y.shape[2:])
        return jnp.einsum("gbtk...,btk->bt...", copies.astype(weight.dtype), weight).astype(y.dtype)

    def rows_as_batch(self) -> AbstractContextManager:
        """Inside, the logical axis ``batch`` is that of the R rows: split by groups, too."""
        if self.groups == 1:
            return contextlib.nullcontext()
        rules = rules_in_force()
        over = (*rules.get("expert", ()), *rules.get("batch", ()))
        return nn.logical_axis_rules([(name, over if name == "batch" else axes) for name, axes in rules.items()])

    def in_blocks(self, x: Array) -> tuple[Array, Array]:
        """``[R,P,...] -> [G,B,N,C,...]``, and the memory ``[G,B,N]`` of every block, counted within its group."""
        lead = (self.groups, x.shape[0] // self.groups, self.blocks)
        member = jnp.minimum(self.layout.segment, (self.segments.count or 1) - 1)  # unused blocks hold zeros
        return x.reshape(*lead, x.shape[1] // max(self.blocks, 1), *x.shape[2:]), member.reshape(lead)

    def take(self, state: Any) -> Any:
        """Leaves ``[B,M,...] -> [R,M/G,...]``."""

        def take(leaf: Array) -> Array:
            (B, M, *rest), G = leaf.shape, self.groups
            leaf = leaf.reshape(B, G, M // G, *rest).swapaxes(0, 1)
            return _constrain(leaf).reshape(G * B, M // G, *rest)

        return jax.tree.map(take, state)

    def give(self, state: Any) -> Any:
        """Leaves ``[R,M/G,...] -> [B,M,...]``, with stale memories emptied."""

        def give(leaf: Array) -> Array:
            if self.stale is not None:
                leaf = jnp.where(self.stale.reshape(*self.stale.shape, *[1] * (leaf.ndim - 2)), 0, leaf)
            (R, own, *rest), G = leaf.shape, self.groups
            return leaf.reshape(G, R // G, own, *rest).swapaxes(0, 1).reshape(R // G, G * own, *rest)

        return jax.tree.map(give, state)


def order_by_memory(
    choice: Array, real: Array, documents: Array | None, num_memories: int, groups: int = 1, capacity: int | None = None
) -> MemoryOrder:
    """Sort the copies of tokens by memory.

    Args:
      choice: ``[B,T,k]`` int32, different memories for one token.
      real: ``[B,T]`` bool, false at padding: those tokens have no copies.
      documents: ``[B,T]`` int32, see `ops.segments.document_index`; ``None``: one document.
      num_memories: M.
      groups: G, a divisor of M.
      capacity: at most so many tokens go to a memory; the first ones in time, the others are left out.
    """
    B, T, k = choice.shape
    own = num_memories // groups
    ids = jnp.where(real[..., None], choice + 1, 0).reshape(B, T * k).astype(jnp.int32)
    limit = T * min(k, own)
    if capacity is not None:
        ids = jnp.where(_rank(ids, num_memories) < capacity, ids, 0)
        limit = min(limit, own * capacity)
    first = own * jnp.arange(groups, dtype=jnp.int32)[:, None, None]
    local = jnp.where((ids[None] > first) & (ids[None] <= first + own), ids[None] - first, 0)  # [G,B,T*k]
    local = _constrain(local).reshape(groups * B, T * k)
    block = min(LARGEST_BLOCK, 1 << max(0, (limit // (4 * own)).bit_length() - 1))
    layout = regroup(local, own, block, limit)
    blocks = layout.segment.shape[1]
    placed = jnp.repeat(layout.segment + 1, block, axis=1) * layout.ids
    if documents is None:
        return MemoryOrder(layout, Segments(placed, own), None, groups, k, blocks)
    copies = _rows(jnp.repeat(documents, k, axis=1), groups)
    resets = _resets(layout.gather(copies), layout, block)
    rows = jnp.arange(groups * B)[:, None]
    newest = jnp.zeros((groups * B, own + 1), jnp.int32).at[rows, local].max(copies)[:, 1:]
    current = jnp.tile(jnp.max(documents, axis=1, initial=0), groups)
    return MemoryOrder(layout, Segments(placed, own, resets), newest != current[:, None], groups, k, blocks)


def token_capacity(factor: float | None, tokens: int, k: int, num_memories: int) -> int | None:
    """Tokens of a row that one memory takes: `factor` times an equal share, rounded up."""
    return None if factor is None else math.ceil(factor * k * tokens / num_memories)


def _rank(ids: Array, num_memories: int) -> Array:
    """How many earlier copies went to the same memory. [B,L]"""
    rows = jnp.arange(ids.shape[0])[:, None]
    count = jnp.zeros((ids.shape[0], num_memories + 1), jnp.int32).at[rows, ids].add(1)[:, 1:]
    begin = jnp.cumsum(count, axis=1) - count
    place = regroup(ids, num_memories, 1).place
    return place - jnp.take_along_axis(begin, jnp.maximum(ids - 1, 0), axis=1)


def _resets(documents: Array, layout: Regrouped, block: int) -> Array:
    """Places whose document is not that of the place before in the same memory, or of the state. [R,P] bool"""
    before = jnp.pad(documents, ((0, 0), (1, 0)))[:, :-1]
    heads = jnp.arange(documents.shape[1])[None] % block == 0
    before = jnp.where(heads & jnp.repeat(layout.first, block, axis=1), 0, before)
    return (layout.ids != 0) & (documents != before)


def _rows(x: Array, groups: int) -> Array:
    """``[B,...] -> [G*B,...]``: the same for all groups."""
    x = _constrain(jnp.broadcast_to(x[None], (groups, *x.shape)))
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def _constrain(x: Array) -> Array:
    """``[G,B,...]`` split by groups and, if they divide, rows; as it is when there is one group."""
    if x.shape[0] == 1:
        return x
    rows = None if x.shape[1] % mesh_size("batch") else "batch"
    return nn.with_logical_constraint(x, ("expert", rows, *[None] * (x.ndim - 2)))
