"""`decode_step` as a Mosaic kernel for a TPU: a grid step updates and reads the states of some heads of one sequence.

States stay ``[B,S,H,K,V]``, K along sublanes. What a head is given along K comes as rows ``[n*heads,K]`` and is turned
in vector memory; as columns it would be padded to 128 lanes in HBM.
"""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from seqmodels.axes import Array
from seqmodels.ops.decode_step import kernel
from seqmodels.ops.decode_step.update import Token, update
from seqmodels.ops.pallas import grid
from seqmodels.ops.pallas.layout import LANES
from seqmodels.ops.pallas.run import like, refusal
from seqmodels.ops.pallas.tpu import VMEM_BYTES

BLOCK_BYTES = 2**20  # of states that a grid step holds, unless one head needs more
HEADS = 16  # at most in a grid step, which is unrolled over them


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
    need = 6 * _state_bytes(q.shape[2], v.shape[2])  # two blocks in, two out, and the values in between
    if reason is None and need > VMEM_BYTES:
        return (
            f"a state of K={q.shape[2]}, V={v.shape[2]} needs about {need / 2**20:.0f} MiB of vector memory, "
            f"the kernel allows {VMEM_BYTES >> 20}"
        )
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


def _state_bytes(K: int, V: int) -> int:
    return 4 * -(-K // 8) * 8 * -(-V // LANES) * LANES


def _heads_per_step(H: int, K: int, V: int) -> int:
    fits = (n for n in range(min(H, HEADS), 0, -1) if H % n == 0 and n * _state_bytes(K, V) <= BLOCK_BYTES)
    return next(fits, 1)


def _launch(call: kernel.Call, inputs: kernel.Inputs, route: Array | None) -> tuple[Array, Array]:
    B, H, V = inputs.v.shape
    K = inputs.q.shape[2]
    heads = _heads_per_step(H, K, V)
    blocks = H // heads
    decay = kernel.per_channel(inputs.log_decay, inputs)
    beta = None if inputs.beta is None else jnp.broadcast_to(inputs.beta[..., None], inputs.v.shape)
    rows = lambda *some: jnp.concatenate(  # noqa: E731  # [B,blocks,n*heads,size] float32
        [_repeat(x, H).reshape(B, blocks, heads, -1).astype(jnp.float32) for x in some if x is not None], axis=2
    )
    keys, values = rows(inputs.q, inputs.k, decay), rows(inputs.v, beta)
    block = lambda x: pl.BlockSpec((1, 1, *x.shape[2:]), lambda b, j, *_: (b, j, 0, 0))  # noqa: E731
    states = pl.BlockSpec((1, 1, heads, K, V), lambda b, j, *r: (b, r[0][b] >> 1 if r else 0, j, 0, 0))
    out = like(inputs.v, (B, blocks, heads, V), jnp.float32)
    prefetch = [] if route is None else [route]
    out, after = pl.pallas_call(
        functools.partial(_kernel, heads, decay is not None, beta is not None, call.scale, bool(prefetch)),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(prefetch),
            grid=(B, blocks),
            in_specs=[block(keys), block(values), states],
            out_specs=[block(out), states],
        ),
        out_shape=[out, like(inputs.state)],
        input_output_aliases={len(prefetch) + 2: 1},  # in place; a state that no token names keeps its bits
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        interpret=grid.interpreter(call.interpret),
        name="decode_step",
    )(*prefetch, keys, values, inputs.state)
    return out.reshape(B, H, V), after


def _repeat(x: Array, H: int) -> Array:
    return jnp.repeat(x, H // x.shape[1], axis=1)


def _kernel(heads: int, has_decay: bool, has_beta: bool, scale: float, routed: bool, *refs: Any) -> None:
    route, (keys, values, state, out, state_out) = refs[0] if routed else None, refs[routed:]

    def step():
        columns, rows = jnp.transpose(keys[0, 0]), values[0, 0]
        outs = []
        for h in range(heads):
            column = lambda i, h=h: columns[:, i * heads + h : i * heads + h + 1]  # noqa: E731
            row = lambda i, h=h: rows[i * heads + h : i * heads + h + 1]  # noqa: E731
            token = Token(column(0), column(1), row(0), row(1) if has_beta else None, column(2) if has_decay else None)
            result, state_out[0, 0, h] = update(state[0, 0, h], token, scale)
            outs.append(result)
        out[0, 0] = jnp.concatenate(outs, axis=0)

    if route is None:
        step()
        return
    real = (route[pl.program_id(0)] & 1) != 0
    pl.when(real)(step)

    @pl.when(~real)
    def _():
        out[...] = jnp.zeros(out.shape, out.dtype)
        state_out[...] = state[...]
