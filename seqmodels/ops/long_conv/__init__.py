"""Long causal depthwise convolution with carried state."""

from __future__ import annotations

from jaxtyping import Float, Int

from seqmodels.axes import Array, accumulate_dtype
from seqmodels.ops import checks
from seqmodels.ops.dispatch import Implementation, dispatch
from seqmodels.ops.long_conv import chunked, reference

IMPLEMENTATIONS = {"chunked": Implementation(chunked.run), "reference": Implementation(reference.run)}


def long_conv(
    x: Float[Array, "B T D"],
    kernel: Float[Array, "L D"],
    *,
    state: Float[Array, "B *S L-1 D"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    num_segments: int | None = None,
    impl: str = "auto",
) -> tuple[Float[Array, "B T D"], Float[Array, "B *S L-1 D"]]:
    """``y_t = sum_j kernel[j] * x_{t-j}``, every channel by itself: `short_conv` for kernels as long as the sequence.

    The first row of `kernel` multiplies the current token. Inputs before a document are zeros, padding is skipped as if
    it were not there. One document is convolved by FFT. Packed ones are halved again and again, and what the left half
    of a piece adds to its right half is convolved with all but the one document masked that crosses the middle: no
    product, and so no rounding error either, reaches from one document into another.

    Args:
      x: ``[B,T,D]``.
      kernel: ``[L,D]``, L >= 1.
      state: ``[B,L-1,D]``, the last ``L-1`` real inputs, oldest first; ``[B,S,L-1,D]`` with `num_segments`. ``None``
        means zeros, and costs less.
      segment_ids: ``[B,T]`` integers, 0 is padding; see ``docs/design.md``.
      num_segments: ``S``; ids lie in ``1..S`` (others are padding); each continues from, and returns, its own state.
      impl: an implementation's name, or ``"auto"``.

    Returns:
      ``y [B,T,D]`` in the dtype of `x`, zero at padding, and the state in float32 (float64 for float64 inputs).

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    sizes: dict[str, int] = {}
    checks.match("x", x, "B T D", sizes)
    checks.match("kernel", kernel, "L D", sizes)
    checks.positive("the length L of kernel", sizes["L"])
    checks.segment_ids(segment_ids, num_segments, sizes)
    if state is not None:
        checks.match("state", state, checks.state_axes(f"B {sizes['L'] - 1} D", num_segments, sizes), sizes)
    checks.floating(x=x, kernel=kernel, state=state)
    dtype = accumulate_dtype(x, kernel)
    y, after = dispatch(
        "long_conv",
        impl,
        IMPLEMENTATIONS,
        x.astype(dtype),
        kernel.astype(dtype),
        None if state is None else state.astype(dtype),
        checks.canonical_ids(segment_ids, num_segments),
        num_segments=num_segments,
    )
    return y.astype(x.dtype), after
