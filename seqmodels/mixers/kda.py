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
from seqmodels.mixers import parts
from seqmodels.mixers.base import Context, Cursor, Mixer, MixerConfig


@dataclasses.dataclass(frozen=True)
class KDAConfig(MixerConfig):
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

    def flops_per_token(self, dim: int, length: int) -> float:
        H, K, V = self.value_heads, self.head_dim, self.value_dim
        keys, values = 2 * self.num_heads * K, H * V
        conv = 2 * (self.conv_size or 0) * (keys + values)
        low_rank = 2 * V * (2 * dim + H * K + values)
        return 2 * dim * (keys + 2 * values + H) + low_rank + conv + 7 * H * K * V


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


class KDA(Mixer):
    """``[B,T,D] -> [B,T,D]``; see the module's docstring and `KDAConfig`."""

    cfg: KDAConfig

    @nn.compact
    def __call__(
        self,
        x: Array,
        state: KDAState | None = None,
        segment_ids: Array | None = None,
        context: Context = Context(),  # noqa: B008
    ) -> tuple[Array, KDAState, dict[str, Any]]:
        cfg, Hk, H, K, V = self.cfg, self.cfg.num_heads, self.cfg.value_heads, self.cfg.head_dim, self.cfg.value_dim
        held = self.init_state(x.shape[0]) if state is None else state
        entry = held.cursor.enter(segment_ids, x.shape[1])
        widths = {"q": Hk * K, "k": Hk * K, "v": H * V}
        streams = {name: parts.into(self, f"{name}_proj", width)(x) for name, width in widths.items()}
        (q, k, v), conv = parts.silu_conv(self, cfg.conv_size, streams, entry.carried(held.conv), segment_ids)
        beta = jax.nn.sigmoid(parts.wide(parts.into(self, "b_proj", H, None)(x)))
        o, memory = ops.delta_rule(
            l2_norm(parts.split(q, Hk)),
            l2_norm(parts.split(k, Hk)),
            parts.split(v, H),
            beta * 2 if cfg.allow_neg_eigval else beta,
            self._log_decay(x),
            state=entry.carried(held.memory),
            segment_ids=segment_ids,
        )
        gate = parts.LowRank(H * V, V, True, self.dtype, self.param_dtype, name="g_proj")(x)
        norm = GatedRMSNorm(eps=cfg.norm_eps, activation="sigmoid", param_dtype=self.param_dtype, name="o_norm")
        y = parts.out_of(self)(parts.merge(norm(o, parts.split(gate, H))))
        return y, KDAState(entry.cursor, conv, memory), {}

    def _log_decay(self, x: Array) -> Array:
        """[B,T,H,K], <= 0"""
        cfg, H, K = self.cfg, self.cfg.value_heads, self.cfg.head_dim
        A_log = param(self, "A_log", parts.log_uniform_init(1.0, 16.0), (H,), (None,), self.param_dtype)
        dt_bias = param(self, "dt_bias", parts.dt_bias_init(), (H * K,), ("heads",), self.param_dtype)
        f = parts.LowRank(H * K, cfg.value_dim, False, self.dtype, self.param_dtype, name="f_proj")(x)
        return kda_gate(parts.wide(parts.split(f, H)), A_log, dt_bias, cfg.lower_bound)

    def init_state(self, batch: int, max_length: int | None = None) -> KDAState:
        cfg, Hk, H, K, V = self.cfg, self.cfg.num_heads, self.cfg.value_heads, self.cfg.head_dim, self.cfg.value_dim
        conv = parts.conv_state(cfg.conv_size, batch, Hk * K, Hk * K, H * V)
        return KDAState(Cursor.zeros(batch), conv, jnp.zeros((batch, H, K, V), jnp.float32))
