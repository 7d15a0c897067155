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
from seqmodels.layers.short_conv import ShortConv
from seqmodels.mixers import parts
from seqmodels.mixers.base import Context, Cursor, Mixer
from seqmodels.mixers.recurrent import Projection, Recurrent, RecurrentConfig, Streams


@dataclasses.dataclass(frozen=True)
class DeltaNetConfig(RecurrentConfig):
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

    def streams(self, dim: int) -> Streams:
        H, (K, V) = self.num_heads, parts.head_sizes(self, dim)
        keys, values = Projection(H * K), Projection(H * V)
        gate = {"g": values} if self.output_gate else {}
        return Streams({"q": keys}, {"k": keys, "v": values, "b": Projection(H, axis=None)}, gate)

    def value_width(self, dim: int) -> int:
        return self.num_heads * parts.head_sizes(self, dim)[1]

    def recurrence_flops(self, dim: int) -> float:
        K, V = parts.head_sizes(self, dim)
        return self.num_heads * (2.0 * (self.conv_size or 0) * (2 * K + V) + 6 * K * V)


class DeltaNetState(NamedTuple):
    """The associative memory, and the inputs that the convolutions still need."""

    cursor: Cursor
    conv: tuple[Array, ...]  # of q, k, v: [B,W-1,H*K], [B,W-1,H*K], [B,W-1,H*V] float32; () without convolutions
    memory: Array  # [B,H,K,V] float32


class DeltaNet(Recurrent):
    """``[B,T,D] -> [B,T,D]``; see the module's docstring and `DeltaNetConfig`."""

    cfg: DeltaNetConfig

    @nn.nowrap
    def weights(self, host: Mixer) -> list[ShortConv]:
        return parts.silu_convs(host, self.cfg.conv_size, "q", "k", "v")

    @nn.nowrap
    def recur(
        self, weights: list[ShortConv], streams: dict[str, Array], held: tuple, segments: parts.Segments
    ) -> tuple[Array, tuple]:
        conv, memory = held
        convolved, conv = parts.silu_conv(weights, [streams[name] for name in "qkv"], conv, segments)
        q, k, v = (parts.split(stream, self.cfg.num_heads) for stream in convolved)
        beta = jax.nn.sigmoid(parts.wide(streams["b"]))
        o, memory = ops.delta_rule(
            l2_norm(q),
            l2_norm(k),
            v,
            beta * 2 if self.cfg.allow_neg_eigval else beta,
            segments.forget(None, v),
            state=memory,
            segment_ids=segments.ids,
            num_segments=segments.count,
        )
        return o, (conv, memory)

    @nn.nowrap
    def readout(self, host: Mixer, o: Array, streams: dict[str, Array], context: Context) -> Array:
        norm = {"eps": self.cfg.norm_eps, "param_dtype": host.param_dtype, "name": "o_norm"}
        if self.cfg.output_gate:
            o = GatedRMSNorm(**norm)(o, parts.split(streams["g"], self.cfg.num_heads))
        else:
            o = RMSNorm(**norm)(o)
        return parts.out_of(host)(parts.merge(o))

    @nn.nowrap
    def zeros(self, *lead: int) -> tuple:
        H, (K, V) = self.cfg.num_heads, parts.head_sizes(self.cfg, self.dim)
        return parts.conv_state(self.cfg.conv_size, lead, H * K, H * K, H * V), jnp.zeros((*lead, H, K, V), jnp.float32)

    def init_state(self, batch: int, max_length: int | None = None) -> DeltaNetState:
        return DeltaNetState(Cursor.zeros(batch), *self.zeros(batch))
