"""From the arguments of an op to the kernels of a backend and back: regrouping by segment, gradients, refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops import dispatch, segments
from seqmodels.ops.dispatch import Interpretation
from seqmodels.ops.pallas.chip import Chip
from seqmodels.ops.pallas.gradient import differentiable
from seqmodels.ops.pallas.marks import chunk_routes


class Tokens(NamedTuple):
    """A call's arrays in the order in which the kernels walk them, P tokens long."""

    columns: tuple[Array, ...]  # [B,P,heads,size]
    rows: tuple[Array, ...]  # [B,P,H]
    ids: Array | None  # [B,P] int32: documents and padding
    route: Array | None  # [B*P/C] int32, see `marks.chunk_routes`


class Backend(NamedTuple):
    """The kernels of one kind of accelerator. States are ``[B,S,H,K,V]`` float32."""

    chip: Chip
    chunk_length: Callable[..., int]  # (columns, chunk_size or None) -> C
    forward: Callable[..., Any]  # (call, C, tokens, state, save) -> out, state, states before every chunk
    backward: Callable[..., Any]  # (call, C, tokens, states, d_out, d_state) -> d_columns, d_rows, d_state


class Call(NamedTuple):
    """What is static about a call."""

    backend: Backend
    cell: Any  # see `recurrence`
    num_segments: int | None
    chunk_size: int | None
    interpret: Interpretation | None


def operand_dtype(*arrays: Array) -> Any:
    """Dtype of matrix operands: bfloat16 if every input is, else float32."""
    return jnp.bfloat16 if all(x.dtype == jnp.bfloat16 for x in arrays) else jnp.float32


def place_decay(
    columns: tuple[Array, Array, Array], log_decay: Array | None
) -> tuple[tuple[Array, ...], tuple[Array, ...], str]:
    """Columns with a vector decay behind them, rows with a scalar or fixed one, and the kind of decay."""
    if log_decay is None:
        return columns, (), "none"
    if log_decay.ndim == 4:
        return (*columns, log_decay), (), "vector"
    return columns, (jnp.broadcast_to(log_decay, columns[2].shape[:3]),), "scalar"


def refusal(q: Array, k: Array, v: Array, chunk_size: int | None) -> str | None:
    """Why no kernel at all can take a call, or ``None``."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dtype not in (jnp.float32, jnp.bfloat16):
            return f"{name} has dtype {x.dtype}, a kernel takes float32 and bfloat16"
    if chunk_size is not None and (chunk_size < 16 or chunk_size & (chunk_size - 1)):
        return f"chunk_size={chunk_size}, a kernel takes powers of two from 16"
    if jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        return "64-bit mode (jax_enable_x64) is on, a kernel takes 32-bit indices"
    return None


def run(
    backend: Backend,
    cell: Any,
    columns: tuple[Array, ...],
    rows: tuple[Array, ...],
    state: Array,
    segment_ids: Array | None,
    num_segments: int | None,
    chunk_size: int | None,
) -> tuple[Array, Array]:
    """``(out, state)`` of the recurrence that `cell` defines.

    Args:
      backend: whose kernels to run.
      cell: see `recurrence`.
      columns: ``q, k [B,T,Hk,K]``, ``v [B,T,H,V]``, then what else the cell's kinds name, ``[B,T,H,K]``.
      rows: arrays ``[B,T,H]`` of numbers per token and value head.
      state: ``[B,H,K,V]`` or ``[B,S,H,K,V]`` float32.
      segment_ids: ``[B,T]`` int32 or ``None``.
      num_segments: S or ``None``.
      chunk_size: a power of two, or ``None`` for the default.
    """
    inputs, segment_ids = same_axes(((columns, rows, state), segment_ids))
    return _kernel(Call(backend, cell, num_segments, chunk_size, dispatch.interpretation()), inputs, segment_ids)


def same_axes(tree: Any) -> Any:
    """Inside a `jax.shard_map`: mark all arrays as varying over every mesh axis over which one of them varies."""
    axes = lambda x: jax.typeof(x).manual_axis_type.varying  # noqa: E731
    union = frozenset().union(*map(axes, jax.tree.leaves(tree)))
    cast = lambda x: jax.lax.pcast(x, tuple(union - axes(x)), to="varying") if union - axes(x) else x  # noqa: E731
    return jax.tree.map(cast, tree)


def like(x: Any, shape: tuple[int, ...] | None = None, dtype: Any = None) -> jax.ShapeDtypeStruct:
    """The mesh axes that an operand varies over, and its shape and dtype unless others are given."""
    axes = jax.typeof(x).manual_axis_type
    return jax.ShapeDtypeStruct(shape or x.shape, dtype or x.dtype, manual_axis_type=axes)


class _Order(NamedTuple):
    """The order of tokens in a call's kernels."""

    C: int
    tokens: Tokens
    regrouped: segments.Regrouped | None

    def gather(self, x: Array) -> Array:
        """``[B,T,...]`` in the kernels' order."""
        return x if self.regrouped is None else self.regrouped.gather(x)

    def scatter(self, tree: Any) -> Any:
        """The inverse of `gather`, for every array of `tree`."""
        return tree if self.regrouped is None else jax.tree.map(self.regrouped.scatter, tree)

    def states(self, state: Array) -> Array:
        """With an axis of segments, of size 1 if there are none."""
        return state[:, None] if self.regrouped is None else state

    def state(self, states: Array) -> Array:
        """The inverse of `states`."""
        return states[:, 0] if self.regrouped is None else states


def _order(call: Call, columns: tuple[Array, ...], rows: tuple[Array, ...], ids: Array | None) -> _Order:
    C = call.backend.chunk_length(columns, call.chunk_size)
    if call.num_segments is None:
        return _Order(C, Tokens(columns, rows, ids, None), None)
    assert ids is not None  # checked by the op
    regrouped = segments.regroup(ids, call.num_segments, C)
    columns, rows = (tuple(regrouped.gather(x) for x in group) for group in (columns, rows))
    route = chunk_routes(regrouped, call.num_segments)
    return _Order(C, same_axes(Tokens(columns, rows, regrouped.ids, route)), regrouped)


def _forward(call, inputs, ids, save):
    columns, rows, state = inputs
    order = _order(call, columns, rows, ids)
    out, after, states = call.backend.forward(call, order.C, order.tokens, order.states(state), save)
    return (order.scatter(out), order.state(after)), states


def _backward(call, inputs, ids, states, cotangents):
    columns, rows, _ = inputs
    d_out, d_after = cotangents
    order = _order(call, columns, rows, ids)
    d_columns, d_rows, d_state = call.backend.backward(
        call, order.C, order.tokens, states, order.gather(d_out), order.states(d_after)
    )
    return order.scatter(d_columns), order.scatter(d_rows), order.state(d_state)


def _chunked(call, inputs, ids):
    return call.cell.chunked(*inputs, ids, call.num_segments)


# Traced once per shape, however many layers and programs call it.
_kernel = jax.jit(differentiable(_forward, _backward, _chunked), static_argnums=0)
