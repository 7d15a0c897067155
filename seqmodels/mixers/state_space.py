"""What the state-space layers S4, S4D and S5 share: complex parameters in two real parts, step sizes, both directions,
the read-out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from seqmodels import ops
from seqmodels.axes import Array
from seqmodels.errors import UserError
from seqmodels.layers.linear import Linear
from seqmodels.layers.param import param
from seqmodels.mixers import parts
from seqmodels.mixers.base import Cursor, Mixer, MixerConfig

MIN_DECAY = 1e-4
"""Least initial (S5: least) decay rate of a state."""


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
    bidirectional: bool = False
    """Add a read-out of the same system run backwards, for classifiers: the layer has no state, and no language model
    takes it."""

    def __post_init__(self) -> None:
        parts.require_positive(self, "state_size", "dt_min", "dt_max", "rate")
        name = type(self).__name__
        if self.state_size % 2:
            raise UserError(f"{name}.state_size={self.state_size} is odd, expected conjugate pairs; use an even size")
        if self.dt_min > self.dt_max:
            raise UserError(f"{name}.dt_min={self.dt_min} exceeds dt_max={self.dt_max}; swap them")

    @property
    def causal(self) -> bool:
        return not self.bidirectional


class StateSpaceState(NamedTuple):
    """The state of the system."""

    cursor: Cursor
    memory: Array  # float32; a complex state has a last axis for its real and imaginary part


class StateSpaceMixer(Mixer):
    """A layer that has a state unless it runs both ways."""

    def zeros(self, batch: int) -> StateSpaceState:
        """The state before the first token."""
        raise NotImplementedError

    def init_state(self, batch: int, max_length: int | None = None) -> StateSpaceState:
        self._require_causal()
        return self.zeros(batch)

    @nn.nowrap
    def held(self, batch: int, state: StateSpaceState | None) -> StateSpaceState:
        """`state`, or the one before the first token."""
        if state is None:
            return self.zeros(batch)
        self._require_causal()
        return state

    @nn.nowrap
    def _require_causal(self) -> None:
        if self.cfg.bidirectional:
            name = type(self.cfg).__name__
            raise UserError(f"{name}.bidirectional=True reads the future and keeps no state; set it to False to decode")


def from_the_future(
    run: Callable[[Array, Array | None], Array], u: Array, segment_ids: Array | None, *, strict: bool
) -> Array:
    """``run(u, segment_ids)`` backwards in time, document by document; with `strict` without a token's own input."""
    flip = lambda x: x[:, ::-1]  # noqa: E731
    ids = None if segment_ids is None else flip(segment_ids)
    y = run(flip(u), ids)
    if strict:
        previous = jnp.zeros((2, u.shape[2]), y.dtype).at[0].set(1)
        y, _ = ops.short_conv(y, previous, segment_ids=ids)
    return flip(y)


def steps(mixer: Mixer, name: str, count: int, axis: str | None = "heads") -> Array:
    """Step sizes ``[count]`` from the parameter `name`, their logarithm, times the config's rate."""
    cfg = mixer.cfg

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, math.log(cfg.dt_min), math.log(cfg.dt_max))

    return cfg.rate * jnp.exp(parts.wide(param(mixer, name, init, (count,), (axis,), mixer.param_dtype)))


def of_channels(mixer: Mixer, copies: int | None, name: str, value: np.ndarray) -> Array:
    """``[*lead,dim,N/2]`` from the parameter `name`, ``[*lead,copies,N/2]``, which starts at ``value [*lead,N/2]``.

    The channels share `copies` in turn, ``None``: one each. A complex value has a last axis for its two parts.
    """
    count, lead, pair = copies or mixer.dim, value.shape[:-1], () if np.isrealobj(value) else (2,)
    start = np.expand_dims(in_parts(value) if pair else value, len(lead))
    shape = (*lead, count, value.shape[-1], *pair)
    axes = (*[None] * len(lead), "heads", None, *[None] * len(pair))
    held = parts.wide(param(mixer, name, constant(start), shape, axes, mixer.param_dtype))
    held = jnp.tile(held, (*[1] * len(lead), mixer.dim // count, 1, *[1] * len(pair)))
    return to_complex(held) if pair else held


def eigenvalues(mixer: Mixer, copies: int | None, start: np.ndarray) -> Array:
    """``-exp(log_A_real) + i A_imag`` ``[dim,N/2]``, first ``start [N/2]``, decaying at least by `MIN_DECAY`."""
    real = of_channels(mixer, copies, "log_A_real", np.log(np.maximum(-np.real(start), MIN_DECAY)))
    return -jnp.exp(real) + 1j * of_channels(mixer, copies, "A_imag", np.imag(start))


def readout(mixer: Mixer, name: str) -> Array:
    """``C [dim,N/2]``, complex, from the parameter `name`."""
    normal, shape = nn.initializers.normal(0.5**0.5), (mixer.dim, mixer.cfg.state_size // 2, 2)
    return to_complex(parts.wide(param(mixer, name, normal, shape, ("heads", None, None), mixer.param_dtype)))


def skip(mixer: Mixer) -> Array:
    """``D [dim]``, the weight of the input itself."""
    return parts.wide(param(mixer, "D", nn.initializers.normal(1.0), (mixer.dim,), ("heads",), mixer.param_dtype))


def constant(value: np.ndarray) -> parts.Init:
    """An initialiser that repeats `value` over leading axes."""
    return lambda key, shape, dtype=jnp.float32: jnp.broadcast_to(jnp.asarray(value, dtype), shape)


def in_parts(value: np.ndarray) -> np.ndarray:
    """Complex ``[...]`` -> real ``[...,2]``."""
    return np.stack([np.real(value), np.imag(value)], axis=-1)


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
