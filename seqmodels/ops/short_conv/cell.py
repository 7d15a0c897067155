"""`short_conv` over one tile of tokens, forward and backward: what a kernel runs between its loads and stores.

The state of a block of M channels is ``[W-1,M]``: the last W-1 real inputs, oldest first.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops.pallas.channel_layout import TILE
from seqmodels.ops.pallas.channels import Gradients, Membership, Tile, stack
from seqmodels.ops.short_conv import chunked


@dataclasses.dataclass(frozen=True)
class ConvCell:
    """See `channels` for what a cell is. The column is x, vectors are the weight ``[W,M]`` and perhaps the bias."""

    width: int
    has_bias: bool
    activation: str | None

    columns = 1
    shared = 0
    outs = 1
    like = 0

    @property
    def vectors(self) -> int:
        return 1 + self.has_bias

    def chunked(self, inputs: Any, membership: Membership, num_segments: int | None) -> tuple[tuple[Array, ...], Array]:
        """The same in XLA; second derivatives are taken from it."""
        (x,), (weight, *bias) = inputs.columns, inputs.vectors
        y, after = chunked.run(
            x,
            weight,
            bias[0][0] if bias else None,
            jnp.swapaxes(inputs.state, -1, -2),
            *membership,
            activation=self.activation,
            num_segments=num_segments,
        )
        return (y,), jnp.swapaxes(after, -1, -2)

    def forward(self, tile: Tile, state: Array) -> tuple[Array, tuple[Array, ...]]:
        taps, after = self._taps(tile, state)
        z = self._sum(tile, taps)
        return after, (z * jax.nn.sigmoid(z) if self.activation == "silu" else z,)

    def backward(self, tile: Tile, state: Array, d_outs: tuple[Array, ...], d_state: Array) -> tuple[Array, Gradients]:
        taps, _ = self._taps(tile, state)
        (dz,) = d_outs
        if self.activation == "silu":
            z = self._sum(tile, taps)
            s = jax.nn.sigmoid(z)
            dz = dz * s * (1 + z * (1 - s))
        weight = tile.vectors[0]
        total = lambda x: jnp.sum(x, axis=0, keepdims=True)  # noqa: E731
        d_vectors = (stack([total(dz * tap) for tap in taps]), *((total(dz),) if self.has_bias else ()))
        d_taps = [dz * weight[j : j + 1] for j in range(self.width)]
        dx, d_before = self._taps_gradient(tile, d_taps, d_state)
        return d_before, Gradients((dx,), (), d_vectors)

    def _sum(self, tile: Tile, taps: list[Array]) -> Array:
        """What the activation gets, ``[TILE,M]``."""
        weight, *bias = tile.vectors
        start = bias[0] if bias else jnp.zeros_like(taps[0])
        return functools.reduce(jnp.add, (tap * weight[j : j + 1] for j, tap in enumerate(taps)), start)

    def _taps(self, tile: Tile, state: Array) -> tuple[list[Array], Array]:
        """What every token multiplies with each of the W rows of the weight, ``[TILE,M]`` each; and the next state."""
        (x,) = tile.columns
        if tile.real is None or tile.keep is None:
            line = stack([state, x])
            return [line[j : j + TILE] for j in range(self.width)], line[TILE:]
        held, windows = _rows(state), []
        for i in range(TILE):
            real, keep = tile.real[i : i + 1], tile.keep[i : i + 1]
            window = [*(jnp.where(keep > 0, row, 0.0) for row in held), x[i : i + 1]]
            held = [jnp.where(real, new, old) for new, old in zip(window[1:], held, strict=True)]
            windows.append(window)
        return [stack(tap) for tap in zip(*windows, strict=True)], stack(held)

    def _taps_gradient(self, tile: Tile, d_taps: list[Array], d_state: Array) -> tuple[Array, Array]:
        """Gradients of x and of the state before, from those of what `_taps` returns: its transpose."""
        carried, M = d_state.shape
        if tile.real is None or tile.keep is None:
            blank = lambda rows: [jnp.zeros((rows, M), jnp.float32)] if rows else []  # noqa: E731
            line = stack([jnp.zeros((TILE, M), jnp.float32), d_state])
            for j, d in enumerate(d_taps):
                line = line + stack([*blank(j), d, *blank(carried - j)])
            return line[carried:], line[:carried]
        d_held, dx = _rows(d_state), []
        for i in reversed(range(TILE)):
            real, keep = tile.real[i : i + 1], tile.keep[i : i + 1]
            window = [d[i : i + 1] for d in d_taps]
            window[1:] = [d + jnp.where(real, later, 0.0) for d, later in zip(window[1:], d_held, strict=True)]
            *older, newest = window
            dx.insert(0, newest)
            d_held = [
                jnp.where(real, 0.0, later) + jnp.where(keep > 0, d, 0.0)
                for later, d in zip(d_held, older, strict=True)
            ]
        return stack(dx), stack(d_held)


def _rows(x: Array) -> list[Array]:
    return [x[i : i + 1] for i in range(x.shape[0])]
