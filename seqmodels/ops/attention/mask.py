"""Who sees whom: identities and positions of queries and keys."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from seqmodels.axes import Array


class Tokens(NamedTuple):
    """What the mask must know of the queries, or of the keys. ``None`` means the obvious default."""

    ids: Array | None  # [B,T] int32: tokens of equal ids interact; 0 neither sees nor is seen
    positions: Array | None  # [B,T] or [1,T] int32: place in the order of time; a negative one is an empty slot

    def filled(self, length: int) -> Tokens:
        """With positions: the index among the real tokens where none were given."""
        if self.positions is not None:
            return self
        if self.ids is None:
            return Tokens(None, jnp.arange(length, dtype=jnp.int32)[None])
        return Tokens(self.ids, jnp.cumsum((self.ids != 0).astype(jnp.int32), axis=1) - 1)


def tokens(
    ids: Array | None, kv_ids: Array | None, positions: Array | None, kv_positions: Array | None
) -> tuple[Tokens, Tokens]:
    """Queries and keys, where what is not told about the keys is that of the queries."""
    keys = Tokens(ids if kv_ids is None else kv_ids, positions if kv_positions is None else kv_positions)
    return Tokens(ids, positions), keys


def visible_blocks(
    blocks: tuple[int, int], sizes: tuple[int, int], *, causal: bool, window: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the query block and of the key block, for the pairs in which something can be visible.

    Args:
      blocks: how many blocks of queries and of keys there are.
      sizes: tokens per block of queries and per block of keys; a token's index is its position.
      causal, window: as in the op.

    Returns:
      Two int32 arrays, sorted by query block, then by key block.
    """
    row, column = np.meshgrid(*map(np.arange, blocks), indexing="ij")
    height, width = sizes
    ahead = column * width - (row * height + height - 1)  # the least that a key stands after a query, if positive
    behind = row * height - (column * width + width - 1)
    seen = ahead <= 0 if causal else np.ones(row.shape, bool)
    if window is not None:
        seen = seen & (behind < window) & (ahead < window)
    return row[seen].astype(np.int32), column[seen].astype(np.int32)


def visible(queries: Tokens, keys: Tokens, *, causal: bool, window: int | None) -> Array:
    """Whether a query sees a key: [B,T,S] bool (or [1,T,S] where nothing depends on the row). Needs positions."""
    at, of = queries.positions, keys.positions
    assert at is not None and of is not None
    at, of = at[:, :, None], of[:, None, :]
    seen = of >= 0
    if causal:
        seen = seen & (of <= at)
    if window is not None:
        seen = seen & (at - of < window)
        if not causal:
            seen = seen & (of - at < window)
    if queries.ids is not None and keys.ids is not None:
        here, there = queries.ids[:, :, None], keys.ids[:, None, :]
        seen = seen & (here == there) & (here != 0)
    return jnp.broadcast_to(seen, (seen.shape[0], at.shape[1], of.shape[2]))
