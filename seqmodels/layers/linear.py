"""A dense projection whose kernel carries logical axis names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float, Num

from seqmodels.axes import Array
from seqmodels.layers.param import param

default_kernel_init = nn.initializers.normal(0.02)


class Linear(nn.Module):
    """``x [...,in] @ kernel [in,out] (+ bias [out])`` in `dtype`.

    The project's logical axis names are ``"embed"`` (model width), ``"heads"`` (heads times head size, flattened),
    ``"mlp"``, ``"vocab"``, ``"layers"`` and ``None`` (never sharded).
    """

    features: int
    axes: tuple[str | None, str | None]  # logical names of the kernel's input and output axis
    use_bias: bool = False
    kernel_init: Callable[..., Array] = default_kernel_init
    bias_init: Callable[..., Array] = nn.initializers.zeros
    dtype: Any = jnp.float32  # of the computation and the result
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Num[Array, "*lead D"]) -> Float[Array, "*lead features"]:
        kernel = param(self, "kernel", self.kernel_init, (x.shape[-1], self.features), self.axes, self.param_dtype)
        y = jnp.dot(x.astype(self.dtype), kernel.astype(self.dtype))
        if not self.use_bias:
            return y
        bias = param(self, "bias", self.bias_init, (self.features,), self.axes[1:], self.param_dtype)
        return y + jnp.broadcast_to(bias.astype(self.dtype), y.shape)
