"""Short causal depthwise convolution with carried state."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from seqmodels.axes import Array, accumulate_dtype
from seqmodels.ops import checks
from seqmodels.ops.dispatch import Implementation, dispatch
from seqmodels.ops.partition import Dims
from seqmodels.ops.short_conv import chunked, pallas_tpu, reference

IMPLEMENTATIONS = {
    "pallas_tpu": Implementation(pallas_tpu.run, pallas_tpu.supports),
    "chunked": Implementation(chunked.run),
    "reference": Implementation(reference.run),
}

FEW = 16  # tokens: below, a kernel moves more bytes than XLA's form (``docs/kernels.md``)


def short_conv(
    x: Float[Array, "B T D"],
    weight: Float[Array, "W D"],
    bias: Float[Array, "D"] | None = None,
    *,
    activation: str | None = None,
    state: Float[Array, "B *S W-1 D"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    num_segments: int | None = None,
    resets: Bool[Array, "B T"] | None = None,
    impl: str = "auto",
) -> tuple[Float[Array, "B T D"], Float[Array, "B *S W-1 D"]]:
    """``y_t = act(bias + sum_j weight[j] * x_{t-W+1+j})``, every channel by itself.

    The last row of `weight` multiplies the current token. Inputs before a document are zeros. Padding is skipped as if
    it were not there.

    Args:
      x: ``[B,T,D]``.
      weight: ``[W,D]``.
      bias: ``[D]`` or ``None``.
      activation: ``None`` or ``"silu"``.
      state: ``[B,W-1,D]``, the last ``W-1`` real inputs, oldest first; ``[B,S,W-1,D]`` with `num_segments`. ``None``
        means zeros.
      segment_ids: ``[B,T]`` int32, 0 is padding; see ``docs/design.md``.
      num_segments: ``S``; ids lie in ``1..S`` (others are padding); each continues from, and returns, its own state.
      resets: ``[B,T]`` bool, with `num_segments` only: the token's segment forgets what came before it (packed
        documents inside segments).
      impl: an implementation's name, or ``"auto"``.

    Returns:
      ``y [B,T,D]`` in the dtype of `x`, zero at padding, and the state in float32 (float64 for float64 inputs).

    Raises:
      ValueError: shapes or dtypes do not fit, or `activation` is unknown.
    """
    _check(x, weight, bias, activation, state, segment_ids, num_segments, resets)
    dtype = accumulate_dtype(x, weight)
    batch, _, channels = x.shape
    lead = (batch,) if num_segments is None else (batch, num_segments)
    state = jnp.zeros((*lead, weight.shape[0] - 1, channels), dtype) if state is None else state.astype(dtype)
    if impl == "auto" and x.shape[1] < FEW:
        impl = "chunked"
    return dispatch(
        "short_conv",
        impl,
        IMPLEMENTATIONS,
        x,
        weight,
        bias,
        state,
        checks.canonical_ids(segment_ids, num_segments),
        resets,
        dims=_dims(num_segments),
        activation=activation,
        num_segments=num_segments,
    )


def _dims(num_segments: int | None) -> Dims:
    """Axes of the implementations' arrays: channels are split over a mesh as heads are."""
    state = checks.state_axes("B W H", num_segments, {})
    return Dims(("B T H", "W H", "H", state, "B T", "B T"), ("B T H", state))


def _check(
    x: Array,
    weight: Array,
    bias: Array | None,
    activation: str | None,
    state: Array | None,
    segment_ids: Array | None,
    num_segments: int | None,
    resets: Array | None,
) -> None:
    sizes: dict[str, int] = {}
    checks.floating(x=x, weight=weight, bias=bias, state=state)
    checks.match("x", x, "B T D", sizes)
    checks.match("weight", weight, "W D", sizes)
    checks.positive("the width W of weight", sizes["W"])
    if bias is not None:
        checks.match("bias", bias, "D", sizes)
    checks.segment_ids(segment_ids, num_segments, sizes)
    if resets is not None:
        if num_segments is None:
            raise ValueError("resets without num_segments, expected both; documents reset by themselves, leave it out")
        checks.match("resets", resets, "B T", sizes)
    if state is not None:
        carried = f"B {sizes['W'] - 1} D"
        checks.match("state", state, checks.state_axes(carried, num_segments, sizes), sizes)
    if activation not in (None, "silu"):
        raise ValueError(f"activation={activation!r} is unknown, expected None or 'silu'; apply another one yourself")
