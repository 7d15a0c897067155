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
from seqmodels.mixers import parts
from seqmodels.mixers.base import Context, Cursor, Mixer, MixerConfig


@dataclasses.dataclass(frozen=True)
class GatedDeltaNetConfig(MixerConfig):
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

    def flops_per_token(self, dim: int, length: int) -> float:
        (K, V), H = self.head_sizes(dim), self.value_heads
        keys, values = 2 * self.num_heads * K, H * V
        conv = 2 * (self.conv_size or 0) * (keys + values)
        return 2 * dim * (keys + (3 if self.output_gate else 2) * values + 2 * H) + conv + 7 * H * K * V


class GatedDeltaNetState(NamedTuple):
    """The associative memory, and the inputs that the convolutions still need."""

    cursor: Cursor
    conv: tuple[Array, ...]  # of q, k, v: [B,W-1,Hk*K], [B,W-1,Hk*K], [B,W-1,H*V] float32; () without convolutions
    memory: Array  # [B,H,K,V] float32


class GatedDeltaNet(Mixer):
    """``[B,T,D] -> [B,T,D]``; see the module's docstring and `GatedDeltaNetConfig`."""

    cfg: GatedDeltaNetConfig

    @nn.compact
    def __call__(
        self,
        x: Array,
        state: GatedDeltaNetState | None = None,
        segment_ids: Array | None = None,
        context: Context = Context(),  # noqa: B008
    ) -> tuple[Array, GatedDeltaNetState, dict[str, Any]]:
        cfg, Hk, H = self.cfg, self.cfg.num_heads, self.cfg.value_heads
        K, V = cfg.head_sizes(self.dim)
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
        norm = {"eps": cfg.norm_eps, "param_dtype": self.param_dtype, "name": "o_norm"}
        if cfg.output_gate:
            o = GatedRMSNorm(**norm)(o, parts.split(parts.into(self, "g_proj", H * V)(x), H))
        else:
            o = RMSNorm(**norm)(o)
        return parts.out_of(self)(parts.merge(o)), GatedDeltaNetState(entry.cursor, conv, memory), {}

    def _log_decay(self, x: Array) -> Array:
        """[B,T,H], <= 0"""
        H = self.cfg.value_heads
        A_log = param(self, "A_log", parts.log_uniform_init(0.0, 16.0), (H,), (None,), self.param_dtype)
        dt_bias = param(self, "dt_bias", parts.dt_bias_init(), (H,), (None,), self.param_dtype)
        step = parts.wide(parts.into(self, "a_proj", H, None)(x))
        return parts.softplus_decay(step, A_log, dt_bias)

    def init_state(self, batch: int, max_length: int | None = None) -> GatedDeltaNetState:
        (K, V), Hk, H = self.cfg.head_sizes(self.dim), self.cfg.num_heads, self.cfg.value_heads
        conv = parts.conv_state(self.cfg.conv_size, batch, Hk * K, Hk * K, H * V)
        return GatedDeltaNetState(Cursor.zeros(batch), conv, jnp.zeros((batch, H, K, V), jnp.float32))
