"""Softmax attention on a TPU: one Mosaic kernel forward, two backward, over the visible pairs of blocks only.

A grid step takes one pair of a block of queries and a block of keys, all heads of a block of heads. The static list of
pairs (`mask.visible_blocks`) is prefetched as one word per pair, so that neither time nor bandwidth goes to what a
causal mask or a window hides. The pairs of a query block follow one another (those of a key block in `d_keys`), and
what they add up stays in VMEM scratch. The online softmax and its recomputation in the backward pass are
Dao et al. 2022, arXiv:2205.14135.

Arrays: q, out ``[B,T,H*K or V]``, k, v ``[B,S,Hk*K or V]`` with T and S multiples of C; ids ``[B,N,1,C]`` float32, 0 at
padding; numbers per query and head ``[B,H,N,1,C]`` float32.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from seqmodels.axes import Array
from seqmodels.ops.attention.mask import visible_blocks
from seqmodels.ops.dispatch import Interpretation
from seqmodels.ops.pallas import grid
from seqmodels.ops.pallas.algebra import dot, to_column, to_row
from seqmodels.ops.pallas.layout import LANES
from seqmodels.ops.pallas.run import like, same_axes

BLOCKS = 2**14  # of queries or keys at most
PAIRS = 2**17  # words of scalar memory for the list of visible pairs at most
NOTHING = -1e30  # logarithm of the sum of weights of a query that sees no key


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Static sizes of a call's kernels, and its mask."""

    B: int
    T: int
    S: int
    H: int
    Hk: int
    K: int
    V: int
    C: int  # tokens per block, of queries and of keys
    keys: int  # key heads per block of heads
    masked: bool  # there are ids
    causal: bool
    window: int | None
    scale: float
    dtype: Any  # of matrix operands

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.H // self.Hk

    @property
    def heads(self) -> int:
        """Query heads per block of heads."""
        return self.keys * self.group

    @property
    def blocks(self) -> tuple[int, int]:
        """Blocks of queries and of keys."""
        return -(-self.T // self.C), -(-self.S // self.C)

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the blocks of the visible pairs, in the order of queries."""
        return visible_blocks(self.blocks, (self.C, self.C), causal=self.causal, window=self.window)

    def vmem_bytes(self) -> int:
        """Vector memory of a backward step, roughly: double-buffered blocks, scratch, and the values of one head."""
        pad = lambda lanes: -(-lanes // LANES) * LANES  # noqa: E731
        q, k = pad(self.heads * self.K) + pad(self.heads * self.V), pad(self.keys * self.K) + pad(self.keys * self.V)
        moved = 2 * self.C * jnp.dtype(self.dtype).itemsize * (q + k + max(pad(self.heads * self.K), k))
        scratch = 4 * self.C * (max(pad(self.heads * self.K), pad(self.heads * self.V), k) + 3 * LANES)
        return moved + scratch + 4 * 6 * self.C * pad(self.C)


def head_block(Hk: int, H: int, K: int, V: int) -> int:
    """Key heads per block of heads: the fewest whose columns fill whole tiles of 128 lanes, else all."""
    fits = lambda n: all(n * x % LANES == 0 for x in (K, V, H // Hk * K, H // Hk * V))  # noqa: E731
    return next((n for n in range(1, Hk) if Hk % n == 0 and fits(n)), Hk)


def forward(sizes: Sizes, inputs: Sequence[Array], ids: Sequence[Array], interpret: Interpretation | None):
    """``(out, log_total)`` from ``q, k, v``: outputs, and the logarithm of every query's sum of weights."""
    q, _, v = inputs
    out = like(q, (*q.shape[:2], sizes.H * sizes.V))
    log_total = like(v, (sizes.B, sizes.H, sizes.blocks[0], 1, sizes.C), jnp.float32)
    specs = _Specs(sizes)
    given = [specs.query(sizes.K), specs.key(sizes.K), specs.key(sizes.V)]
    scratch = [_columns(sizes, sizes.heads), _columns(sizes, sizes.heads), _columns(sizes, sizes.heads * sizes.V)]
    outputs = [(specs.query(sizes.V), out), (specs.numbers, log_total)]
    read = list(zip(given, inputs))
    return _call(_forward_kernel, sizes, ids, read, outputs, [*scratch, _columns(sizes, 1)], interpret, by_key=False)


def backward(
    sizes: Sizes,
    inputs: Sequence[Array],
    ids: Sequence[Array],
    given: Sequence[Array],
    interpret: Interpretation | None,
) -> tuple[Array, Array, Array, Array]:
    """Gradients of q, k and v from `given`: ``d_out``, ``log_total`` and ``out``; and ``sum(d_out * out)``."""
    d_out, log_total, out = given
    specs = _Specs(sizes)
    at = [specs.query(sizes.K), specs.key(sizes.K), specs.key(sizes.V), specs.query(sizes.V), specs.numbers]
    read = list(zip(at, [*inputs, d_out, log_total]))
    outputs = [(specs.query(sizes.K), like(inputs[0])), (specs.numbers, like(log_total))]
    scratch = [_columns(sizes, sizes.heads), _columns(sizes, sizes.heads), _columns(sizes, sizes.heads * sizes.K)]
    d_q, inner = _call(
        _d_queries_kernel,
        sizes,
        ids,
        [*read, (specs.query(sizes.V), out)],
        outputs,
        [*scratch, _columns(sizes, 1)],
        interpret,
        by_key=False,
    )
    outputs = [(specs.key(sizes.K), like(inputs[1])), (specs.key(sizes.V), like(inputs[2]))]
    scratch = [_columns(sizes, sizes.keys * sizes.K), _columns(sizes, sizes.keys * sizes.V), _columns(sizes, 1)]
    read.append((specs.numbers, inner))
    d_k, d_v = _call(_d_keys_kernel, sizes, ids, read, outputs, scratch, interpret, by_key=True)
    return d_q, d_k, d_v, inner


def _columns(sizes: Sizes, width: int) -> Any:
    return pltpu.VMEM((sizes.C, width), jnp.float32)


def _row(word: Any) -> Any:
    return word >> 16


def _column(word: Any) -> Any:
    return (word >> 2) & 0x3FFF


def _words(sizes: Sizes, by_key: bool) -> np.ndarray:
    """``row << 16 | column << 2 | first << 1 | last`` of every pair; first and last in its row (or column)."""
    row, column = sizes.pairs()
    if by_key:
        order = np.lexsort((row, column))
        row, column = row[order], column[order]
    line = column if by_key else row
    change = line[1:] != line[:-1]
    first, last = np.append(True, change), np.append(change, True)
    return (row << 16 | column << 2 | first << 1 | last).astype(np.int32)


def _spans(ids: Array) -> list[Array]:
    """The least and the greatest id of the real tokens of every block, ``[B*N]`` each."""
    least = jnp.min(jnp.where(ids > 0, ids, jnp.inf), axis=(2, 3))
    return [least.reshape(-1), jnp.max(ids, axis=(2, 3)).reshape(-1)]


class _Specs:
    """Block specifications; the grid is (batch, blocks of heads, pairs)."""

    def __init__(self, sizes: Sizes):
        self.sizes = sizes

    def query(self, width: int) -> pl.BlockSpec:
        """Columns of queries, `width` per head."""
        shape = (1, self.sizes.C, self.sizes.heads * width)
        return pl.BlockSpec(shape, lambda b, h, p, words, *_: (b, _row(words[p]), h))

    def key(self, width: int) -> pl.BlockSpec:
        """Columns of keys, `width` per head."""
        shape = (1, self.sizes.C, self.sizes.keys * width)
        return pl.BlockSpec(shape, lambda b, h, p, words, *_: (b, _column(words[p]), h))

    @property
    def numbers(self) -> pl.BlockSpec:
        shape = (1, self.sizes.heads, 1, 1, self.sizes.C)
        return pl.BlockSpec(shape, lambda b, h, p, words, *_: (b, h, _row(words[p]), 0, 0))

    def ids(self, pick: Callable[[Any], Any]) -> pl.BlockSpec:
        return pl.BlockSpec((1, 1, 1, self.sizes.C), lambda b, h, p, words, *_: (b, pick(words[p]), 0, 0))


def _call(
    kernel: Callable[..., None],
    sizes: Sizes,
    ids: Sequence[Array],
    inputs: grid.Inputs,
    outputs: grid.Outputs,
    scratch: Sequence[Any],
    interpret: Interpretation | None,
    by_key: bool,
) -> Sequence[Array]:
    """Run ``kernel(step, *inputs, *outputs, *scratch references)`` over the pairs; `ids` of queries and of keys."""
    words = _words(sizes, by_key)
    specs = _Specs(sizes)
    prefetch = [jnp.asarray(words), *[span for x in ids for span in _spans(x)]]
    inputs = [*zip([specs.ids(_row), specs.ids(_column)], ids), *inputs]

    def body(*refs):
        kernel(
            _Step(sizes, refs[: len(prefetch)], refs[len(prefetch) :][: len(ids)]), *refs[len(prefetch) + len(ids) :]
        )

    return pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(prefetch),
            grid=(sizes.B, sizes.Hk // sizes.keys, len(words)),
            in_specs=[spec for spec, _ in inputs],
            out_specs=[spec for spec, _ in outputs],
            scratch_shapes=scratch,
        ),
        out_shape=[shape for _, shape in outputs],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=grid.interpreter(interpret),
        name=f"attention{kernel.__name__.removesuffix('_kernel')}",
    )(*same_axes((*prefetch, *[x for _, x in inputs])))


