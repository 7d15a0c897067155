"""The selective scan of Mamba: a diagonal state-space model whose step size, input and output maps follow the token."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Float, Int

from seqmodels.axes import Array, accumulate_dtype
from seqmodels.ops import checks
from seqmodels.ops.dispatch import Implementation, dispatch
from seqmodels.ops.partition import Dims
from seqmodels.ops.selective_scan import chunked, pallas_gpu, pallas_tpu, reference

IMPLEMENTATIONS = {
    "pallas_tpu": Implementation(pallas_tpu.run, pallas_tpu.supports),
    "pallas_gpu": Implementation(pallas_gpu.run, pallas_gpu.supports),
    "chunked": Implementation(chunked.run),
    "reference": Implementation(reference.run),
}


def selective_scan(
    x: Float[Array, "B T D"],
    dt: Float[Array, "B T D"],
    A: Float[Array, "D N"],
    B: Float[Array, "B T *G N"],
    C: Float[Array, "B T *G N"],
    D: Float[Array, "D"] | None = None,
    z: Float[Array, "B T D"] | None = None,
    *,
    delta_bias: Float[Array, "D"] | None = None,
    softplus: bool = False,
    state: Float[Array, "B *S D N"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    num_segments: int | None = None,
    impl: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Float[Array, "B T D"], Float[Array, "B *S D N"]]:
    """``h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t``, ``y_t = (h_t C_t + D x_t) silu(z_t)``.

    Mamba (S6, arXiv:2312.00752) with the released code's input map ``dt B``, which is not exact zero-order hold. Every
    channel has its own step size and N states; B and C are shared by the channels of a group.

    Args:
      x: ``[B,T,D]``.
      dt: step sizes ``[B,T,D]``, before `delta_bias` and `softplus`.
      A: ``[D,N]``, negative where the state is to fade.
      B, C: ``[B,T,N]``, or ``[B,T,G,N]``: channel d belongs to group ``d // (D / G)``.
      D: ``[D]``, weight of the input itself; ``None``: 0.
      z: ``[B,T,D]``, gate of the output, which also gates what D adds; ``None``: no gate.
      delta_bias: ``[D]``, added to `dt`.
      softplus: take the softplus of `dt` with its bias.
      state: ``[B,D,N]``, or ``[B,S,D,N]`` with `num_segments`; ``None`` means zeros.
      segment_ids: ``[B,T]`` integers, 0 is padding; see ``docs/design.md``.
      num_segments: S; every segment continues from, and returns, its own state.
      impl: ``"auto"`` or the name of an implementation.
      chunk_size: tokens per chunk; a gradient keeps one state per chunk. ``None`` chooses.

    Returns:
      ``(y [B,T,D] in the dtype of x, state)``; the state is float32 (float64 for float64 inputs).

    Raises:
      ValueError: a shape, dtype or option is not as above, or `impl` refuses the call.
    """
    checks.floating(x=x, dt=dt, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias, state=state)
    _check(x, dt, A, B, C, D, z, delta_bias, state, segment_ids, num_segments)
    checks.positive("chunk_size", chunk_size)
    dtype = accumulate_dtype(x, dt, A, B, C)
    lead = (x.shape[0],) if num_segments is None else (x.shape[0], num_segments)
    state = jnp.zeros((*lead, *A.shape), dtype) if state is None else state.astype(dtype)
    if x.shape[1] == 0:
        return jnp.zeros_like(x), state
    grouped = lambda rows: rows if rows.ndim == 4 else rows[:, :, None]  # noqa: E731
    y, after = dispatch(
        "selective_scan",
        impl,
        IMPLEMENTATIONS,
        x,
        dt,
        A,
        grouped(B),
        grouped(C),
        D,
        z,
        delta_bias,
        state,
        checks.canonical_ids(segment_ids, num_segments),
        dims=_dims(grouped(B).shape[2], num_segments),
        softplus=softplus,
        num_segments=num_segments,
        chunk_size=chunk_size,
    )
    return y.astype(x.dtype), after


def _dims(groups: int, num_segments: int | None) -> Dims:
    """Axes of the implementations' arrays; channels are split over a mesh as heads are, and groups with them."""
    column, rows = "B T H", "B T G N" if groups == 1 else "B T Hk N"
    state = "B H N" if num_segments is None else "B S H N"
    return Dims((column, column, "H N", rows, rows, "H", column, "H", state, "B T"), (column, state))


def _check(
    x: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array | None,
    z: Array | None,
    delta_bias: Array | None,
    state: Array | None,
    segment_ids: Array | None,
    num_segments: int | None,
) -> None:
    sizes: dict[str, int] = {}
    checks.match("x", x, "B T D", sizes)
    checks.match("dt", dt, "B T D", sizes)
    checks.match("A", A, "D N", sizes)
    axes = "B T G N" if jnp.ndim(B) == 4 else "B T N"
    checks.match("B", B, axes, sizes)
    checks.match("C", C, axes, sizes)
    checks.multiple("channels of x", sizes["D"], "groups of B and C", sizes.get("G", 1))
    for name, vector in (("D", D), ("delta_bias", delta_bias)):
        if vector is not None:
            checks.match(name, vector, "D", sizes)
    if z is not None:
        checks.match("z", z, "B T D", sizes)
    checks.segment_ids(segment_ids, num_segments, sizes)
    if state is not None:
        checks.match("state", state, checks.state_axes("B D N", num_segments, sizes), sizes)
