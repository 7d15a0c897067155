"""The selective scan as Triton kernels for a GPU: choice of blocks, the three steps, refusals. See ``docs/kernels.md``.

A first kernel reduces every chunk to what it multiplies a state by and what it adds, all chunks at once; a second one
walks these few numbers to the state before every chunk; a third computes the outputs of all chunks from there.
Backward likewise, from the last chunk to the first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from seqmodels.axes import Array
from seqmodels.ops import dispatch, segments
from seqmodels.ops.dispatch import Interpretation
from seqmodels.ops.pallas.gradient import differentiable
from seqmodels.ops.pallas.marks import chunk_routes
from seqmodels.ops.pallas.run import like, same_axes
from seqmodels.ops.selective_scan import chunked, gpu_kernels
from seqmodels.ops.selective_scan.gpu_kernels import SUB, Operands, Sizes

CHUNK = 32  # tokens
WIDEST = 64  # states of a channel, all of which a thread holds


class Inputs(NamedTuple):
    """The arrays that have gradients; B and C are ``[B,T,G,N]``, `state` is float32."""

    x: Array
    dt: Array
    A: Array
    B: Array
    C: Array
    D: Array | None
    z: Array | None
    delta_bias: Array | None
    state: Array


class Call(NamedTuple):
    """What is static about a call."""

    softplus: bool
    num_segments: int | None
    size: int  # tokens of a chunk
    interpret: Interpretation | None


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
    for name, value in (("x", x), ("dt", dt), ("z", z)):
        if value is not None and value.dtype not in (jnp.float32, jnp.bfloat16):
            return f"{name} has dtype {value.dtype}, a GPU kernel takes float32 and bfloat16"
    if x.size == 0 or state.size == 0:
        return f"x has shape {x.shape} and the state {state.shape}, a GPU kernel takes no empty axis"
    if x.shape[1] == 1:
        return "T=1, a GPU kernel has nothing to share out over time"
    if A.shape[1] > WIDEST:
        return f"N={A.shape[1]}, a GPU kernel holds {WIDEST} states of a channel at most"
    if chunk_size is not None and (chunk_size < SUB or chunk_size > 128 or chunk_size & (chunk_size - 1)):
        return f"chunk_size={chunk_size}, a GPU kernel takes powers of two from {SUB} to 128"
    if jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        return "64-bit mode (jax_enable_x64) is on, a GPU kernel takes 32-bit indices"
    return None


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
    inputs, ids = same_axes((Inputs(x, dt, A, B, C, D, z, delta_bias, state.astype(jnp.float32)), segment_ids))
    size = min(chunk_size or CHUNK, max(SUB, 1 << (x.shape[1] - 1).bit_length()))
    return _kernel(Call(softplus, num_segments, size, dispatch.interpretation()), inputs, ids)


class _Order(NamedTuple):
    """The order of tokens in a call's kernels, and their arrays in it."""

    sizes: Sizes
    operands: Operands
    words: Array | None  # [B,chunks], see `marks.chunk_routes`
    regrouped: segments.Regrouped | None

    def gather(self, x: Array) -> Array:
        """``[B,T,...]`` in the kernels' order."""
        return x if self.regrouped is None else self.regrouped.gather(x)

    def scatter(self, x: Array) -> Array:
        """The inverse of `gather`."""
        return x if self.regrouped is None else self.regrouped.scatter(x)


def _order(call: Call, inputs: Inputs, ids: Array | None) -> _Order:
    columns = [inputs.x, inputs.dt, inputs.B, inputs.C, *([] if inputs.z is None else [inputs.z])]
    words = regrouped = marks = None
    if call.num_segments is not None:
        assert ids is not None  # checked by the op
        regrouped = segments.regroup(ids, call.num_segments, call.size)
        words = chunk_routes(regrouped, call.num_segments).reshape(ids.shape[0], -1)
        columns, marks = [regrouped.gather(column) for column in columns], regrouped.ids
    elif ids is not None:
        marks = (ids != 0) * (1 + segments.starts(ids).astype(jnp.int32))
    x, dt, B, C, *z = columns
    wide = lambda row: None if row is None else row.astype(jnp.float32)  # noqa: E731
    vectors = {"D": wide(inputs.D), "delta_bias": wide(inputs.delta_bias)}
    A, z = inputs.A.astype(jnp.float32).T, z[0] if z else None
    operands = Operands(x=x, dt=dt, A=A, B=B, C=C, z=z, **vectors, marks=marks)
    sizes = Sizes(x.shape[1], call.size, x.shape[2], inputs.A.shape[1], B.shape[2], call.softplus)
    return _Order(sizes, same_axes(operands), None if words is None else same_axes((words, x))[0], regrouped)