class _Step:
    """Which pair of blocks a grid step works on, and who sees whom in it."""

    def __init__(self, sizes: Sizes, prefetch: Sequence[Any], ids: Sequence[Any]):
        words, *spans = prefetch
        word = words[pl.program_id(2)]
        self.sizes = sizes
        self.row, self.column = _row(word), _column(word)
        self.first, self.last = (word & 2) != 0, (word & 1) != 0
        self.query_ids: Array | None = ids[0][0, 0] if sizes.masked else None  # [1,C]
        self.key_ids: Array | None = ids[1][0, 0] if sizes.masked else None
        self.live: Any = True
        if sizes.masked:
            query, key = (pl.program_id(0) * n + at for n, at in zip(sizes.blocks, (self.row, self.column)))
            self.live = (spans[0][query] <= spans[3][key]) & (spans[2][key] <= spans[1][query])

    def seen(self, query_axis: int, query_ids: Any, key_ids: Any) -> Array | None:
        """``[C,C]`` bool, queries along `query_axis`; ids as a column and a row. None: every query sees every key."""
        C, masks = self.sizes.C, []
        if self.sizes.causal or self.sizes.window is not None:
            at = self.row * C + jax.lax.broadcasted_iota(jnp.int32, (C, C), query_axis)
            ahead = self.column * C + jax.lax.broadcasted_iota(jnp.int32, (C, C), 1 - query_axis) - at
            masks += [ahead <= 0] if self.sizes.causal else []
            if self.sizes.window is not None:
                masks += [ahead > -self.sizes.window]
                masks += [] if self.sizes.causal else [ahead < self.sizes.window]
        if self.sizes.masked:
            masks += [query_ids == key_ids, key_ids > 0]
        return functools.reduce(jnp.logical_and, masks) if masks else None

    def head(self, ref: Any, head: int, width: int) -> Array:
        """Columns ``[C,width]`` of a head."""
        return ref[0, :, head * width : (head + 1) * width]


