"""The convolutional patch embedding of LMUFormer (Liu et al. 2024, arXiv:2402.04882), causal.

``c ← relu(conv(c)) ⊙ s + b`` several times, then ``c + conv(c)``, every convolution dense over channels and three
tokens wide. It stands as the first block of a stack. The paper's convolutions look one token ahead each, five in all;
here they look back instead, so that the layer runs token by token. Its batch norms are the scales and shifts s and b,
as they are at inference.

Spiking: ``c ← fire(conv(c) ⊙ s + b)`` for all but the last of these convolutions, which is bare, then
``c + conv(fire(c ⊙ s + b))``, with the leaky integrate-and-fire neurons of `layers.spiking`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.layers.causal_conv import CausalConv
from seqmodels.layers.norm import Affine
from seqmodels.layers.spiking import Neurons
from seqmodels.mixers import parts
from seqmodels.mixers.base import Context, Cursor, Mixer, MixerConfig


@dataclasses.dataclass(frozen=True)
class ConvEmbeddingConfig(MixerConfig):
    """Options of `ConvEmbedding`."""

    num_convs: int = 4
    """Convolutions with ReLU before the last, residual one."""
    conv_size: int = 3
    """Tokens W that a convolution sees."""
    spiking: bool = False
    """Spiking neurons instead of ReLUs."""
    tau: float = 2.0
    """Time constant of the neurons, in tokens."""
    threshold: float = 1.0
    """Potential at which neurons fire."""

    def __post_init__(self):
        parts.require_positive(self, "num_convs", "conv_size", "tau", "threshold")
        parts.require_time_constant(self)

    @classmethod
    def tiny(cls) -> ConvEmbeddingConfig:
        return cls(num_convs=1)

    def make(self, dim: int, **kwargs: Any) -> ConvEmbedding:
        return ConvEmbedding(self, dim, **kwargs)

    def flops_per_token(self, dim: int, length: int) -> float:
        return 2.0 * (self.num_convs + 1) * self.conv_size * dim * dim


class ConvEmbeddingState(NamedTuple):
    """The last inputs of every convolution, and the potentials of the neurons of a spiking layer."""

    cursor: Cursor
    inputs: tuple[Array, ...]  # [B,W-1,D] float32 each
    potentials: tuple[Array, ...]  # [B,D] float32 each; () without spikes


class ConvEmbedding(Mixer):
    """``[B,T,D] -> [B,T,D]``; see the module's docstring and `ConvEmbeddingConfig`."""

    cfg: ConvEmbeddingConfig

    @nn.compact
    def __call__(
        self,
        x: Array,
        state: ConvEmbeddingState | None = None,
        segment_ids: Array | None = None,
        context: Context = Context(),  # noqa: B008
    ) -> tuple[Array, ConvEmbeddingState, dict[str, Any]]:
        held = self.init_state(x.shape[0]) if state is None else state
        entry = held.cursor.enter(segment_ids, x.shape[1])
        carried, after = entry.carried(held.inputs), []
        neurons = Neurons(entry.carried(held.potentials), segment_ids, self.cfg.tau)
        affine = lambda name, x: Affine(param_dtype=self.param_dtype, name=name)(x)  # noqa: E731
        kaiming = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype, "kernel_init": kaiming}
        c = x.astype(self.dtype)
        for i in range(self.cfg.num_convs):
            conv = CausalConv(self.dim, self.cfg.conv_size, name=f"conv_{i}", **types)
            c, inputs = conv(c, carried[i], segment_ids)
            after.append(inputs)
            if not self.cfg.spiking:
                c = affine(f"norm_{i}", jax.nn.relu(c))
            elif i < self.cfg.num_convs - 1:
                c = neurons.fire(affine(f"norm_{i}", c), self.cfg.threshold)
        last = CausalConv(self.dim, self.cfg.conv_size, name="conv_residual", **types)
        fired = neurons.fire(affine("norm_residual", c), self.cfg.threshold) if self.cfg.spiking else c
        add, inputs = last(fired, carried[-1], segment_ids)
        return c + add, ConvEmbeddingState(entry.cursor, (*after, inputs), tuple(neurons.after)), {}

    def init_state(self, batch: int, max_length: int | None = None) -> ConvEmbeddingState:
        shape = (batch, self.cfg.conv_size - 1, self.dim)
        inputs = tuple(jnp.zeros(shape, jnp.float32) for _ in range(self.cfg.num_convs + 1))
        layers = self.cfg.num_convs if self.cfg.spiking else 0
        potentials = tuple(jnp.zeros((batch, self.dim), jnp.float32) for _ in range(layers))
        return ConvEmbeddingState(Cursor.zeros(batch), inputs, potentials)
