"""Linear attention as Triton kernels for a GPU: choice of the cell, refusals. See ``docs/kernels.md``."""

from __future__ import annotations

from seqmodels.axes import Array
from seqmodels.ops.linear_attention.cell import LinearCell
from seqmodels.ops.pallas import gpu
from seqmodels.ops.pallas import run as pallas_run


def supports(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array | None,
    state: Array,
    segment_ids: Array | None,
    *,
    scale: float,
    num_segments: int | None,
    chunk_size: int | None,
) -> str | None:
    """The reason for refusing a call, or ``None``."""
    return gpu.supports(q, k, v, log_decay, chunk_size)


def run(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array | None,
    state: Array,
    segment_ids: Array | None,
    *,
    scale: float,
    num_segments: int | None,
    chunk_size: int | None,
) -> tuple[Array, Array]:
    """See `linear_attention`."""
    dtype = pallas_run.operand_dtype(q, k, v)
    columns, rows, kind = pallas_run.place_decay((q, k, v), log_decay)
    cell = LinearCell(float(scale), dtype, kind, gpu.BACKEND.chip)
    return pallas_run.run(gpu.BACKEND, cell, columns, rows, state, segment_ids, num_segments, chunk_size)
