"""`linear_scan` over one tile of tokens, forward and backward: what a kernel runs between its loads and stores."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import lax

from seqmodels.axes import Array
from seqmodels.ops.linear_scan import chunked
from seqmodels.ops.pallas.channel_layout import TILE
from seqmodels.ops.pallas.channels import Gradients, Membership, Tile, stack


def _factor(tile: Tile, a: Array) -> Array:
    """What the state is multiplied by: 1 at padding, 0 at the first token of a document."""
    if tile.real is None or tile.keep is None:
        return a
    return jnp.where(tile.real, a * tile.keep, 1.0)


@dataclasses.dataclass(frozen=True)
class RealCell:
    """See `channels` for what a cell is. Columns are a and b, the state one row."""

    columns = 2
    shared = 0
    vectors = 0
    outs = 1
    like = 1

    def chunked(self, inputs: Any, membership: Membership, num_segments: int | None) -> tuple[tuple[Array], Array]:
        """The same in XLA; second derivatives are taken from it."""
        a, b = inputs.columns
        h, state = chunked.run(a, b, inputs.state[..., 0], membership.ids, num_segments=num_segments, chunk_size=None)
        return (h.astype(b.dtype),), state[..., None]

    def forward(self, tile: Tile, state: Array) -> tuple[Array, tuple[Array, ...]]:
        a, b = _factor(tile, tile.columns[0]), tile.columns[1]
        rows = []
        for i in range(TILE):
            state = a[i : i + 1] * state + b[i : i + 1]
            rows.append(state)
        return state, (stack(rows),)

    def backward(self, tile: Tile, state: Array, d_outs: tuple[Array, ...], d_state: Array) -> tuple[Array, Gradients]:
        a, b = _factor(tile, tile.columns[0]), tile.columns[1]
        before = [state]
        for i in range(TILE - 1):
            before.append(a[i : i + 1] * before[-1] + b[i : i + 1])
        da, db = [], []
        for i in reversed(range(TILE)):
            d_state = d_state + d_outs[0][i : i + 1]
            da.insert(0, d_state * before[i])
            db.insert(0, d_state)
            d_state = a[i : i + 1] * d_state
        da = stack(da)
        return d_state, Gradients((da if tile.keep is None else da * tile.keep, stack(db)), (), ())


@dataclasses.dataclass(frozen=True)
class ComplexCell:
    """Columns are real and imaginary part of a, then of b; the state has two rows."""

    columns = 4
    shared = 0
    vectors = 0
    outs = 2
    like = 2

    def chunked(self, inputs: Any, membership: Membership, num_segments: int | None) -> tuple[tuple[Array, ...], Array]:
        a, b = lax.complex(*inputs.columns[:2]), lax.complex(*inputs.columns[2:])
        state = lax.complex(inputs.state[..., 0], inputs.state[..., 1])
        h, state = chunked.run(a, b, state, membership.ids, num_segments=num_segments, chunk_size=None)
        return (h.real, h.imag), jnp.stack([state.real, state.imag], axis=-1)

    def _steps(self, tile: Tile, state: Array) -> tuple[Array, Array, list[tuple[Array, Array]]]:
        """The factors, and the states before the first token and after every one, as pairs of rows."""
        re, im, b_re, b_im = tile.columns
        re = _factor(tile, re)
        im = im if tile.keep is None else im * tile.keep  # 0 at padding
        states = [(state[0:1], state[1:2])]
        for i in range(TILE):
            at, (x, y) = slice(i, i + 1), states[-1]
            states.append((re[at] * x - im[at] * y + b_re[at], re[at] * y + im[at] * x + b_im[at]))
        return re, im, states

    def forward(self, tile: Tile, state: Array) -> tuple[Array, tuple[Array, ...]]:
        _, _, states = self._steps(tile, state)
        return stack(states[-1]), (stack([x for x, _ in states[1:]]), stack([y for _, y in states[1:]]))

    def backward(self, tile: Tile, state: Array, d_outs: tuple[Array, ...], d_state: Array) -> tuple[Array, Gradients]:
        re, im, states = self._steps(tile, state)
        dx, dy = d_state[0:1], d_state[1:2]
        rows: list[tuple[Array, ...]] = []
        for i in reversed(range(TILE)):
            at, (x, y) = slice(i, i + 1), states[i]
            dx, dy = dx + d_outs[0][at], dy + d_outs[1][at]
            rows.insert(0, (dx * x + dy * y, dy * x - dx * y, dx, dy))
            dx, dy = re[at] * dx + im[at] * dy, re[at] * dy - im[at] * dx
        da_re, da_im, db_re, db_im = (stack(column) for column in zip(*rows))
        if tile.keep is not None:
            da_re, da_im = da_re * tile.keep, da_im * tile.keep
        return stack([dx, dy]), Gradients((da_re, da_im, db_re, db_im), (), ())
