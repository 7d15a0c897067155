"""Elementwise linear recurrence."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Inexact, Int

from seqmodels.axes import Array, accumulate_dtype
from seqmodels.ops import checks
from seqmodels.ops.dispatch import Implementation, dispatch
from seqmodels.ops.linear_scan import chunked, pallas_gpu, pallas_tpu, reference
from seqmodels.ops.partition import Dims

IMPLEMENTATIONS = {
    "pallas_tpu": Implementation(pallas_tpu.run, pallas_tpu.supports),
    "pallas_gpu": Implementation(pallas_gpu.run, pallas_gpu.supports),
    "chunked": Implementation(chunked.run),
    "reference": Implementation(reference.run),
}


def linear_scan(
    a: Inexact[Array, "..."],
    b: Inexact[Array, "B T *D"],
    *,
    state: Inexact[Array, "B *D"] | Inexact[Array, "B S *D"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    num_segments: int | None = None,
    impl: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Inexact[Array, "B T *D"], Inexact[Array, "B *D"] | Inexact[Array, "B S *D"]]:
    """``h_t = a_t * h_{t-1} + b_t``, elementwise, real or complex.

    HGRN (arXiv:2311.04823), RG-LRU (arXiv:2402.19427), S5 (arXiv:2208.04933) and the recurrent mode of S4D
    (arXiv:2206.11893) are this. Any value of `a` is served: exact zeros, ones, the complex unit circle.

    Args:
      a: broadcastable to the shape of `b` by NumPy's rules: ``[B,T,...]``, or ``[...]`` when constant in time.
      b: ``[B,T,...]``.
      state: ``[B,...]``, ``[B,S,...]`` with `num_segments`; ``None`` means zeros.
      segment_ids: ``[B,T]`` int32, 0 is padding; see ``docs/design.md``.
      num_segments: ``S``; ids lie in ``1..S`` (others are padding); each continues from, and returns, its own state.
      impl: an implementation's name, or ``"auto"``.
      chunk_size: tokens per block of the chunked form, which bounds its temporaries, or per chunk of a kernel.
        ``None``: no blocks, or the kernel's default.

    Returns:
      ``h [B,T,...]`` in the dtype of `b` (complex when `a` is), zero at padding, and the state after the last token
      in float32 or complex64 (float64, complex128 for inputs of such precision).

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    a, b = jnp.asarray(a), jnp.asarray(b)
    _check(a, b, state, segment_ids, num_segments, chunk_size)
    dtype = accumulate_dtype(a, b)
    out_dtype = dtype if jnp.iscomplexobj(a) else b.dtype
    batch, trailing = b.shape[0], b.shape[2:]
    shape = (batch, *trailing) if num_segments is None else (batch, num_segments, *trailing)
    state = jnp.zeros(shape, dtype) if state is None else state.astype(dtype)
    if b.shape[1] == 0:
        return b.astype(out_dtype), state
    h, after = dispatch(
        "linear_scan",
        impl,
        IMPLEMENTATIONS,
        jnp.broadcast_to(a, b.shape),
        b,
        state,
        checks.canonical_ids(segment_ids, num_segments),
        dims=_dims(len(trailing), num_segments),
        num_segments=num_segments,
        chunk_size=chunk_size,
    )
    return h.astype(out_dtype), after


def _dims(trailing: int, num_segments: int | None) -> Dims:
    """Axes of the implementations' arrays: the first channel axis is split over a mesh as heads are."""
    channels = ["H", *(f"D{i}" for i in range(1, trailing))][:trailing]
    column = " ".join(["B", "T", *channels])
    state = " ".join(["B", *([] if num_segments is None else ["S"]), *channels])
    return Dims((column, column, state, "B T"), (column, state))


def _check(
    a: Array,
    b: Array,
    state: Array | None,
    segment_ids: Array | None,
    num_segments: int | None,
    chunk_size: int | None,
) -> None:
    if b.ndim < 2:
        raise ValueError(f"b has shape {b.shape}, expected [B,T,...]; give it a batch and a time axis")
    fits = a.ndim <= b.ndim and all(n in (1, m) for n, m in zip(a.shape[::-1], b.shape[::-1]))
    if not fits:
        raise ValueError(f"a has shape {a.shape}, expected one that broadcasts to b's {b.shape}; reshape it")
    for name, array in (("a", a), ("b", b), ("state", state)):
        if array is not None and not jnp.issubdtype(array.dtype, jnp.inexact):
            raise ValueError(f"{name} has dtype {array.dtype}, expected floating point or complex; cast with .astype")
    sizes = {"B": b.shape[0], "T": b.shape[1]}
    checks.segment_ids(segment_ids, num_segments, sizes)
    checks.positive("chunk_size", chunk_size)
    if state is None:
        return
    trailing = " ".join(map(str, b.shape[2:]))
    checks.match("state", state, checks.state_axes(f"B {trailing}", num_segments, sizes), sizes)
    if jnp.iscomplexobj(state) and not (jnp.iscomplexobj(a) or jnp.iscomplexobj(b)):
        raise ValueError(
            f"state has dtype {state.dtype} but a and b are real, expected a real state; pass its real part"
        )
