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
from seqmodels.mixers.base import Context, Cursor, Mixer
from seqmodels.mixers.recurrent import Projection, Recurrent, RecurrentConfig, Streams


@dataclasses.dataclass(frozen=True)
class GLAConfig(RecurrentConfig):
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

    def streams(self, dim: int) -> Streams:
        H, (K, V) = self.num_heads, parts.head_sizes(self, dim)
        keys, values = Projection(H * K), Projection(H * V)
        rates = Projection(H * K, rank=self.gate_low_rank_dim, use_bias=True)
        return Streams({"q": keys}, {"k": keys, "v": values, "gk": rates}, {"g": values})

    def value_width(self, dim: int) -> int:
        return self.num_heads * parts.head_sizes(self, dim)[1]

    def recurrence_flops(self, dim: int) -> float:
        K, V = parts.head_sizes(self, dim)
        return 5.0 * self.num_heads * K * V


class GLAState(NamedTuple):
    """The gated sum over the past."""

    cursor: Cursor
    memory: Array  # [B,H,K,V] float32


class GLA(Recurrent):
    """``[B,T,D] -> [B,T,D]``; see the module's docstring and `GLAConfig`."""

    cfg: GLAConfig

    @nn.nowrap
    def recur(
        self, weights: None, streams: dict[str, Array], held: tuple, segments: parts.Segments
    ) -> tuple[Array, tuple]:
        q, k, v, gk = (parts.split(streams[name], self.cfg.num_heads) for name in ("q", "k", "v", "gk"))
        log_decay = jax.nn.log_sigmoid(parts.wide(gk)) / self.cfg.gate_logit_normalizer
        o, memory = ops.linear_attention(
            q,
            k,
            v,
            segments.forget(log_decay, v),
            state=held[0],
            segment_ids=segments.ids,
            num_segments=segments.count,
        )
        return o, (memory,)

    @nn.nowrap
    def readout(self, host: Mixer, o: Array, streams: dict[str, Array], context: Context) -> Array:
        norm = GatedRMSNorm(eps=self.cfg.norm_eps, param_dtype=host.param_dtype, name="o_norm")
        return parts.out_of(host)(parts.merge(norm(o, parts.split(streams["g"], self.cfg.num_heads))))

    @nn.nowrap
    def zeros(self, *lead: int) -> tuple:
        K, V = parts.head_sizes(self.cfg, self.dim)
        return (jnp.zeros((*lead, self.cfg.num_heads, K, V), jnp.float32),)

    def init_state(self, batch: int, max_length: int | None = None) -> GLAState:
        return GLAState(Cursor.zeros(batch), *self.zeros(batch))
