"""Cross entropy of a linear head on a TPU: one Mosaic kernel forward, two backward, over tiles of the logits.

A grid step computes one tile of the logits, for a block of tokens and a block of the vocabulary, uses it and drops it.
`forward` and `d_hidden` walk over the vocabulary for every block of tokens, `d_embedding` over the tokens for every
block of the vocabulary; what they add up stays in VMEM scratch. `d_hidden` also tells which tiles hold any gradient
worth taking (Cut Cross-Entropy's filter, arXiv 2411.09009), and `d_embedding` does not even compute the others.

Numbers per token are rows ``[N/n,1,n]`` float32; a column ``[n,1]`` is made of them once per block of tokens, and
`d_embedding` works on transposed tiles, where they are used as they lie in memory. The vocabulary may end inside its
last block, the tokens may not.
"""

from __future__ import annotations

import dataclasses
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
from seqmodels.ops.pallas.algebra import dot, to_column, to_row
from seqmodels.ops.pallas.layout import LANES
from seqmodels.ops.pallas.run import like, same_axes

ZERO = 2.0**-126  # a tile whose gradients are all below this is skipped without any filter


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Static sizes of a call's kernels, and the loss."""

    tokens: int  # a multiple of `rows`
    vocab: int
    dim: int
    rows: int  # tokens per tile
    columns: int  # vocabulary entries per tile
    dtype: Any  # of matrix operands
    label_smoothing: float
    z_loss: float
    softcap: float | None
    gradient_filter: float | None

    @property
    def tiles(self) -> tuple[int, int]:
        """Blocks of tokens and of the vocabulary."""
        return self.tokens // self.rows, -(-self.vocab // self.columns)

    def vmem_bytes(self, hidden: int, embedding: int, backward: bool) -> int:
        """Vector memory of a step, roughly, with inputs of so many bytes per number."""
        width = -(-self.dim // LANES) * LANES
        moved = 2 * width * (self.rows * hidden + self.columns * embedding)
        if backward:  # the block that is written, and its float32 sum
            moved += width * max(self.rows * (2 * hidden + 4), self.columns * (2 * embedding + 4))
        return moved + 4 * 5 * self.rows * self.columns


class Inputs(NamedTuple):
    """Arrays of a call as the kernels want them."""

    hidden: Array  # [N,D]
    embedding: Array  # [V,D]
    targets: Array  # [N/n,1,n] float32
    bias: Array | None  # [1,V] float32, up to the end of the last tile


def forward(sizes: Sizes, inputs: Inputs, interpret: Interpretation | None) -> Sequence[Array]:
    """Every token's logsumexp, its target's logit and the sum of its logits, rows each."""
    specs = _Specs(sizes, by_column=False)
    rows = like(inputs.targets)
    scratch = [_column(sizes.rows) for _ in range(5)]
    return _call(_forward_kernel, specs, inputs, [], [(specs.row, rows)] * 3, scratch, interpret)


def d_hidden(
    sizes: Sizes, inputs: Inputs, lse: Array, cotangent: Array, interpret: Interpretation | None
) -> Sequence[Array]:
    """Gradient of the hidden states, and which tiles have one: ``[N/n,1,tiles]`` int32."""
    specs = _Specs(sizes, by_column=False)
    live = like(inputs.targets, (sizes.tiles[0], 1, sizes.tiles[1]), jnp.int32)
    flags = pl.BlockSpec((1, 1, sizes.tiles[1]), lambda i, j, *_: (i, 0, 0))
    return _call(
        _d_hidden_kernel,
        specs,
        inputs,
        [(specs.row, lse), (specs.row, cotangent)],
        [(specs.hidden, like(inputs.hidden)), (flags, live)],
        [pltpu.VMEM((sizes.rows, sizes.dim), jnp.float32), *[_column(sizes.rows) for _ in range(3)]],
        interpret,
    )


def d_embedding(
    sizes: Sizes, inputs: Inputs, lse: Array, cotangent: Array, live: Array, interpret: Interpretation | None
) -> Sequence[Array]:
    """Gradients of the embedding, and of the bias as it is given, if it is."""
    specs = _Specs(sizes, by_column=True)
    outputs = [(specs.embedding, like(inputs.embedding))]
    outputs += [] if inputs.bias is None else [(specs.bias, like(inputs.bias))]
    return _call(
        _d_embedding_kernel,
        specs,
        inputs,
        [(specs.row, lse), (specs.row, cotangent)],
        outputs,
        [pltpu.VMEM((sizes.columns, sizes.dim), jnp.float32), _column(sizes.columns), _column(sizes.columns)],
        interpret,
        live.reshape(-1),
    )


def _column(length: int) -> Any:
    return pltpu.VMEM((length, 1), jnp.float32)


class _Specs:
    """Block specifications; the grid is (blocks of tokens, blocks of the vocabulary), or the reverse."""

    def __init__(self, sizes: Sizes, by_column: bool):
        self.sizes, self.by_column = sizes, by_column

    def _spec(self, shape: tuple[int, ...], index: Callable[[Any, Any], tuple[Any, ...]]) -> pl.BlockSpec:
        return pl.BlockSpec(shape, lambda i, j, *_: index(j, i) if self.by_column else index(i, j))

    @property
    def hidden(self) -> pl.BlockSpec:
        return self._spec((self.sizes.rows, self.sizes.dim), lambda i, j: (i, 0))

    @property
    def embedding(self) -> pl.BlockSpec:
        return self._spec((self.sizes.columns, self.sizes.dim), lambda i, j: (j, 0))

    @property
    def row(self) -> pl.BlockSpec:
        return self._spec((1, 1, self.sizes.rows), lambda i, j: (i, 0, 0))

    @property
    def bias(self) -> pl.BlockSpec:
        return self._spec((1, self.sizes.columns), lambda i, j: (0, j))


def _call(
    kernel: Callable[..., None],
    specs: _Specs,
    inputs: Inputs,
    extra: grid.Inputs,
    outputs: grid.Outputs,
    scratch: Sequence[Any],
    interpret: Interpretation | None,
    live: Array | None = None,
) -> Sequence[Array]:
    """Run ``kernel(tile, *extra, *output, *scratch references)`` over the tiles."""
    sizes = specs.sizes
    given = [(specs.hidden, inputs.hidden), (specs.embedding, inputs.embedding), (specs.row, inputs.targets)]
    given += [] if inputs.bias is None else [(specs.bias, inputs.bias)]
    prefetch = [] if live is None else [live]

    def body(*refs):
        words, refs = refs[: len(prefetch)], refs[len(prefetch) :]
        kernel(_Tile(sizes, specs.by_column, words, refs[: len(given)]), *refs[len(given) :])

    return pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(prefetch),
            grid=sizes.tiles[::-1] if specs.by_column else sizes.tiles,
            in_specs=[spec for spec, _ in (*given, *extra)],
            out_specs=[spec for spec, _ in outputs],
            scratch_shapes=scratch,
        ),
        out_shape=[shape for _, shape in outputs],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=grid.interpreter(interpret),
        name=f"linear_cross_entropy{kernel.__name__.removesuffix('_kernel')}",
    )(*same_axes((*prefetch, *[x for _, x in (*given, *extra)])))


