"""From the arguments of an op to the kernels and back: layout, regrouping by segment, gradients, refusals."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops import dispatch, segments
from seqmodels.ops.pallas import recurrence
from seqmodels.ops.pallas.layout import Layout, chunk_length, chunk_routes, document_marks, head_blocks
from seqmodels.ops.pallas.recurrence import Operands

VMEM_BYTES = 12 * 2**20  # of the 16 MiB that the smallest supported core (v4) has; the rest is the compiler's


class Call(NamedTuple):
    """What is static about a call."""

    cell: Any  # see `recurrence`
    num_segments: int | None
    chunk_size: int | None
    interpret: bool


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


def refusal(q: Array, k: Array, v: Array, chunk_size: int | None, log_decay: Array | None) -> str | None:
    """Why the kernels cannot take a call, or ``None``."""
    gates = log_decay is not None and log_decay.ndim == 4
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dtype not in (jnp.float32, jnp.bfloat16):
            return f"{name} has dtype {x.dtype}, a TPU kernel takes float32 and bfloat16"
        if x.size == 0:
            return f"{name} has shape {x.shape}, a TPU kernel takes no empty axis"
    if chunk_size is not None and (chunk_size < 16 or chunk_size & (chunk_size - 1)):
        return f"chunk_size={chunk_size}, a TPU kernel takes powers of two from 16"
    if jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        return "64-bit mode (jax_enable_x64) is on, a TPU kernel takes 32-bit indices"
    layout = _layout(q, v, chunk_size, 1, gates, masked=True)
    need = layout.vmem_bytes(gates)
    if need > VMEM_BYTES:
        return (
            f"blocks of {layout.heads} heads with K={layout.K}, V={layout.V} and {layout.C} tokens need about "
            f"{need / 2**20:.0f} MiB of vector memory, the kernel allows {VMEM_BYTES >> 20}"
        )
    return None


def run(
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
      cell: see `recurrence`.
      columns: ``q, k [B,T,Hk,K]``, ``v [B,T,H,V]``, then what else the cell's kinds name, ``[B,T,H,K]``.
      rows: arrays ``[B,T,H]`` of numbers per token and value head.
      state: ``[B,H,K,V]`` or ``[B,S,H,K,V]`` float32.
      segment_ids: ``[B,T]`` int32 or ``None``.
      num_segments: S or ``None``.
      chunk_size: a power of two, or ``None`` for the default.
    """
    inputs = recurrence.same_axes((columns, rows, state, segment_ids))
    return _kernel(Call(cell, num_segments, chunk_size, dispatch.interpreting()), *inputs)


def _layout(q: Array, v: Array, chunk_size: int | None, slots: int, gates: bool, masked: bool) -> Layout:
    B, T, Hk, K = q.shape
    H, V = v.shape[2:]
    keys, heads = head_blocks(Hk, H, K, V, gates)
    C = chunk_length(T, chunk_size or (256 if max(K, V) > 128 and not gates else 128))
    return Layout(B, T, Hk, H, K, V, C, slots, keys, heads, masked or T % C != 0)


class _Packed(NamedTuple):
    """A call's arrays as the kernels want them."""

    layout: Layout
    operands: Operands
    regrouped: segments.Regrouped | None

    def gather(self, x: Array) -> Array:
        """``[B,T,heads,size]`` -> columns in the kernel's order of tokens."""
        return self.layout.merge(x if self.regrouped is None else self.regrouped.gather(x))

    def scatter(self, columns: Array, like: Array) -> Array:
        """The inverse of `gather`, shaped like `like`."""
        x = columns.reshape(*columns.shape[:2], *like.shape[2:])
        return x if self.regrouped is None else self.regrouped.scatter(x)

    def scatter_rows(self, packed: Array | None, rows: tuple[Array, ...]) -> tuple[Array, ...]:
        """Gradients of the rows, each ``[B,T,H]``."""
        if packed is None:
            return ()
        unpacked = self.layout.unpack_rows(packed)
        unpacked = unpacked if self.regrouped is None else tuple(self.regrouped.scatter(x) for x in unpacked)
        return tuple(x.astype(row.dtype) for x, row in zip(unpacked, rows))

    def unpack_state(self, packed: Array) -> Array:
        state = self.layout.unpack_state(packed)
        return state[:, 0] if self.regrouped is None else state


