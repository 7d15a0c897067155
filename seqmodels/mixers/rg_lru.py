"""The recurrent block of Griffin with its real-gated linear recurrent unit (RG-LRU; De et al. 2024, arXiv:2402.19427).

Two branches of the recurrent width: ``gelu(W_y x)`` is the output gate; ``W_x x`` goes through a short convolution and
the recurrence. With ``r, i = σ(W_a u + b_a), σ(W_i u + b_i)``, block-diagonal over heads, and
``log a = -c r softplus(Λ)``: ``h_t = a_t h_{t-1} + sqrt(1 - a_t²) i_t u_t``, and ``W_o (h ⊙ gelu(W_y x))``. The first
token of a document has nothing to normalise against and enters as ``i u``.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from seqmodels import ops
from seqmodels.axes import Array
from seqmodels.errors import UserError
from seqmodels.layers.linear import Linear
from seqmodels.layers.param import param
from seqmodels.layers.short_conv import ShortConv
from seqmodels.mixers import parts
from seqmodels.mixers.base import Context, Cursor, Mixer, MixerConfig

MAX_SLOPE = 1000.0  # of the square root, which is vertical at a = 1


@dataclasses.dataclass(frozen=True)
class RGLRUConfig(MixerConfig):
    """Options of `RGLRU`."""

    num_heads: int = 8
    """Diagonal blocks H of the gates' projections."""
    lru_width: int | None = None
    """Width of the recurrence; None: the model width."""
    conv_size: int = 4
    """Width of the short convolution, which has no activation."""
    c: float = 8.0
    """How far an open gate sharpens the decay."""
    min_decay: float = 0.9
    """Smallest initial decay of a channel with an open gate."""
    max_decay: float = 0.999
    """Largest initial decay of a channel with an open gate."""

    def __post_init__(self):
        parts.require_positive(self, "num_heads", "lru_width", "conv_size", "c", "min_decay")
        if not self.min_decay < self.max_decay < 1:
            span = f"min_decay={self.min_decay} and max_decay={self.max_decay}"
            raise UserError(f"RGLRUConfig: {span} are no range of decays; use 0 < min < max < 1")

    @classmethod
    def tiny(cls) -> RGLRUConfig:
        return cls(num_heads=4)

    def width(self, dim: int) -> int:
        """Width of the recurrence for model width `dim`."""
        return self.lru_width or dim

    def make(self, dim: int, **kwargs: Any) -> RGLRU:
        parts.divide(self, "num_heads", self.num_heads, "the recurrent width", self.width(dim))
        return RGLRU(self, dim, **kwargs)

    def flops_per_token(self, dim: int, length: int) -> float:
        width = self.width(dim)
        return 2 * width * (3 * dim + 2 * width / self.num_heads + self.conv_size) + 10 * width


class RGLRUState(NamedTuple):
    """The hidden vector, and the inputs that the convolution still needs."""

    cursor: Cursor
    conv: Array  # [B,W-1,D] float32
    memory: Array  # [B,D] float32


class RGLRU(Mixer):
    """``[B,T,D] -> [B,T,D]``; see the module's docstring and `RGLRUConfig`."""

    cfg: RGLRUConfig

    @nn.compact
    def __call__(
        self,
        x: Array,
        state: RGLRUState | None = None,
        segment_ids: Array | None = None,
        context: Context = Context(),  # noqa: B008
    ) -> tuple[Array, RGLRUState, dict[str, Any]]:
        cfg, width = self.cfg, self.cfg.width(self.dim)
        held = self.init_state(x.shape[0]) if state is None else state
        entry = held.cursor.enter(segment_ids, x.shape[1])
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        gate = jax.nn.gelu(parts.into(self, "linear_y", width, use_bias=True, kernel_init=init)(x), approximate=True)
        u = parts.into(self, "linear_x", width, use_bias=True, kernel_init=init)(x)
        conv = ShortConv(cfg.conv_size, activation=None, use_bias=True, name="conv_1d", **types)
        u, window = conv(u, entry.carried(held.conv), segment_ids)
        unit = GatedUnit(cfg, width, self.param_dtype, name="rg_lru")
        h, memory = unit(u, entry.positions == 0, entry.carried(held.memory), segment_ids)
        rescaled = nn.initializers.variance_scaling(2.0 / context.depth, "fan_in", "normal")
        out = Linear(self.dim, axes=("heads", "embed"), use_bias=True, kernel_init=rescaled, name="linear_out", **types)
        return out(h * gate), RGLRUState(entry.cursor, window, memory), {}

    def init_state(self, batch: int, max_length: int | None = None) -> RGLRUState:
        width = self.cfg.width(self.dim)
        conv = jnp.zeros((batch, self.cfg.conv_size - 1, width), jnp.float32)
        return RGLRUState(Cursor.zeros(batch), conv, jnp.zeros((batch, width), jnp.float32))


class GatedUnit(nn.Module):
    """The recurrence alone: ``(h [B,T,D], state [B,D]) = GatedUnit(...)(u, first, state, segment_ids)``.

    ``first [B,T]`` marks first tokens of documents. Gates and decays are computed in float32, `h` has the dtype of `u`.
    """

    cfg: RGLRUConfig
    width: int
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, u: Array, first: Array, state: Array, segment_ids: Array | None) -> tuple[Array, Array]:
        cfg = self.cfg
        wide = parts.wide(u)
        rate = jax.nn.softplus(param(self, "recurrent_param", self._init_rate, (self.width,), ("heads",)))
        open_ = self._gate("recurrent_gate", wide)
        log_a = -cfg.c * open_ * jnp.broadcast_to(rate.astype(wide.dtype), wide.shape)
        scale = jnp.where(first[..., None], 1.0, bounded_sqrt(-jnp.expm1(2 * log_a)))
        h, state = ops.linear_scan(
            jnp.exp(log_a), scale * self._gate("input_gate", wide) * wide, state=state, segment_ids=segment_ids
        )
        return h.astype(u.dtype), state

    def _gate(self, name: str, u: Array) -> Array:
        """Sigmoid of a projection of every head onto itself."""
        H = self.cfg.num_heads
        size = self.width // H
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=1, out_axis=2, batch_axis=(0,))
        weight = param(self, f"{name}_weight", init, (H, size, size), ("heads", None, None), self.param_dtype)
        bias = param(self, f"{name}_bias", nn.initializers.zeros, (H, size), ("heads", None), self.param_dtype)
        logit = jnp.einsum("bthi,hij->bthj", parts.split(u, H), weight.astype(u.dtype))
        return jax.nn.sigmoid(parts.merge(logit + jnp.broadcast_to(bias.astype(u.dtype), logit.shape)))

    def _init_rate(self, key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        """Λ such that ``a = exp(-c softplus(Λ))`` is uniform in ``[min_decay, max_decay]``."""
        decay = jax.random.uniform(key, shape, dtype, self.cfg.min_decay, self.cfg.max_decay)
        return jnp.log(jnp.expm1(-jnp.log(decay) / self.cfg.c))


@jax.custom_jvp
def bounded_sqrt(x: Array) -> Array:
    """``sqrt(x)`` for ``x >= 0`` with a derivative of at most `MAX_SLOPE`, as the released code has it."""
    return jnp.sqrt(x)


@bounded_sqrt.defjvp
def _bounded_sqrt_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    return jnp.sqrt(x), dx * jax.lax.rsqrt(jnp.maximum(4 * x, MAX_SLOPE**-2))