class _Tile:
    """One tile of the logits: tokens along rows, or along columns if the walk is `by_column`."""

    def __init__(self, sizes: Sizes, by_column: bool, words: Sequence[Any], refs: Sequence[Any]):
        self.sizes = sizes
        self.hidden, self.embedding, self.targets = refs[:3]
        self.bias = refs[3] if len(refs) > 3 else None
        outer, inner = pl.program_id(0), pl.program_id(1)
        self.row, self.column = (inner, outer) if by_column else (outer, inner)
        self.first, self.last = inner == 0, inner == sizes.tiles[0 if by_column else 1] - 1
        self.live = words[0][self.row * sizes.tiles[1] + self.column] != 0 if words else True
        shape = (sizes.columns, sizes.rows) if by_column else (sizes.rows, sizes.columns)
        self.entry = self.column * sizes.columns + jax.lax.broadcasted_iota(jnp.int32, shape, 0 if by_column else 1)
        self.by_column = by_column

    def logits(self, bias: Array | None) -> Array:
        """Capped logits; what is after the end of the vocabulary is whatever lies there."""
        hidden, embedding = self.hidden[...], self.embedding[...]
        a, b = (embedding, hidden) if self.by_column else (hidden, embedding)
        logits = dot(a, b, "nt", self.sizes.dtype)
        logits = logits if bias is None else logits + bias
        cap = self.sizes.softcap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def real(self, x: Array, fill: float) -> Array:
        """A tile, with `fill` after the end of the vocabulary."""
        return jnp.where(self.entry < self.sizes.vocab, x, fill) if self.sizes.vocab % self.sizes.columns else x

    def table(self) -> Array:
        """The block of the embedding, with zeros after the end of the vocabulary."""
        sizes, block = self.sizes, self.embedding[...]
        if sizes.vocab % sizes.columns == 0:
            return block
        entry = self.column * sizes.columns + jax.lax.broadcasted_iota(jnp.int32, (sizes.columns, 1), 0)
        return jnp.where(entry < sizes.vocab, block, jnp.zeros_like(block))

    def slope(self, logits: Array, targets: Array, lse: Array) -> Array:
        """Derivative of the losses with respect to the capped logits."""
        sizes = self.sizes
        share = jnp.exp(logits - lse) * (1 + 2 * sizes.z_loss * lse)
        slope = share - jnp.where(self.entry == targets.astype(jnp.int32), 1 - sizes.label_smoothing, 0.0)
        return slope - sizes.label_smoothing / sizes.vocab if sizes.label_smoothing else slope

    def uncapped(self, slope: Array, logits: Array) -> Array:
        """The derivative with respect to the logits before the cap."""
        return slope if self.sizes.softcap is None else slope * (1 - (logits / self.sizes.softcap) ** 2)