def _pack(call: Call, columns: tuple[Array, ...], rows: tuple[Array, ...], state: Array, ids: Array | None) -> _Packed:
    gates = "gate" in call.cell.kinds
    route = regrouped = None
    if call.num_segments is not None:
        assert ids is not None  # checked by the op
        C = _layout(columns[0], columns[2], call.chunk_size, 1, gates, masked=True).C
        regrouped = segments.regroup(ids, call.num_segments, C)
        route, ids = chunk_routes(regrouped, call.num_segments), regrouped.ids
        columns, rows = (tuple(regrouped.gather(x) for x in group) for group in (columns, rows))
        layout = _layout(columns[0], columns[2], C, call.num_segments, gates, masked=True)
    else:
        layout = _layout(columns[0], columns[2], call.chunk_size, 1, gates, masked=ids is not None)
        state = state[:, None]
    operands = Operands(
        tuple(layout.merge(x) for x in columns),
        layout.pack_rows(*rows) if rows else None,
        document_marks(layout, ids) if layout.masked else None,
        route,
        layout.pack_state(state),
    )
    return _Packed(layout, recurrence.same_axes(operands), regrouped)


def _forward(call, columns, rows, state, ids, save):
    packed = _pack(call, columns, rows, state, ids)
    out, after, states = recurrence.forward(packed.layout, call.cell, packed.operands, save, call.interpret)
    return (packed.scatter(out, columns[2]), packed.unpack_state(after)), states


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _kernel(call, columns, rows, state, ids):
    return _forward(call, columns, rows, state, ids, save=False)[0]


def _kernel_fwd(call, columns, rows, state, ids):
    results, states = cast(Any, _saving(call, columns, rows, state, ids))
    return results, (columns, rows, state, ids, states)


def _kernel_bwd(call, residuals, cotangents):
    columns, rows, state, ids, states = residuals
    return *cast(Any, _gradients(call, columns, rows, state, cotangents, states, ids)), None


_kernel.defvjp(_kernel_fwd, _kernel_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _saving(call, columns, rows, state, ids):
    """The forward pass of a gradient. A function of its own so that second derivatives need none of the kernel's."""
    return _forward(call, columns, rows, state, ids, save=True)


def _saving_fwd(call, columns, rows, state, ids):
    results, states = cast(Any, _saving(call, columns, rows, state, ids))
    return (results, states), (columns, rows, state, ids, states)


def _saving_bwd(call, residuals, cotangents):
    return _kernel_bwd(call, residuals, cotangents[0])  # nothing flows back through the saved states, see below


_saving.defvjp(_saving_fwd, _saving_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gradients(call, columns, rows, state, cotangents, states, ids):
    """Gradients of columns, rows and state by the backward kernel, from the saved `states` before every chunk."""
    d_out, d_after = cotangents
    packed = _pack(call, columns, rows, d_after, ids)
    d_columns, d_rows, d_state = recurrence.backward(
        packed.layout, call.cell, packed.operands, states, packed.gather(d_out), call.interpret
    )
    return (
        tuple(packed.scatter(d, x) for d, x in zip(d_columns, columns)),
        packed.scatter_rows(d_rows, rows),
        packed.unpack_state(d_state),
    )


def _gradients_fwd(call, columns, rows, state, cotangents, states, ids):
    results = _gradients(call, columns, rows, state, cotangents, states, ids)
    return results, (columns, rows, state, cotangents, states, ids)


def _gradients_bwd(call, residuals, cotangents):
    """Second derivatives: those of the chunked form, as a function of the inputs alone."""
    columns, rows, state, outer, states, ids = residuals

    def gradients(columns, rows, state, outer):
        run = lambda columns, rows, state: call.cell.chunked(columns, rows, state, ids, call.num_segments)  # noqa: E731
        return jax.vjp(run, columns, rows, state)[1](outer)

    _, transpose = jax.vjp(gradients, columns, rows, state, outer)
    return *transpose(cotangents), jnp.zeros_like(states), None


_gradients.defvjp(_gradients_fwd, _gradients_bwd)
