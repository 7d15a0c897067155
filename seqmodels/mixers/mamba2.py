"""Mamba-2 (state-space duality, SSD; Dao & Gu 2024, arXiv:2405.21060).

One projection gives ``z, x, B, C, dt``; a short convolution with SiLU runs over x, B and C. With
``Δ = softplus(dt + dt_bias)`` and ``A = -exp(A_log)`` per head, ``S_t = e^{Δ_t A} S_{t-1} + Δ_t B_t x_tᵀ`` and
``y_t = S_tᵀ C_t + D x_t``: linear attention with queries C, keys B, values Δx and one decay per head, B and C
shared by the heads of a group. The gate comes before the norm: ``W_out norm(y ⊙ silu(z))``, normalised in groups.
"""

from __future__ import annotations

import dataclasses
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
from seqmodels.mixers.base import Context, Cursor, Mixer, MixerConfig


@dataclasses.dataclass(frozen=True)
class Mamba2Config(MixerConfig):
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

    def flops_per_token(self, dim: int, length: int) -> float:
        E, GN, H = self.expand * dim, self.num_groups * self.state_size, self.num_heads(dim)
        return 2 * dim * (3 * E + 2 * GN + H) + 2 * self.conv_size * (E + 2 * GN) + 5 * E * self.state_size


class Mamba2State(NamedTuple):
    """The state-space state, and the inputs that the convolution still needs."""

    cursor: Cursor
    conv: Array  # [B,W-1,E+2GN] float32
    memory: Array  # [B,H,N,P] float32


class Mamba2(Mixer):
    """``[B,T,D] -> [B,T,D]``; see the module's docstring and `Mamba2Config`."""

    cfg: Mamba2Config

    @nn.compact
    def __call__(
        self,
        x: Array,
        state: Mamba2State | None = None,
        segment_ids: Array | None = None,
        context: Context = Context(),  # noqa: B008
    ) -> tuple[Array, Mamba2State, dict[str, Any]]:
        cfg, H, G = self.cfg, self.cfg.num_heads(self.dim), self.cfg.num_groups
        E, GN = cfg.expand * self.dim, G * cfg.state_size
        held = self.init_state(x.shape[0]) if state is None else state
        entry = held.cursor.enter(segment_ids, x.shape[1])
        default = parts.fan_in_uniform_init()
        projected = parts.into(self, "in_proj", 2 * E + 2 * GN + H, None, kernel_init=default)(x)
        z, xBC, dt = jnp.split(projected, (E, 2 * E + 2 * GN), axis=-1)
        xBC, conv = self._conv1d(xBC, entry.carried(held.conv), segment_ids)
        values, keys, queries = jnp.split(xBC, (E, E + GN), axis=-1)
        values = parts.split(values, H)
        dt, log_decay = self._discretise(parts.wide(dt), H)
        y, memory = ops.linear_attention(
            parts.split(queries, G),
            parts.split(keys, G),
            (parts.wide(values) * dt[..., None]).astype(self.dtype),
            log_decay,
            scale=1.0,
            state=entry.carried(held.memory),
            segment_ids=segment_ids,
        )
        skip = param(self, "D", nn.initializers.ones, (H,), (None,), self.param_dtype)
        y = y + values * jnp.broadcast_to(skip.astype(self.dtype)[:, None], values.shape)
        grouped = {"group_size": E // G, "gate_first": True, "axis": "heads", "param_dtype": self.param_dtype}
        y = GatedRMSNorm(eps=cfg.norm_eps, name="norm", **grouped)(parts.merge(y), z)
        rescaled = parts.fan_in_uniform_init(context.depth**-0.5)
        out = parts.out_of(self, "out_proj", kernel_init=rescaled)(y)
        return out, Mamba2State(entry.cursor, conv, memory), {}

    def _conv1d(self, x: Array, state: Array, segment_ids: Array | None) -> tuple[Array, Array]:
        bound = 1.0 / math.sqrt(self.cfg.conv_size)
        conv = ShortConv(
            self.cfg.conv_size,
            use_bias=True,
            bias_init=lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound),
            axis=None,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="conv1d",
        )
        return conv(x, state, segment_ids)

    def _discretise(self, dt: Array, H: int) -> tuple[Array, Array]:
        """Step sizes Δ and log-decays ΔA, both [B,T,H]."""
        cfg = self.cfg
        A_log = param(self, "A_log", parts.log_uniform_init(1.0, 16.0), (H,), (None,), self.param_dtype)
        init = parts.dt_bias_init(cfg.dt_min, cfg.dt_max, cfg.dt_floor)
        dt_bias = param(self, "dt_bias", init, (H,), (None,), self.param_dtype)
        dt = jax.nn.softplus(dt + jnp.broadcast_to(dt_bias.astype(dt.dtype), dt.shape))
        if cfg.dt_limit != (0.0, math.inf):
            dt = jnp.clip(dt, *cfg.dt_limit)
        return dt, -dt * jnp.broadcast_to(jnp.exp(A_log.astype(dt.dtype)), dt.shape)

    def init_state(self, batch: int, max_length: int | None = None) -> Mamba2State:
        cfg, H = self.cfg, self.cfg.num_heads(self.dim)
        channels = cfg.expand * self.dim + 2 * cfg.num_groups * cfg.state_size
        conv = jnp.zeros((batch, cfg.conv_size - 1, channels), jnp.float32)
        memory = jnp.zeros((batch, H, cfg.state_size, cfg.head_dim), jnp.float32)
        return Mamba2State(Cursor.zeros(batch), conv, memory)
