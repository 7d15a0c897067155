"""Linear attention as Mosaic kernels for a TPU: layout, choice of the cell, refusals. See ``docs/kernels.md``."""

from __future__ import annotations

import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops.linear_attention.cell import ScalarCell, VectorCell
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
    return pallas_run.refusal(q, k, v, chunk_size, gates=_per_key(log_decay))


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
    rest = state, segment_ids, num_segments, chunk_size
    dtype = pallas_run.operand_dtype(q, k, v)
    if log_decay is not None and _per_key(log_decay):
        return pallas_run.run(VectorCell(float(scale), dtype), (q, k, v, log_decay), (), *rest)
    rows = () if log_decay is None else (jnp.broadcast_to(log_decay, v.shape[:3]),)
    return pallas_run.run(ScalarCell(float(scale), dtype, len(rows)), (q, k, v), rows, *rest)


def _per_key(log_decay: Array | None) -> bool:
    return log_decay is not None and log_decay.ndim == 4
