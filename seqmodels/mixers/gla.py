"""Gated linear attention (GLA; Yang et al. 2023, arXiv:2312.06635).

Linear attention whose memory forgets per key channel, at rates that depend on the token:
``S_t = Diag(α_t) S_{t-1} + k_t v_tᵀ``, ``o_t = S_tᵀ q_t / sqrt(K)`` with
``log α_t = logsigmoid(W₂ W₁ x_t + b) / 16`` from a projection of rank 16; the output is normalised per head and
gated, ``W_o (norm(o) ⊙ silu(W_g x))``.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from seqmodels import ops
from seqmodels.axes import Array
from seqmodels.layers.norm import GatedRMSNorm
from seqmodels.mixers import parts
from seqmodels.mixers.base import Context, Cursor, Mixer, MixerConfig


@dataclasses.dataclass(frozen=True)
class GLAConfig(MixerConfig):
    """Options of `GLA`."""

    num_heads: int = 4
    """Heads H."""
    expand_k: float = 0.5
    """Width of all keys as a multiple of the model width."""
    expand_v: float = 1.0
    """Width of all values as a multiple of the model width."""
    gate_low_rank_dim: int = 16
    """Rank of the projection that gives the forget gates."""
    gate_logit_normalizer: float = 16.0
    """The log of the gates is divided by this, so that they start close to 1."""
    norm_eps: float = 1e-5
    """Added to the mean square in the output norm."""

    def __post_init__(self):
        parts.require_positive(
            self, "num_heads", "expand_k", "expand_v", "gate_low_rank_dim", "gate_logit_normalizer", "norm_eps"
        )

    @classmethod
    def tiny(cls) -> GLAConfig:
        return cls(num_heads=2, gate_low_rank_dim=8)

    def make(self, dim: int, **kwargs: Any) -> GLA:
        parts.head_sizes(self, dim)
        return GLA(self, dim, **kwargs)

    def flops_per_token(self, dim: int, length: int) -> float:
        K, V = parts.head_sizes(self, dim)
        gate = 2 * self.gate_low_rank_dim * (dim + self.num_heads * K)
        return self.num_heads * (2 * dim * (2 * K + 3 * V) + 5 * K * V) + gate


class GLAState(NamedTuple):
    """The gated sum over the past."""

    cursor: Cursor
    memory: Array  # [B,H,K,V] float32


class GLA(Mixer):
    """``[B,T,D] -> [B,T,D]``; see the module's docstring and `GLAConfig`."""

    cfg: GLAConfig

    @nn.compact
    def __call__(
        self,
        x: Array,
        state: GLAState | None = None,
        segment_ids: Array | None = None,
        context: Context = Context(),  # noqa: B008
    ) -> tuple[Array, GLAState, dict[str, Any]]:
        cfg, H = self.cfg, self.cfg.num_heads
        K, V = parts.head_sizes(cfg, self.dim)
        held = self.init_state(x.shape[0]) if state is None else state
        entry = held.cursor.enter(segment_ids, x.shape[1])
        q = parts.split(parts.into(self, "q_proj", H * K)(x), H)
        k = parts.split(parts.into(self, "k_proj", H * K)(x), H)
        v = parts.split(parts.into(self, "v_proj", H * V)(x), H)
        low_rank = parts.LowRank(H * K, cfg.gate_low_rank_dim, True, self.dtype, self.param_dtype, name="gk_proj")
        log_decay = jax.nn.log_sigmoid(parts.wide(parts.split(low_rank(x), H))) / cfg.gate_logit_normalizer
        o, memory = ops.linear_attention(q, k, v, log_decay, state=entry.carried(held.memory), segment_ids=segment_ids)
        gate = parts.split(parts.into(self, "g_proj", H * V)(x), H)
        o = GatedRMSNorm(eps=cfg.norm_eps, param_dtype=self.param_dtype, name="o_norm")(o, gate)
        return parts.out_of(self)(parts.merge(o)), GLAState(entry.cursor, memory), {}

    def init_state(self, batch: int, max_length: int | None = None) -> GLAState:
        K, V = parts.head_sizes(self.cfg, self.dim)
        return GLAState(Cursor.zeros(batch), jnp.zeros((batch, self.cfg.num_heads, K, V), jnp.float32))
