"""Mamba (S6; Gu & Dao 2023, arXiv:2312.00752), the layer of the released models.

``x, z = W_in u``; x goes through a short convolution with SiLU; ``δ, B, C = W_x x`` and ``Δ = softplus(W_Δ δ + b_Δ)``.
With ``A = -exp(A_log) [E,N]``, every channel has N states, ``h_t = e^{Δ_t A} h_{t-1} + Δ_t x_t B_t``, and
``y_t = h_t C_t + D x_t``. The output is ``W_out (y ⊙ silu(z))``; nothing is normalised inside.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from seqmodels import ops
from seqmodels.axes import Array
from seqmodels.errors import UserError
from seqmodels.layers.linear import Linear
from seqmodels.layers.param import param
from seqmodels.layers.short_conv import ShortConv, conv_init
from seqmodels.mixers import parts
from seqmodels.mixers.base import Context, Cursor, Mixer, MixerConfig

SELECTED = ("dt", "B", "C")


@dataclasses.dataclass(frozen=True)
class MambaConfig(MixerConfig):
    """Options of `Mamba`."""

    state_size: int = 16
    """States N of a channel."""
    expand: int = 2
    """Inner width E as a multiple of the model width."""
    dt_rank: int | Literal["auto"] = "auto"
    """Rank R of the step sizes' projection; "auto" is the model width divided by 16, rounded up."""
    conv_size: int = 4
    """Width of the short convolution."""
    dt_min: float = 1e-3
    """Smallest initial step size."""
    dt_max: float = 0.1
    """Largest initial step size."""
    dt_floor: float = 1e-4
    """Initial step sizes are not below this."""
    inner_norm_eps: float | None = None
    """Normalise δ, B and C by their root mean square plus this, without weights (FalconMamba); None: do not."""
    selective: tuple[str, ...] = SELECTED
    """What follows the token, of "dt", "B" and "C". The rest is learnt but fixed, as in the paper's ablation: a step
    size per channel; B and C shared by the channels, as the selected ones are (UNKNOWN to us: the paper's form)."""

    def __post_init__(self):
        parts.require_positive(self, "state_size", "expand", "conv_size", "dt_min", "dt_max", "dt_floor")
        parts.require_positive(self, "inner_norm_eps")
        if self.dt_rank != "auto" and (not isinstance(self.dt_rank, int) or self.dt_rank < 1):
            raise UserError(f"MambaConfig.dt_rank={self.dt_rank!r} is no rank; use 'auto' or a positive int")
        if not set(self.selective) <= set(SELECTED):
            raise UserError(f"MambaConfig.selective={self.selective!r}; use some of {SELECTED}")
        if self.dt_min > self.dt_max:
            raise UserError(f"MambaConfig.dt_min={self.dt_min} exceeds dt_max={self.dt_max}; swap them")

    @classmethod
    def tiny(cls) -> MambaConfig:
        return cls(state_size=4)

    def rank(self, dim: int) -> int:
        """Rank R for model width `dim`."""
        return -(-dim // 16) if self.dt_rank == "auto" else self.dt_rank

    def make(self, dim: int, **kwargs: Any) -> Mamba:
        return Mamba(self, dim, **kwargs)

    def flops_per_token(self, dim: int, length: int) -> float:
        E, N = self.expand * dim, self.state_size
        widths = self.widths(dim)
        return 2 * E * (3 * dim + sum(widths.values()) + widths.get("dt", 0)) + 2 * self.conv_size * E + 7 * E * N

    def widths(self, dim: int) -> dict[str, int]:
        """How many numbers a token chooses, by what they are."""
        sizes = {"dt": self.rank(dim), "B": self.state_size, "C": self.state_size}
        return {name: size for name, size in sizes.items() if name in self.selective}


class MambaState(NamedTuple):
    """The state-space state, and the inputs that the convolution still needs."""

    cursor: Cursor
    conv: Array  # [B,W-1,E] float32
    memory: Array  # [B,E,N] float32


class Mamba(Mixer):
    """``[B,T,D] -> [B,T,D]``; see the module's docstring and `MambaConfig`."""

    cfg: MambaConfig

    @nn.compact
    def __call__(
        self,
        x: Array,
        state: MambaState | None = None,
        segment_ids: Array | None = None,
        context: Context = Context(),  # noqa: B008
    ) -> tuple[Array, MambaState, dict[str, Any]]:
        cfg, E = self.cfg, self.cfg.expand * self.dim
        held = self.init_state(x.shape[0]) if state is None else state
        entry = held.cursor.enter(segment_ids, x.shape[1])
        uniform = parts.fan_in_uniform_init()
        u, z = jnp.split(parts.into(self, "in_proj", 2 * E, kernel_init=uniform)(x), 2, axis=-1)
        u, conv = self._conv1d(u, entry.carried(held.conv), segment_ids)
        dt, B, C = self._select(u)
        dt, delta_bias = StepSizes(E, cfg, self.dtype, self.param_dtype, name="dt_proj")(dt)
        dt = jnp.zeros_like(u) if dt is None else dt
        A_log = param(self, "A_log", harmonic_init, (E, cfg.state_size), ("heads", None), self.param_dtype)
        skip = param(self, "D", nn.initializers.ones, (E,), ("heads",), self.param_dtype)
        y, memory = ops.selective_scan(
            u,
            dt,
            -jnp.exp(parts.wide(A_log)),
            B,
            C,
            skip,
            z,
            delta_bias=delta_bias,
            softplus=True,
            state=entry.carried(held.memory),
            segment_ids=segment_ids,
        )
        out = parts.out_of(self, "out_proj", kernel_init=parts.fan_in_uniform_init(context.depth**-0.5))(y)
        return out, MambaState(entry.cursor, conv, memory), {}

    def _conv1d(self, u: Array, state: Array, segment_ids: Array | None) -> tuple[Array, Array]:
        bound = 1.0 / math.sqrt(self.cfg.conv_size)
        conv = ShortConv(
            self.cfg.conv_size,
            use_bias=True,
            kernel_init=conv_init,
            bias_init=lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="conv1d",
        )
        return conv(u, state, segment_ids)

    def _select(self, u: Array) -> tuple[Array | None, Array, Array]:
        """δ ``[B,T,R]``, or ``None`` if step sizes are fixed, and B and C ``[B,T,N]`` of every token."""
        cfg, widths = self.cfg, self.cfg.widths(self.dim)
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype, "kernel_init": parts.fan_in_uniform_init()}
        rows: dict[str, Array] = {}
        if widths:
            chosen = Linear(sum(widths.values()), axes=("heads", None), name="x_proj", **types)(u)
            borders = list(itertools.accumulate(widths.values()))[:-1]
            rows = dict(zip(widths, jnp.split(chosen, borders, axis=-1), strict=True))
        if (eps := cfg.inner_norm_eps) is not None:
            rows = {name: _unit_rms(parts.wide(x), eps).astype(self.dtype) for name, x in rows.items()}
        for name in [name for name in ("B", "C") if name not in widths]:
            fixed = param(self, name, nn.initializers.normal(1.0), (cfg.state_size,), (None,), self.param_dtype)
            rows[name] = jnp.broadcast_to(fixed.astype(u.dtype), (*u.shape[:2], cfg.state_size))
        return rows.get("dt"), rows["B"], rows["C"]

    def init_state(self, batch: int, max_length: int | None = None) -> MambaState:
        cfg, E = self.cfg, self.cfg.expand * self.dim
        conv = jnp.zeros((batch, cfg.conv_size - 1, E), jnp.float32)
        return MambaState(Cursor.zeros(batch), conv, jnp.zeros((batch, E, cfg.state_size), jnp.float32))


class StepSizes(nn.Module):
    """The projection of δ, if any, to a step size per channel, and its bias apart: the scan adds it in float32."""

    features: int
    cfg: MambaConfig
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, low: Array | None) -> tuple[Array | None, Array]:
        cfg = self.cfg
        init = parts.dt_bias_init(cfg.dt_min, cfg.dt_max, cfg.dt_floor)
        bias = param(self, "bias", init, (self.features,), ("heads",), self.param_dtype)
        if low is None:
            return None, bias
        shape = (low.shape[-1], self.features)
        kernel = param(self, "kernel", parts.fan_in_uniform_init(), shape, (None, "heads"), self.param_dtype)
        return jnp.dot(low, kernel.astype(self.dtype)), bias


def harmonic_init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """``A_log [E,N]`` of ``A = -1, -2, ..., -N`` in every channel (S4D-Real)."""
    del key
    return jnp.broadcast_to(jnp.log(jnp.arange(1, shape[1] + 1, dtype=dtype)), shape)


def _unit_rms(x: Array, eps: float) -> Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)
