"""One token of `linear_attention` or `delta_rule`: what decoding costs, and nothing more."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Float, Int

from seqmodels.axes import Array
from seqmodels.ops import checks
from seqmodels.ops.decode_step import pallas_gpu, pallas_tpu, reference
from seqmodels.ops.dispatch import Implementation, dispatch
from seqmodels.ops.partition import Dims

IMPLEMENTATIONS = {
    "pallas_tpu": Implementation(pallas_tpu.run, pallas_tpu.supports),
    "pallas_gpu": Implementation(pallas_gpu.run, pallas_gpu.supports),
    "reference": Implementation(reference.run),
}
DECAY_AXES = {1: "H", 2: "B H", 3: "B H K"}  # of a log-decay, by its rank


def decode_step(
    q: Float[Array, "B Hk K"],
    k: Float[Array, "B Hk K"],
    v: Float[Array, "B H V"],
    beta: Float[Array, "B H"] | None = None,
    log_decay: Float[Array, "H"] | Float[Array, "B H"] | Float[Array, "B H K"] | None = None,
    *,
    scale: float | None = None,
    state: Float[Array, "B *S H K V"] | None = None,
    segment_ids: Int[Array, "B"] | None = None,
    num_segments: int | None = None,
    impl: str = "auto",
) -> tuple[Float[Array, "B H V"], Float[Array, "B *S H K V"]]:
    """``S' = diag(exp(log_decay)) S``, ``S'' = S' + k u^T``, ``out = scale * S''^T q``: one token, no time axis.

    ``u = beta (v - S'^T k)`` with `beta` (see `delta_rule`), ``u = v`` without (see `linear_attention`). Both ops call
    this for sequences of one token with ``impl="auto"``. The kernels read the state once and write it once, in place
    where the program allows.

    Args:
      q, k: ``[B,Hk,K]``, floating point. Key head h serves value heads ``h*r .. h*r+r-1`` with ``r = H // Hk``.
      v: ``[B,H,V]``.
      beta: ``[B,H]`` write strength of the delta rule, or ``None`` for linear attention.
      log_decay: natural logarithm of the decay, <= 0: ``None``, ``[H]``, ``[B,H]`` or ``[B,H,K]``.
      scale: factor of the output, default ``K**-0.5``.
      state: ``[B,H,K,V]``, or ``[B,S,H,K,V]`` with `num_segments`; ``None`` means zeros.
      segment_ids: ``[B]`` integers. 0 is padding: the state stays as it is, the output is 0.
      num_segments: S. Ids then lie in ``1..S`` (others are padding) and name the state that a token continues.
      impl: ``"auto"``, ``"pallas_tpu"``, ``"pallas_gpu"`` or ``"reference"``.

    Returns:
      ``(out [B,H,V] in v's dtype, state)``; the state is float32 (float64 for float64 inputs).

    Raises:
      ValueError: a shape, dtype or option is not as above, or `impl` refuses the call.
    """
    _check(q, k, v, beta, log_decay, state, segment_ids, num_segments)
    state = checks.initial_state(state, q[:, None], k[:, None], v[:, None], num_segments)
    ids = checks.canonical_ids(segment_ids, num_segments)
    scale = float(q.shape[-1] ** -0.5 if scale is None else scale)
    return _run(q, k, v, beta, log_decay, state, ids, scale, num_segments, impl)


def only_token(
    q: Array,
    k: Array,
    v: Array,
    beta: Array | None,
    log_decay: Array | None,
    state: Array,
    segment_ids: Array | None,
    *,
    scale: float,
    num_segments: int | None,
) -> tuple[Array, Array]:
    """`decode_step` of checked arguments with a time axis of one token: ``(out [B,1,H,V], state)``."""
    token = lambda x: None if x is None else x[:, 0]  # noqa: E731
    rates = log_decay if log_decay is None or log_decay.ndim == 1 else log_decay[:, 0]
    ids = token(segment_ids)
    out, state = _run(token(q), token(k), token(v), token(beta), rates, state, ids, scale, num_segments, "auto")
    return out[:, None], state


def _run(q, k, v, beta, log_decay, state, ids, scale: float, num_segments: int | None, impl: str):
    if v.size == 0:
        return jnp.zeros_like(v), state
    decay, table = _axes(log_decay), checks.state_axes("B H K V", num_segments, {})
    dims = Dims(("B Hk K", "B Hk K", "B H V", "B H", decay, table, "B"), ("B H V", table))
    options = {"scale": scale, "num_segments": num_segments}
    return dispatch("decode_step", impl, IMPLEMENTATIONS, q, k, v, beta, log_decay, state, ids, dims=dims, **options)


def _axes(log_decay: Array | None) -> str | None:
    if log_decay is None:
        return None
    checks.is_array("log_decay", log_decay)
    if jnp.ndim(log_decay) not in DECAY_AXES:
        shape = jnp.shape(log_decay)
        raise ValueError(f"log_decay has shape {shape}, expected [H], [B,H] or [B,H,K]; reshape it")
    return DECAY_AXES[jnp.ndim(log_decay)]


def _check(q, k, v, beta, log_decay, state, ids, num_segments: int | None) -> None:
    sizes: dict[str, int] = {}
    checks.match("q", q, "B Hk K", sizes)
    checks.match("k", k, "B Hk K", sizes)
    if sizes["K"] == 0:
        raise ValueError(f"q and k have shape {jnp.shape(q)}, expected at least one feature; K=0 leaves no state")
    checks.match("v", v, "B H V", sizes)
    checks.multiple("heads of v", sizes["H"], "heads of q and k", sizes["Hk"])
    if beta is not None:
        checks.match("beta", beta, "B H", sizes)
    axes = _axes(log_decay)
    if axes is not None:
        checks.match("log_decay", log_decay, axes, sizes)
    checks.segment_ids(ids, num_segments, sizes, "B")
    if state is not None:
        checks.match("state", state, checks.state_axes("B H K V", num_segments, sizes), sizes)
    checks.floating(q=q, k=k, v=v, beta=beta, log_decay=log_decay, state=state)
