"""The residual block: a mixer along time, then an optional MLP along features."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.errors import UserError
from seqmodels.layers.mlp import MLP, MLPConfig
from seqmodels.layers.norm import RMSNorm
from seqmodels.mixers.base import Context, Mixer, MixerConfig


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """``x + mixer(norm(x))``, then ``x + mlp(norm(x))`` unless `mlp` is ``None``."""

    mixer: MixerConfig
    """Mixes along time."""
    mlp: MLPConfig | None = dataclasses.field(default_factory=MLPConfig)
    """Mixes features; ``None`` leaves it out (Mamba)."""
    norm_eps: float = 1e-6
    """Added to the mean square in both norms."""

    def __post_init__(self) -> None:
        if not 0 <= self.norm_eps < math.inf:
            raise UserError(f"norm_eps={self.norm_eps} of a block must be at least 0 and finite; set norm_eps to 1e-6")

    def make_mixer(self, dim: int, **kwargs: Any) -> Mixer:
        """The mixer module for model width `dim`."""
        return self.mixer.make(dim, **kwargs)

    def flops_per_token(self, dim: int, length: int) -> float:
        """Forward FLOPs per token in a sequence of `length` tokens."""
        mlp = self.mlp.flops_per_token(dim) if self.mlp is not None else 0.0
        return self.mixer.flops_per_token(dim, length) + mlp

    @property
    def label(self) -> str:
        """The mixer's short name, for tables."""
        return self.mixer.label


class Block(nn.Module):
    """One pre-norm residual block; see `BlockConfig`."""

    cfg: BlockConfig
    dim: int
    depth: int  # number of layers of the whole model
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Array, state: Any, segment_ids: Array | None, layer: Any, shared: dict[str, Array]
    ) -> tuple[Array, Any, dict[str, Array], dict[str, Array]]:
        """``x [B,T,D]`` -> ``(x, state, aux, shared)``; a state of ``None`` comes back as ``None``."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        norm = {"eps": self.cfg.norm_eps, "param_dtype": self.param_dtype}
        mixer = self.cfg.make_mixer(self.dim, name="mixer", **types)
        y, new_state, aux = mixer(
            RMSNorm(name="mixer_norm", **norm)(x), state, segment_ids, Context(layer, self.depth, shared)
        )
        aux = dict(aux)
        shared = aux.pop("shared", shared)
        x = x + y
        if self.cfg.mlp is not None:
            x = x + MLP(self.cfg.mlp, self.dim, name="mlp", **types)(RMSNorm(name="mlp_norm", **norm)(x))
        return x, (None if state is None else new_state), aux, shared
