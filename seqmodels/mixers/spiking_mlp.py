"""The channel mixer of spiking LMUFormer (Liu et al. 2024, arXiv:2402.04882), a layer with a state.

``y = W_2 fire(W_1 fire(x ⊙ s + b) ⊙ s' + b')`` with leaky integrate-and-fire neurons whose time is the sequence
(`layers.spiking`). It stands where an MLP would, as a block of its own. The paper's batch norms are the scales and
shifts, as they are at inference.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.layers.norm import Affine
from seqmodels.layers.spiking import Neurons
from seqmodels.mixers import parts
from seqmodels.mixers.base import Context, Cursor, Mixer, MixerConfig


@dataclasses.dataclass(frozen=True)
class SpikingMLPConfig(MixerConfig):
    """Options of `SpikingMLP`."""

    ratio: int = 4
    """Hidden width as a multiple of the model width."""
    tau: float = 2.0
    """Time constant of the neurons, in tokens."""
    threshold: float = 1.0
    """Potential at which neurons fire."""

    def __post_init__(self):
        parts.require_positive(self, "ratio", "tau", "threshold")
        parts.require_time_constant(self)

    @classmethod
    def tiny(cls) -> SpikingMLPConfig:
        return cls(ratio=2)

    def make(self, dim: int, **kwargs: Any) -> SpikingMLP:
        return SpikingMLP(self, dim, **kwargs)

    def flops_per_token(self, dim: int, length: int) -> float:
        return 4.0 * self.ratio * dim * dim


class SpikingMLPState(NamedTuple):
    """The potentials of the neurons."""

    cursor: Cursor
    potentials: tuple[Array, Array]  # [B,D], [B,ratio D] float32


class SpikingMLP(Mixer):
    """``[B,T,D] -> [B,T,D]``; see the module's docstring and `SpikingMLPConfig`."""

    cfg: SpikingMLPConfig

    @nn.compact
    def __call__(
        self,
        x: Array,
        state: SpikingMLPState | None = None,
        segment_ids: Array | None = None,
        context: Context = Context(),  # noqa: B008
    ) -> tuple[Array, SpikingMLPState, dict[str, Any]]:
        held = self.init_state(x.shape[0]) if state is None else state
        entry = held.cursor.enter(segment_ids, x.shape[1])
        neurons = Neurons(entry.carried(held.potentials), segment_ids, self.cfg.tau)
        fire = lambda name, x: neurons.fire(Affine(param_dtype=self.param_dtype, name=name)(x), self.cfg.threshold)  # noqa: E731
        uniform = {"kernel_init": parts.fan_in_uniform_init(), "use_bias": True}
        up = parts.into(self, "up_proj", self.cfg.ratio * self.dim, **uniform)
        h = fire("up_norm", up(fire("norm", x.astype(self.dtype))))
        y = parts.out_of(self, "down_proj", **uniform)(h)
        first, second = neurons.after
        return y, SpikingMLPState(entry.cursor, (first, second)), {}

    def init_state(self, batch: int, max_length: int | None = None) -> SpikingMLPState:
        zeros = lambda width: jnp.zeros((batch, width), jnp.float32)  # noqa: E731
        return SpikingMLPState(Cursor.zeros(batch), (zeros(self.dim), zeros(self.cfg.ratio * self.dim)))
