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
from seqmodels.mixers.base import Context, Cursor, Mixer, MixerConfig

FEATURE_MAPS = {
    "elu": lambda x: jax.nn.elu(x) + 1,
    "relu": jax.nn.relu,
    "softmax": lambda x: jax.nn.softmax(x, axis=-1),
    "identity": lambda x: x,
}


@dataclasses.dataclass(frozen=True)
class LinearAttentionConfig(MixerConfig):
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

    def flops_per_token(self, dim: int, length: int) -> float:
        K, V = parts.head_sizes(self, dim)
        projections = 4 * dim * self.num_heads * (K + V)
        return projections + 4 * self.num_heads * K * (V + (self.normalize == "sum"))


class LinearAttentionState(NamedTuple):
    """The sums over the past."""

    cursor: Cursor
    memory: Array  # [B,H,K,V] float32
    normalizer: Array | None  # [B,H,K] float32, with normalize="sum" only


class LinearAttention(Mixer):
    """``[B,T,D] -> [B,T,D]``; see the module's docstring and `LinearAttentionConfig`."""

    cfg: LinearAttentionConfig

    @nn.compact
    def __call__(
        self,
        x: Array,
        state: LinearAttentionState | None = None,
        segment_ids: Array | None = None,
        context: Context = Context(),  # noqa: B008
    ) -> tuple[Array, LinearAttentionState, dict[str, Any]]:
        cfg, H = self.cfg, self.cfg.num_heads
        K, V = parts.head_sizes(cfg, self.dim)
        held = self.init_state(x.shape[0]) if state is None else state
        entry = held.cursor.enter(segment_ids, x.shape[1])
        feature_map = FEATURE_MAPS[cfg.feature_map]
        q = feature_map(parts.split(parts.into(self, "q_proj", H * K)(x), H))
        k = feature_map(parts.split(parts.into(self, "k_proj", H * K)(x), H))
        v = parts.split(parts.into(self, "v_proj", H * V)(x), H)
        memory, normalizer = entry.carried((held.memory, held.normalizer))
        if normalizer is not None:
            sums = ops.NormalizedState(memory, normalizer)
            o, sums = ops.normalized_linear_attention(q, k, v, state=sums, segment_ids=segment_ids, eps=cfg.eps)
            memory, normalizer = sums
        else:
            o, memory = ops.linear_attention(q, k, v, state=memory, segment_ids=segment_ids)
        if cfg.normalize == "rms":
            o = RMSNorm(eps=cfg.eps, param_dtype=self.param_dtype, name="o_norm")(o)
        return parts.out_of(self)(parts.merge(o)), LinearAttentionState(entry.cursor, memory, normalizer), {}

    def init_state(self, batch: int, max_length: int | None = None) -> LinearAttentionState:
        H, (K, V) = self.cfg.num_heads, parts.head_sizes(self.cfg, self.dim)
        normalizer = jnp.zeros((batch, H, K), jnp.float32) if self.cfg.normalize == "sum" else None
        return LinearAttentionState(Cursor.zeros(batch), jnp.zeros((batch, H, K, V), jnp.float32), normalizer)
