"""The delta rule, plain, gated by a scalar, or by a vector of decays."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Float, Int

from seqmodels.axes import Array
from seqmodels.ops import checks
from seqmodels.ops.decode_step import only_token
from seqmodels.ops.delta_rule import chunked, pallas_gpu, pallas_tpu, reference
from seqmodels.ops.dispatch import Implementation, dispatch

IMPLEMENTATIONS = {
    "pallas_tpu": Implementation(pallas_tpu.run, pallas_tpu.supports),
    "pallas_gpu": Implementation(pallas_gpu.run, pallas_gpu.supports),
    "chunked": Implementation(chunked.run),
    "reference": Implementation(reference.run),
}


def delta_rule(
    q: Float[Array, "B T Hk K"],
    k: Float[Array, "B T Hk K"],
    v: Float[Array, "B T H V"],
    beta: Float[Array, "B T H"],
    log_decay: Float[Array, "H"] | Float[Array, "B T H"] | Float[Array, "B T H K"] | None = None,
    *,
    scale: float | None = None,
    state: Float[Array, "B *S H K V"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    num_segments: int | None = None,
    impl: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B *S H K V"]]:
    """``S' = diag(exp(log_decay_t)) S_{t-1}``, then ``S_t = S' + beta_t k_t (v_t - S'^T k_t)^T``.

    The output is ``out_t = scale * S_t^T q_t``.
    DeltaNet (arXiv 2406.06484) without decay, Gated DeltaNet (2412.06464) with a scalar one, Kimi Delta Attention
    (2510.26692) with a vector. The prediction ``S'^T k_t`` is made from the decayed state. Keys are used as they are:
    normalise them to length one first, or the recurrence may diverge (it is stable for ``beta * |k|^2 <= 2``).

    Args:
      q, k: ``[B,T,Hk,K]``, floating point. Key head h serves value heads ``h*r .. h*r+r-1`` with ``r = H // Hk``.
      v: ``[B,T,H,V]``.
      beta: ``[B,T,H]`` write strength, in [0, 1], or up to 2 for negative eigenvalues (arXiv 2411.12537).
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
    sizes = checks.matrix_recurrence(q, k, v, log_decay, state, segment_ids, num_segments, chunk_size)
    checks.match("beta", beta, "B T H", sizes)
    checks.floating(beta=beta)
    state = checks.initial_state(state, q, k, v, num_segments)
    if v.size == 0:  # no tokens, rows or features
        return jnp.zeros_like(v), state
    ids = checks.canonical_ids(segment_ids, num_segments)
    scale = float(q.shape[-1] ** -0.5 if scale is None else scale)
    if q.shape[1] == 1 and impl == "auto":
        return only_token(q, k, v, beta, log_decay, state, ids, scale=scale, num_segments=num_segments)
    return dispatch(
        "delta_rule",
        impl,
        IMPLEMENTATIONS,
        q,
        k,
        v,
        beta,
        log_decay,
        state,
        ids,
        dims=checks.matrix_recurrence_dims(log_decay, num_segments, "B T H"),
        scale=scale,
        num_segments=num_segments,
        chunk_size=chunk_size,
    )
