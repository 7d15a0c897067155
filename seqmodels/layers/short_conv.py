"""The short causal convolution that stands before many linear-time mixers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from seqmodels import ops
from seqmodels.axes import Array
from seqmodels.layers.param import param


def conv_init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Kernel ``[W,D]`` uniform in ``±1/sqrt(W)``, the usual initialisation of a depthwise convolution."""
    bound = 1.0 / math.sqrt(shape[0])
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class ShortConv(nn.Module):
    """Causal depthwise convolution over time with carried state; see `ops.short_conv`.

    ``(y, state) = ShortConv()(x, state, segment_ids, num_segments, resets)``
    """

    width: int = 4
    activation: str | None = "silu"
    use_bias: bool = False
    kernel_init: Callable[..., Array] = conv_init
    bias_init: Callable[..., Array] = nn.initializers.zeros
    axis: str | None = "heads"  # logical name of the channels
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        state: Float[Array, "B *S W D"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        num_segments: int | None = None,
        resets: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B *S W D"]]:
        channels = x.shape[-1]
        kernel = param(self, "kernel", self.kernel_init, (self.width, channels), (None, self.axis), self.param_dtype)
        bias = (
            param(self, "bias", self.bias_init, (channels,), (self.axis,), self.param_dtype) if self.use_bias else None
        )
        return ops.short_conv(
            x.astype(self.dtype),
            kernel,
            bias,
            activation=self.activation,
            state=state,
            segment_ids=segment_ids,
            num_segments=num_segments,
            resets=resets,
        )

    @nn.nowrap
    def init_state(self, batch: int, channels: int) -> Float[Array, "B W D"]:
        """Zeros ``[B,W-1,D]``: nothing seen yet."""
        return jnp.zeros((batch, self.width - 1, channels), jnp.result_type(jnp.float32, self.dtype))
