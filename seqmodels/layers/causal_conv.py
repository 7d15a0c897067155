"""A dense causal convolution over time: every output channel sees every input channel of the last few tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float, Int

from seqmodels import ops
from seqmodels.axes import Array
from seqmodels.layers.linear import Linear, default_kernel_init


class CausalConv(nn.Module):
    """``(y, state) = CausalConv(F)(x, state, segment_ids)``: ``[B,T,D] -> [B,T,F]``, without bias.

    `state` ``[B,W-1,D]`` holds the last inputs, oldest first. Documents and padding as in `ops.short_conv`. The kernel
    ``[W*D,F]`` begins with the rows of the oldest token.
    """

    features: int
    width: int = 3
    kernel_init: Callable[..., Array] = default_kernel_init
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: Float[Array, "B W D"], segment_ids: Int[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T F"], Float[Array, "B W D"]]:
        x, after, taps = x.astype(self.dtype), state, []
        for lag in reversed(range(self.width)):
            pick = jnp.zeros((self.width, x.shape[-1]), x.dtype).at[self.width - 1 - lag].set(1)
            tap, after = ops.short_conv(x, pick, state=state, segment_ids=segment_ids)
            taps.append(tap)
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype, "kernel_init": self.kernel_init}
        linear = Linear(self.features, axes=("embed", "heads"), name="conv", **types)
        return linear(jnp.concatenate(taps, axis=-1)), after
