"""Lift a one-token step to a sequence: documents, padding, segments and carried state. Clear, not fast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Int, PyTree, Shaped

from seqmodels.axes import Array
from seqmodels.ops import segments

Step = Callable[[Any, Any], tuple[Any, Any]]  # (state [B,...], token [B,...]) -> (state, out [B,...])


def scan_tokens(
    step: Step,
    state: PyTree[Shaped[Array, "B ..."]],
    inputs: PyTree[Shaped[Array, "B T ..."]],
    segment_ids: Int[Array, "B T"] | None = None,
    num_segments: int | None = None,
    resets: Bool[Array, "B T"] | None = None,
) -> tuple[PyTree[Shaped[Array, "B T ..."]], PyTree[Shaped[Array, "B ..."]]]:
    """Run `step` over time with the contract of all ops for ``segment_ids``.

    Args:
      step: one token for the whole batch.
      state: pytree of ``[B,...]``, or ``[B,S,...]`` with `num_segments`.
      inputs: pytree of ``[B,T,...]``, T >= 1.
      segment_ids: ``[B,T]`` or ``None``.
      num_segments: S or ``None``.
      resets: ``[B,T]`` bool, with `num_segments`: the token's segment starts from a zero state before it.

    Returns:
      Outputs ``[B,T,...]`` (0 at padding) and the state after the last token.
    """
    time_major = lambda tree: jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), tree)  # noqa: E731
    if segment_ids is None:
        state, out = jax.lax.scan(step, state, time_major(inputs))
        return time_major(out), state

    rows = jnp.arange(segment_ids.shape[0])
    real = segment_ids != 0
    inputs = _where(real, inputs)
    if num_segments is None:
        fresh, slot = segments.starts(segment_ids), jnp.zeros_like(segment_ids)
        state = jax.tree.map(lambda s: s[:, None], state)
    else:
        fresh = jnp.zeros_like(real) if resets is None else resets
        slot = jnp.maximum(segment_ids - 1, 0)

    def body(table, token):
        x, real, fresh, slot = token
        held = jax.tree.map(lambda t: t[rows, slot], table)
        new, out = step(_where(~fresh, held), x)
        table = jax.tree.map(lambda t, n, h: t.at[rows, slot].set(_where(real, n, h)), table, new, held)
        return table, _where(real, out)

    state, out = jax.lax.scan(body, state, time_major((inputs, real, fresh, slot)))
    if num_segments is None:
        state = jax.tree.map(lambda s: s[:, 0], state)
    return time_major(out), state


def _where(condition: Array, chosen: Any, other: Any = None) -> Any:
    """`chosen` where the leading axes' condition holds, else `other` (zeros)."""
    other = jax.tree.map(jnp.zeros_like, chosen) if other is None else other
    select = lambda a, b: jnp.where(condition.reshape(condition.shape + (1,) * (a.ndim - condition.ndim)), a, b)  # noqa: E731
    return jax.tree.map(select, chosen, other)
