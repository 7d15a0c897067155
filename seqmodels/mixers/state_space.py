"""What the state-space layers S4, S4D and S5 share: complex parameters in two real parts, step sizes, the read-out."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from seqmodels.axes import Array
from seqmodels.errors import UserError
from seqmodels.layers.linear import Linear
from seqmodels.layers.param import param
from seqmodels.mixers import parts
from seqmodels.mixers.base import Cursor, Mixer, MixerConfig


@dataclasses.dataclass(frozen=True)
class StateSpaceConfig(MixerConfig):
    """Options that all of them have. `dt_min`, `dt_max`: a state remembers about ``1 / dt`` tokens."""

    state_size: int = 64
    """States N, both halves of conjugate pairs counted: of a channel, or of the layer (S5)."""
    dt_min: float = 1e-3
    """Smallest initial step size."""
    dt_max: float = 0.1
    """Largest initial step size."""
    rate: float = 1.0
    """Factor of all step sizes: 2 runs a layer on every second sample of the signals that it was trained on."""

    def __post_init__(self) -> None:
        parts.require_positive(self, "state_size", "dt_min", "dt_max", "rate")
        name = type(self).__name__
        if self.state_size % 2:
            raise UserError(f"{name}.state_size={self.state_size} is odd, expected conjugate pairs; use an even size")
        if self.dt_min > self.dt_max:
            raise UserError(f"{name}.dt_min={self.dt_min} exceeds dt_max={self.dt_max}; swap them")


class StateSpaceState(NamedTuple):
    """The state of the system."""

    cursor: Cursor
    memory: Array  # float32; a complex state has a last axis for its real and imaginary part


def steps(mixer: Mixer, name: str, count: int, axis: str | None = "heads") -> Array:
    """Step sizes ``[count]`` from the parameter `name`, their logarithm, times the config's rate."""
    cfg = mixer.cfg

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, math.log(cfg.dt_min), math.log(cfg.dt_max))

    return cfg.rate * jnp.exp(parts.wide(param(mixer, name, init, (count,), (axis,), mixer.param_dtype)))


def skip(mixer: Mixer) -> Array:
    """``D [dim]``, the weight of the input itself."""
    return parts.wide(param(mixer, "D", nn.initializers.normal(1.0), (mixer.dim,), ("heads",), mixer.param_dtype))


def constant(value: np.ndarray) -> parts.Init:
    """An initialiser that repeats `value` over leading axes."""
    return lambda key, shape, dtype=jnp.float32: jnp.broadcast_to(jnp.asarray(value, dtype), shape)


def in_parts(value: np.ndarray) -> np.ndarray:
    """Complex ``[...]`` -> real ``[...,2]``."""
    return np.stack([value.real, value.imag], axis=-1)


def to_complex(pair: Array) -> Array:
    """Real ``[...,2]`` -> complex ``[...]``."""
    return jax.lax.complex(pair[..., 0], pair[..., 1])


def to_parts(value: Array) -> Array:
    """Complex ``[...]`` -> real ``[...,2]``."""
    return jnp.stack([value.real, value.imag], axis=-1)


def gated_linear_unit(mixer: Mixer, y: Array) -> Array:
    """``u W_1 * sigmoid(u W_2)`` of ``u = gelu(y)``, S4's read-out; both matrices are one kernel ``[D,2D]``."""
    u, gate = jnp.split(_project(mixer, jax.nn.gelu(y, approximate=False), 2 * mixer.dim), 2, axis=-1)
    return u * jax.nn.sigmoid(gate)


def gated_unit(mixer: Mixer, y: Array) -> Array:
    """``u * sigmoid(u W)`` of ``u = gelu(y)``, S5's read-out."""
    u = jax.nn.gelu(y, approximate=False).astype(mixer.dtype)
    return u * jax.nn.sigmoid(_project(mixer, u, mixer.dim))


def _project(mixer: Mixer, u: Array, features: int) -> Array:
    types = {"dtype": mixer.dtype, "param_dtype": mixer.param_dtype, "kernel_init": parts.fan_in_uniform_init()}
    return Linear(features, axes=("heads", "embed"), use_bias=True, name="output_linear", **types)(u)
