"""The LMU layer of LMUFormer (Liu et al. 2024, arXiv:2402.04882), plain and spiking.

``u = relu(w_u x + b_u)`` is one scalar per token; a fixed linear memory holds N Legendre coefficients m of its last θ
values (`layers.legendre_memory`); ``h = relu(W_h [m; x] + b_h)`` and ``y = W_o h + b_o``. No h or m feeds back into u,
so training is parallel and decoding a recurrence. LMUFormer is `ConvEmbeddingConfig`, then blocks of this mixer and a
gelu MLP of ratio 4, or, where it spikes, a block of this mixer and one of `SpikingMLPConfig`.

Spiking: every ReLU becomes a leaky integrate-and-fire neuron whose time is the sequence (`layers.spiking`); neurons
with half the threshold turn x into spikes first, and others turn the memory, itself real, into spikes before ``W_h``.

Departures: a batch norm that follows a linear map is an affine map at inference, and is folded into it here, or is a
learned scale and shift where it stands alone, from 1 and 0; nothing is normalised by statistics of a batch but what
`Block` normalises. The surrogate gradient (of a sigmoid of steepness 4) is our choice.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.layers.legendre_memory import legendre_memory
from seqmodels.layers.linear import Linear
from seqmodels.layers.norm import Affine
from seqmodels.layers.spiking import Neurons
from seqmodels.mixers import parts
from seqmodels.mixers.base import Context, Cursor, Mixer, MixerConfig


@dataclasses.dataclass(frozen=True)
class LMUConfig(MixerConfig):
    """Options of `LMU`; defaults of the speech model."""

    memory_size: int = 256
    """Legendre coefficients N; 512 in the spiking model."""
    window: float = 128.0
    """Samples θ that the memory spans; normally the length of the sequence."""
    spiking: bool = False
    """Spiking neurons instead of ReLUs."""
    tau: float = 2.0
    """Time constant of the neurons, in tokens."""
    threshold: float = 1.0
    """Potential at which neurons fire."""
    input_threshold: float = 0.5
    """The same for the neurons that turn the input into spikes."""

    def __post_init__(self):
        parts.require_positive(self, "memory_size", "window", "tau", "threshold", "input_threshold")
        parts.require_time_constant(self)

    @classmethod
    def tiny(cls) -> LMUConfig:
        return cls(memory_size=8, window=16.0)

    def make(self, dim: int, **kwargs: Any) -> LMU:
        return LMU(self, dim, **kwargs)

    def flops_per_token(self, dim: int, length: int) -> float:
        N = self.memory_size
        return 2 * dim + 2 * N * (N + 1) + 2 * dim * (N + dim) + 2 * dim * dim


class LMUState(NamedTuple):
    """The memory, and the potentials of the neurons of a spiking layer."""

    cursor: Cursor
    memory: Array  # [B,N] float32
    potentials: tuple[Array, ...]  # of x, u, m and h: [B,D], [B,1], [B,N], [B,D] float32; () without spikes


class LMU(Mixer):
    """``[B,T,D] -> [B,T,D]``; see the module's docstring and `LMUConfig`."""

    cfg: LMUConfig

    @nn.compact
    def __call__(
        self,
        x: Array,
        state: LMUState | None = None,
        segment_ids: Array | None = None,
        context: Context = Context(),  # noqa: B008
    ) -> tuple[Array, LMUState, dict[str, Any]]:
        cfg = self.cfg
        held = self.init_state(x.shape[0]) if state is None else state
        entry = held.cursor.enter(segment_ids, x.shape[1])
        neurons = Neurons(entry.carried(held.potentials), segment_ids, cfg.tau, cfg.spiking)
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype, "use_bias": True}
        truncated = nn.initializers.truncated_normal(0.02)
        if cfg.spiking:
            x = neurons.fire(Affine(param_dtype=self.param_dtype, name="x_norm")(x), cfg.input_threshold)
        x = parts.wide(x)  # one scalar per token whose sign decides: in float32, as routers are
        scalar = {"kernel_init": truncated, "dtype": x.dtype, "param_dtype": self.param_dtype, "use_bias": True}
        to_scalar = Linear(1, axes=("embed", None), name="u_proj", **scalar)
        signal = neurons.fire(to_scalar(x), cfg.threshold)[..., 0]
        carried = entry.carried(held.memory)
        m, memory = legendre_memory(signal, cfg.memory_size, cfg.window, state=carried, segment_ids=segment_ids)
        m = m.astype(self.dtype)
        if cfg.spiking:
            m = neurons.fire(Affine(param_dtype=self.param_dtype, name="m_norm")(m), cfg.threshold)
        both = jnp.concatenate([m, x.astype(self.dtype)], axis=-1)
        h = Linear(self.dim, axes=("embed", "heads"), kernel_init=truncated, name="h_proj", **types)(both)
        h = neurons.fire(h, cfg.threshold)
        y = parts.out_of(self, kernel_init=parts.fan_in_uniform_init(), use_bias=True)(h)
        return y, LMUState(entry.cursor, memory, tuple(neurons.after)), {}

    def init_state(self, batch: int, max_length: int | None = None) -> LMUState:
        N, D = self.cfg.memory_size, self.dim
        widths = (D, 1, N, D) if self.cfg.spiking else ()
        potentials = tuple(jnp.zeros((batch, width), jnp.float32) for width in widths)
        return LMUState(Cursor.zeros(batch), jnp.zeros((batch, N), jnp.float32), potentials)
