"""HGRN2 (Qin et al. 2024, arXiv:2404.07904): HGRN with its state expanded by an outer product.

The forget gate serves as decay and, complemented, as key: ``f = ℓ + (1 - ℓ) σ(W_f x)``,
``S_t = Diag(f) S_{t-1} + (1 - f) v_tᵀ``, ``o_t = S_tᵀ q_t / sqrt(K)`` with ``q = silu(W_q x)`` and ``v = W_i x``;
the output is ``W_o norm(o)``, the norm over the whole width and without a gate. The lower bounds ℓ are those of
`seqmodels.mixers.hgrn`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from seqmodels import ops
from seqmodels.axes import Array
from seqmodels.layers.norm import RMSNorm
from seqmodels.mixers import parts
from seqmodels.mixers.base import Context, Cursor, Mixer, MixerConfig, SharedParam
from seqmodels.mixers.hgrn import lower_bound, shared_lower_bounds


@dataclasses.dataclass(frozen=True)
class HGRN2Config(MixerConfig):
    """Options of `HGRN2`."""

    expand_ratio: int = 128
    """Key size of a head; there are ``dim / expand_ratio`` heads, with values of the same size."""
    norm_eps: float = 1e-5
    """Added to the mean square in the output norm."""

    def __post_init__(self):
        parts.require_positive(self, "expand_ratio", "norm_eps")

    @classmethod
    def tiny(cls) -> HGRN2Config:
        return cls(expand_ratio=16)

    def num_heads(self, dim: int) -> int:
        """Heads for model width `dim`."""
        return parts.divide(self, "expand_ratio", self.expand_ratio, "dim", dim)

    def make(self, dim: int, **kwargs: Any) -> HGRN2:
        self.num_heads(dim)
        return HGRN2(self, dim, **kwargs)

    def shared_params(self, dim: int, depth: int) -> dict[str, SharedParam]:
        return shared_lower_bounds(dim, depth)

    def flops_per_token(self, dim: int, length: int) -> float:
        return 8 * dim * dim + 5 * dim * self.expand_ratio


class HGRN2State(NamedTuple):
    """The gated sum over the past."""

    cursor: Cursor
    memory: Array  # [B,H,K,V] float32


def bounded_log_sigmoid(logit: Array, bound: Array) -> Array:
    """``log(ℓ + (1 - ℓ) σ(x))`` for ``0 <= ℓ < 1``, finite with finite gradients however negative x is.

    The gradient with respect to ℓ is 0 where ℓ is 0: no such bound is learned.
    """
    bounded = bound > 0
    log_bound = jnp.log(jnp.where(bounded, bound, 1.0))
    open_gate = jax.nn.log_sigmoid(logit)
    return jnp.where(bounded, jnp.logaddexp(open_gate, log_bound + jax.nn.log_sigmoid(-logit)), open_gate)


class HGRN2(Mixer):
    """``[B,T,D] -> [B,T,D]``; see the module's docstring and `HGRN2Config`."""

    cfg: HGRN2Config

    @nn.compact
    def __call__(
        self,
        x: Array,
        state: HGRN2State | None = None,
        segment_ids: Array | None = None,
        context: Context = Context(),  # noqa: B008
    ) -> tuple[Array, HGRN2State, dict[str, Any]]:
        H = self.cfg.num_heads(self.dim)
        held = self.init_state(x.shape[0]) if state is None else state
        entry = held.cursor.enter(segment_ids, x.shape[1])
        q = parts.split(jax.nn.silu(parts.into(self, "q_proj", self.dim)(x)), H)
        v = parts.split(parts.into(self, "i_proj", self.dim)(x), H)
        logit = parts.wide(parts.into(self, "f_proj", self.dim)(x))
        bound = jnp.broadcast_to(lower_bound(context, self.dim), logit.shape)
        log_decay = parts.split(bounded_log_sigmoid(logit, bound), H)
        k = parts.split((1.0 - bound) * jax.nn.sigmoid(-logit), H).astype(self.dtype)  # 1 - f
        o, memory = ops.linear_attention(q, k, v, log_decay, state=entry.carried(held.memory), segment_ids=segment_ids)
        norm = RMSNorm(eps=self.cfg.norm_eps, axis="heads", param_dtype=self.param_dtype, name="o_norm")
        return parts.out_of(self)(norm(parts.merge(o))), HGRN2State(entry.cursor, memory), {}

    def init_state(self, batch: int, max_length: int | None = None) -> HGRN2State:
        H, K = self.cfg.num_heads(self.dim), self.cfg.expand_ratio
        return HGRN2State(Cursor.zeros(batch), jnp.zeros((batch, H, K, K), jnp.float32))
