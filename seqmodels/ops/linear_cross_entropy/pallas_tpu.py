"""`linear_cross_entropy` as Mosaic kernels for a TPU: sizes of tiles, gradients, refusals. See ``docs/kernels.md``."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops import dispatch
from seqmodels.ops.dispatch import Interpretation
from seqmodels.ops.linear_cross_entropy import chunked, tiles
from seqmodels.ops.linear_cross_entropy.tiles import Sizes
from seqmodels.ops.pallas.gradient import differentiable
from seqmodels.ops.pallas.marks import chunk_length
from seqmodels.ops.pallas.run import same_axes
from seqmodels.ops.pallas.tpu import VMEM_BYTES

TILES = ((512, 512), (512, 256), (256, 256), (256, 128), (128, 128))  # tokens, entries: the first that fits is taken
FLAGS = 2**17  # words of scalar memory that say which tiles have a gradient


class Call(NamedTuple):
    """What is static about a call."""

    label_smoothing: float
    z_loss: float
    softcap: float | None
    gradient_filter: float | None
    chunk_size: int | None
    interpret: Interpretation | None


def supports(
    hidden: Array,
    embedding: Array,
    bias: Array | None,
    targets: Array,
    *,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    gradient_filter: float | None,
    chunk_size: int | None,
) -> str | None:
    """The reason for refusing a call, or ``None``."""
    for name, x in (("hidden", hidden), ("embedding", embedding)):
        if x.dtype not in (jnp.float32, jnp.bfloat16):
            return f"{name} has dtype {x.dtype}, a kernel takes float32 and bfloat16"
        if x.size == 0:
            return f"{name} has shape {x.shape}, a kernel takes no empty axis"
    if chunk_size is not None and (chunk_size < 128 or chunk_size & (chunk_size - 1)):
        return f"chunk_size={chunk_size}, a kernel takes powers of two from 128"
    if jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        return "64-bit mode (jax_enable_x64) is on, a kernel takes 32-bit indices"
    if embedding.shape[0] > 2**24:
        return f"{embedding.shape[0]} vocabulary entries, a kernel counts to {2**24}"
    call = Call(label_smoothing, z_loss, softcap, gradient_filter, chunk_size, None)
    sizes = _sizes(call, hidden, embedding, backward=True)
    need = _vmem_bytes(sizes, hidden, embedding, backward=True)
    if need > VMEM_BYTES:
        return (
            f"tiles of {sizes.rows} tokens and {sizes.columns} entries with D={sizes.dim} need about "
            f"{need / 2**20:.0f} MiB of vector memory, the kernel allows {VMEM_BYTES >> 20}"
        )
    count = sizes.tiles[0] * sizes.tiles[1]
    if count > FLAGS:
        return f"{count} tiles of logits, scalar memory holds a flag for {FLAGS}; pass fewer tokens at a time"
    return None


def run(
    hidden: Array,
    embedding: Array,
    bias: Array | None,
    targets: Array,
    *,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    gradient_filter: float | None,
    chunk_size: int | None,
) -> Array:
    """Loss of every token ``[N]``; arguments as in the op."""
    call = Call(label_smoothing, z_loss, softcap, gradient_filter, chunk_size, dispatch.interpretation())
    return _kernel(call, *same_axes(((hidden, embedding, bias), targets)))


def _sizes(call: Call, hidden: Array, embedding: Array, backward: bool) -> Sizes:
    (N, D), vocab = hidden.shape, embedding.shape[0]
    dtype = jnp.bfloat16 if hidden.dtype == jnp.bfloat16 else jnp.float32
    options = call.label_smoothing, call.z_loss, call.softcap, call.gradient_filter

    def of(tokens: int, entries: int) -> Sizes:
        rows = chunk_length(N, tokens)
        columns = chunk_length(vocab, call.chunk_size or entries)
        return Sizes(-(-N // rows) * rows, vocab, D, rows, columns, dtype, *options)

    choices = [of(*shape) for shape in TILES]
    fits = (x for x in choices if _vmem_bytes(x, hidden, embedding, backward) <= VMEM_BYTES)
    return next(fits, choices[-1])


def _vmem_bytes(sizes: Sizes, hidden: Array, embedding: Array, backward: bool) -> int:
    return sizes.vmem_bytes(hidden.dtype.itemsize, embedding.dtype.itemsize, backward)


def _pack(sizes: Sizes, inputs: tuple, targets: Array) -> tiles.Inputs:
    hidden, embedding, bias = inputs
    hidden = jnp.pad(hidden, ((0, sizes.tokens - hidden.shape[0]), (0, 0)))
    spare = -sizes.vocab % sizes.columns
    row = None if bias is None else jnp.pad(bias.astype(jnp.float32), (0, spare))[None]
    return tiles.Inputs(hidden, embedding, _rows(sizes, targets, fill=-1), row)


def _rows(sizes: Sizes, x: Array, fill: float = 0.0) -> Array:
    """Numbers per token ``[N] -> [N/n,1,n]`` float32; `fill` after the end."""
    x = jnp.pad(x.astype(jnp.float32), (0, sizes.tokens - x.shape[0]), constant_values=fill)
    return x.reshape(-1, 1, sizes.rows)


def _forward(call: Call, inputs: tuple, targets: Array, save: bool):
    hidden, embedding, _ = inputs
    sizes = _sizes(call, hidden, embedding, backward=False)
    packed = _pack(sizes, inputs, targets)
    lse, hit, total = (x.reshape(-1)[: targets.shape[0]] for x in tiles.forward(sizes, packed, call.interpret))
    loss = lse - (1 - call.label_smoothing) * hit + call.z_loss * lse**2
    if call.label_smoothing:
        loss = loss - call.label_smoothing / sizes.vocab * total
    return loss, lse if save else None


def _backward(call: Call, inputs: tuple, targets: Array, lse: Array, cotangent: Array):
    hidden, embedding, bias = inputs
    sizes = _sizes(call, hidden, embedding, backward=True)
    packed = _pack(sizes, inputs, targets)
    numbers = _rows(sizes, lse), _rows(sizes, cotangent)
    d_hidden, live = tiles.d_hidden(sizes, packed, *numbers, call.interpret)
    d_embedding, *d_bias = tiles.d_embedding(sizes, packed, *numbers, live, call.interpret)
    d_bias = None if bias is None else d_bias[0][0, : sizes.vocab].astype(bias.dtype)
    return d_hidden[: hidden.shape[0]], d_embedding, d_bias


def _chunked(call: Call, inputs: tuple, targets: Array) -> Array:
    hidden, embedding, bias = inputs
    return chunked.run(
        hidden,
        embedding,
        bias,
        targets,
        label_smoothing=call.label_smoothing,
        z_loss=call.z_loss,
        softcap=call.softcap,
        gradient_filter=None,
    )


_kernel = jax.jit(differentiable(_forward, _backward, _chunked), static_argnums=0)
