"""`decode_step` as a Triton kernel for a GPU: a program updates and reads some columns of one head's state."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from seqmodels.axes import Array
from seqmodels.ops.decode_step import kernel
from seqmodels.ops.decode_step.update import Token, update
from seqmodels.ops.pallas import gpu
from seqmodels.ops.pallas.run import like, refusal

BLOCK_STATES = 2**13  # elements of the state that a program holds in registers, unless 16 columns are more


def supports(
    q: Array,
    k: Array,
    v: Array,
    beta: Array | None,
    log_decay: Array | None,
    state: Array,
    segment_ids: Array | None,
    *,
    scale: float,
    num_segments: int | None,
) -> str | None:
    """The reason for refusing a call, or ``None``."""
    reason = refusal(q, k, v, None)
    if reason is None and q.shape[2] > gpu.WIDEST:
        return f"K={q.shape[2]}, a GPU kernel holds {gpu.WIDEST} key channels at most"
    return reason


def run(
    q: Array,
    k: Array,
    v: Array,
    beta: Array | None,
    log_decay: Array | None,
    state: Array,
    segment_ids: Array | None,
    *,
    scale: float,
    num_segments: int | None,
) -> tuple[Array, Array]:
    """See `decode_step`."""
    inputs = kernel.Inputs(q, k, v, beta, log_decay, state)
    return kernel.run(_launch, inputs, segment_ids, scale, num_segments)


def _launch(call: kernel.Call, inputs: kernel.Inputs, route: Array | None) -> tuple[Array, Array]:
    B, H, V = inputs.v.shape
    width = max(16, min(gpu.block_size(V), BLOCK_STATES // gpu.block_size(inputs.q.shape[2])))
    decay = kernel.per_channel(inputs.log_decay, inputs)
    present = (inputs.beta is not None, decay is not None, route is not None)
    given = [x for x in (inputs.q, inputs.k, inputs.v, inputs.beta, decay, route) if x is not None]
    out, after = pl.pallas_call(
        functools.partial(_kernel, width, present, call.scale),
        grid=(-(-V // width), H, B),
        out_shape=[like(inputs.v), like(inputs.state)],
        input_output_aliases={len(given): 1},  # in place; a state that no token names keeps its bits
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=1),
        interpret=call.interpret is not None,
        name="decode_step",
    )(*given, inputs.state)
    return out, after


def _kernel(width: int, present: tuple[bool, bool, bool], scale: float, *refs: Any) -> None:
    q, k, v, *optional = refs[: 3 + sum(present)]
    state, out, state_out = refs[3 + sum(present) :]
    beta, decay, route = (optional.pop(0) if there else None for there in present)
    block, h, b = (pl.program_id(axis) for axis in range(3))
    (K, V), (_, H, _) = state.shape[3:], v.shape
    rows = jax.lax.broadcasted_iota(jnp.int32, (gpu.block_size(K), 1), 0)
    columns = block * width + jax.lax.broadcasted_iota(jnp.int32, (1, width), 1)
    in_rows, in_columns = rows < K, columns < V

    word = None if route is None else route[b]
    slot, real = (0, True) if word is None else (word >> 1, (word & 1) != 0)
    load = lambda at, mask: gpu.masked_load(at, mask & real).astype(jnp.float32)  # noqa: E731  # padding may hold a NaN
    head = h * q.shape[1] // H
    token = Token(
        load(q.at[b, head, rows], in_rows),
        load(k.at[b, head, rows], in_rows),
        load(v.at[b, h, columns], in_columns),
        None if beta is None else beta[b, h].astype(jnp.float32),
        None if decay is None else load(decay.at[b, h, rows], in_rows),
    )
    place = (b, slot, h, rows, columns)
    exists = in_rows & in_columns & real
    result, after = update(gpu.masked_load(state.at[place], exists), token, scale)
    plgpu.store(out.at[b, h, columns], jnp.where(real, result, 0.0).astype(out.dtype), mask=in_columns)
    plgpu.store(state_out.at[place], after, mask=exists)
