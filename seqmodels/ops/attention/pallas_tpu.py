"""Softmax attention as Mosaic kernels for a TPU: layout, gradients, refusals. See ``docs/kernels.md``."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops import dispatch, segments
from seqmodels.ops.attention import chunked, flash
from seqmodels.ops.attention.flash import Sizes
from seqmodels.ops.dispatch import Interpretation
from seqmodels.ops.pallas.gradient import differentiable
from seqmodels.ops.pallas.marks import chunk_length
from seqmodels.ops.pallas.run import operand_dtype, same_axes
from seqmodels.ops.pallas.tpu import VMEM_BYTES

BLOCKS = (512, 256, 128)  # tokens per block: the first that fits into vector memory


class Call(NamedTuple):
    """What is static about a call."""

    causal: bool
    window: int | None
    scale: float
    chunk_size: int | None
    interpret: Interpretation | None


def supports(
    q: Array,
    k: Array,
    v: Array,
    sink: Array | None,
    segment_ids: Array | None,
    kv_segment_ids: Array | None,
    positions: Array | None,
    kv_positions: Array | None,
    *,
    causal: bool,
    window: int | None,
    scale: float,
    chunk_size: int | None,
) -> str | None:
    """The reason for refusing a call, or ``None``."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dtype not in (jnp.float32, jnp.bfloat16):
            return f"{name} has dtype {x.dtype}, a kernel takes float32 and bfloat16"
        if x.size == 0:
            return f"{name} has shape {x.shape}, a kernel takes no empty axis"
    if positions is not None or kv_segment_ids is not None:
        name = "kv_segment_ids" if positions is None else "positions"
        return f"{name} are given, a kernel takes keys that stand in the order of the queries' tokens"
    if chunk_size is not None and (chunk_size < 16 or chunk_size & (chunk_size - 1)):
        return f"chunk_size={chunk_size}, a kernel takes powers of two from 16"
    if jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        return "64-bit mode (jax_enable_x64) is on, a kernel takes 32-bit indices"
    sizes = _sizes(Call(causal, window, scale, chunk_size, None), q, k, v, masked=True)
    need = sizes.vmem_bytes()
    if need > VMEM_BYTES:
        return (
            f"blocks of {sizes.heads} heads with K={sizes.K}, V={sizes.V} and {sizes.C} tokens need about "
            f"{need / 2**20:.0f} MiB of vector memory, the kernel allows {VMEM_BYTES >> 20}"
        )
    if max(sizes.blocks) > flash.BLOCKS or len(sizes.pairs()[0]) > flash.PAIRS:
        return f"{max(sizes.blocks)} blocks of {sizes.C} tokens make too long a list of visible pairs for scalar memory"
    return None


def run(
    q: Array,
    k: Array,
    v: Array,
    sink: Array | None,
    segment_ids: Array | None,
    kv_segment_ids: Array | None,
    positions: Array | None,
    kv_positions: Array | None,
    *,
    causal: bool,
    window: int | None,
    scale: float,
    chunk_size: int | None,
) -> Array:
    """``q [B,T,H,K]``, ``k [B,S,Hk,K]``, ``v [B,S,Hk,V]`` -> ``[B,T,H,V]`` in `q`'s dtype."""
    inputs, segment_ids = same_axes(((q, k, v, sink), segment_ids))
    return _kernel(Call(causal, window, float(scale), chunk_size, dispatch.interpretation()), inputs, segment_ids)


def _sizes(call: Call, q: Array, k: Array, v: Array, masked: bool) -> Sizes:
    B, T, H, K = q.shape
    S, Hk, V = v.shape[1:]

    def of(block: int) -> Sizes:
        C = chunk_length(max(T, S), block)
        keys, dtype = flash.head_block(Hk, H, K, V), operand_dtype(q, k, v)
        return Sizes(B, T, S, H, Hk, K, V, C, keys, masked, call.causal, call.window, call.scale, dtype)

    choices = [of(block) for block in ((call.chunk_size,) if call.chunk_size else BLOCKS)]
    return next((sizes for sizes in choices if sizes.vmem_bytes() <= VMEM_BYTES), choices[-1])