def _logits(sizes: Sizes, a: Array, b: Array, seen: Array | None) -> Array:
    """Of one head, -inf where nothing is seen."""
    logits = dot(a, b, "nt", sizes.dtype) * sizes.scale
    return logits if seen is None else jnp.where(seen, logits, -jnp.inf)


def _forward_kernel(step: _Step, *refs: Any) -> None:
    q, k, v, out, log_total, top, total, held, ids = refs
    sizes = step.sizes

    @pl.when(step.first)
    def _():
        top[...] = jnp.full(top.shape, -jnp.inf, jnp.float32)
        total[...] = jnp.zeros(total.shape, jnp.float32)
        held[...] = jnp.zeros(held.shape, jnp.float32)
        if step.query_ids is not None:
            ids[...] = to_column(step.query_ids)

    def pair():
        seen = step.seen(0, ids[...], step.key_ids)
        for h in range(sizes.heads):
            at, key = slice(h * sizes.V, (h + 1) * sizes.V), h // sizes.group
            logits = _logits(sizes, step.head(q, h, sizes.K), step.head(k, key, sizes.K), seen)
            highest = jnp.maximum(top[:, h : h + 1], jnp.max(logits, axis=1, keepdims=True))
            shift = jnp.where(highest == -jnp.inf, 0.0, highest)  # rows that have seen nothing yet
            weights = jnp.exp(logits - shift)
            keep = jnp.exp(top[:, h : h + 1] - shift)
            top[:, h : h + 1] = highest
            total[:, h : h + 1] = total[:, h : h + 1] * keep + jnp.sum(weights, axis=1, keepdims=True)
            held[:, at] = held[:, at] * keep + dot(weights, step.head(v, key, sizes.V), "nn", sizes.dtype)

    grid.when(step.live, pair)

    @pl.when(step.last)
    def _():
        for h in range(sizes.heads):
            at = slice(h * sizes.V, (h + 1) * sizes.V)
            empty = total[:, h : h + 1] == 0
            mass = jnp.where(empty, 1.0, total[:, h : h + 1])
            out[0, :, at] = (held[:, at] / mass).astype(out.dtype)
            log_total[0, h, 0] = to_row(jnp.where(empty, NOTHING, top[:, h : h + 1] + jnp.log(mass)))


