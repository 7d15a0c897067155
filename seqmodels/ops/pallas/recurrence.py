"""The walk over chunks on a TPU: one Mosaic kernel forward, one backward, for any op with a ``[K,V]`` state.

The grid visits the chunks of a sequence in order (backwards in the backward pass) with the state of every head in VMEM
scratch. What happens on a chunk of a head is the op's *cell* (see ``linear_attention/cell.py``):

* ``kinds``: for every column input ``"key"``, ``"value"`` or ``"gate"`` (K columns per value head);
* ``rows``: how many numbers per token and value head there are, each a ``[1,C]``;
* ``forward(marks, columns, rows, state) -> (out, state)``;
* ``backward(marks, columns, rows, state, d_out, d_state) -> (d_columns, d_rows, d_state)``.

The forward pass can save the state before every chunk, all that the backward pass needs beside the inputs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from seqmodels.axes import Array
from seqmodels.ops.dispatch import Interpretation
from seqmodels.ops.pallas import grid
from seqmodels.ops.pallas.algebra import chunk_marks, where
from seqmodels.ops.pallas.layout import Layout
from seqmodels.ops.pallas.run import like


class Operands(NamedTuple):
    """Inputs of a recurrence as `Layout` describes them; ``None`` where there is nothing."""

    columns: tuple[Array, ...]
    rows: Array | None
    marks: Array | None
    route: Array | None
    state: Array


def forward(
    layout: Layout, cell: Any, operands: Operands, save: bool, interpret: Interpretation | None
) -> tuple[Array, Array, Any]:
    """``(out [B,T,H*V], state, states before every chunk or None)``."""
    specs = _Specs(layout, reverse=False)
    outs = [(specs.columns("value"), like(operands.columns[2])), (specs.state, like(operands.state))]
    if save:
        states = (layout.B, layout.chunks, layout.H // layout.heads, layout.V, layout.heads * layout.K)
        outs.append((specs.chunk_state, like(operands.state, states)))
    out, state, *states = grid.walk(
        functools.partial(_forward_kernel, layout, cell),
        grid.Walk(layout.grid, specs.reverse, interpret, f"{type(cell).__name__}_forward"),
        operands.route,
        _inputs(specs, cell.kinds, operands, extra=[]),
        outs,
        scratch=[_state_scratch(layout)],
        state_out=1,
    )
    return out, state, states[0] if save else None


def backward(
    layout: Layout, cell: Any, operands: Operands, states: Array, d_out: Array, interpret: Interpretation | None
) -> tuple[tuple[Array, ...], Array | None, Array]:
    """Gradients of the columns, the rows and the incoming state; ``operands.state`` is that of the outgoing state."""
    specs = _Specs(layout, reverse=True)
    outs = [(specs.columns(kind), like(x)) for kind, x in zip(cell.kinds, operands.columns)]
    outs += [] if operands.rows is None else [(specs.rows(cell.rows), like(operands.rows))]
    outs += [(specs.state, like(operands.state))]
    shared = [pltpu.VMEM((layout.C, layout.keys * layout.K), jnp.float32) for kind in cell.kinds if kind == "key"]
    results = grid.walk(
        functools.partial(_backward_kernel, layout, cell),
        grid.Walk(layout.grid, specs.reverse, interpret, f"{type(cell).__name__}_backward"),
        operands.route,
        _inputs(specs, cell.kinds, operands, [(specs.columns("value"), d_out), (specs.chunk_state, states)]),
        outs,
        scratch=[_state_scratch(layout), *(shared if layout.groups > 1 else [])],
        state_out=len(outs) - 1,
    )
    count = len(cell.kinds)
    return tuple(results[:count]), None if operands.rows is None else results[count], results[-1]


def _state_scratch(layout: Layout) -> Any:
    return pltpu.VMEM((layout.groups, layout.V, layout.heads * layout.K), jnp.float32)


class _Specs:
    """Block specifications over the grid of `Layout`."""

    def __init__(self, layout: Layout, reverse: bool):
        self.layout, self.reverse = layout, reverse

    def chunk(self, step: Any) -> Any:
        return self.layout.chunks - 1 - step if self.reverse else step

    def _spec(self, shape: tuple[int, ...], index: Callable[..., tuple[Any, ...]]) -> pl.BlockSpec:
        return pl.BlockSpec(shape, lambda b, h, n, g, *route: index(b, h, self.chunk(n), g, *route))

    def columns(self, kind: str) -> pl.BlockSpec:
        layout = self.layout
        block = (1, layout.C, layout.count(kind) * layout.width(kind))
        if kind == "key":
            return self._spec(block, lambda b, h, n, g, *_: (b, n, h))
        return self._spec(block, lambda b, h, n, g, *_: (b, n, h * layout.groups + g))

    def rows(self, count: int) -> pl.BlockSpec:
        layout = self.layout
        block = (1, layout.heads, 1, count, layout.C)
        return self._spec(block, lambda b, h, n, g, *_: (b, h * layout.groups + g, n, 0, 0))

    @property
    def marks(self) -> pl.BlockSpec:
        return self._spec((1, 1, 1, self.layout.C), lambda b, h, n, g, *_: (b, n, 0, 0))

    @property
    def state(self) -> pl.BlockSpec:
        layout = self.layout
        block = (1, 1, layout.groups, layout.V, layout.heads * layout.K)

        def index(b, h, n, g, *route):
            slot = route[0][b * layout.chunks + n] >> 3 if route else 0
            return b, slot, h, 0, 0

        return self._spec(block, index)

    @property
    def chunk_state(self) -> pl.BlockSpec:
        layout = self.layout
        block = (1, 1, 1, layout.V, layout.heads * layout.K)
        return self._spec(block, lambda b, h, n, g, *_: (b, n, h * layout.groups + g, 0, 0))


def _inputs(
    specs: _Specs, kinds: Sequence[str], operands: Operands, extra: list[tuple[pl.BlockSpec, Array]]
) -> grid.Inputs:
    """All inputs of a kernel in the order in which `_Inputs` takes them: its own, then `extra`, then the state."""
    inputs = [(specs.columns(kind), x) for kind, x in zip(kinds, operands.columns)]
    if operands.rows is not None:
        inputs.append((specs.rows(operands.rows.shape[3]), operands.rows))
    if operands.marks is not None:
        inputs.append((specs.marks, operands.marks))
    return [*inputs, *extra, (specs.state, operands.state)]


class _Inputs:
    """The input references of a kernel, with the values of one head at a time in float32 and padding set to 0."""

    def __init__(self, layout: Layout, cell: Any, refs: Sequence[Any]):
        self.layout, self.kinds = layout, cell.kinds
        refs = list(refs)
        self.columns = [refs.pop(0) for _ in cell.kinds]
        self.rows = refs.pop(0) if cell.rows else None
        row = refs.pop(0)[0, 0] if layout.masked else None  # [1,C]
        self.real = None if row is None else row > 0
        self.marks = chunk_marks(row, layout.C)
        self.rest = refs

    def column(self, ref: Any, kind: str, head: int) -> Array:
        """Columns ``[C,K or V]`` of a value head."""
        width = self.layout.width(kind)
        at = self.layout.key_of(head) if kind == "key" else head
        return where(self.marks.real, ref[0, :, at * width : (at + 1) * width].astype(jnp.float32))

    def head_columns(self, head: int) -> tuple[Array, ...]:
        return tuple(self.column(ref, kind, head) for ref, kind in zip(self.columns, self.kinds))

    def head_rows(self, head: int) -> tuple[Array, ...]:
        """Numbers per token of a value head, ``[1,C]`` each."""
        if self.rows is None:
            return ()
        return tuple(where(self.real, self.rows[0, head, 0, r : r + 1]) for r in range(self.rows.shape[3]))

    def store(self, ref: Any, kind: str, at: int, value: Array) -> None:
        """Write the columns of one head (of a key head for ``"key"``), padding set to 0."""
        width = self.layout.width(kind)
        ref[0, :, at * width : (at + 1) * width] = where(self.marks.real, value).astype(ref.dtype)


def _forward_kernel(layout: Layout, cell: Any, position: grid.Position, *refs: Any) -> None:
    inputs = _Inputs(layout, cell, refs)
    state, out, state_out, *saved, held = inputs.rest
    group = position.group

    @pl.when(position.first)
    def _():
        held[group] = state[0, 0, group]

    def chunk():
        for ref in saved:
            ref[0, 0, 0] = held[group]
        for head in range(layout.heads):
            at = slice(head * layout.K, (head + 1) * layout.K)
            result, after = cell.forward(
                inputs.marks, inputs.head_columns(head), inputs.head_rows(head), held[group, :, at]
            )
            held[group, :, at] = after
            inputs.store(out, "value", head, result)

    grid.when(position.live, chunk)

    @pl.when(position.last)
    def _():
        state_out[0, 0, group] = held[group]


def _backward_kernel(layout: Layout, cell: Any, position: grid.Position, *refs: Any) -> None:
    inputs = _Inputs(layout, cell, refs)
    d_out, states, d_state, *rest = inputs.rest
    d_columns, rest = rest[: len(cell.kinds)], rest[len(cell.kinds) :]
    d_rows, rest = (rest[0], rest[1:]) if cell.rows else (None, rest)
    d_state_out, held, *shared = rest
    group = position.group

    @pl.when(position.last)
    def _():
        held[group] = d_state[0, 0, group]

    def chunk():
        sums = _KeySums(layout, cell.kinds)
        for head in range(layout.heads):
            at = slice(head * layout.K, (head + 1) * layout.K)
            gradients, d_head_rows, before = cell.backward(
                inputs.marks,
                inputs.head_columns(head),
                inputs.head_rows(head),
                states[0, 0, 0, :, at],
                inputs.column(d_out, "value", head),
                held[group, :, at],
            )
            held[group, :, at] = before
            for r, d_row in enumerate(d_head_rows):
                assert d_rows is not None  # the cell has rows
                d_rows[0, head, 0, r : r + 1] = where(inputs.real, d_row)
            for index, (kind, gradient) in enumerate(zip(cell.kinds, gradients)):
                if kind == "key":
                    sums.add(index, head, gradient)
                else:
                    inputs.store(d_columns[index], kind, head, gradient)
        sums.write(inputs, d_columns, shared, group)

    grid.when(position.live, chunk)

    @pl.when(position.first)
    def _():
        d_state_out[0, 0, group] = held[group]


class _KeySums:
    """Gradients of key heads, summed over the value heads that share them: in this grid step, then over the group."""

    def __init__(self, layout: Layout, kinds: Sequence[str]):
        self.layout = layout
        self.sums: dict[int, dict[int, Array]] = {index: {} for index, kind in enumerate(kinds) if kind == "key"}

    def add(self, index: int, head: int, gradient: Array) -> None:
        at = self.layout.key_of(head)
        held = self.sums[index].get(at)
        self.sums[index][at] = gradient if held is None else held + gradient

    def write(self, inputs: _Inputs, refs: Sequence[Any], shared: Sequence[Any], group: Any) -> None:
        for number, (index, by_head) in enumerate(self.sums.items()):
            for at, total in by_head.items():
                if self.layout.groups == 1:
                    inputs.store(refs[index], "key", at, total)
                else:
                    self._accumulate(inputs, refs[index], shared[number], at, total, group)

    def _accumulate(self, inputs: _Inputs, ref: Any, sums: Any, at: int, total: Array, group: Any) -> None:
        columns = slice(at * self.layout.K, (at + 1) * self.layout.K)

        @pl.when(group == 0)
        def _():
            sums[:, columns] = total

        @pl.when(group > 0)
        def _():
            sums[:, columns] += total

        @pl.when(group == self.layout.groups - 1)
        def _():
            inputs.store(ref, "key", at, sums[:, columns])
