"""The arithmetic of one token, the same in the reference and in every kernel."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from seqmodels.axes import Array


class Token(NamedTuple):
    """What a head is given; ``None`` where there is none. Leading axes are free."""

    q: Array  # [...,K,1]
    k: Array  # [...,K,1]
    v: Array  # [...,1,V]
    beta: Array | None  # broadcasts to [...,1,V]
    log_decay: Array | None  # broadcasts to [...,K,1]


def update(state: Array, token: Token, scale: float) -> tuple[Array, Array]:
    """``state [...,K,V]`` -> ``(out [...,1,V], state)``. Products and sums, no matrix units: they are not the cost."""
    over_keys = lambda column: jnp.sum(state * column, axis=-2, keepdims=True)  # noqa: E731
    if token.log_decay is not None:
        state = jnp.exp(token.log_decay) * state
    written = token.v if token.beta is None else token.beta * (token.v - over_keys(token.k))
    state = state + token.k * written
    return scale * over_keys(token.q), state
