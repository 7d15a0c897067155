"""The TPU's backend: arrays in `Layout`, the walk of `recurrence`, and what fits into vector memory."""

from __future__ import annotations

from seqmodels.axes import Array
from seqmodels.ops.pallas import recurrence
from seqmodels.ops.pallas.chip import TPU
from seqmodels.ops.pallas.layout import Layout, head_blocks
from seqmodels.ops.pallas.marks import chunk_length, document_marks
from seqmodels.ops.pallas.recurrence import Operands
from seqmodels.ops.pallas.run import Backend, Call, Tokens, refusal, same_axes

VMEM_BYTES = 12 * 2**20  # of the 16 MiB that the smallest supported core (v4) has; the rest is the compiler's


def supports(q: Array, k: Array, v: Array, log_decay: Array | None, chunk_size: int | None) -> str | None:
    """Why the kernels cannot take a call, or ``None``."""
    reason = refusal(q, k, v, chunk_size)
    if reason:
        return reason
    columns = (q, k, v) if log_decay is None or log_decay.ndim < 4 else (q, k, v, log_decay)
    layout = _layout(columns, _chunk_length(columns, chunk_size), 1, masked=True)
    need = _vmem_bytes(columns, layout.C)
    if need > VMEM_BYTES:
        return (
            f"blocks of {layout.heads} heads with K={layout.K}, V={layout.V} and {layout.C} tokens need about "
            f"{need / 2**20:.0f} MiB of vector memory, the kernel allows {VMEM_BYTES >> 20}"
        )
    return None


def _chunk_length(columns: tuple[Array, ...], chunk_size: int | None) -> int:
    """By default the longest chunk of 256 (wide heads without vector decays), 128 or 64 tokens that fits."""
    q, _, v, *gates = columns
    if chunk_size is None:
        sizes = (256, 128, 64) if max(q.shape[3], v.shape[3]) > 128 and not gates else (128, 64)
        fits = (size for size in sizes if _vmem_bytes(columns, chunk_length(q.shape[1], size)) <= VMEM_BYTES)
        chunk_size = next(fits, sizes[-1])
    return chunk_length(q.shape[1], chunk_size)


def _vmem_bytes(columns: tuple[Array, ...], C: int) -> int:
    return _layout(columns, C, 1, masked=True).vmem_bytes(len(columns) > 3)


def _layout(columns: tuple[Array, ...], C: int, slots: int, masked: bool) -> Layout:
    q, _, v, *gates = columns
    B, T, Hk, K = q.shape
    H, V = v.shape[2:]
    keys, heads = head_blocks(Hk, H, K, V, bool(gates))
    return Layout(B, T, Hk, H, K, V, C, slots, keys, heads, masked or T % C != 0)


def _pack(C: int, tokens: Tokens, state: Array) -> tuple[Layout, Operands]:
    layout = _layout(tokens.columns, C, state.shape[1], masked=tokens.ids is not None)
    operands = Operands(
        tuple(layout.merge(x) for x in tokens.columns),
        layout.pack_rows(*tokens.rows) if tokens.rows else None,
        document_marks(tokens.ids, layout.B, layout.T, C) if layout.masked else None,
        tokens.route,
        layout.pack_state(state),
    )
    return layout, same_axes(operands)


def _forward(call: Call, C: int, tokens: Tokens, state: Array, save: bool):
    layout, operands = _pack(C, tokens, state)
    out, after, states = recurrence.forward(layout, call.cell, operands, save, call.interpret)
    return out.reshape(tokens.columns[2].shape), layout.unpack_state(after), states


def _backward(call: Call, C: int, tokens: Tokens, states: Array, d_out: Array, d_state: Array):
    layout, operands = _pack(C, tokens, d_state)
    d_columns, d_rows, d_state = recurrence.backward(
        layout, call.cell, operands, states, layout.merge(d_out), call.interpret
    )
    d_rows = () if d_rows is None else layout.unpack_rows(d_rows)
    return (
        tuple(d.reshape(x.shape) for d, x in zip(d_columns, tokens.columns)),
        tuple(d.astype(x.dtype) for d, x in zip(d_rows, tokens.rows)),
        layout.unpack_state(d_state),
    )


BACKEND = Backend(TPU, _chunk_length, _forward, _backward)
