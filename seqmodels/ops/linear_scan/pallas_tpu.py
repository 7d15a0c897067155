"""The elementwise recurrence as Mosaic kernels for a TPU, real and complex. See ``docs/kernels.md``."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops.linear_scan.cell import ComplexCell, RealCell
from seqmodels.ops.pallas import channel_run


def supports(
    a: Array,
    b: Array,
    state: Array,
    segment_ids: Array | None,
    *,
    num_segments: int | None,
    chunk_size: int | None,
) -> str | None:
    """The reason for refusing a call, or ``None``."""
    flat = lambda x: jax.ShapeDtypeStruct((*x.shape[:2], math.prod(x.shape[2:])), x.dtype)  # noqa: E731
    columns = {"a": flat(a), "b": flat(b)}
    rows = 1
    if jnp.iscomplexobj(a) or jnp.iscomplexobj(b):
        wide = [name for name, x in columns.items() if x.dtype not in (jnp.complex64, jnp.float32)]
        if wide:
            return f"{wide[0]} has dtype {columns[wide[0]].dtype}, a complex TPU kernel takes complex64 and float32"
        parts = jax.ShapeDtypeStruct(columns["b"].shape, jnp.float32)
        columns, rows = {"a": parts, "a.imag": parts, "b": parts, "b.imag": parts}, 2
    return channel_run.refusal(columns, jax.ShapeDtypeStruct((*state.shape, rows), jnp.float32), 1, chunk_size)


def run(
    a: Array,
    b: Array,
    state: Array,
    segment_ids: Array | None,
    *,
    num_segments: int | None,
    chunk_size: int | None,
) -> tuple[Array, Array]:
    """As the op, with a state and `a` of the shape of `b`; `h` in the dtype of `b`, complex when one of them is."""
    flat = lambda x, lead: x.reshape(*x.shape[:lead], -1)  # noqa: E731
    lead = 1 if num_segments is None else 2
    rows, complex_ = flat(state, lead), jnp.iscomplexobj(a) or jnp.iscomplexobj(b)
    planes = (lambda x: (x.real, x.imag)) if complex_ else (lambda x: (x,))
    columns = tuple(plane for x in (a, b) for plane in planes(flat(x, 2)))
    inputs = channel_run.Inputs(columns, (), (), jnp.stack(planes(rows), axis=-1))
    cell = ComplexCell() if complex_ else RealCell()
    h, after = channel_run.run(cell, inputs, segment_ids, num_segments, chunk_size)
    join = (lambda parts: jax.lax.complex(*parts)) if complex_ else (lambda parts: parts[0])
    return join(h).reshape(b.shape), join(jnp.moveaxis(after, -1, 0)).reshape(state.shape)
