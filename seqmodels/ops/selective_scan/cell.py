"""`selective_scan` over one tile of tokens, forward and backward: what a kernel runs between its loads and stores.

The state of a block of M channels is ``[N,M]``: channels along lanes, a token's B and C are columns ``[N,1]``.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops.pallas.algebra import where
from seqmodels.ops.pallas.channel_layout import TILE
from seqmodels.ops.pallas.channels import Gradients, Membership, Tile, stack
from seqmodels.ops.selective_scan import chunked


class _Inputs(NamedTuple):
    """A tile by the op's names; ``None`` where there is none."""

    x: Array  # [TILE,M]
    raw: Array  # [TILE,M] step size before the softplus
    dt: Array  # [TILE,M] step size, 0 at padding
    z: Array | None  # [TILE,M]
    A: Array  # [N,M]
    D: Array | None  # [1,M]
    B: list[Array]  # [N,1] per token
    C: list[Array]  # [N,1] per token


@dataclasses.dataclass(frozen=True)
class SelectiveCell:
    """See `channels` for what a cell is. Columns are x, dt and z, vectors A, D and delta_bias, as far as present."""

    has_D: bool
    has_z: bool
    has_bias: bool
    softplus: bool

    shared = 2
    outs = 1
    like = 0

    @property
    def columns(self) -> int:
        return 2 + self.has_z

    @property
    def vectors(self) -> int:
        return 1 + self.has_D + self.has_bias

    def chunked(self, inputs: Any, membership: Membership, num_segments: int | None) -> tuple[tuple[Array], Array]:
        """The same in XLA; second derivatives are taken from it."""
        (x, dt, *z), (A, *vectors) = inputs.columns, inputs.vectors
        D, bias = self._optional([row[0] for row in vectors])
        options = {"softplus": self.softplus, "num_segments": num_segments, "chunk_size": None}
        B, C = inputs.shared
        z = z[0] if z else None
        y, state = chunked.run(x, dt, A.T, B, C, D, z, bias, inputs.state, membership.ids, **options)
        return (y,), state

    def _optional(self, vectors: list[Array]) -> tuple[Array | None, Array | None]:
        """D and delta_bias from the vectors behind A."""
        rest = list(vectors)
        return rest.pop(0) if self.has_D else None, rest.pop(0) if self.has_bias else None

    def _inputs(self, tile: Tile) -> _Inputs:
        (x, raw, *z), (A, *vectors) = tile.columns, tile.vectors
        D, bias = self._optional(vectors)
        raw = raw if bias is None else raw + bias
        dt = jnp.maximum(raw, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(raw))) if self.softplus else raw
        return _Inputs(x, raw, where(tile.real, dt), z[0] if z else None, A, D, *tile.shared)

    def _decay(self, tile: Tile, inputs: _Inputs, i: int) -> Array:
        """What token i multiplies the state by, ``[N,M]``."""
        decay = jnp.exp(inputs.dt[i : i + 1] * inputs.A)
        return decay if tile.keep is None else decay * tile.keep[i : i + 1]

    def forward(self, tile: Tile, state: Array) -> tuple[Array, tuple[Array, ...]]:
        inputs = self._inputs(tile)
        u, rows = inputs.dt * inputs.x, []
        for i in range(TILE):
            state = self._decay(tile, inputs, i) * state + inputs.B[i] * u[i : i + 1]
            rows.append(jnp.sum(inputs.C[i] * state, axis=0, keepdims=True))
        y = self._skip(inputs, stack(rows))
        return state, (y if inputs.z is None else y * inputs.z * jax.nn.sigmoid(inputs.z),)

    def _skip(self, inputs: _Inputs, y: Array) -> Array:
        return y if inputs.D is None else y + inputs.D * inputs.x

    def backward(self, tile: Tile, state: Array, d_outs: tuple[Array, ...], d_state: Array) -> tuple[Array, Gradients]:
        inputs = self._inputs(tile)
        x, dt, z, A = inputs.x, inputs.dt, inputs.z, inputs.A
        u, states, decays = dt * x, [state], []
        for i in range(TILE):
            decays.append(self._decay(tile, inputs, i))
            states.append(decays[i] * states[i] + inputs.B[i] * u[i : i + 1])
        dy, dz = d_outs[0], ()
        if z is not None:
            read = [jnp.sum(inputs.C[i] * states[i + 1], axis=0, keepdims=True) for i in range(TILE)]
            gate = jax.nn.sigmoid(z)
            dz = (dy * self._skip(inputs, stack(read)) * gate * (1.0 + z * (1.0 - gate)),)
            dy = dy * z * gate
        du, d_exponent, dB, dC, dA = [], [], [], [], jnp.zeros_like(A)
        for i in reversed(range(TILE)):
            at = slice(i, i + 1)
            d_state = d_state + inputs.C[i] * dy[at]
            dC.insert(0, jnp.sum(dy[at] * states[i + 1], axis=1, keepdims=True))
            dB.insert(0, jnp.sum(d_state * u[at], axis=1, keepdims=True))
            du.insert(0, jnp.sum(d_state * inputs.B[i], axis=0, keepdims=True))
            d_state = decays[i] * d_state
            slope = d_state * states[i]  # of the exponent dt A
            d_exponent.insert(0, jnp.sum(slope * A, axis=0, keepdims=True))
            dA = dA + slope * dt[at]
        du = stack(du)
        d_dt = where(tile.real, stack(d_exponent) + du * x)
        d_dt = d_dt * jax.nn.sigmoid(inputs.raw) if self.softplus else d_dt
        dx = du * dt if inputs.D is None else du * dt + inputs.D * dy
        total = lambda tile: jnp.sum(tile, axis=0, keepdims=True)  # noqa: E731
        vectors = (dA, *([total(dy * x)] if self.has_D else []), *([total(d_dt)] if self.has_bias else []))
        return d_state, Gradients((dx, d_dt, *dz), (dB, dC), vectors)
