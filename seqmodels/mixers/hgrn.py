"""Hierarchically gated recurrence (HGRN; Qin et al. 2023, arXiv:2311.04823), in its real-valued form.

A vector state with a forget gate that has a lower bound: ``f = ℓ + (1 - ℓ) σ(W_f x)``,
``h_t = f ⊙ h_{t-1} + (1 - f) ⊙ silu(W_i x)``, and ``W_o (norm(h) ⊙ silu(W_g x))`` with the norm over the whole
width. The bounds grow with depth: with one table Γ [L,D] for the model and ``P = softmax(Γ)`` over the layers,
layer l has ``ℓ_l = P_1 + … + P_l``, so that layer 0 is unbounded.
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
from seqmodels.mixers.base import Context, Cursor, Mixer, MixerConfig, SharedParam

LOWER_BOUNDS = "lower_bounds"  # name of Γ among the model-level parameters


def shared_lower_bounds(width: int, depth: int) -> dict[str, SharedParam]:
    """The declaration of Γ [L,D]; it starts at zero, so that layer l of L has the bound ``l / L``."""
    return {LOWER_BOUNDS: SharedParam((depth, width), nn.initializers.zeros, (None, "heads"))}


def lower_bound(context: Context, width: int) -> Array:
    """The bound ``ℓ [D]`` of the layer that `context` names, float32; zero when the model has no Γ."""
    table = (context.shared or {}).get(LOWER_BOUNDS)
    if table is None:
        return jnp.zeros(width, jnp.float32)
    share = jax.nn.softmax(parts.wide(table), axis=0)
    index = jnp.arange(table.shape[0])[:, None]
    return jnp.sum(jnp.where((index > 0) & (index <= context.layer), share, 0.0), axis=0)


@dataclasses.dataclass(frozen=True)
class HGRNConfig(MixerConfig):
    """Options of `HGRN`."""

    expand_ratio: int = 1
    """Width of the state as a multiple of the model width."""
    norm_eps: float = 1e-5
    """Added to the mean square in the output norm."""

    def __post_init__(self):
        parts.require_positive(self, "expand_ratio", "norm_eps")

    def make(self, dim: int, **kwargs: Any) -> HGRN:
        return HGRN(self, dim, **kwargs)

    def shared_params(self, dim: int, depth: int) -> dict[str, SharedParam]:
        return shared_lower_bounds(dim * self.expand_ratio, depth)

    def flops_per_token(self, dim: int, length: int) -> float:
        width = dim * self.expand_ratio
        return 8 * dim * width + 5 * width


class HGRNState(NamedTuple):
    """The hidden vector."""

    cursor: Cursor
    memory: Array  # [B,D] float32


class HGRN(Mixer):
    """``[B,T,D] -> [B,T,D]``; see the module's docstring and `HGRNConfig`."""

    cfg: HGRNConfig

    @nn.compact
    def __call__(
        self,
        x: Array,
        state: HGRNState | None = None,
        segment_ids: Array | None = None,
        context: Context = Context(),  # noqa: B008
    ) -> tuple[Array, HGRNState, dict[str, Any]]:
        width = self.dim * self.cfg.expand_ratio
        held = self.init_state(x.shape[0]) if state is None else state
        entry = held.cursor.enter(segment_ids, x.shape[1])
        logit = parts.wide(parts.into(self, "f_proj", width)(x))
        room = jnp.broadcast_to(1.0 - lower_bound(context, width), logit.shape)  # 1 - ℓ
        write = room * jax.nn.sigmoid(-logit)  # 1 - f, exact where f is close to 1
        candidate = jax.nn.silu(parts.wide(parts.into(self, "i_proj", width)(x)))
        forget = (1.0 - room) + room * jax.nn.sigmoid(logit)
        h, memory = ops.linear_scan(
            forget, candidate * write, state=entry.carried(held.memory), segment_ids=segment_ids
        )
        gate = parts.into(self, "g_proj", width)(x)
        norm = GatedRMSNorm(eps=self.cfg.norm_eps, axis="heads", param_dtype=self.param_dtype, name="o_norm")
        return parts.out_of(self)(norm(h, gate)), HGRNState(entry.cursor, memory), {}

    def init_state(self, batch: int, max_length: int | None = None) -> HGRNState:
        return HGRNState(Cursor.zeros(batch), jnp.zeros((batch, self.dim * self.cfg.expand_ratio), jnp.float32))