class _Packed(NamedTuple):
    """The arguments of a call as the kernels want them."""

    sizes: Sizes
    ids: Array | None  # [B,T] of the tokens in the kernels' order
    order: tuple[Array, Array] | None  # the token that stands at a place, and the place of a token, [B,T] each

    def pack(self, x: Array) -> Array:
        """``[B,T,H,K] -> [B,N*C,H*K]``, padding and what lies after the end set to 0."""
        x = x if self.order is None else segments.move(x, *self.order)
        if self.ids is not None:
            x = jnp.where(self.ids[:, :, None, None] > 0, x, 0)
        spare = -x.shape[1] % self.sizes.C
        return jnp.pad(x.reshape(*x.shape[:2], -1), ((0, 0), (0, spare), (0, 0)))

    def unpack(self, x: Array, like: Array) -> Array:
        """The inverse of `pack`, with the heads and the dtype of `like`."""
        x = x[:, : like.shape[1]].reshape(*like.shape[:3], -1)
        if self.ids is not None:
            x = jnp.where(self.ids[:, :, None, None] > 0, x, 0)
        return (x if self.order is None else segments.move(x, *self.order[::-1])).astype(like.dtype)

    def marks(self) -> tuple[Array, ...]:
        """Ids of queries and of keys, ``[B,N,1,C]``, if there is anything to mask."""
        if not self.sizes.masked:
            return ()
        return tuple(self._blocks(length) for length in (self.sizes.T, self.sizes.S))

    def _blocks(self, length: int) -> Array:
        ids = jnp.ones((self.sizes.B, length), jnp.float32) if self.ids is None else self.ids.astype(jnp.float32)
        ids = jnp.pad(ids, ((0, 0), (0, -length % self.sizes.C)))
        return ids.reshape(self.sizes.B, -1, 1, self.sizes.C)


def _pack(call: Call, inputs: tuple, ids: Array | None) -> tuple[_Packed, tuple[Array, ...], tuple[Array, ...]]:
    """How the call is packed, its packed q, k and v, and their marks."""
    q, k, v, _ = inputs
    order = None
    if ids is not None and call.window is not None:  # it counts real tokens: padding is moved out of the way
        order = _real_first(ids)
        ids = jnp.take_along_axis(ids, order[0], axis=1)
    C = _sizes(call, q, k, v, masked=True).C
    ragged = q.shape[1] % C != 0 or k.shape[1] % C != 0
    packed = _Packed(_sizes(call, q, k, v, masked=ids is not None or ragged), ids, order)
    return packed, tuple(map(packed.pack, (q, k, v))), packed.marks()


def _real_first(ids: Array) -> tuple[Array, Array]:
    """The order with padding behind all real tokens, and its inverse, ``[B,T]`` each."""
    real = ids != 0
    count = lambda some: jnp.cumsum(some.astype(jnp.int32), axis=1)  # noqa: E731
    place = jnp.where(real, count(real), count(real)[:, -1:] + count(~real)) - 1
    time = jnp.arange(ids.shape[1], dtype=jnp.int32)
    return jax.vmap(lambda at: jnp.zeros_like(time).at[at].set(time))(place), place


def _with_sink(log_total: Array, sink: Array | None) -> Array:
    """The sink's logit joins every sum of weights ``[B,H,N,1,C]``."""
    return log_total if sink is None else jnp.logaddexp(log_total, _per_head(sink))


def _per_head(sink: Array) -> Array:
    return sink.astype(jnp.float32)[:, None, None, None]


def _forward(call: Call, inputs: tuple, ids: Array | None, save: bool):
    packed, arrays, marks = _pack(call, inputs, ids)
    out, log_total = flash.forward(packed.sizes, arrays, marks, call.interpret)
    sink = inputs[3]
    if sink is not None:
        share = jnp.exp(log_total - _with_sink(log_total, sink))  # of the softmax that the keys have
        share = jnp.moveaxis(share.reshape(*share.shape[:2], -1), 1, 2)  # [B,N*C,H]
        wide = out.reshape(*out.shape[:2], packed.sizes.H, -1) * share[..., None]
        out = wide.astype(out.dtype).reshape(out.shape)
    return packed.unpack(out, inputs[0]), (out, log_total) if save else None


def _backward(call: Call, inputs: tuple, ids: Array | None, states: Any, d_out: Array):
    packed, arrays, marks = _pack(call, inputs, ids)
    q, k, v, sink = inputs
    out, log_total = states
    total = _with_sink(log_total, sink)
    given = packed.pack(d_out), total, out
    d_q, d_k, d_v, inner = flash.backward(packed.sizes, arrays, marks, given, call.interpret)
    d_sink = None
    if sink is not None:
        d_sink = -jnp.sum(jnp.exp(_per_head(sink) - total) * inner, axis=(0, 2, 3, 4)).astype(sink.dtype)
    return packed.unpack(d_q, q), packed.unpack(d_k, k), packed.unpack(d_v, v), d_sink


def _chunked(call: Call, inputs: tuple, ids: Array | None) -> Array:
    options = {"causal": call.causal, "window": call.window, "scale": call.scale, "chunk_size": None}
    q, k, v, sink = inputs
    return chunked.run(q, k, v, sink, ids, None, None, None, **options)


_kernel = jax.jit(differentiable(_forward, _backward, _chunked), static_argnums=0)
