"""The selective scan as Mosaic kernels for a TPU: choice of the cell, refusals. See ``docs/kernels.md``."""

from __future__ import annotations

import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops.pallas import channel_run
from seqmodels.ops.selective_scan.cell import SelectiveCell


def supports(
    x: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array | None,
    z: Array | None,
    delta_bias: Array | None,
    state: Array,
    segment_ids: Array | None,
    *,
    softplus: bool,
    num_segments: int | None,
    chunk_size: int | None,
) -> str | None:
    """The reason for refusing a call, or ``None``."""
    columns = {"x": x, "dt": dt} if z is None else {"x": x, "dt": dt, "z": z}
    return channel_run.refusal(columns, state, B.shape[2], chunk_size)


def run(
    x: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array | None,
    z: Array | None,
    delta_bias: Array | None,
    state: Array,
    segment_ids: Array | None,
    *,
    softplus: bool,
    num_segments: int | None,
    chunk_size: int | None,
) -> tuple[Array, Array]:
    """As the op, with B and C ``[B,T,G,N]`` and a state; outputs in the dtype of `x`."""
    cell = SelectiveCell(D is not None, z is not None, delta_bias is not None, softplus)
    columns = (x, dt) if z is None else (x, dt, z)
    vectors = (A.T, *(row[None] for row in (D, delta_bias) if row is not None))
    inputs = channel_run.Inputs(columns, (B, C), vectors, state.astype(jnp.float32))
    (y,), after = channel_run.run(cell, inputs, segment_ids, num_segments, chunk_size)
    return y, after
