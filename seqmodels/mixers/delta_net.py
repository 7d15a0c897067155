"""DeltaNet (Schlag et al. 2021, arXiv:2102.11174; in parallel form Yang et al. 2024, arXiv:2406.06484).

The memory is corrected rather than added to: a key's old value is replaced, at the rate β, by the new one,
``S_t = (I - β_t k_t k_tᵀ) S_{t-1} + β_t k_t v_tᵀ``, ``o_t = S_tᵀ q_t / sqrt(K)``. Queries, keys and values are
``silu(conv(W x))``; queries and keys have unit length per head, ``β = σ(W_b x)``, and the output is normalised
per head.
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
from seqmodels.mixers import parts
from seqmodels.mixers.base import Context, Cursor, Mixer, MixerConfig


@dataclasses.dataclass(frozen=True)
class DeltaNetConfig(MixerConfig):
    """Options of `DeltaNet`."""

    num_heads: int = 8
    """Heads H."""
    expand_k: float = 1.0
    """Width of all keys as a multiple of the model width."""
    expand_v: float = 1.0
    """Width of all values as a multiple of the model width."""
    conv_size: int | None = 4
    """Width of the short convolutions; ``None`` leaves them out."""
    output_gate: bool = False
    """Multiply the normalised output by ``silu(W_g x)``."""
    allow_neg_eigval: bool = False
    """Let β range over (0, 2), so that a transition may flip signs (arXiv:2411.12537)."""
    norm_eps: float = 1e-5
    """Added to the mean square in the output norm."""

    def __post_init__(self):
        parts.require_positive(self, "num_heads", "expand_k", "expand_v", "conv_size", "norm_eps")

    @classmethod
    def tiny(cls) -> DeltaNetConfig:
        return cls(num_heads=2)

    def make(self, dim: int, **kwargs: Any) -> DeltaNet:
        parts.head_sizes(self, dim)
        return DeltaNet(self, dim, **kwargs)

    def flops_per_token(self, dim: int, length: int) -> float:
        K, V = parts.head_sizes(self, dim)
        widths = 2 * K + (3 if self.output_gate else 2) * V + 1
        conv = 2 * (self.conv_size or 0) * (2 * K + V)
        return self.num_heads * (2 * dim * widths + conv + 6 * K * V)


class DeltaNetState(NamedTuple):
    """The associative memory, and the inputs that the convolutions still need."""

    cursor: Cursor
    conv: tuple[Array, ...]  # of q, k, v: [B,W-1,H*K], [B,W-1,H*K], [B,W-1,H*V] float32; () without convolutions
    memory: Array  # [B,H,K,V] float32


class DeltaNet(Mixer):
    """``[B,T,D] -> [B,T,D]``; see the module's docstring and `DeltaNetConfig`."""

    cfg: DeltaNetConfig

    @nn.compact
    def __call__(
        self,
        x: Array,
        state: DeltaNetState | None = None,
        segment_ids: Array | None = None,
        context: Context = Context(),  # noqa: B008
    ) -> tuple[Array, DeltaNetState, dict[str, Any]]:
        cfg, H = self.cfg, self.cfg.num_heads
        K, V = parts.head_sizes(cfg, self.dim)
        held = self.init_state(x.shape[0]) if state is None else state
        entry = held.cursor.enter(segment_ids, x.shape[1])
        streams = {name: parts.into(self, f"{name}_proj", H * size)(x) for name, size in zip("qkv", (K, K, V))}
        streams, conv = parts.silu_conv(self, cfg.conv_size, streams, entry.carried(held.conv), segment_ids)
        q, k, v = (parts.split(stream, H) for stream in streams)
        beta = jax.nn.sigmoid(parts.wide(parts.into(self, "b_proj", H, None)(x)))
        o, memory = ops.delta_rule(
            l2_norm(q),
            l2_norm(k),
            v,
            beta * 2 if cfg.allow_neg_eigval else beta,
            state=entry.carried(held.memory),
            segment_ids=segment_ids,
        )
        norm = {"eps": cfg.norm_eps, "param_dtype": self.param_dtype, "name": "o_norm"}
        if cfg.output_gate:
            o = GatedRMSNorm(**norm)(o, parts.split(parts.into(self, "g_proj", H * V)(x), H))
        else:
            o = RMSNorm(**norm)(o)
        return parts.out_of(self)(parts.merge(o)), DeltaNetState(entry.cursor, conv, memory), {}

    def init_state(self, batch: int, max_length: int | None = None) -> DeltaNetState:
        H, (K, V) = self.cfg.num_heads, parts.head_sizes(self.cfg, self.dim)
        conv = parts.conv_state(self.cfg.conv_size, batch, H * K, H * K, H * V)
        return DeltaNetState(Cursor.zeros(batch), conv, jnp.zeros((batch, H, K, V), jnp.float32))
