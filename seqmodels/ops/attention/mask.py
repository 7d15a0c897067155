"""Who sees whom: identities and positions of queries and keys."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

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
