"""Softmax attention on a GPU: cuDNN's kernels through JAX, where they serve the contract. See ``docs/kernels.md``."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.ops import dispatch


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
        if x.dtype != jnp.bfloat16:
            return f"{name} has dtype {x.dtype}, cuDNN takes bfloat16"
        if x.size == 0:
            return f"{name} has shape {x.shape}, cuDNN takes no empty axis"
    given = {"sink": sink, "segment_ids": segment_ids, "positions": positions, "chunk_size": chunk_size}
    named = [name for name, value in given.items() if value is not None]
    if named:
        return f"{named[0]} is given, which cuDNN knows nothing of"
    if window is not None and not causal:
        return f"window={window} without causal, cuDNN's window reaches back only"
    K, V = q.shape[3], v.shape[3]
    if K != V or K % 8 or K > 128:
        return f"K={K} and V={V}, cuDNN takes equal multiples of 8 up to 128"
    if dispatch.interpretation() is not None:
        return "cuDNN cannot be interpreted"
    return _missing(q, k, v)


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
    """``q [B,T,H,K]``, ``k, v [B,S,Hk,K]`` -> ``[B,T,H,K]``."""
    return _cudnn(q, k, v, causal, window, scale)


def _cudnn(q: Array, k: Array, v: Array, causal: bool, window: int | None, scale: float) -> Array:
    reach = None if window is None else (window - 1, 0)
    return jax.nn.dot_product_attention(
        q, k, v, scale=scale, is_causal=causal, local_window_size=reach, implementation="cudnn"
    )


def _missing(q: Array, k: Array, v: Array) -> str | None:
    """JAX asks for cuDNN's version as it traces: without the CUDA plugin there is none."""
    try:
        jax.eval_shape(lambda q, k, v: _cudnn(q, k, v, True, None, 1.0), q, k, v)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None
