"""The multi-head damped moving average of Mega (Ma et al. 2022, arXiv:2209.10655)."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from seqmodels import ops
from seqmodels.axes import Array, accumulate_dtype
from seqmodels.layers.param import param


class DampedEMA(nn.Module):
    """``(y, state) = DampedEMA()(x, state, segment_ids)``: N averages of every channel, summed, plus a skip.

    ``p = σ(δ)``, ``q = 1 - p σ(α)``, ``h_t = q h_{t-1} + p β x_t``, ``y_t = Σ_n γ h_t / sqrt(N) + ω x_t``. The kernel
    is not truncated. ``x, y [B,T,D]``, `state` ``[B,D,N]`` float32; 0 in `segment_ids` is padding, see
    ``docs/design.md``.
    """

    states: int = 16
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: Float[Array, "B D N"], segment_ids: Int[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B D N"]]:
        dtype, shape = accumulate_dtype(x), (x.shape[-1], self.states)
        normal = nn.initializers.normal
        draw = {"delta": normal(0.2), "alpha": normal(0.2), "beta": alternating_init, "gamma": normal(1.0)}
        delta, alpha, beta, gamma = (
            param(self, name, init, shape, ("heads", None), self.param_dtype).astype(dtype)
            for name, init in draw.items()
        )
        omega = param(self, "omega", normal(1.0), shape[:1], ("heads",), self.param_dtype).astype(dtype)
        p = jax.nn.sigmoid(delta)
        q, read = 1.0 - p * jax.nn.sigmoid(alpha), gamma / math.sqrt(self.states)
        wide = x.astype(dtype)
        y, state = ops.linear_ssm(wide, q, p * beta, read, state=state, segment_ids=segment_ids)
        y = y + omega * wide
        return (y if segment_ids is None else jnp.where((segment_ids != 0)[..., None], y, 0.0)).astype(x.dtype), state


def alternating_init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """+1, -1, +1, ... along the last axis, with noise of standard deviation 0.02."""
    signs = 1.0 - 2.0 * (jnp.arange(shape[-1]) % 2)
    return (signs + 0.02 * jax.random.normal(key, shape, dtype)).astype(dtype)
