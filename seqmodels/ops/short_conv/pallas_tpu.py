"""The short convolution with its bias and activation as Mosaic kernels for a TPU. See ``docs/kernels.md``."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops.pallas import channel_run
from seqmodels.ops.short_conv.cell import ConvCell


def supports(
    x: Array,
    weight: Array,
    bias: Array | None,
    state: Array,
    segment_ids: Array | None,
    resets: Array | None,
    *,
    activation: str | None,
    num_segments: int | None,
) -> str | None:
    """The reason for refusing a call, or ``None``."""
    if weight.shape[0] == 1:
        return "a convolution of width W=1 carries no state, a TPU kernel takes W from 2"
    carried = jax.ShapeDtypeStruct((*state.shape[:-2], state.shape[-1], state.shape[-2]), state.dtype)
    return channel_run.refusal({"x": x}, carried, 1, None)


def run(
    x: Array,
    weight: Array,
    bias: Array | None,
    state: Array,
    segment_ids: Array | None,
    resets: Array | None,
    *,
    activation: str | None,
    num_segments: int | None,
) -> tuple[Array, Array]:
    """As the op, with a state; outputs in the dtype of `x`."""
    cell = ConvCell(weight.shape[0], bias is not None, activation)
    vectors = (weight,) if bias is None else (weight, bias[None])
    inputs = channel_run.Inputs((x,), (), vectors, jnp.swapaxes(state, -1, -2))
    (y,), after = channel_run.run(cell, inputs, segment_ids, num_segments, None, resets)
    return y, jnp.swapaxes(after, -1, -2)