def _forward_kernel(tile: _Tile, lse: Any, hit: Any, total: Any, *scratch: Any) -> None:
    top, mass, hits, totals, targets = scratch

    @pl.when(tile.first)
    def _():
        top[...] = jnp.full(top.shape, -jnp.inf, jnp.float32)
        for ref in (mass, hits, totals):
            ref[...] = jnp.zeros(ref.shape, jnp.float32)
        targets[...] = to_column(tile.targets[0])

    logits = tile.logits(None if tile.bias is None else tile.bias[...])
    bounded = tile.real(logits, -jnp.inf)
    add = functools.partial(jnp.sum, axis=1, keepdims=True)
    highest = jnp.maximum(top[...], jnp.max(bounded, axis=1, keepdims=True))
    base = jnp.where(highest == -jnp.inf, 0.0, highest)  # a bias of -inf may leave nothing of a tile
    mass[...] = mass[...] * jnp.exp(top[...] - base) + add(jnp.exp(bounded - base))
    top[...] = highest
    hits[...] += add(jnp.where(tile.entry == targets[...].astype(jnp.int32), logits, 0.0))
    if tile.sizes.label_smoothing:
        totals[...] += add(tile.real(logits, 0.0))

    @pl.when(tile.last)
    def _():
        lse[0] = to_row(top[...] + jnp.log(mass[...]))
        hit[0] = to_row(hits[...])
        total[0] = to_row(totals[...])


def _d_hidden_kernel(tile: _Tile, lse: Any, cotangent: Any, out: Any, flags: Any, *scratch: Any) -> None:
    held, targets, norm, weight = scratch

    @pl.when(tile.first)
    def _():
        held[...] = jnp.zeros(held.shape, jnp.float32)
        flags[...] = jnp.zeros(flags.shape, jnp.int32)
        for column, row in ((targets, tile.targets), (norm, lse), (weight, cotangent)):
            column[...] = to_column(row[0])

    logits = tile.logits(None if tile.bias is None else tile.bias[...])
    slope = tile.real(tile.slope(logits, targets[...], norm[...]), 0.0)
    slope = jnp.where(weight[...] != 0, slope, 0.0)
    small = jnp.abs(slope) < (tile.sizes.gradient_filter or ZERO)
    live = jnp.max(jnp.where(small, 0.0, 1.0)) > 0  # so that a NaN is not small

    @pl.when(live)
    def _():
        g = tile.real(tile.uncapped(slope, logits), 0.0) * weight[...]
        held[...] += dot(g, tile.table(), "nn", tile.sizes.dtype)
        lane = jax.lax.broadcasted_iota(jnp.int32, flags.shape, 2)
        flags[...] = jnp.where(lane == tile.column, 1, flags[...])

    @pl.when(tile.last)
    def _():
        out[...] = held[...].astype(out.dtype)


def _d_embedding_kernel(tile: _Tile, lse: Any, cotangent: Any, out: Any, *refs: Any) -> None:
    *d_bias, held, sums, bias = refs

    @pl.when(tile.first)
    def _():
        held[...] = jnp.zeros(held.shape, jnp.float32)
        sums[...] = jnp.zeros(sums.shape, jnp.float32)
        if tile.bias is not None:
            bias[...] = to_column(tile.bias[...])

    @pl.when(tile.live)
    def _():
        logits = tile.logits(None if tile.bias is None else bias[...])
        slope = tile.slope(logits, tile.targets[0], lse[0])
        g = jnp.where(cotangent[0] != 0, tile.uncapped(slope, logits) * cotangent[0], 0.0)
        held[...] += dot(g, tile.hidden[...], "nn", tile.sizes.dtype)
        if d_bias:
            sums[...] += jnp.sum(g, axis=1, keepdims=True)

    @pl.when(tile.last)
    def _():
        out[...] = held[...].astype(out.dtype)
        for ref in d_bias:
            ref[...] = to_row(sums[...])
