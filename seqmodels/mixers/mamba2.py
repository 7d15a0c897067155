"""Mamba-2 (state-space duality, SSD; Dao & Gu 2024, arXiv:2405.21060).

One projection gives ``z, x, B, C, dt``; a short convolution with SiLU runs over x, B and C. With
``Δ = softplus(dt + dt_bias)`` and ``A = -exp(A_log)`` per head, ``S_t = e^{Δ_t A} S_{t-1} + Δ_t B_t x_tᵀ`` and
``y_t = S_tᵀ C_t + D x_t``: linear attention with queries C, keys B, values Δx and one decay per head, B and C
shared by the heads of a group. The gate comes before the norm: ``W_out norm(y ⊙ silu(z))``, normalised in groups.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from seqmodels import ops
from seqmodels.axes import Array
from seqmodels.errors import UserError
from seqmodels.layers.norm import GatedRMSNorm
from seqmodels.layers.param import param
from seqmodels.layers.short_conv import ShortConv
from seqmodels.mixers import parts
from seqmodels.mixers.base import Context, Cursor, Mixer
from seqmodels.mixers.recurrent import Projection, Recurrent, RecurrentConfig, Streams


@dataclasses.dataclass(frozen=True)
class Mamba2Config(RecurrentConfig):
    """Options of `Mamba2`."""

    state_size: int = 128
    """State size N, the length of B and C."""
    head_dim: int = 64
    """Channels P of a head."""
    expand: int = 2
    """Inner width E as a multiple of the model width."""
    num_groups: int = 1
    """Groups G; the heads of a group share B and C, and the norm runs over a group's channels."""
    conv_size: int = 4
    """Width of the short convolution."""
    dt_min: float = 1e-3
    """Smallest initial step size."""
    dt_max: float = 0.1
    """Largest initial step size."""
    dt_floor: float = 1e-4
    """Initial step sizes are not below this."""
    dt_limit: tuple[float, float] = (0.0, math.inf)
    """Step sizes are clipped to this range."""
    norm_before_gate: bool = False
    """Normalise y alone and gate the result, ``norm(y) ⊙ silu(z)``, instead of ``norm(y ⊙ silu(z))``."""
    norm_eps: float = 1e-5
    """Added to the mean square in the output norm."""

    def __post_init__(self):
        parts.require_positive(self, "state_size", "head_dim", "expand", "num_groups", "conv_size", "norm_eps")
        parts.require_positive(self, "dt_min", "dt_max", "dt_floor")
        if self.dt_min > self.dt_max:
            raise UserError(f"Mamba2Config.dt_min={self.dt_min} exceeds dt_max={self.dt_max}; swap them")
        if not 0 <= self.dt_limit[0] < self.dt_limit[1]:
            raise UserError(f"Mamba2Config.dt_limit={self.dt_limit} is not a range of step sizes; use 0 <= low < high")

    @classmethod
    def tiny(cls) -> Mamba2Config:
        return cls(state_size=16, head_dim=16, num_groups=2)

    def num_heads(self, dim: int) -> int:
        """Heads H for model width `dim`."""
        heads = parts.divide(self, "head_dim", self.head_dim, "expand * dim", self.expand * dim)
        parts.divide(self, "num_groups", self.num_groups, "the number of heads", heads)
        return heads

    def make(self, dim: int, **kwargs: Any) -> Mamba2:
        self.num_heads(dim)
        return Mamba2(self, dim, **kwargs)

    def streams(self, dim: int) -> Streams:
        init = parts.fan_in_uniform_init()
        inner = Projection(self.expand * dim, kernel_init=init)
        group = Projection(self.num_groups * self.state_size, None, kernel_init=init)
        steps = Projection(self.num_heads(dim), None, kernel_init=init)
        return Streams({"C": group}, {"x": inner, "B": group, "dt": steps}, {"z": inner})

    def value_width(self, dim: int) -> int:
        return self.expand * dim

    def recurrence_flops(self, dim: int) -> float:
        E, GN = self.expand * dim, self.num_groups * self.state_size
        return 2.0 * self.conv_size * (E + 2 * GN) + 5 * E * self.state_size


class Mamba2State(NamedTuple):
    """The state-space state, and the inputs that the convolution still needs."""

    cursor: Cursor
    conv: Array  # [B,W-1,E+2GN] float32
    memory: Array  # [B,H,N,P] float32


class Mamba2Weights(NamedTuple):
    """What the recurrence needs besides streams."""

    conv1d: ShortConv  # of x, B, C side by side
    A_log: Array  # [H]
    dt_bias: Array  # [H]
    D: Array  # [H]


