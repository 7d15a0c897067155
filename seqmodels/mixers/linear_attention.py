"""Linear attention (Katharopoulos et al. 2020, arXiv:2006.16236).

Softmax's kernel is replaced by a product of feature maps φ, so that attention over the past becomes a sum that
can be carried along: ``S_t = S_{t-1} + φ(k_t) v_tᵀ``, ``z_t = z_{t-1} + φ(k_t)``, and
``o_t = S_tᵀφ(q_t) / z_tᵀφ(q_t)``. Without the normaliser z the output grows with the length; an RMS norm per head
then keeps it in hand (Qin et al. 2022, arXiv:2210.10340).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from seqmodels import ops
from seqmodels.axes import Array
from seqmodels.errors import UserError
from seqmodels.layers.norm import RMSNorm
from seqmodels.mixers import parts
from seqmodels.mixers.base import Context, Cursor, Mixer
from seqmodels.mixers.recurrent import Projection, Recurrent, RecurrentConfig, Streams

FEATURE_MAPS = {
    "elu": lambda x: jax.nn.elu(x) + 1,
    "relu": jax.nn.relu,
    "softmax": lambda x: jax.nn.softmax(x, axis=-1),
    "identity": lambda x: x,
}


@dataclasses.dataclass(frozen=True)
class LinearAttentionConfig(RecurrentConfig):
    """Options of `LinearAttention`."""

    num_heads: int = 8
    """Heads H."""
    feature_map: Literal["elu", "relu", "softmax", "identity"] = "elu"
    """φ, applied to queries and keys: ``elu(x) + 1``, ``relu(x)``, softmax over the features of a head, or nothing."""
    normalize: Literal["sum", "rms", "none"] = "sum"
    """Divide by the sum of the weights, apply an RMS norm per head, or do nothing."""
    expand_k: float = 1.0
    """Width of all keys as a multiple of the model width."""
    expand_v: float = 1.0
    """Width of all values as a multiple of the model width."""
    eps: float = 1e-6
    """Added to the sum of weights, or to the mean square of the norm."""

    def __post_init__(self):
        parts.require_positive(self, "num_heads", "expand_k", "expand_v", "eps")
        parts.require_choice(self, "feature_map", tuple(FEATURE_MAPS))
        parts.require_choice(self, "normalize", ("sum", "rms", "none"))
        if self.normalize == "sum" and self.feature_map == "identity":
            raise UserError(
                "LinearAttentionConfig.normalize='sum' needs weights >= 0; set feature_map='elu' or normalize='rms'"
            )

    @classmethod
    def tiny(cls) -> LinearAttentionConfig:
        return cls(num_heads=2)

    def make(self, dim: int, **kwargs: Any) -> LinearAttention:
        parts.head_sizes(self, dim)
        return LinearAttention(self, dim, **kwargs)

    def streams(self, dim: int) -> Streams:
        H, (K, V) = self.num_heads, parts.head_sizes(self, dim)
        return Streams({"q": Projection(H * K)}, {"k": Projection(H * K), "v": Projection(H * V)}, {})

    def value_width(self, dim: int) -> int:
        return self.num_heads * parts.head_sizes(self, dim)[1]

    def recurrence_flops(self, dim: int) -> float:
        K, V = parts.head_sizes(self, dim)
        return 4.0 * self.num_heads * K * (V + (self.normalize == "sum"))


class LinearAttentionState(NamedTuple):
    """The sums over the past."""

    cursor: Cursor
    memory: Array  # [B,H,K,V] float32
    normalizer: Array | None  # [B,H,K] float32, with normalize="sum" only


class LinearAttention(Recurrent):
    """``[B,T,D] -> [B,T,D]``; see the module's docstring and `LinearAttentionConfig`."""

    cfg: LinearAttentionConfig

    @nn.nowrap
    def recur(
        self, weights: None, streams: dict[str, Array], held: tuple, segments: parts.Segments
    ) -> tuple[Array, tuple]:
        feature_map = FEATURE_MAPS[self.cfg.feature_map]
        q, k, v = (parts.split(streams[name], self.cfg.num_heads) for name in "qkv")
        inputs = (feature_map(q), feature_map(k), v, segments.forget(None, v))
        where = {"segment_ids": segments.ids, "num_segments": segments.count}
        memory, normalizer = held
        if normalizer is None:
            o, memory = ops.linear_attention(*inputs, state=memory, **where)
            return o, (memory, None)
        sums = ops.NormalizedState(memory, normalizer)
        o, sums = ops.normalized_linear_attention(*inputs, state=sums, eps=self.cfg.eps, **where)
        return o, tuple(sums)

    @nn.nowrap
    def readout(self, host: Mixer, o: Array, streams: dict[str, Array], context: Context) -> Array:
        if self.cfg.normalize == "rms":
            o = RMSNorm(eps=self.cfg.eps, param_dtype=host.param_dtype, name="o_norm")(o)
        return parts.out_of(host)(parts.merge(o))

    @nn.nowrap
    def zeros(self, *lead: int) -> tuple:
        H, (K, V) = self.cfg.num_heads, parts.head_sizes(self.cfg, self.dim)
        normalizer = jnp.zeros((*lead, H, K), jnp.float32) if self.cfg.normalize == "sum" else None
        return jnp.zeros((*lead, H, K, V), jnp.float32), normalizer

    def init_state(self, batch: int, max_length: int | None = None) -> LinearAttentionState:
        return LinearAttentionState(Cursor.zeros(batch), *self.zeros(batch))
