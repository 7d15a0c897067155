"""Parallel branches: several mixers read the same input, and their outputs are mixed.

``y = Σ_i w_i norm_i(branch_i(x))``. Hymba (Dong et al. 2024, arXiv:2411.13676) runs attention heads beside state-space
heads, normalises both and learns a weight per channel; Falcon-H1 (Zuo et al. 2025, arXiv:2507.22448) adds the outputs
of attention and Mamba-2; Liger (Lan et al. 2025, arXiv:2503.01496) averages a gated recurrence and sliding-window
attention. Here every branch has all of its own projections; where a paper shares some of them, that is left out.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.errors import UserError
from seqmodels.layers.norm import RMSNorm
from seqmodels.layers.param import param
from seqmodels.mixers import parts
from seqmodels.mixers.attention import AttentionConfig
from seqmodels.mixers.base import Context, Cursor, Mixer, MixerConfig, SharedParam, merged
from seqmodels.mixers.gated_delta_net import GatedDeltaNetConfig
from seqmodels.mixers.mamba2 import Mamba2Config


@dataclasses.dataclass(frozen=True)
class ParallelConfig(MixerConfig):
    """Options of `Parallel`."""

    branches: tuple[MixerConfig, ...] = (Mamba2Config(), AttentionConfig())
    """The mixers, all of the model's width."""
    weights: tuple[float, ...] | None = None
    """Factor of each branch; by default they average."""
    learned: Literal["no", "branch", "channel"] = "no"
    """Keep the factors, or learn them from there: one per branch, or one per branch and channel."""
    branch_norm: bool = False
    """RMS norm of each branch's output before they are mixed."""
    norm_eps: float = 1e-6
    """Added to the mean square in these norms."""

    def __post_init__(self):
        parts.require_positive(self, "norm_eps")
        parts.require_choice(self, "learned", ("no", "branch", "channel"))
        if not self.branches:
            raise UserError("ParallelConfig.branches=() is empty; give at least one mixer's config")
        if self.weights is not None and len(self.weights) != len(self.branches):
            given, needed = len(self.weights), len(self.branches)
            raise UserError(f"ParallelConfig.weights has {given} factors for {needed} branches; give one for each")
        if not all(map(math.isfinite, self.factors)):
            raise UserError(f"ParallelConfig.weights={self.weights} has a factor that is not finite; give numbers")

    @classmethod
    def tiny(cls) -> ParallelConfig:
        return cls((GatedDeltaNetConfig.tiny(), AttentionConfig.tiny()), learned="channel", branch_norm=True)

    @property
    def label(self) -> str:
        return f"Parallel({' | '.join(branch.label for branch in self.branches)})"

    @property
    def factors(self) -> tuple[float, ...]:
        """The factor of every branch, at initialisation if they are learned."""
        return self.weights or (1.0 / len(self.branches),) * len(self.branches)

    def make(self, dim: int, **kwargs: Any) -> Parallel:
        for branch in self.branches:
            branch.make(dim, parent=None)
        return Parallel(self, dim, **kwargs)

    def shared_params(self, dim: int, depth: int) -> dict[str, SharedParam]:
        return merged(branch.shared_params(dim, depth) for branch in self.branches)

    def shared_values(self, batch: int, length: int, dtype: Any) -> dict[str, Array]:
        return merged(branch.shared_values(batch, length, dtype) for branch in self.branches)

    def flops_per_token(self, dim: int, length: int) -> float:
        inner = sum(branch.flops_per_token(dim, length) for branch in self.branches)
        return inner + 2.0 * dim * len(self.branches)


class ParallelState(NamedTuple):
    """The states of all branches."""

    cursor: Cursor
    branches: tuple[Any, ...]


class Parallel(Mixer):
    """``[B,T,D] -> [B,T,D]``; see the module's docstring and `ParallelConfig`.

    Parameters of branch i are in ``branch_i``. What a branch hands up in ``aux`` has ``/branch_i`` behind its name.
    """

    cfg: ParallelConfig

    @nn.compact
    def __call__(
        self,
        x: Array,
        state: ParallelState | None = None,
        segment_ids: Array | None = None,
        context: Context = Context(),  # noqa: B008
    ) -> tuple[Array, ParallelState, dict[str, Any]]:
        cfg = self.cfg
        held = self.init_state(x.shape[0]) if state is None else state
        cursor = held.cursor.enter(segment_ids, x.shape[1]).cursor
        outputs, states, auxes = [], [], {}
        for i, branch in enumerate(cfg.branches):
            mixer = branch.make(self.dim, dtype=self.dtype, param_dtype=self.param_dtype, name=f"branch_{i}")
            before = None if state is None else held.branches[i]
            y, after, aux = mixer(x, before, segment_ids, context)
            if "shared" in aux:
                context = context._replace(shared=aux["shared"])
                auxes["shared"] = aux["shared"]
            auxes |= {f"{name}/branch_{i}": value for name, value in aux.items() if name != "shared"}
            if cfg.branch_norm:
                y = RMSNorm(eps=cfg.norm_eps, param_dtype=self.param_dtype, name=f"branch_norm_{i}")(y)
            outputs.append(parts.wide(y))
            states.append(after)
        terms = [factor * y for factor, y in zip(self._factors(outputs[0]), outputs, strict=True)]
        return functools.reduce(operator.add, terms).astype(self.dtype), ParallelState(cursor, tuple(states)), auxes

    @nn.nowrap
    def _factors(self, like: Array) -> list[Any]:
        """Factors of the branches, numbers or arrays of the shape of `like`."""
        cfg = self.cfg
        if cfg.learned == "no":
            return list(cfg.factors)
        shape, axes = ((len(cfg.branches),), (None,))
        if cfg.learned == "channel":
            shape, axes = (*shape, self.dim), (*axes, None)

        def init(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
            first = jnp.asarray(cfg.factors, dtype)
            return jnp.broadcast_to(first.reshape(-1, *[1] * (len(shape) - 1)), shape)

        learned = param(self, "scale", init, shape, axes, self.param_dtype).astype(like.dtype)
        return [jnp.broadcast_to(row, like.shape) for row in learned]

    def init_state(self, batch: int, max_length: int | None = None) -> ParallelState:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        made = [branch.make(self.dim, parent=None, **types) for branch in self.cfg.branches]
        return ParallelState(Cursor.zeros(batch), tuple(mixer.init_state(batch, max_length) for mixer in made))
