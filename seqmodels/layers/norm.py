"""Normalisations over the last axis. All compute in float32 and return the input dtype."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from seqmodels.axes import Array, accumulate_dtype
from seqmodels.layers.param import param

GATES = {"silu": jax.nn.silu, "sigmoid": jax.nn.sigmoid}


def l2_norm(x: Float[Array, "*lead K"], eps: float = 1e-6) -> Float[Array, "*lead K"]:
    """``x / sqrt(sum(x**2) + eps)`` over the last axis: unit length, and finite gradients at zero."""
    wide = x.astype(accumulate_dtype(x))
    return (wide * jax.lax.rsqrt(jnp.sum(wide * wide, axis=-1, keepdims=True) + eps)).astype(x.dtype)


def _rms(x: Array, eps: float) -> Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)


def _vector(module: nn.Module, name: str, init: Any, axis: str | None, param_dtype: Any, like: Array) -> Array:
    """A parameter over the last axis of `like`, broadcast to it."""
    vector = param(module, name, init, like.shape[-1:], (axis,), param_dtype)
    return jnp.broadcast_to(vector.astype(like.dtype), like.shape)


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x**2) + eps) * scale``. Zhang & Sennrich 2019, arXiv:1910.07467."""

    eps: float = 1e-6
    axis: str | None = None  # logical name of the normalised axis
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*lead D"]) -> Float[Array, "*lead D"]:
        wide = x.astype(accumulate_dtype(x))
        scale = _vector(self, "scale", nn.initializers.ones, self.axis, self.param_dtype, wide)
        return (_rms(wide, self.eps) * scale).astype(x.dtype)


class LayerNorm(nn.Module):
    """``(x - mean) / sqrt(var + eps) * scale + bias``. Ba et al. 2016, arXiv:1607.06450."""

    eps: float = 1e-5
    use_bias: bool = True
    axis: str | None = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*lead D"]) -> Float[Array, "*lead D"]:
        wide = x.astype(accumulate_dtype(x))
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        y = _rms(centred, self.eps) * _vector(self, "scale", nn.initializers.ones, self.axis, self.param_dtype, wide)
        if self.use_bias:
            y = y + _vector(self, "bias", nn.initializers.zeros, self.axis, self.param_dtype, wide)
        return y.astype(x.dtype)


class Affine(nn.Module):
    """``x * scale + bias`` per feature, in the dtype of `x`: what a batch norm is at inference."""

    axis: str | None = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*lead D"]) -> Float[Array, "*lead D"]:
        scale = _vector(self, "scale", nn.initializers.ones, self.axis, self.param_dtype, x)
        return x * scale + _vector(self, "bias", nn.initializers.zeros, self.axis, self.param_dtype, x)


class GatedRMSNorm(nn.Module):
    """RMS norm with an output gate.

    ``norm(x) * scale * act(gate)``, or ``norm(x * act(gate)) * scale`` with `gate_first` (Mamba-2, arXiv:2405.21060).
    With `group_size` the mean is taken over groups of that many neighbouring features.

    Raises:
      ValueError: the features are not a multiple of `group_size`, or `activation` is unknown.
    """

    eps: float = 1e-5
    group_size: int | None = None
    gate_first: bool = False
    activation: str = "silu"  # of the gate: "silu" or "sigmoid"
    axis: str | None = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*lead D"], gate: Float[Array, "*lead D"]) -> Float[Array, "*lead D"]:
        if self.activation not in GATES:
            raise ValueError(f"GatedRMSNorm: activation={self.activation!r} is unknown, expected one of {list(GATES)}")
        features = x.shape[-1]
        size = self.group_size or features
        if features % size:
            raise ValueError(f"GatedRMSNorm: group_size={size} does not divide the {features} features; use a divisor")
        wide = x.astype(accumulate_dtype(x))
        opened = GATES[self.activation](gate.astype(wide.dtype))
        scale = _vector(self, "scale", nn.initializers.ones, self.axis, self.param_dtype, wide)
        y = wide * opened if self.gate_first else wide
        y = _rms(y.reshape(*x.shape[:-1], features // size, size), self.eps).reshape(x.shape) * scale
        return (y if self.gate_first else y * opened).astype(x.dtype)
