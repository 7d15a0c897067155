"""The walk over chunks on a TPU where channels do not mix: `linear_scan`, `selective_scan`, `short_conv`.

The grid visits the chunks of a sequence in order (backwards in the backward pass) with the state of its channels in
VMEM scratch; inside a chunk, tokens are taken a tile of 16 at a time, channels lie along lanes. What happens on a tile
is the op's *cell*, plain functions of values (see ``selective_scan/cell.py``):

* ``columns``, ``shared``, ``vectors``: how many inputs per token and channel there are, per token (B and C of Mamba),
  and per channel;
* ``outs``: how many outputs per token and channel; ``like``: the column whose dtype they have;
* ``forward(tile, state [R,M]) -> (state, outs [TILE,M] ...)``;
* ``backward(tile, state, d_outs, d_state) -> (d_state, Gradients)``.

The forward pass can save the state before every chunk, all that the backward pass needs beside the inputs. It then
walks a chunk forward once more for the states before its tiles, and its tiles in reverse.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from seqmodels.axes import Array
from seqmodels.ops.dispatch import Interpretation
from seqmodels.ops.pallas import grid
from seqmodels.ops.pallas.algebra import where
from seqmodels.ops.pallas.channel_layout import TILE, Layout
from seqmodels.ops.pallas.run import like


class Membership(NamedTuple):
    """Which sequence a token belongs to, as the op has it."""

    ids: Array | None  # [B,T] int32
    resets: Array | None = None  # [B,T] bool, with segments: the token's segment starts anew


class Operands(NamedTuple):
    """Inputs of a recurrence as `Layout` describes them; ``None`` where there is nothing."""

    columns: tuple[Array, ...]
    shared: tuple[Array, ...]
    vectors: tuple[Array, ...]
    marks: Array | None
    route: Array | None
    state: Array


class Tile(NamedTuple):
    """TILE tokens of a block of M channels, in float32; padding is 0."""

    columns: tuple[Array, ...]  # [TILE,M]
    shared: tuple[list[Array], ...]  # [N,1] per token
    vectors: tuple[Array, ...]  # [r,M]
    real: Array | None  # [TILE,1] bool: not padding; None: all are real
    keep: Array | None  # [TILE,1] 0 at the first token of a document, else 1


class Gradients(NamedTuple):
    """Gradients of a `Tile`."""

    columns: tuple[Array, ...]  # [TILE,M]
    shared: tuple[list[Array], ...]  # [N,1] per token
    vectors: tuple[Array, ...]  # [r,M]


def stack(rows: Sequence[Array]) -> Array:
    """Rows ``[1,M]`` as one array."""
    return jnp.concatenate(rows, axis=0)


def forward(
    layout: Layout, cell: Any, operands: Operands, save: bool, interpret: Interpretation | None
) -> tuple[tuple[Array, ...], Array, Array | None]:
    """``(outs [B,T,D] ..., state, states before every chunk or None)``."""
    specs = _Specs(layout, reverse=False)
    outs = [(specs.column, like(operands.columns[cell.like])) for _ in range(cell.outs)]
    outs.append((specs.state, like(operands.state)))
    if save:
        outs.append((specs.chunk_state, like(operands.state, layout.chunk_states)))
    results = grid.walk(
        functools.partial(_forward_kernel, layout, cell),
        grid.Walk(layout.grid, specs.reverse, interpret, f"{type(cell).__name__}_forward"),
        operands.route,
        _inputs(specs, operands, extra=[]),
        outs,
        scratch=[_per_block(layout, layout.R)],
        state_out=cell.outs,
    )
    return tuple(results[: cell.outs]), results[cell.outs], results[-1] if save else None


def backward(
    layout: Layout,
    cell: Any,
    operands: Operands,
    states: Array,
    d_outs: tuple[Array, ...],
    interpret: Interpretation | None,
) -> tuple[tuple[Array, ...], tuple[Array, ...], tuple[Array, ...], Array]:
    """Gradients of columns, shared, vectors and the incoming state; ``operands.state`` is that of the outgoing state.

    Those of shared are ``[B,parts,chunks,N,C]``, those of vectors ``[B,r,D]``: the caller sums them.
    """
    specs = _Specs(layout, reverse=True)
    state = operands.state
    outs = [(specs.column, like(x)) for x in operands.columns]
    partial = lambda x: (layout.B, layout.parts, *x.shape[2:])  # noqa: E731
    outs += [(specs.d_shared(x), like(state, partial(x))) for x in operands.shared]
    outs += [(specs.d_vector(x), like(state, (layout.B, *x.shape))) for x in operands.vectors]
    outs.append((specs.state, like(state)))
    scratch = [
        _per_block(layout, layout.R),
        pltpu.VMEM((layout.C // TILE, layout.R, layout.width), jnp.float32),
        *(_per_block(layout, x.shape[0]) for x in operands.vectors),
    ]
    walked = grid.walk(
        functools.partial(_backward_kernel, layout, cell),
        grid.Walk(layout.grid, specs.reverse, interpret, f"{type(cell).__name__}_backward"),
        operands.route,
        _inputs(specs, operands, [*((specs.column, d) for d in d_outs), (specs.chunk_state, states)]),
        outs,
        scratch,
        state_out=len(outs) - 1,
    )
    results = list(walked)
    take = lambda some: tuple(results.pop(0) for _ in some)  # noqa: E731
    return take(operands.columns), take(operands.shared), take(operands.vectors), results[0]


def _per_block(layout: Layout, rows: int) -> Any:
    return pltpu.VMEM((layout.blocks, rows, layout.width), jnp.float32)


class _Specs:
    """Block specifications over the grid of `Layout`."""

    def __init__(self, layout: Layout, reverse: bool):
        self.layout, self.reverse = layout, reverse

    def chunk(self, step: Any) -> Any:
        return self.layout.chunks - 1 - step if self.reverse else step

    def _spec(self, shape: tuple[int, ...], index: Callable[..., tuple[Any, ...]]) -> pl.BlockSpec:
        return pl.BlockSpec(shape, lambda b, p, n, j, *route: index(b, p, self.chunk(n), j, *route))

    @property
    def column(self) -> pl.BlockSpec:
        layout = self.layout
        return self._spec((1, layout.C, layout.width), lambda b, p, n, j, *_: (b, n, p * layout.blocks + j))

    def shared(self, x: Array) -> pl.BlockSpec:
        share = self.layout.parts // self.layout.groups
        return self._spec((1, 1, 1, *x.shape[3:]), lambda b, p, n, j, *_: (b, jax.lax.div(p, share), n, 0, 0))

    def d_shared(self, x: Array) -> pl.BlockSpec:
        return self._spec((1, 1, 1, *x.shape[3:]), lambda b, p, n, j, *_: (b, p, n, 0, 0))

    def vector(self, x: Array) -> pl.BlockSpec:
        layout = self.layout
        return pl.BlockSpec((x.shape[0], layout.width), lambda b, p, n, j, *_: (0, p * layout.blocks + j))

    def d_vector(self, x: Array) -> pl.BlockSpec:
        """Written in the last step of the chunk axis; until then it stays at the part's first block, so that nothing is
        written back."""
        layout = self.layout

        def index(b, p, n, j, *_):
            return b, 0, p * layout.blocks + jnp.where(n == layout.chunks - 1, j, 0)

        return pl.BlockSpec((1, x.shape[0], layout.width), index)

    @property
    def marks(self) -> pl.BlockSpec:
        return self._spec((1, 1, 1, self.layout.C), lambda b, p, n, j, *_: (b, n, 0, 0))

    @property
    def state(self) -> pl.BlockSpec:
        layout = self.layout

        def index(b, p, n, j, *route):
            slot = route[0][b * layout.chunks + n] >> 3 if route else 0
            return b, slot, p, 0, 0, 0

        return self._spec((1, 1, 1, layout.blocks, layout.R, layout.width), index)

    @property
    def chunk_state(self) -> pl.BlockSpec:
        layout = self.layout
        index = lambda b, p, n, j, *_: (b, n, p * layout.blocks + j, 0, 0)  # noqa: E731
        return self._spec((1, 1, 1, layout.R, layout.width), index)


def _inputs(specs: _Specs, operands: Operands, extra: list[tuple[pl.BlockSpec, Array]]) -> grid.Inputs:
    """All inputs of a kernel in the order in which `_Chunk` takes them: its own, then `extra`, then the state."""
    inputs = [(specs.column, x) for x in operands.columns]
    inputs += [(specs.shared(x), x) for x in operands.shared]
    inputs += [(specs.vector(x), x) for x in operands.vectors]
    inputs += [] if operands.marks is None else [(specs.marks, operands.marks)]
    return [*inputs, *extra, (specs.state, operands.state)]


class _Chunk:
    """The references of one grid step, read and written a tile at a time."""

    def __init__(self, layout: Layout, cell: Any, refs: Sequence[Any]):
        refs = list(refs)
        take = lambda count: [refs.pop(0) for _ in range(count)]  # noqa: E731
        self.columns, shared, vectors = take(cell.columns), take(cell.shared), take(cell.vectors)
        self.marks = refs.pop(0)[0, 0] if layout.masked else None  # [1,C]
        self.shared = [self._real_lanes(ref[0, 0, 0]) for ref in shared]  # [N,C]
        self.vectors = tuple(ref[...].astype(jnp.float32) for ref in vectors)
        self.rest = refs

    def tile(self, g: Any) -> Tile:
        real = keep = None
        if self.marks is not None:
            flags = self._lanes(g, jnp.broadcast_to(self.marks, (TILE, self.marks.shape[1])))
            real, keep = flags > 0, jnp.where(flags > 2, 0.0, 1.0)
        columns = tuple(self.read(ref, g, real) for ref in self.columns)
        shared = tuple([_lane(block, g * TILE + i) for i in range(TILE)] for block in self.shared)
        return Tile(columns, shared, self.vectors, real, keep)

    def _real_lanes(self, block: Array) -> Array:
        """``block [N,C]`` with padding set to 0."""
        if self.marks is None:
            return block
        return jnp.where(jnp.broadcast_to(self.marks, block.shape) > 0, block, 0.0)

    def _lanes(self, g: Any, rows: Array) -> Array:
        """Lane ``g * TILE + i`` of every row i: ``[TILE,C] -> [TILE,1]``."""
        lane = jax.lax.broadcasted_iota(jnp.int32, rows.shape, 1)
        row = jax.lax.broadcasted_iota(jnp.int32, rows.shape, 0)
        return jnp.sum(jnp.where(lane == g * TILE + row, rows, 0.0), axis=1, keepdims=True)

    def read(self, ref: Any, g: Any, real: Array | None) -> Array:
        return where(real, ref[0, _rows(g), :].astype(jnp.float32))

    def write(self, ref: Any, g: Any, real: Array | None, value: Array) -> None:
        ref[0, _rows(g), :] = where(real, value).astype(ref.dtype)


def _rows(g: Any) -> Any:
    return pl.ds(pl.multiple_of(g * TILE, TILE), TILE)


def _lane(block: Array, t: Any) -> Array:
    """Column t of ``block [N,C]``: ``[N,1]``."""
    lane = jax.lax.broadcasted_iota(jnp.int32, block.shape, 1)
    return jnp.sum(jnp.where(lane == t, block, 0.0), axis=1, keepdims=True)


def _forward_kernel(layout: Layout, cell: Any, position: Any, *refs: Any) -> None:
    chunk = _Chunk(layout, cell, refs)
    state, *rest = chunk.rest
    outs, (state_out, *saved, held) = rest[: cell.outs], rest[cell.outs :]
    block = position.group

    @pl.when(position.first)
    def _():
        held[block] = state[0, 0, 0, block]

    def run():
        for ref in saved:
            ref[0, 0, 0] = held[block]

        def step(g, h):
            tile = chunk.tile(g)
            h, values = cell.forward(tile, h)
            for ref, value in zip(outs, values):
                chunk.write(ref, g, tile.real, value)
            return h

        held[block] = jax.lax.fori_loop(0, layout.C // TILE, step, held[block])

    grid.when(position.live, run)

    @pl.when(position.last)
    def _():
        state_out[0, 0, 0, block] = held[block]


def _backward_kernel(layout: Layout, cell: Any, position: Any, *refs: Any) -> None:
    chunk = _Chunk(layout, cell, refs)
    rest = list(chunk.rest)
    take = lambda count: [rest.pop(0) for _ in range(count)]  # noqa: E731
    d_outs, (states, d_state) = take(cell.outs), take(2)
    d_columns, d_shared, d_vectors = take(cell.columns), take(cell.shared), take(cell.vectors)
    d_state_out, held, borders, *sums = rest
    block, tiles = position.group, layout.C // TILE

    @pl.when(pl.program_id(2) == 0)
    def _():
        for ref in sums:
            ref[block] = jnp.zeros(ref.shape[1:], jnp.float32)

    @pl.when(position.last)
    def _():
        held[block] = d_state[0, 0, 0, block]

    def remember(g, h):
        borders[g] = h
        return cell.forward(chunk.tile(g), h)[0]

    def step(k, carry):
        g = tiles - 1 - k
        d_h, shared, vectors = carry
        tile = chunk.tile(g)
        given = tuple(chunk.read(ref, g, tile.real) for ref in d_outs)
        d_h, gradients = cell.backward(tile, borders[g], given, d_h)
        for ref, value in zip(d_columns, gradients.columns):
            chunk.write(ref, g, tile.real, value)
        shared = tuple(_place(total, g, columns) for total, columns in zip(shared, gradients.shared))
        return d_h, shared, tuple(a + b for a, b in zip(vectors, gradients.vectors))

    def run():
        jax.lax.fori_loop(0, tiles, remember, states[0, 0, 0])
        zeros = tuple(tuple(map(jnp.zeros_like, some)) for some in (chunk.shared, chunk.vectors))
        d_h, shared, vectors = jax.lax.fori_loop(0, tiles, step, (held[block], *zeros))
        held[block] = d_h
        for ref, total in zip(d_shared, shared):
            _accumulate(ref, total, block)
        for ref, total in zip(sums, vectors):
            ref[block] += total

    grid.when(position.live, run)

    @pl.when(pl.program_id(2) == layout.chunks - 1)
    def _():
        for ref, total in zip(d_vectors, sums):
            ref[0] = total[block]

    @pl.when(position.first)
    def _():
        d_state_out[0, 0, 0, block] = held[block]


def _place(total: Array, g: Any, columns: list[Array]) -> Array:
    """``total [N,C]`` with the columns of a tile's tokens in their lanes."""
    lane = jax.lax.broadcasted_iota(jnp.int32, total.shape, 1)
    for i, column in enumerate(columns):
        total = jnp.where(lane == g * TILE + i, jnp.broadcast_to(column, total.shape), total)
    return total


def _accumulate(ref: Any, total: Array, block: Any) -> None:
    """Sum over the blocks of channels, which the innermost grid axis visits one after the other."""

    @pl.when(block == 0)
    def _():
        ref[0, 0, 0] = total

    @pl.when(block > 0)
    def _():
        ref[0, 0, 0] += total
