"""Gated DeltaNet (Yang et al. 2024, arXiv:2412.06464): the delta rule with a forgetful memory.

``S_t = α_t (I - β_t k_t k_tᵀ) S_{t-1} + β_t k_t v_tᵀ``, ``o_t = S_tᵀ q_t / sqrt(K)`` with one decay per head,
``α_t = exp(-exp(A_log) softplus(W_a x_t + dt_bias))`` as in Mamba-2. Queries, keys and values are
``silu(conv(W x))``, queries and keys of unit length per head, ``β = σ(W_b x)``; the output is
``W_o (norm(o) ⊙ silu(W_g x))``, normalised per head.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from seqmodels import ops
from seqmodels.axes import Array
from seqmodels.layers.norm import GatedRMSNorm, RMSNorm, l2_norm
from seqmodels.layers.param import param
from seqmodels.layers.short_conv import ShortConv
from seqmodels.mixers import parts
from seqmodels.mixers.base import Context, Cursor, Mixer
from seqmodels.mixers.recurrent import Projection, Recurrent, RecurrentConfig, Streams


@dataclasses.dataclass(frozen=True)
class GatedDeltaNetConfig(RecurrentConfig):
    """Options of `GatedDeltaNet`."""

    num_heads: int = 6
    """Heads of queries and keys."""
    head_dim: int | None = None
    """Key size K of a head; by default all heads together have 0.75 of the model width, as in the paper."""
    num_v_heads: int | None = None
    """Heads H of values, a multiple of `num_heads`; as many as keys by default."""
    expand_v: float = 2.0
    """Value size of a head as a multiple of its key size."""
    conv_size: int | None = 4
    """Width of the short convolutions; ``None`` leaves them out."""
    output_gate: bool = True
    """Multiply the normalised output by ``silu(W_g x)``."""
    allow_neg_eigval: bool = False
    """Let β range over (0, 2), so that a transition may flip signs (arXiv:2411.12537)."""
    norm_eps: float = 1e-5
    """Added to the mean square in the output norm."""

    def __post_init__(self):
        parts.require_positive(self, "num_heads", "head_dim", "num_v_heads", "expand_v", "conv_size", "norm_eps")
        parts.divide(self, "num_heads", self.num_heads, "num_v_heads", self.value_heads)

    @classmethod
    def tiny(cls) -> GatedDeltaNetConfig:
        return cls(num_heads=2, head_dim=8)

    @property
    def value_heads(self) -> int:
        """The number of value heads H."""
        return self.num_v_heads or self.num_heads

    def head_sizes(self, dim: int) -> tuple[int, int]:
        """Key and value size of a head."""
        K = self.head_dim or parts.divide(self, "num_heads", self.num_heads, "0.75 * dim", 0.75 * dim)
        return K, parts.whole(self, "head_dim * expand_v", K * self.expand_v)

    def make(self, dim: int, **kwargs: Any) -> GatedDeltaNet:
        self.head_sizes(dim)
        return GatedDeltaNet(self, dim, **kwargs)

    def streams(self, dim: int) -> Streams:
        (K, V), Hk, H = self.head_sizes(dim), self.num_heads, self.value_heads
        keys, values, rates = Projection(Hk * K), Projection(H * V), Projection(H, axis=None)
        gate = {"g": values} if self.output_gate else {}
        return Streams({"q": keys}, {"k": keys, "v": values, "b": rates, "a": rates}, gate)

    def value_width(self, dim: int) -> int:
        return self.value_heads * self.head_sizes(dim)[1]

    def recurrence_flops(self, dim: int) -> float:
        (K, V), H = self.head_sizes(dim), self.value_heads
        return 2.0 * (self.conv_size or 0) * (2 * self.num_heads * K + H * V) + 7 * H * K * V


class GatedDeltaNetState(NamedTuple):
    """The associative memory, and the inputs that the convolutions still need."""

    cursor: Cursor
    conv: tuple[Array, ...]  # of q, k, v: [B,W-1,Hk*K], [B,W-1,Hk*K], [B,W-1,H*V] float32; () without convolutions
    memory: Array  # [B,H,K,V] float32


class GatedDeltaNetWeights(NamedTuple):
    """What the recurrence needs besides streams."""

    convs: list[ShortConv]  # of q, k, v
    A_log: Array  # [H]
    dt_bias: Array  # [H]


class GatedDeltaNet(Recurrent):
    """``[B,T,D] -> [B,T,D]``; see the module's docstring and `GatedDeltaNetConfig`."""

    cfg: GatedDeltaNetConfig

    @nn.nowrap
    def weights(self, host: Mixer) -> GatedDeltaNetWeights:
        H = self.cfg.value_heads
        return GatedDeltaNetWeights(
            parts.silu_convs(host, self.cfg.conv_size, "q", "k", "v"),
            param(host, "A_log", parts.log_uniform_init(0.0, 16.0), (H,), (None,), host.param_dtype),
            param(host, "dt_bias", parts.dt_bias_init(), (H,), (None,), host.param_dtype),
        )

    @nn.nowrap
    def recur(
        self, weights: GatedDeltaNetWeights, streams: dict[str, Array], held: tuple, segments: parts.Segments
    ) -> tuple[Array, tuple]:
        cfg, Hk, H = self.cfg, self.cfg.num_heads, self.cfg.value_heads
        conv, memory = held
        (q, k, v), conv = parts.silu_conv(weights.convs, [streams[name] for name in "qkv"], conv, segments)
        v = parts.split(v, H)
        beta = jax.nn.sigmoid(parts.wide(streams["b"]))
        log_decay = parts.softplus_decay(parts.wide(streams["a"]), weights.A_log, weights.dt_bias)
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
        norm = {"eps": self.cfg.norm_eps, "param_dtype": host.param_dtype, "name": "o_norm"}
        if self.cfg.output_gate:
            o = GatedRMSNorm(**norm)(o, parts.split(streams["g"], self.cfg.value_heads))
        else:
            o = RMSNorm(**norm)(o)
        return parts.out_of(host)(parts.merge(o))

    @nn.nowrap
    def zeros(self, *lead: int) -> tuple:
        (K, V), Hk, H = self.cfg.head_sizes(self.dim), self.cfg.num_heads, self.cfg.value_heads
        conv = parts.conv_state(self.cfg.conv_size, lead, Hk * K, Hk * K, H * V)
        return conv, jnp.zeros((*lead, H, K, V), jnp.float32)

    def init_state(self, batch: int, max_length: int | None = None) -> GatedDeltaNetState:
        return GatedDeltaNetState(Cursor.zeros(batch), *self.zeros(batch))
