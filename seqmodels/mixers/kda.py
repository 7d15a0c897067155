"""Kimi Delta Attention (KDA; Kimi Team 2025, arXiv:2510.26692): the gated delta rule with a decay per key channel.

``S_t = (I - β_t k_t k_tᵀ) Diag(α_t) S_{t-1} + β_t k_t v_tᵀ``, ``o_t = S_tᵀ q_t / sqrt(K)`` with
``log α_t = -exp(A_log) softplus(W_f x_t + dt_bias)``, where A_log is per head, dt_bias per channel and W_f of low
rank. Queries, keys and values as in Gated DeltaNet; the output is normalised per head and gated by the sigmoid of
a low-rank projection.
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
from seqmodels.layers.norm import GatedRMSNorm, l2_norm
from seqmodels.layers.param import param
from seqmodels.layers.short_conv import ShortConv
from seqmodels.mixers import parts
from seqmodels.mixers.base import Context, Cursor, Mixer
from seqmodels.mixers.recurrent import Projection, Recurrent, RecurrentConfig, Streams


@dataclasses.dataclass(frozen=True)
class KDAConfig(RecurrentConfig):
    """Options of `KDA`."""

    num_heads: int = 16
    """Heads of queries and keys."""
    head_dim: int = 128
    """Key size K of a head, and the rank of the low-rank projections when ``expand_v`` is 1."""
    num_v_heads: int | None = None
    """Heads H of values, a multiple of `num_heads`; as many as keys by default."""
    expand_v: float = 1.0
    """Value size of a head as a multiple of its key size."""
    conv_size: int | None = 4
    """Width of the short convolutions; ``None`` leaves them out."""
    lower_bound: float | None = None
    """When given (negative): ``log α = lower_bound * σ(exp(A_log) (W_f x + dt_bias))``, so that α cannot vanish."""
    allow_neg_eigval: bool = False
    """Let β range over (0, 2), so that a transition may flip signs (arXiv:2411.12537)."""
    norm_eps: float = 1e-5
    """Added to the mean square in the output norm."""

    def __post_init__(self):
        parts.require_positive(self, "num_heads", "head_dim", "num_v_heads", "expand_v", "conv_size", "norm_eps")
        parts.divide(self, "num_heads", self.num_heads, "num_v_heads", self.value_heads)
        parts.whole(self, "head_dim * expand_v", self.head_dim * self.expand_v)
        if self.lower_bound is not None and not self.lower_bound < 0:
            raise UserError(f"KDAConfig.lower_bound={self.lower_bound} must be negative: it bounds the log of a decay")

    @classmethod
    def tiny(cls) -> KDAConfig:
        return cls(num_heads=2, head_dim=8)

    @property
    def value_heads(self) -> int:
        """The number of value heads H."""
        return self.num_v_heads or self.num_heads

    @property
    def value_dim(self) -> int:
        """Value size V of a head."""
        return int(self.head_dim * self.expand_v)

    def make(self, dim: int, **kwargs: Any) -> KDA:
        return KDA(self, dim, **kwargs)

    def streams(self, dim: int) -> Streams:
        H, K, V = self.value_heads, self.head_dim, self.value_dim
        keys, values, strength = Projection(self.num_heads * K), Projection(H * V), Projection(H, axis=None)
        rates, gate = Projection(H * K, rank=V), Projection(H * V, rank=V, use_bias=True)
        return Streams({"q": keys}, {"k": keys, "v": values, "b": strength, "f": rates}, {"g": gate})

    def value_width(self, dim: int) -> int:
        return self.value_heads * self.value_dim

    def recurrence_flops(self, dim: int) -> float:
        H, K, V = self.value_heads, self.head_dim, self.value_dim
        return 2.0 * (self.conv_size or 0) * (2 * self.num_heads * K + H * V) + 7 * H * K * V


class KDAState(NamedTuple):
    """The associative memory, and the inputs that the convolutions still need."""

    cursor: Cursor
    conv: tuple[Array, ...]  # of q, k, v: [B,W-1,Hk*K], [B,W-1,Hk*K], [B,W-1,H*V] float32; () without convolutions
    memory: Array  # [B,H,K,V] float32


def kda_gate(x: Array, A_log: Array, dt_bias: Array, lower_bound: float | None = None) -> Array:
    """The log-decay ``[B,T,H,K]`` of `x` ``[B,T,H,K]``, from A_log ``[H]`` and dt_bias ``[H*K]``; see `KDAConfig`."""
    dt_bias = dt_bias.reshape(x.shape[-2:])
    if lower_bound is None:
        return parts.softplus_decay(x, A_log[:, None], dt_bias)
    rate, bias = (jnp.broadcast_to(z.astype(x.dtype), x.shape) for z in (jnp.exp(A_log)[:, None], dt_bias))
    return lower_bound * jax.nn.sigmoid(rate * (x + bias))


class KDAWeights(NamedTuple):
    """What the recurrence needs besides streams."""

    convs: list[ShortConv]  # of q, k, v
    A_log: Array  # [H]
    dt_bias: Array  # [H*K]


class KDA(Recurrent):
    """``[B,T,D] -> [B,T,D]``; see the module's docstring and `KDAConfig`."""

    cfg: KDAConfig

    @nn.nowrap
    def weights(self, host: Mixer) -> KDAWeights:
        H, K = self.cfg.value_heads, self.cfg.head_dim
        return KDAWeights(
            parts.silu_convs(host, self.cfg.conv_size, "q", "k", "v"),
            param(host, "A_log", parts.log_uniform_init(1.0, 16.0), (H,), (None,), host.param_dtype),
            param(host, "dt_bias", parts.dt_bias_init(), (H * K,), ("heads",), host.param_dtype),
        )

    @nn.nowrap
    def recur(
        self, weights: KDAWeights, streams: dict[str, Array], held: tuple, segments: parts.Segments
    ) -> tuple[Array, tuple]:
        cfg, Hk, H = self.cfg, self.cfg.num_heads, self.cfg.value_heads
        conv, memory = held
        (q, k, v), conv = parts.silu_conv(weights.convs, [streams[name] for name in "qkv"], conv, segments)
        v = parts.split(v, H)
        beta = jax.nn.sigmoid(parts.wide(streams["b"]))
        rates = parts.wide(parts.split(streams["f"], H))
        log_decay = kda_gate(rates, weights.A_log, weights.dt_bias, cfg.lower_bound)
        o, memory = ops.delta_rule(
            l2_norm(parts.split(q, Hk)),
            l2_norm(parts.split(k, Hk)),
            v,
            beta * 2 if cfg.allow_neg_eigval else beta,
            segments.forget(log_decay, v),
            state=memory,
            segment_ids=segments.ids,
            num_segments=segments.count,
        )
        return o, (conv, memory)

    @nn.nowrap
    def readout(self, host: Mixer, o: Array, streams: dict[str, Array], context: Context) -> Array:
        eps, gate = self.cfg.norm_eps, parts.split(streams["g"], self.cfg.value_heads)
        norm = GatedRMSNorm(eps=eps, activation="sigmoid", param_dtype=host.param_dtype, name="o_norm")
        return parts.out_of(host)(parts.merge(norm(o, gate)))

    @nn.nowrap
    def zeros(self, *lead: int) -> tuple:
        cfg, Hk, H, K, V = self.cfg, self.cfg.num_heads, self.cfg.value_heads, self.cfg.head_dim, self.cfg.value_dim
        conv = parts.conv_state(cfg.conv_size, lead, Hk * K, Hk * K, H * V)
        return conv, jnp.zeros((*lead, H, K, V), jnp.float32)

    def init_state(self, batch: int, max_length: int | None = None) -> KDAState:
        return KDAState(Cursor.zeros(batch), *self.zeros(batch))