def _launch(
    kernel: Callable[..., None],
    call: Call,
    sizes: Sizes,
    grid: tuple[int, ...],
    inputs: Any,
    outs: Sequence[jax.ShapeDtypeStruct],
    aliases: dict[int, int] | None = None,
) -> Sequence[Array]:
    return pl.pallas_call(
        functools.partial(kernel, sizes, jax.tree.structure(inputs)),
        grid=grid,
        out_shape=list(outs),
        input_output_aliases=aliases or {},
        compiler_params=plgpu.CompilerParams(num_warps=sizes.block // 32, num_stages=2),
        interpret=call.interpret is not None,
        name=f"selective_scan_{getattr(kernel, 'func', kernel).__name__}",
    )(*jax.tree.leaves(inputs))


def _walk(
    call: Call, order: _Order, state: Array, kernel: Callable[..., None], inputs: Any, *, reverse: bool
) -> tuple[Array, Array]:
    """States ``[B,chunks,N,D]`` before every chunk on the way, and the last ones ``[B,S,N,D]``."""
    sizes, x = order.sizes, order.operands.x
    borders = like(state, (x.shape[0], sizes.chunks, sizes.N, sizes.D))
    factor, added = _launch(kernel, call, sizes, sizes.grid(x.shape[0]), inputs, [borders, borders])
    given = (factor, added, state, *(() if order.words is None else (order.words,)))
    walk = functools.partial(gpu_kernels.walk, reverse=reverse)
    grid = (sizes.blocks, x.shape[0])
    before, after = _launch(walk, call, sizes, grid, given, [borders, like(state)], {2: 1})
    return before, after


def _states(order: _Order, state: Array) -> Array:
    """``[B,D,N]`` or ``[B,S,D,N]`` as ``[B,S,N,D]``."""
    return (state[:, None] if order.regrouped is None else state).swapaxes(-1, -2)


def _state(order: _Order, states: Array) -> Array:
    """The inverse of `_states`."""
    return (states[:, 0] if order.regrouped is None else states).swapaxes(-1, -2)


def _forward(call: Call, inputs: Inputs, ids: Array | None, save: bool):
    order = _order(call, inputs, ids)
    x = order.operands.x
    before, after = _walk(
        call, order, _states(order, inputs.state), gpu_kernels.chunks, (order.operands,), reverse=False
    )
    given = (order.operands, before)
    (y,) = _launch(gpu_kernels.outputs, call, order.sizes, order.sizes.grid(x.shape[0]), given, [like(x)])
    return (order.scatter(y), _state(order, after)), before if save else None


def _backward(call: Call, inputs: Inputs, ids: Array | None, before: Array, cotangents: tuple[Array, Array]) -> Inputs:
    order = _order(call, inputs, ids)
    sizes, operands, dy = order.sizes, order.operands, order.gather(cotangents[0])
    d_states, d_first = _walk(
        call, order, _states(order, cotangents[1]), gpu_kernels.d_chunks, (operands, dy), reverse=True
    )
    x, batch = operands.x, operands.x.shape[0]
    rows = like(before, (batch, sizes.T, sizes.G, sizes.blocks // sizes.G, sizes.N))
    sums = like(before, (batch, sizes.chunks, sizes.D))
    outs = {"x": like(x), "dt": like(operands.dt), "A": like(before), "B": rows, "C": rows}
    outs |= {} if operands.z is None else {"z": like(operands.z)}
    outs |= {} if operands.D is None else {"D": sums}
    outs |= {} if operands.delta_bias is None else {"delta_bias": sums}
    arguments = (operands, dy, before, d_states)
    kernel = functools.partial(gpu_kernels.gradients, names=tuple(outs))
    results = _launch(kernel, call, sizes, sizes.grid(batch), arguments, list(outs.values()))
    found = dict(zip(outs, results, strict=True))
    for name in found.keys() & {"x", "dt", "z", "B", "C"}:
        total = found[name].sum(axis=3) if name in "BC" else found[name]
        found[name] = order.scatter(total)
    found["A"] = found["A"].sum(axis=(0, 1)).T
    for name in found.keys() & {"D", "delta_bias"}:
        found[name] = found[name].sum(axis=(0, 1))
    found["state"] = _state(order, d_first)
    given = inputs._asdict()
    return Inputs._make(None if x is None else found[name].astype(x.dtype) for name, x in given.items())


def _plain(call: Call, inputs: Inputs, ids: Array | None):
    return chunked.run(*inputs, ids, softplus=call.softplus, num_segments=call.num_segments, chunk_size=None)


_kernel = differentiable(_forward, _backward, _plain)
