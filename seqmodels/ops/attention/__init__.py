"""Softmax attention: causal, sliding-window or bidirectional, grouped heads, packed documents, caches."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Float, Int

from seqmodels.axes import Array
from seqmodels.ops import checks, segments
from seqmodels.ops.attention import chunked, pallas_gpu, pallas_tpu, reference
from seqmodels.ops.dispatch import Implementation, dispatch
from seqmodels.ops.partition import Dims

IMPLEMENTATIONS = {
    "pallas_tpu": Implementation(pallas_tpu.run, pallas_tpu.supports),
    "pallas_gpu": Implementation(pallas_gpu.run, pallas_gpu.supports),
    "chunked": Implementation(chunked.run),
    "reference": Implementation(reference.run),
}


def attention(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S Hk K"],
    v: Float[Array, "B S Hk V"],
    *,
    causal: bool = True,
    window: int | None = None,
    scale: float | None = None,
    sink: Float[Array, "H"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    kv_segment_ids: Int[Array, "B S"] | None = None,
    positions: Int[Array, "#B T"] | Int[Array, "T"] | None = None,
    kv_positions: Int[Array, "#B S"] | Int[Array, "S"] | None = None,
    impl: str = "auto",
    chunk_size: int | None = None,
) -> Float[Array, "B T H V"]:
    """``out_t = sum_s softmax_s(scale * q_t . k_s) v_s`` over the keys that a query sees.

    A query at position ``p`` sees the keys at ``p' >= 0`` with ``p' <= p`` (`causal`) and ``p - p' < window`` (without
    `causal`: ``|p - p'| < window``) of its own document. A query that sees no key, padding included, gets exactly 0.
    Softmax is in float32 (float64 for float64 inputs). Vaswani et al. 2017, arXiv:1706.03762; the blockwise form with
    recomputation in the backward pass is Dao et al. 2022, arXiv:2205.14135.

    Args:
      q: ``[B,T,H,K]``.
      k: ``[B,S,Hk,K]`` with ``H % Hk == 0``; query head ``h`` uses head ``h // (H // Hk)``.
      v: ``[B,S,Hk,V]``.
      causal: hide later keys.
      window: number of keys that a query sees at most, itself included; ``None`` for all.
      scale: default ``K**-0.5``.
      sink: ``[H]``, a logit without value that joins every softmax of its head.
      segment_ids: ``[B,T]`` int32. 0 is padding, which is skipped as if it were not there. Alone it needs ``S == T``
        and every change of id starts a new document.
      kv_segment_ids: ``[B,S]`` int32, ids of the keys. A query sees keys of its own non-zero id. Needs `segment_ids`.
      positions: ``[B,T]`` or ``[T]`` int32, default: the index among the real tokens.
      kv_positions: ``[B,S]`` or ``[S]`` int32, default `positions`. Negative marks an empty slot of a cache; slots may
        stand in any order.
      impl: an implementation's name, or ``"auto"``.
      chunk_size: queries and keys per block of the chunked form; ``None`` chooses.

    Returns:
      ``[B,T,H,V]`` in the dtype of `q`.

    Raises:
      ValueError: shapes or dtypes do not fit, or the order of queries and keys is not known (``S != T`` or
        `kv_segment_ids` without positions).
    """
    _check(q, k, v, sink, window, chunk_size)
    _check_tokens(q, k, causal or window is not None, segment_ids, kv_segment_ids, positions, kv_positions)
    if segment_ids is not None and kv_segment_ids is None:  # an id that returns is a new document
        segment_ids = jnp.where(segment_ids == 0, 0, segments.document_index(segment_ids) + 1)
    row = lambda at: at[None] if at is not None and at.ndim == 1 else at  # noqa: E731
    positions, kv_positions = row(positions), row(kv_positions)
    at = lambda x, axes: axes if x is None or x.shape[0] == q.shape[0] else f"1 {axes[2:]}"  # noqa: E731
    return dispatch(
        "attention",
        impl,
        IMPLEMENTATIONS,
        q,
        k,
        v,
        sink,
        segment_ids,
        kv_segment_ids,
        positions,
        kv_positions,
        dims=Dims(
            ("B T H K", "B S Hk K", "B S Hk V", "H", "B T", "B S", at(positions, "B T"), at(kv_positions, "B S")),
            "B T H V",
        ),
        causal=causal,
        window=window,
        scale=q.shape[-1] ** -0.5 if scale is None else float(scale),
        chunk_size=chunk_size,
    )


def _check(q: Array, k: Array, v: Array, sink: Array | None, window: int | None, chunk_size: int | None) -> None:
    sizes: dict[str, int] = {}
    checks.floating(q=q, k=k, v=v, sink=sink)
    checks.match("q", q, "B T H K", sizes)
    checks.match("k", k, "B S Hk K", sizes)
    checks.match("v", v, "B S Hk V", sizes)
    checks.multiple("the number of heads of q", sizes["H"], "that of k", sizes["Hk"])
    if sink is not None:
        checks.match("sink", sink, "H", sizes)
    checks.positive("window", window)
    checks.positive("chunk_size", chunk_size)


def _check_tokens(
    q: Array,
    k: Array,
    ordered: bool,
    segment_ids: Array | None,
    kv_segment_ids: Array | None,
    positions: Array | None,
    kv_positions: Array | None,
) -> None:
    """Identities and positions of queries and keys; `ordered`: the mask depends on positions."""
    batch, length, other = q.shape[0], q.shape[1], k.shape[1]
    for name, ids, size in (("segment_ids", segment_ids, length), ("kv_segment_ids", kv_segment_ids, other)):
        _check_integers(name, ids, ((batch, size),))
    for name, at, size in (("positions", positions, length), ("kv_positions", kv_positions, other)):
        _check_integers(name, at, ((batch, size), (size,), (1, size)))
    if segment_ids is None and kv_segment_ids is not None:
        raise ValueError("kv_segment_ids without segment_ids; pass the ids of the queries too")
    if positions is None and kv_positions is not None:
        raise ValueError("kv_positions without positions; pass the positions of the queries too")
    if kv_segment_ids is None and segment_ids is not None:
        _same_length("kv_segment_ids", length, other)
    elif kv_segment_ids is not None and positions is None and ordered:
        raise ValueError("kv_segment_ids without positions; pass positions and kv_positions too")
    if kv_positions is None and positions is not None:
        _same_length("kv_positions", length, other)
    if positions is None and ordered:
        _same_length("positions and kv_positions", length, other)


def _check_integers(name: str, array: Array | None, shapes: tuple[tuple[int, ...], ...]) -> None:
    if array is None:
        return
    if array.shape not in shapes:
        expected = " or ".join(str(shape) for shape in shapes)
        raise ValueError(f"{name} has shape {array.shape}, expected {expected}; one number per token")
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(f"{name} has dtype {array.dtype}, expected int32; cast it with .astype")


def _same_length(name: str, queries: int, keys: int) -> None:
    if queries != keys:
        raise ValueError(f"{queries} queries against {keys} keys need {name}; pass them, or equal lengths")