def _d_queries_kernel(step: _Step, *refs: Any) -> None:
    q, k, v, d_out, log_total, out, d_q, inner, totals, inners, held, ids = refs
    sizes = step.sizes

    @pl.when(step.first)
    def _():
        held[...] = jnp.zeros(held.shape, jnp.float32)
        for h in range(sizes.heads):
            totals[:, h : h + 1] = to_column(log_total[0, h, 0])
            product = step.head(d_out, h, sizes.V).astype(jnp.float32) * step.head(out, h, sizes.V).astype(jnp.float32)
            inners[:, h : h + 1] = jnp.sum(product, axis=1, keepdims=True)
            inner[0, h, 0] = to_row(inners[:, h : h + 1])
        if step.query_ids is not None:
            ids[...] = to_column(step.query_ids)

    def pair():
        seen = step.seen(0, ids[...], step.key_ids)
        for h in range(sizes.heads):
            at, key = slice(h * sizes.K, (h + 1) * sizes.K), h // sizes.group
            k_h = step.head(k, key, sizes.K)
            weights = jnp.exp(_logits(sizes, step.head(q, h, sizes.K), k_h, seen) - totals[:, h : h + 1])
            d_weights = dot(step.head(d_out, h, sizes.V), step.head(v, key, sizes.V), "nt", sizes.dtype)
            d_logits = weights * (d_weights - inners[:, h : h + 1]) * sizes.scale
            held[:, at] += dot(d_logits, k_h, "nn", sizes.dtype)

    grid.when(step.live, pair)

    @pl.when(step.last)
    def _():
        d_q[0] = held[...].astype(d_q.dtype)


def _d_keys_kernel(step: _Step, *refs: Any) -> None:
    """Keys along rows, so that the numbers per query are used as they lie in memory."""
    q, k, v, d_out, log_total, inner, d_k, d_v, keys, values, ids = refs
    sizes = step.sizes

    @pl.when(step.first)
    def _():
        keys[...] = jnp.zeros(keys.shape, jnp.float32)
        values[...] = jnp.zeros(values.shape, jnp.float32)
        if step.key_ids is not None:
            ids[...] = to_column(step.key_ids)

    def pair():
        seen = step.seen(1, step.query_ids, ids[...])
        for h in range(sizes.heads):
            key = h // sizes.group
            q_h, d_out_h = step.head(q, h, sizes.K), step.head(d_out, h, sizes.V)
            weights = jnp.exp(_logits(sizes, step.head(k, key, sizes.K), q_h, seen) - log_total[0, h, 0])
            values[:, key * sizes.V : (key + 1) * sizes.V] += dot(weights, d_out_h, "nn", sizes.dtype)
            d_weights = dot(step.head(v, key, sizes.V), d_out_h, "nt", sizes.dtype)
            d_logits = weights * (d_weights - inner[0, h, 0]) * sizes.scale
            keys[:, key * sizes.K : (key + 1) * sizes.K] += dot(d_logits, q_h, "nn", sizes.dtype)

    grid.when(step.live, pair)

    @pl.when(step.last)
    def _():
        d_k[0] = keys[...].astype(d_k.dtype)
        d_v[0] = values[...].astype(d_v.dtype)
