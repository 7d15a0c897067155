"""The delta rule as Mosaic kernels for a TPU: layout, choice of the cell, refusals. See ``docs/kernels.md``."""

from __future__ import annotations

from seqmodels.axes import Array
from seqmodels.ops.delta_rule.cell import DeltaCell
from seqmodels.ops.pallas import run as pallas_run
from seqmodels.ops.pallas import tpu


def supports(
    q: Array,
    k: Array,
    v: Array,
    beta: Array,
    log_decay: Array | None,
    state: Array,
    segment_ids: Array | None,
    *,
    scale: float,
    num_segments: int | None,
    chunk_size: int | None,
) -> str | None:
    """The reason for refusing a call, or ``None``."""
    return tpu.supports(q, k, v, log_decay, chunk_size)


def run(
    q: Array,
    k: Array,
    v: Array,
    beta: Array,
    log_decay: Array | None,
    state: Array,
    segment_ids: Array | None,
    *,
    scale: float,
    num_segments: int | None,
    chunk_size: int | None,
) -> tuple[Array, Array]:
    """See `delta_rule`."""
    dtype = pallas_run.operand_dtype(q, k, v)
    columns, rows, kind = pallas_run.place_decay((q, k, v), log_decay)
    cell = DeltaCell(float(scale), dtype, kind, tpu.BACKEND.chip)
    return pallas_run.run(tpu.BACKEND, cell, columns, (beta, *rows), state, segment_ids, num_segments, chunk_size)
