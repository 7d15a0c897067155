"""The definition of `decode_step`, and its form in XLA."""

from __future__ import annotations

import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops.decode_step.update import Token, update


def run(
    q: Array,
    k: Array,
    v: Array,
    beta: Array | None,
    log_decay: Array | None,
    state: Array,
    segment_ids: Array | None,
    *,
    scale: float,
    num_segments: int | None,
) -> tuple[Array, Array]:
    """See `decode_step`."""
    if segment_ids is None:
        out, after = update(state, heads(q, k, v, beta, log_decay, state.dtype), scale)
        return out[:, :, 0].astype(v.dtype), after
    real = segment_ids != 0
    mask = lambda x: x if x is None or x.ndim == 1 else _where(real, x, 0)  # noqa: E731  # fixed decays: [H]
    q, k, v = (_where(real, x, 0) for x in (q, k, v))
    token = heads(q, k, v, mask(beta), mask(log_decay), state.dtype)
    rows = jnp.arange(v.shape[0])
    place = (rows,) if num_segments is None else (rows, jnp.maximum(segment_ids - 1, 0))
    held = state[place]
    out, after = update(held, token, scale)
    after = _where(real, after, held)
    after = after if num_segments is None else state.at[place].set(after)
    return _where(real, out[:, :, 0], 0).astype(v.dtype), after


def heads(q: Array, k: Array, v: Array, beta: Array | None, log_decay: Array | None, dtype: jnp.dtype) -> Token:
    """A token of every value head, leading axes ``[B,H]``, in `dtype`."""
    B, H, _ = v.shape
    column = lambda x: jnp.repeat(x.astype(dtype), H // x.shape[1], axis=1)[..., None]  # noqa: E731
    if log_decay is not None and log_decay.ndim == 1:
        log_decay = jnp.broadcast_to(log_decay, (B, H))
    if log_decay is not None:
        log_decay = log_decay.astype(dtype).reshape(B, H, -1, 1)
    beta = None if beta is None else beta.astype(dtype)[..., None, None]
    return Token(column(q), column(k), v.astype(dtype)[:, :, None], beta, log_decay)


def _where(real: Array, x: Array, other: Array | int) -> Array:
    return jnp.where(real.reshape(-1, *[1] * (x.ndim - 1)), x, other)
