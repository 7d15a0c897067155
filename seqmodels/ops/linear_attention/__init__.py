"""Linear attention with no, fixed, scalar or vector decay: one recurrence for a family of layers."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Float, Int

from seqmodels.axes import Array, accumulate_dtype
from seqmodels.ops import checks
from seqmodels.ops.decode_step import only_token
from seqmodels.ops.dispatch import Implementation, dispatch
from seqmodels.ops.linear_attention import chunked, pallas_gpu, pallas_tpu, reference

IMPLEMENTATIONS = {
    "pallas_tpu": Implementation(pallas_tpu.run, pallas_tpu.supports),
    "pallas_gpu": Implementation(pallas_gpu.run, pallas_gpu.supports),
    "chunked": Implementation(chunked.run),
    "reference": Implementation(reference.run),
}


def linear_attention(
    q: Float[Array, "B T Hk K"],
    k: Float[Array, "B T Hk K"],
    v: Float[Array, "B T H V"],
    log_decay: Float[Array, "H"] | Float[Array, "B T H"] | Float[Array, "B T H K"] | None = None,
    *,
    scale: float | None = None,
    state: Float[Array, "B *S H K V"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    num_segments: int | None = None,
    impl: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B *S H K V"]]:
    """``S_t = diag(exp(log_decay_t)) S_{t-1} + k_t v_t^T``, ``out_t = scale * S_t^T q_t``.

    Vanilla linear attention (arXiv 2006.16236) without decay, RetNet (2307.08621) and Lightning Attention (2401.04658)
    with a fixed one, simple GLA and Mamba-2's SSD (2405.21060: q = C, k = B, v = dt x, log_decay = dt A) with a scalar,
    GLA (2312.06635) and HGRN2 (2404.07904) with a vector. The current token is included; the decay of a token acts on
    the state before the token is added.

    Args:
      q, k: ``[B,T,Hk,K]``, floating point. Key head h serves value heads ``h*r .. h*r+r-1`` with ``r = H // Hk``.
      v: ``[B,T,H,V]``.
      log_decay: natural logarithm of the decay, <= 0: ``None``, ``[H]``, ``[B,T,H]`` or ``[B,T,H,K]``. Keep it float32.
      scale: factor of the output, default ``K**-0.5``.
      state: ``[B,H,K,V]``, or ``[B,S,H,K,V]`` with `num_segments`; ``None`` means zeros.
      segment_ids: ``[B,T]`` integers. 0 is padding: inert, output 0. A change of non-zero id starts a new document from
        a zero state; `state` belongs to the first document and the returned one to the last.
      num_segments: S. Ids then lie in ``1..S`` (others are padding), in any order, and each id continues from its own
        state.
      impl: ``"pallas_tpu"``, ``"pallas_gpu"``, ``"chunked"``, ``"reference"``, ``"auto"`` (one token: `decode_step`).
      chunk_size: tokens per chunk of the chunked forms; ``None`` chooses.

    Returns:
      ``(out [B,T,H,V] in v's dtype, state)``; the state is float32 (float64 for float64 inputs).

    Raises:
      ValueError: a shape, dtype or option is not as above, or `impl` refuses the call.
    """
    checks.matrix_recurrence(q, k, v, log_decay, state, segment_ids, num_segments, chunk_size)
    state = checks.initial_state(state, q, k, v, num_segments)
    if v.size == 0:  # no tokens, rows or features
        return jnp.zeros_like(v), state
    ids = checks.canonical_ids(segment_ids, num_segments)
    scale = float(q.shape[-1] ** -0.5 if scale is None else scale)
    if q.shape[1] == 1 and impl == "auto":
        return only_token(q, k, v, None, log_decay, state, ids, scale=scale, num_segments=num_segments)
    return dispatch(
        "linear_attention",
        impl,
        IMPLEMENTATIONS,
        q,
        k,
        v,
        log_decay,
        state,
        ids,
        dims=checks.matrix_recurrence_dims(log_decay, num_segments),
        scale=scale,
        num_segments=num_segments,
        chunk_size=chunk_size,
    )


class NormalizedState(NamedTuple):
    """State of `normalized_linear_attention`."""

    memory: Float[Array, "B *S H K V"]  # decayed sum of k v^T
    normalizer: Float[Array, "B *S H K"]  # decayed sum of k


def normalized_linear_attention(
    q: Float[Array, "B T Hk K"],
    k: Float[Array, "B T Hk K"],
    v: Float[Array, "B T H V"],
    log_decay: Float[Array, "H"] | Float[Array, "B T H"] | Float[Array, "B T H K"] | None = None,
    *,
    scale: float | None = None,
    state: NormalizedState | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    num_segments: int | None = None,
    eps: float = 1e-10,
    impl: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Float[Array, "B T H V"], NormalizedState]:
    """Linear attention divided by the sum of its weights (arXiv 2006.16236): ``scale q S_t / (scale q z_t + eps)``.

    ``z_t`` is the (decayed) sum of keys; `q` and `k` should be positive. Computed as `linear_attention` over values
    with a column of ones. Arguments and errors as there, except that `state` is a `NormalizedState` (or a pair).
    """
    if eps <= 0:
        raise ValueError(f"eps={eps} is not positive, expected a small number above 0 such as 1e-10")
    joint = None if state is None else jnp.concatenate([state[0], state[1][..., None]], axis=-1)
    out, joint = linear_attention(
        q,
        k,
        jnp.concatenate([v.astype(accumulate_dtype(v)), jnp.ones((*v.shape[:-1], 1), accumulate_dtype(v))], axis=-1),
        log_decay,
        scale=scale,
        state=joint,
        segment_ids=segment_ids,
        num_segments=num_segments,
        impl=impl,
        chunk_size=chunk_size,
    )
    normalized = out[..., :-1] / (out[..., -1:] + eps)
    return normalized.astype(v.dtype), NormalizedState(joint[..., :-1], joint[..., -1])
