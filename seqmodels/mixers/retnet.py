"""Retention (RetNet; Sun et al. 2023, arXiv:2307.08621).

Linear attention whose memory fades at a fixed rate per head, with rotary phases on queries and keys:
``S_t = γ_h S_{t-1} + k_t v_tᵀ``, ``o_t = S_tᵀ q_t / sqrt(K)`` with ``γ_h = 1 - 2^(-5-h)``; the output is
normalised per head and gated, ``W_o (norm(o) ⊙ silu(W_g x))``. The rates are constants, not parameters.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from seqmodels import ops
from seqmodels.axes import Array
from seqmodels.errors import UserError
from seqmodels.layers.norm import GatedRMSNorm
from seqmodels.mixers import parts
from seqmodels.mixers.base import Context, Cursor, Mixer, MixerConfig


@dataclasses.dataclass(frozen=True)
class RetNetConfig(MixerConfig):
    """Options of `RetNet`."""

    num_heads: int = 8
    """Heads H."""
    expand_k: float = 1.0
    """Width of all keys as a multiple of the model width."""
    expand_v: float = 2.0
    """Width of all values as a multiple of the model width."""
    rotary_base: float | None = 10000.0
    """Base of the rotary phases; ``None`` leaves them out."""
    norm_eps: float = 1e-5
    """Added to the mean square in the output norm."""

    def __post_init__(self):
        parts.require_positive(self, "num_heads", "expand_k", "expand_v", "rotary_base", "norm_eps")

    @classmethod
    def tiny(cls) -> RetNetConfig:
        return cls(num_heads=2)

    def make(self, dim: int, **kwargs: Any) -> RetNet:
        K, _ = parts.head_sizes(self, dim)
        if self.rotary_base is not None and K % 2:
            raise UserError(f"RetNetConfig: rotary phases need an even key size, but dim={dim} gives {K} per head")
        return RetNet(self, dim, **kwargs)

    def flops_per_token(self, dim: int, length: int) -> float:
        K, V = parts.head_sizes(self, dim)
        return self.num_heads * (2 * dim * (2 * K + 3 * V) + 5 * K * V)


class RetNetState(NamedTuple):
    """The faded sum over the past."""

    cursor: Cursor
    memory: Array  # [B,H,K,V] float32


class RetNet(Mixer):
    """``[B,T,D] -> [B,T,D]``; see the module's docstring and `RetNetConfig`."""

    cfg: RetNetConfig

    @nn.compact
    def __call__(
        self,
        x: Array,
        state: RetNetState | None = None,
        segment_ids: Array | None = None,
        context: Context = Context(),  # noqa: B008
    ) -> tuple[Array, RetNetState, dict[str, Any]]:
        cfg, H = self.cfg, self.cfg.num_heads
        K, V = parts.head_sizes(cfg, self.dim)
        held = self.init_state(x.shape[0]) if state is None else state
        entry = held.cursor.enter(segment_ids, x.shape[1])
        q = parts.split(parts.into(self, "q_proj", H * K)(x), H)
        k = parts.split(parts.into(self, "k_proj", H * K)(x), H)
        v = parts.split(parts.into(self, "v_proj", H * V)(x), H)
        if cfg.rotary_base is not None:
            q, k = (ops.rotary(z, entry.positions, base=cfg.rotary_base) for z in (q, k))
        log_decay = jnp.log1p(-jnp.exp2(-5.0 - jnp.arange(H, dtype=jnp.float32)))
        o, memory = ops.linear_attention(q, k, v, log_decay, state=entry.carried(held.memory), segment_ids=segment_ids)
        gate = parts.split(parts.into(self, "g_proj", H * V)(x), H)
        o = GatedRMSNorm(eps=cfg.norm_eps, param_dtype=self.param_dtype, name="o_norm")(o, gate)
        return parts.out_of(self)(parts.merge(o)), RetNetState(entry.cursor, memory), {}

    def init_state(self, batch: int, max_length: int | None = None) -> RetNetState:
        K, V = parts.head_sizes(self.cfg, self.dim)
        return RetNetState(Cursor.zeros(batch), jnp.zeros((batch, self.cfg.num_heads, K, V), jnp.float32))
