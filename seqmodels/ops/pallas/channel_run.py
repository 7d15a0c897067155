"""From the arguments of a channelwise op to the kernels and back: layout, regrouping, gradients, refusals."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops import dispatch, segments
from seqmodels.ops.dispatch import Interpretation
from seqmodels.ops.pallas import channels
from seqmodels.ops.pallas.channel_layout import CHUNK, TILE, Layout, channel_blocks
from seqmodels.ops.pallas.channels import Membership, Operands
from seqmodels.ops.pallas.gradient import differentiable
from seqmodels.ops.pallas.layout import LANES
from seqmodels.ops.pallas.marks import chunk_length, chunk_routes
from seqmodels.ops.pallas.run import same_axes
from seqmodels.ops.pallas.tpu import VMEM_BYTES


class Inputs(NamedTuple):
    """What a cell of `channels` works on, as the op has it."""

    columns: tuple[Array, ...]  # [B,T,D]
    shared: tuple[Array, ...]  # [B,T,G,N]
    vectors: tuple[Array, ...]  # [r,D]
    state: Array  # [B,D,R] or [B,S,D,R] float32


class Call(NamedTuple):
    """What is static about a call."""

    cell: Any  # see `channels`
    num_segments: int | None
    chunk_size: int | None
    interpret: Interpretation | None


def refusal(columns: Mapping[str, Any], state: Any, groups: int, chunk_size: int | None) -> str | None:
    """Why the kernels cannot take a call with these columns by name and this state ``[...,D,R]``, or ``None``."""
    for name, x in columns.items():
        if x.dtype not in (jnp.float32, jnp.bfloat16):
            return f"{name} has dtype {x.dtype}, a TPU kernel takes float32 and bfloat16"
        if x.size == 0:
            return f"{name} has shape {x.shape}, a TPU kernel takes no empty axis"
    if state.size == 0:
        return f"state has shape {state.shape}, a TPU kernel takes no empty axis"
    if chunk_size is not None and (chunk_size < TILE or chunk_size & (chunk_size - 1)):
        return f"chunk_size={chunk_size}, a TPU kernel takes powers of two from {TILE}"
    if jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        return "64-bit mode (jax_enable_x64) is on, a TPU kernel takes 32-bit indices"
    x = next(iter(columns.values()))
    if groups > 1 and x.shape[2] // groups % LANES:
        return f"groups of {x.shape[2] // groups} channels do not fill tiles of {LANES} lanes"
    layout = _layout(x, groups, state.shape[-1], chunk_size, 1, independent=False, masked=True)
    need = layout.vmem_bytes(2 * len(columns) + 2)
    if need > VMEM_BYTES:
        return (
            f"blocks of {layout.width} channels with {layout.R} states and {layout.C} tokens need about "
            f"{need / 2**20:.0f} MiB of vector memory, the kernel allows {VMEM_BYTES >> 20}"
        )
    return None


def run(
    cell: Any,
    inputs: Inputs,
    segment_ids: Array | None,
    num_segments: int | None,
    chunk_size: int | None,
    resets: Array | None = None,
) -> tuple[tuple[Array, ...], Array]:
    """Outputs ``[B,T,D]`` and the state of the recurrence that `cell` defines."""
    inputs, membership = same_axes((inputs, Membership(segment_ids, resets)))
    return _kernel(Call(cell, num_segments, chunk_size, dispatch.interpretation()), inputs, membership)


def _layout(
    x: Array, groups: int, R: int, chunk_size: int | None, slots: int, *, independent: bool, masked: bool
) -> Layout:
    B, T, D = x.shape
    C = chunk_length(T, chunk_size or CHUNK)
    parts, blocks = channel_blocks(D, groups, R, independent)
    return Layout(B, T, D, R, C, slots, groups, parts, blocks, masked or T % C != 0)


class _Packed(NamedTuple):
    """The arguments of a call as the kernels want them."""

    layout: Layout
    operands: Operands
    regrouped: segments.Regrouped | None

    def gather(self, x: Array) -> Array:
        """``[B,T,...]`` in the kernel's order of tokens."""
        return x if self.regrouped is None else self.regrouped.gather(x)

    def scatter(self, x: Array) -> Array:
        """The inverse of `gather`."""
        return x if self.regrouped is None else self.regrouped.scatter(x)

    def unpack_state(self, packed: Array) -> Array:
        state = self.layout.unpack_state(packed)
        return state[:, 0] if self.regrouped is None else state


def _pack(call: Call, inputs: Inputs, state: Array, membership: Membership) -> _Packed:
    ids, resets = membership
    columns, shared, vectors, _ = inputs
    groups = shared[0].shape[2] if shared else 1
    size = functools.partial(_layout, groups=groups, R=state.shape[-1], independent=not shared)
    route = regrouped = None
    if call.num_segments is not None:
        assert ids is not None  # checked by the op
        C = size(columns[0], chunk_size=call.chunk_size, slots=1, masked=True).C
        regrouped = segments.regroup(ids, call.num_segments, C)
        route, ids = chunk_routes(regrouped, call.num_segments), regrouped.ids
        columns, shared = (tuple(map(regrouped.gather, group)) for group in (columns, shared))
        resets = None if resets is None else regrouped.gather(resets)
        layout = size(columns[0], chunk_size=C, slots=call.num_segments, masked=True)
    else:
        layout = size(columns[0], chunk_size=call.chunk_size, slots=1, masked=ids is not None)
        state = state[:, None]
    operands = Operands(
        columns,
        tuple(map(layout.pack_shared, shared)),
        tuple(row.astype(jnp.float32) for row in vectors),
        layout.marks(ids, resets) if layout.masked else None,
        route,
        layout.pack_state(state),
    )
    return _Packed(layout, same_axes(operands), regrouped)


def _forward(call: Call, inputs: Inputs, ids: Membership, save: bool):
    packed = _pack(call, inputs, inputs.state, ids)
    outs, after, states = channels.forward(packed.layout, call.cell, packed.operands, save, call.interpret)
    return (tuple(map(packed.scatter, outs)), packed.unpack_state(after)), states


def _backward(call: Call, inputs: Inputs, ids: Membership, states: Array, cotangents: Any) -> Inputs:
    d_outs, d_after = cotangents
    packed = _pack(call, inputs, d_after, ids)
    columns, shared, vectors, d_state = channels.backward(
        packed.layout, call.cell, packed.operands, states, tuple(map(packed.gather, d_outs)), call.interpret
    )
    cast_to = lambda found, like: found.astype(like.dtype)  # noqa: E731
    return Inputs(
        tuple(map(packed.scatter, columns)),
        tuple(cast_to(packed.scatter(packed.layout.unpack_shared(d)), x) for d, x in zip(shared, inputs.shared)),
        tuple(cast_to(d.sum(axis=0), x) for d, x in zip(vectors, inputs.vectors)),
        packed.unpack_state(d_state),
    )


def _chunked(call: Call, inputs: Inputs, ids: Membership):
    return call.cell.chunked(inputs, ids, call.num_segments)


_kernel = differentiable(_forward, _backward, _chunked)
