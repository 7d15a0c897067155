"""Hyena of order 2 (Poli et al. 2023, arXiv:2302.10866): one long convolution between two gates.

``x₁, x₂, v`` are projections of the input after a short convolution; ``y = W_o (x₁ ⊙ (h * (x₂ ⊙ v)))``. The filter h is
implicit: a small MLP with sine activations maps a position to D taps, which a window ``exp(-t δ)`` weights, a decay δ
per channel and t in [0, 1] over `max_length` taps; and a skip per channel is added to its first tap.

A filter as long as the sequence has no state of fixed size: the state is a buffer of the last inputs of the
convolution, as the cache of full attention is, and one token costs as much as the buffer is long. Departures: the
positional features are fixed, where the released code trains them; dropout is left out.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from seqmodels import ops
from seqmodels.axes import Array
from seqmodels.errors import UserError
from seqmodels.layers.linear import Linear
from seqmodels.layers.param import param
from seqmodels.layers.short_conv import ShortConv
from seqmodels.mixers import parts
from seqmodels.mixers.base import Context, Cursor, Mixer, MixerConfig


@dataclasses.dataclass(frozen=True)
class HyenaConfig(MixerConfig):
    """Options of `Hyena`; defaults of the released language models."""

    max_length: int = 2048
    """Taps L of the filter: a token sees itself and the L - 1 before it. Decays and features scale with it."""
    conv_size: int = 3
    """Width of the short convolution, which has no activation."""
    filter_width: int = 64
    """Width of the filter's MLP."""
    filter_layers: int = 2
    """Hidden layers of that MLP after the first."""
    features: int = 33
    """Features of a position: t, and cosines and sines of ``(features - 1) / 2`` frequencies."""
    sine_frequency: float = 14.0
    """Initial factor inside the sines of the MLP, learned per channel."""
    target: float = 1e-2
    """What the window falls to after `fast_decay` of its length in the quickest channel, `slow_decay` in the slowest
    one."""
    fast_decay: float = 0.3
    """See `target`."""
    slow_decay: float = 1.5
    """See `target`."""

    def __post_init__(self):
        parts.require_positive(self, "max_length", "conv_size", "filter_width", "features", "sine_frequency")
        parts.require_positive(self, "target", "fast_decay", "slow_decay")
        if self.features < 3 or self.features % 2 == 0:
            raise UserError(f"HyenaConfig.features={self.features} must be odd and at least 3: t, cosines and sines")
        if self.target >= 1:
            raise UserError(f"HyenaConfig.target={self.target} is no decay of a window that begins at 1; use 0 to 1")
        parts.require_whole(self, "filter_layers")
        if self.filter_layers < 0:
            raise UserError(f"HyenaConfig.filter_layers={self.filter_layers} must not be negative")

    @classmethod
    def tiny(cls) -> HyenaConfig:
        return cls(max_length=16, filter_width=4, filter_layers=1, features=3, sine_frequency=1.0)

    def make(self, dim: int, **kwargs: Any) -> Hyena:
        return Hyena(self, dim, **kwargs)

    def flops_per_token(self, dim: int, length: int) -> float:
        """Without the filter, which a batch computes once; three real FFTs of twice the length."""
        transforms = 15 * math.log2(2 * max(length, 1)) + 6
        return 2 * dim * 4 * dim + 6 * dim * self.conv_size + dim * (transforms + 2)


class HyenaState(NamedTuple):
    """The inputs that the two convolutions still need, oldest first; M is the length of the buffer plus one."""

    cursor: Cursor
    conv: Array  # [B,W-1,3D] float32
    inputs: Array  # [B,M-1,D] float32


class Hyena(Mixer):
    """``[B,T,D] -> [B,T,D]``; see the module's docstring and `HyenaConfig`.

    The buffer holds the filter's length, or the `max_length` given to ``init_state`` if that is shorter: then the taps
    beyond it are not used, which changes nothing for sequences that are no longer.
    """

    cfg: HyenaConfig

    @nn.compact
    def __call__(
        self,
        x: Array,
        state: HyenaState | None = None,
        segment_ids: Array | None = None,
        context: Context = Context(),  # noqa: B008
    ) -> tuple[Array, HyenaState, dict[str, Any]]:
        cfg = self.cfg
        held = self.init_state(x.shape[0]) if state is None else state
        entry = held.cursor.enter(segment_ids, x.shape[1])
        streams = parts.into(self, "in_proj", 3 * self.dim, use_bias=True)(x)
        short = ShortConv(
            cfg.conv_size,
            activation=None,
            use_bias=True,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="short_filter",
        )
        streams, conv = short(streams, entry.carried(held.conv), segment_ids)
        outer, inner, v = jnp.split(streams, 3, axis=-1)
        kernel = ImplicitFilter(cfg, self.dim, self.param_dtype, name="filter")()[: held.inputs.shape[1] + 1]
        carried = None if state is None else entry.carried(held.inputs)
        mixed, inputs = ops.long_conv(inner * v, kernel, state=carried, segment_ids=segment_ids)
        out = parts.out_of(self, "out_proj", use_bias=True)
        return out(outer * mixed), HyenaState(entry.cursor, conv, inputs), {}

    def init_state(self, batch: int, max_length: int | None = None) -> HyenaState:
        cfg = self.cfg
        taps = min(max_length or cfg.max_length, cfg.max_length)
        conv = jnp.zeros((batch, cfg.conv_size - 1, 3 * self.dim), jnp.float32)
        return HyenaState(Cursor.zeros(batch), conv, jnp.zeros((batch, taps - 1, self.dim), jnp.float32))


class ImplicitFilter(nn.Module):
    """The taps ``[L,D]`` in float32, the current token's first."""

    cfg: HyenaConfig
    channels: int
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self) -> Array:
        cfg, init = self.cfg, parts.fan_in_uniform_init()
        types = {"param_dtype": self.param_dtype, "kernel_init": init}
        t = np.linspace(0.0, 1.0, cfg.max_length)[:, None]
        sine = param(self, "frequency", nn.initializers.constant(cfg.sine_frequency), (cfg.filter_width,), (None,))
        h = jnp.asarray(_features(cfg), jnp.float32)
        for i in range(cfg.filter_layers + 1):
            h = jnp.sin(sine * Linear(cfg.filter_width, (None, None), use_bias=True, name=f"layer_{i}", **types)(h))
        h = Linear(self.channels, (None, "heads"), name="taps", **types)(h)
        depth = -math.log(cfg.target)
        rates = np.linspace(depth / cfg.slow_decay, depth / cfg.fast_decay, self.channels)
        skip = param(self, "skip", nn.initializers.normal(1.0), (self.channels,), ("heads",), self.param_dtype)
        return (h * jnp.asarray(np.exp(-t * rates), h.dtype)).at[0].add(skip)


def _features(cfg: HyenaConfig) -> np.ndarray:
    """``[L,features]``: t in [0, 1], then cosines and negative sines of whole turns over the length."""
    bands = (cfg.features - 1) // 2
    frequencies = np.linspace(1e-4, bands - 1, bands)
    phase = 2 * np.pi * np.arange(cfg.max_length)[:, None] / cfg.max_length * frequencies
    return np.concatenate([np.linspace(0, 1, cfg.max_length)[:, None], np.cos(phase), -np.sin(phase)], axis=1)
