"""Rotary position embedding."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from seqmodels.axes import Array, accumulate_dtype


def rotary(
    x: Float[Array, "B T H K"],
    positions: Shaped[Array, "B T"] | Shaped[Array, "T"],
    *,
    base: float = 10000.0,
    dim: int | None = None,
    interleaved: bool = False,
) -> Float[Array, "B T H K"]:
    """Rotate pairs of features by ``position * base**(-2j/dim)``, pair ``j``. Su et al. 2021, arXiv:2104.09864.

    Args:
      x: ``[B,T,H,K]``.
      positions: ``[B,T]`` or ``[T]`` integers.
      base: of the wavelengths.
      dim: number of leading features to rotate, even; the others pass. Default: all.
      interleaved: pairs are ``(2j, 2j+1)``, otherwise ``(j, j + dim/2)``.

    Returns:
      ``[B,T,H,K]`` in the dtype of `x`. Angles are computed in float32 (float64 for float64 inputs).

    Raises:
      ValueError: shapes do not fit, `dim` is odd or larger than ``K``, or `base` is not positive.
    """
    if x.ndim != 4:
        raise ValueError(f"rotary: x has shape {x.shape}, expected [B,T,H,K]")
    if positions.shape not in ((x.shape[1],), x.shape[:2]):
        raise ValueError(f"rotary: positions has shape {positions.shape}, expected {x.shape[:2]} or {x.shape[1:2]}")
    dim = x.shape[-1] if dim is None else dim
    if dim % 2 or not 0 < dim <= x.shape[-1]:
        raise ValueError(f"rotary: dim={dim}, expected an even number in 2..{x.shape[-1]} (the last axis of x)")
    if not base > 0:
        raise ValueError(f"rotary: base={base}, expected a positive number such as 10000.0")
    dtype = accumulate_dtype(x)
    frequency = jnp.asarray(float(base) ** (-np.arange(0, dim, 2) / dim), dtype)  # [dim/2]
    angle = positions.astype(dtype)[..., None, None] * jnp.expand_dims(frequency, tuple(range(positions.ndim + 1)))
    cos, sin = (jnp.broadcast_to(f(angle), (*x.shape[:3], dim // 2)) for f in (jnp.cos, jnp.sin))
    turned, passed = x[..., :dim].astype(dtype), x[..., dim:]
    if interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = turned[..., : dim // 2], turned[..., dim // 2 :]
    pair = (first * cos - second * sin, second * cos + first * sin)
    turned = jnp.stack(pair, axis=-1).reshape(turned.shape) if interleaved else jnp.concatenate(pair, axis=-1)
    return jnp.concatenate([turned.astype(x.dtype), passed], axis=-1)