class Mamba2(Recurrent):
    """``[B,T,D] -> [B,T,D]``; see the module's docstring and `Mamba2Config`."""

    cfg: Mamba2Config

    @nn.nowrap
    def project(self, host: Mixer, x: Array) -> dict[str, Array]:
        """All streams by one kernel."""
        order = ("z", "x", "B", "C", "dt")
        streams = self.cfg.streams(self.dim).all()
        ends = list(itertools.accumulate(streams[name].features for name in order))
        projected = parts.into(host, "in_proj", ends[-1], None, kernel_init=parts.fan_in_uniform_init())(x)
        return dict(zip(order, jnp.split(projected, ends[:-1], axis=-1), strict=True))

    @nn.nowrap
    def weights(self, host: Mixer) -> Mamba2Weights:
        cfg, H = self.cfg, self.cfg.num_heads(self.dim)
        rates = (parts.log_uniform_init(1.0, 16.0), parts.dt_bias_init(cfg.dt_min, cfg.dt_max, cfg.dt_floor))
        inits = {"A_log": rates[0], "dt_bias": rates[1], "D": nn.initializers.ones}
        vectors = {name: param(host, name, init, (H,), (None,), host.param_dtype) for name, init in inits.items()}
        bound = 1.0 / math.sqrt(cfg.conv_size)
        conv1d = ShortConv(
            cfg.conv_size,
            use_bias=True,
            bias_init=lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound),
            axis=None,
            dtype=host.dtype,
            param_dtype=host.param_dtype,
            name="conv1d",
        )
        return Mamba2Weights(conv1d, **vectors)

    @nn.nowrap
    def recur(
        self, weights: Mamba2Weights, streams: dict[str, Array], held: tuple, segments: parts.Segments
    ) -> tuple[Array, tuple]:
        H, G, E = self.cfg.num_heads(self.dim), self.cfg.num_groups, self.cfg.expand * self.dim
        conv, memory = held
        xBC = jnp.concatenate([streams[name] for name in ("x", "B", "C")], axis=-1)
        xBC, conv = weights.conv1d(xBC, conv, *segments)
        values, keys, queries = jnp.split(xBC, (E, E + G * self.cfg.state_size), axis=-1)
        values = parts.split(values, H)
        dt, log_decay = self._discretise(parts.wide(streams["dt"]), weights)
        y, memory = ops.linear_attention(
            parts.split(queries, G),
            parts.split(keys, G),
            (parts.wide(values) * dt[..., None]).astype(values.dtype),
            segments.forget(log_decay, values),
            scale=1.0,
            state=memory,
            segment_ids=segments.ids,
            num_segments=segments.count,
        )
        skip = weights.D.astype(y.dtype)[:, None]
        return y + values * jnp.broadcast_to(skip, values.shape), (conv, memory)

    @nn.nowrap
    def _discretise(self, dt: Array, weights: Mamba2Weights) -> tuple[Array, Array]:
        """Step sizes Δ and log-decays ΔA, both [B,T,H]."""
        cfg = self.cfg
        dt = jax.nn.softplus(dt + jnp.broadcast_to(weights.dt_bias.astype(dt.dtype), dt.shape))
        if cfg.dt_limit != (0.0, math.inf):
            dt = jnp.clip(dt, *cfg.dt_limit)
        return dt, -dt * jnp.broadcast_to(jnp.exp(weights.A_log.astype(dt.dtype)), dt.shape)

    @nn.nowrap
    def readout(self, host: Mixer, o: Array, streams: dict[str, Array], context: Context) -> Array:
        cfg = self.cfg
        groups = {"group_size": cfg.expand * self.dim // cfg.num_groups, "gate_first": not cfg.norm_before_gate}
        types = {"axis": "heads", "param_dtype": host.param_dtype}
        norm = GatedRMSNorm(eps=cfg.norm_eps, name="norm", **groups, **types)
        rescaled = parts.fan_in_uniform_init(context.depth**-0.5)
        return parts.out_of(host, "out_proj", kernel_init=rescaled)(norm(parts.merge(o), streams["z"]))

    @nn.nowrap
    def zeros(self, *lead: int) -> tuple:
        cfg, H = self.cfg, self.cfg.num_heads(self.dim)
        channels = cfg.expand * self.dim + 2 * cfg.num_groups * cfg.state_size
        conv = jnp.zeros((*lead, cfg.conv_size - 1, channels), jnp.float32)
        return conv, jnp.zeros((*lead, H, cfg.state_size, cfg.head_dim), jnp.float32)

    def init_state(self, batch: int, max_length: int | None = None) -> Mamba2State:
        return Mamba2State(Cursor.zeros(batch), *self.zeros(batch))
