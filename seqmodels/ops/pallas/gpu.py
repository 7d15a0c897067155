"""The GPU's backend: Triton kernels around the same cells as on a TPU, in two steps each way.

A GPU has no sequential grid, and a hundred cores to fill. So a first kernel walks the chunks of a sequence, a block of
the state's columns in registers, and writes only the state before every chunk; a second one computes the outputs of all
chunks at once. Backward likewise: the gradients of the states, chunk by chunk from the end, then those of the inputs.
All kernels call the op's whole cell; what they do not use of it, the compiler drops. Columns of the state are
independent of each other, and gradients of what they share (keys, decays) add up over blocks of them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from seqmodels.axes import Array
from seqmodels.ops.pallas.algebra import chunk_marks, where
from seqmodels.ops.pallas.chip import GPU
from seqmodels.ops.pallas.marks import chunk_length, document_marks
from seqmodels.ops.pallas.run import Backend, Call, Tokens, like, refusal

WIDEST = 256  # key channels that a program holds at once
BLOCK = 64  # columns of the state in a program


def supports(q: Array, k: Array, v: Array, log_decay: Array | None, chunk_size: int | None) -> str | None:
    """Why the kernels cannot take a call, or ``None``."""
    reason = refusal(q, k, v, chunk_size)
    if reason:
        return reason
    if q.shape[3] > WIDEST:
        return f"K={q.shape[3]}, a GPU kernel holds {WIDEST} key channels at most"
    if chunk_size is not None and chunk_size > 128:
        return f"chunk_size={chunk_size}, a GPU kernel takes 128 at most"
    return None


def _chunk_length(columns: tuple[Array, ...], chunk_size: int | None) -> int:
    narrow = all(x.dtype == jnp.bfloat16 for x in columns[:3])
    return chunk_length(columns[0].shape[1], chunk_size or (64 if narrow else 32))


def block_size(size: int) -> int:
    """The power of two, at least 16 (the smallest side of a matrix product), that holds `size` channels."""
    return max(16, 1 << (size - 1).bit_length())


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Static sizes of a call's kernels."""

    T: int
    C: int
    Hk: int
    H: int
    K: int
    V: int
    masked: bool  # there are marks: documents, padding, or a ragged end
    routed: bool  # chunks belong to segments

    @property
    def chunks(self) -> int:
        return -(-self.T // self.C)

    @property
    def block_v(self) -> int:
        return min(BLOCK, block_size(self.V))

    @property
    def blocks_v(self) -> int:
        return -(-self.V // self.block_v)


class _Refs:
    """The references that all kernels read: inputs, marks and words; and how to load and store one head's share."""

    def __init__(self, sizes: Sizes, cell: Any, refs: Sequence[Any], b: Any, h: Any):
        refs = list(refs)
        self.sizes, self.kinds, self.b, self.h = sizes, cell.kinds, b, h
        self.columns = [refs.pop(0) for _ in cell.kinds]
        self.rows = [refs.pop(0) for _ in range(cell.rows)]
        self.marks = refs.pop(0) if sizes.masked else None
        self.words: Any = refs.pop(0) if sizes.routed else None
        self.rest = refs

    def channels(self, kind: str, v: Any, axis: int) -> tuple[Array, Array | None]:
        """Channels of a head, or of block `v` of its values, along an axis of a matrix, and which of them exist."""
        size, width = (
            (self.sizes.V, self.sizes.block_v) if kind == "value" else (self.sizes.K, block_size(self.sizes.K))
        )
        shape = (width, 1) if axis == 0 else (1, width)
        at = jax.lax.broadcasted_iota(jnp.int32, shape, axis) + (v * width if kind == "value" else 0)
        return at, at < size if size % width else None

    def tokens(self, n: Any, axis: int | None = None) -> tuple[Array, Array | None]:
        """Positions of a chunk's tokens, ``[C]`` or along an axis of a matrix, and which of them exist."""
        C, T = self.sizes.C, self.sizes.T
        shape = {None: (C,), 0: (C, 1), 1: (1, C)}[axis]
        at = n * C + jax.lax.broadcasted_iota(jnp.int32, shape, axis or 0)
        return at, at < T if T % C else None

    def tile(self, ref: Any, kind: str, head: Any, n: Any, v: Any) -> tuple[Any, Array | None]:
        """A head's ``[C,channels]`` of a chunk in an array ``[B,T,heads,size]``, and what of it exists."""
        tokens, in_time = self.tokens(n, 0)
        channels, in_width = self.channels(kind, v, 1)
        return ref.at[self.b, tokens, head, channels], _both((tokens.shape[0], channels.shape[1]), in_time, in_width)

    def chunk(self, n: Any, v: Any) -> _Chunk:
        """What a cell gets of chunk `n`, with block `v` of the values."""
        tokens, exist = self.tokens(n, 1)
        mark = None if self.marks is None else self.marks[self.b, tokens]
        marks = chunk_marks(mark, self.sizes.C)
        columns = tuple(self.load(ref, kind, n, v, marks.real) for ref, kind in zip(self.columns, self.kinds))
        rows = (masked_load(ref.at[self.b, tokens, self.h], exist).astype(jnp.float32) for ref in self.rows)
        return _Chunk(marks, columns, tuple(where(None if mark is None else mark > 0, row) for row in rows))

    def load(self, ref: Any, kind: str, n: Any, v: Any, real: Array | None) -> Array:
        """Columns of a chunk in float32, padding and what lies outside set to 0."""
        head = self.h * self.sizes.Hk // self.sizes.H if kind == "key" else self.h
        return where(real, masked_load(*self.tile(ref, kind, head, n, v)).astype(jnp.float32))

    def store(self, ref: Any, kind: str, n: Any, v: Any, value: Array, real: Array | None) -> None:
        """Write the columns of a value head of a chunk, padding set to 0."""
        at, exist = self.tile(ref, kind, self.h, n, v)
        plgpu.store(at, where(real, value).astype(ref.dtype), mask=exist)

    def store_row(self, ref: Any, n: Any, value: Array) -> None:
        """Write one number per token ``[1,C]`` of a value head, padding set to 0."""
        tokens, exist = self.tokens(n, 1)
        real = None if self.marks is None else self.marks[self.b, tokens] > 0
        plgpu.store(ref.at[self.b, tokens, self.h], where(real, value).astype(ref.dtype), mask=exist)

    def state(self, ref: Any, place: tuple[Any, ...], v: Any, when: Any = None) -> tuple[Any, Array | None]:
        """The transposed block ``[block of V, K]`` of ``ref[b, *place, h]``, and what of it exists (if `when`)."""
        keys, in_keys = self.channels("key", v, 1)
        values, in_values = self.channels("value", v, 0)
        shape = values.shape[0], keys.shape[1]
        return ref.at[(self.b, *place, self.h, keys, values)], _both(shape, in_keys, in_values, when)

    def load_state(self, ref: Any, place: tuple[Any, ...], v: Any, when: Any = None) -> Array:
        return masked_load(*self.state(ref, place, v, when))

    def store_state(self, ref: Any, place: tuple[Any, ...], v: Any, value: Array, when: Any = None) -> None:
        at, exist = self.state(ref, place, v, when)
        plgpu.store(at, value, mask=exist)


class _Chunk(NamedTuple):
    marks: Any
    columns: tuple[Array, ...]
    rows: tuple[Array, ...]


def _both(shape: tuple[int, int], *masks: Any) -> Array | None:
    """The conjunction of the masks that are given, as a matrix."""
    given = [jnp.broadcast_to(mask, shape) for mask in masks if mask is not None]
    return functools.reduce(jnp.logical_and, given) if given else None


def masked_load(at: Any, mask: Array | None) -> Array:
    other = None if mask is None else jnp.zeros(mask.shape, at.dtype)
    return plgpu.load(at, mask=mask, other=other)


def _walk(r: _Refs, v: Any, start: Any, stop: Any, step: Callable[..., Array], backwards: bool) -> None:
    """Carry a block of the state over the chunks, from `start` to `stop`: per segment if there are any.

    ``step(n, held)`` is the block after chunk `n` (before it, if `backwards`).
    """
    sizes = r.sizes

    def routed(n: Any, held: Array) -> Array:
        word = r.words[r.b, n]
        slot, live, first, last = word >> 3, (word & 4) != 0, (word & 2) != 0, (word & 1) != 0
        enter, leave = (last, first) if backwards else (first, last)
        held = jnp.where(enter, r.load_state(start, (slot,), v, enter), held)
        after = jnp.where(live, step(n, held), held)
        r.store_state(stop, (slot,), v, after, leave)
        return after

    one = step if r.words is None else routed
    body = lambda i, held: one(sizes.chunks - 1 - i if backwards else i, held)  # noqa: E731
    if r.words is None:
        r.store_state(stop, (), v, jax.lax.fori_loop(0, sizes.chunks, body, r.load_state(start, (), v)))
    else:
        jax.lax.fori_loop(0, sizes.chunks, body, jnp.zeros((sizes.block_v, block_size(sizes.K)), jnp.float32))


def _states_kernel(sizes: Sizes, cell: Any, *refs: Any) -> None:
    """Writes the state before every chunk of a head, and the last one."""
    v, h, b = (pl.program_id(axis) for axis in range(3))
    r = _Refs(sizes, cell, refs, b, h)
    state, states, state_out = r.rest

    def step(n, held):
        r.store_state(states, (n,), v, held)
        return cell.forward(*r.chunk(n, v), held)[1]

    _walk(r, v, state, state_out, step, backwards=False)


def _outputs_kernel(sizes: Sizes, cell: Any, *refs: Any) -> None:
    """Outputs of one chunk of one head, from the state before it."""
    n, v, b = pl.program_id(0), pl.program_id(1) % sizes.blocks_v, pl.program_id(2)
    r = _Refs(sizes, cell, refs, b, pl.program_id(1) // sizes.blocks_v)
    states, out = r.rest
    chunk = r.chunk(n, v)
    result = cell.forward(*chunk, r.load_state(states, (n,), v))[0]
    r.store(out, "value", n, v, result, chunk.marks.real)


def _d_states_kernel(sizes: Sizes, cell: Any, *refs: Any) -> None:
    """Writes the gradient of the state after every chunk of a head, and of the first one."""
    v, h, b = (pl.program_id(axis) for axis in range(3))
    r = _Refs(sizes, cell, refs, b, h)
    states, d_out, d_state, d_states, d_state_out = r.rest

    def step(n, held):
        r.store_state(d_states, (n,), v, held)
        chunk = r.chunk(n, v)
        d_chunk_out = r.load(d_out, "value", n, v, chunk.marks.real)
        return cell.backward(*chunk, r.load_state(states, (n,), v), d_chunk_out, held)[2]

    _walk(r, v, d_state, d_state_out, step, backwards=True)


def _gradients_kernel(sizes: Sizes, cell: Any, *refs: Any) -> None:
    """Gradients of one chunk of one value head, from the state before it and the gradient of the one after it."""
    n, h, b = (pl.program_id(axis) for axis in range(3))
    r = _Refs(sizes, cell, refs, b, h)
    states, d_out, d_states, *outs = r.rest
    sums: list[Any] = [None] * len(outs)
    real = None
    for v in range(sizes.blocks_v):
        chunk = r.chunk(n, v)
        real = chunk.marks.real
        d_chunk_out = r.load(d_out, "value", n, v, real)
        state, d_state = r.load_state(states, (n,), v), r.load_state(d_states, (n,), v)
        d_columns, d_rows, _ = cell.backward(*chunk, state, d_chunk_out, d_state)
        for i, gradient in enumerate((*d_columns, *d_rows)):
            if i < len(cell.kinds) and cell.kinds[i] == "value":
                r.store(outs[i], "value", n, v, gradient, real)
            else:
                sums[i] = gradient if sums[i] is None else sums[i] + gradient
    for i, (out, total) in enumerate(zip(outs, sums)):
        if i >= len(cell.kinds):
            r.store_row(out, n, total)
        elif cell.kinds[i] != "value":
            r.store(out, cell.kinds[i], n, 0, total, real)


def _call(
    kernel: Callable[..., None],
    call: Call,
    sizes: Sizes,
    grid: tuple[int, int, int],
    inputs: Sequence[Array],
    outs: Sequence[jax.ShapeDtypeStruct],
    warps: int,
    aliases: dict[int, int] | None = None,
) -> Sequence[Array]:
    name = f"{type(call.cell).__name__}{kernel.__name__.removesuffix('_kernel')}"
    return pl.pallas_call(
        functools.partial(kernel, sizes, call.cell),
        grid=grid,
        out_shape=list(outs),
        input_output_aliases=aliases or {},
        compiler_params=plgpu.CompilerParams(num_warps=warps, num_stages=1),
        interpret=call.interpret is not None,
        name=name,
    )(*inputs)


def _prepare(C: int, tokens: Tokens) -> tuple[Sizes, list[Array]]:
    """Sizes, and the inputs that all kernels read."""
    q, _, v, *_ = tokens.columns
    B, T, Hk, K = q.shape
    H, V = v.shape[2:]
    sizes = Sizes(T, C, Hk, H, K, V, tokens.ids is not None or T % C != 0, tokens.route is not None)
    marks = [document_marks(tokens.ids, B, T, C).reshape(B, -1)] if sizes.masked else []
    words = [] if tokens.route is None else [tokens.route.reshape(B, -1)]
    return sizes, [*tokens.columns, *tokens.rows, *marks, *words]


def _forward(call: Call, C: int, tokens: Tokens, state: Array, save: bool):
    sizes, inputs = _prepare(C, tokens)
    B, K_V = state.shape[0], state.shape[3:]
    chunk_states = like(state, (B, sizes.chunks, sizes.H, *K_V))
    each = (sizes.chunks, sizes.H * sizes.blocks_v, B)
    states, after = _call_walk(_states_kernel, call, sizes, inputs, state, chunk_states)
    (out,) = _call(_outputs_kernel, call, sizes, each, [*inputs, states], [like(tokens.columns[2])], warps=4)
    return out, after, states if save else None


def _call_walk(kernel: Callable[..., None], call: Call, sizes: Sizes, inputs: Any, state: Array, states: Any):
    """The arrays of states, and the states ``[B,S,H,K,V]`` at the end of the walk."""
    grid = (sizes.blocks_v, sizes.H, state.shape[0])
    if sizes.routed:  # a state that no chunk names comes out as it went in
        return _call(kernel, call, sizes, grid, [*inputs, state], [states, like(state)], 4, {len(inputs): 1})
    state = state[:, 0]
    states, after = _call(kernel, call, sizes, grid, [*inputs, state], [states, like(state)], 4)
    return states, after[:, None]


def _backward(call: Call, C: int, tokens: Tokens, states: Array, d_out: Array, d_state: Array):
    sizes, inputs = _prepare(C, tokens)
    B, group = d_state.shape[0], sizes.H // sizes.Hk
    inputs += [states, d_out]
    d_states, d_before = _call_walk(_d_states_kernel, call, sizes, inputs, d_state, like(states))
    outs = []
    for kind, x in zip(call.cell.kinds, tokens.columns):  # shared keys get a gradient per value head, summed below
        apart = kind == "key" and group > 1
        outs.append(like(x, (*x.shape[:2], sizes.H, sizes.K), jnp.float32) if apart else like(x))
    outs += [like(row) for row in tokens.rows]
    each = (sizes.chunks, sizes.H, B)
    gradients = _call(_gradients_kernel, call, sizes, each, [*inputs, d_states], outs, warps=8)
    d_columns = tuple(
        d if d.shape == x.shape else d.reshape(*x.shape[:3], group, -1).sum(3).astype(x.dtype)
        for d, x in zip(gradients, tokens.columns)
    )
    return d_columns, tuple(gradients[len(d_columns) :]), d_before


BACKEND = Backend(GPU, _chunk_length, _forward, _backward)
