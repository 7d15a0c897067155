"""Mixers in three parts - project, recur, read out - so that another mixer can put its own order of tokens in between.

``streams = project(x)`` maps every token by itself; ``recur`` runs the memory over the streams, in whatever order and
with whatever `Segments`; ``readout`` normalises, gates and projects back. `MixtureOfMemories` projects with weights per
memory, sorts the tokens by memory, and calls the same ``recur`` and ``readout``.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn

from seqmodels.axes import Array
from seqmodels.layers.linear import default_kernel_init
from seqmodels.mixers import parts
from seqmodels.mixers.base import Context, Mixer, MixerConfig


class Projection(NamedTuple):
    """A linear map from the model width; of low rank, `parts.LowRank`, if `rank` is given."""

    features: int
    axis: str | None = "heads"  # logical name of the output
    rank: int | None = None
    use_bias: bool = False  # with `rank` only
    kernel_init: parts.Init = default_kernel_init  # without `rank` only

    def make(self, mixer: Mixer, name: str) -> nn.Module:
        """The layer, called `name` inside `mixer`."""
        if self.rank is None:
            return parts.into(mixer, name, self.features, self.axis, kernel_init=self.kernel_init)
        return parts.LowRank(self.features, self.rank, self.use_bias, mixer.dtype, mixer.param_dtype, name=name)

    def flops(self, dim: int) -> float:
        """Per token."""
        return 2.0 * (dim * self.features if self.rank is None else self.rank * (dim + self.features))


class Streams(NamedTuple):
    """What a mixer projects its input to, by name; stream ``k`` is made by ``k_proj``."""

    query: dict[str, Projection]  # how a memory is read
    memory: dict[str, Projection]  # what is written to it and how it forgets
    gate: dict[str, Projection]  # what the output is gated by

    def all(self) -> dict[str, Projection]:
        """All streams."""
        return {**self.query, **self.memory, **self.gate}


@dataclasses.dataclass(frozen=True)
class RecurrentConfig(MixerConfig):
    """Base of the configs of `Recurrent` mixers."""

    def streams(self, dim: int) -> Streams:
        """The projections for model width `dim`."""
        raise NotImplementedError(f"{type(self).__name__} must define streams(dim)")

    def value_width(self, dim: int) -> int:
        """Features of all heads together that `Recurrent.readout` projects back."""
        raise NotImplementedError(f"{type(self).__name__} must define value_width(dim)")

    def recurrence_flops(self, dim: int) -> float:
        """FLOPs per token of `Recurrent.recur`: convolutions, and one update and one reading of the memory."""
        raise NotImplementedError(f"{type(self).__name__} must define recurrence_flops(dim)")

    def flops_per_token(self, dim: int, length: int) -> float:
        projections = sum(projection.flops(dim) for projection in self.streams(dim).all().values())
        return projections + self.recurrence_flops(dim) + 2.0 * self.value_width(dim) * dim


class Recurrent(Mixer):
    """A mixer whose state is a memory of fixed size, in three parts.

    `host` is the module that owns the parameters: the mixer itself, or the one that wraps it. Only `project`,
    `weights` and `readout` create parameters, and each is called once.
    """

    @nn.compact
    def __call__(
        self,
        x: Array,
        state: Any = None,
        segment_ids: Array | None = None,
        context: Context = Context(),  # noqa: B008
    ) -> tuple[Array, Any, dict[str, Any]]:
        held = self.init_state(x.shape[0]) if state is None else state
        entry = held.cursor.enter(segment_ids, x.shape[1])
        streams = self.project(self, x)
        o, after = self.recur(self.weights(self), streams, entry.carried(held[1:]), parts.Segments(segment_ids))
        return self.readout(self, o, streams, context), type(held)(entry.cursor, *after), {}

    @nn.nowrap
    def project(self, host: Mixer, x: Array) -> dict[str, Array]:
        """All streams ``[B,T,·]`` of ``x [B,T,D]``."""
        return {name: p.make(host, f"{name}_proj")(x) for name, p in self.cfg.streams(self.dim).all().items()}

    @nn.nowrap
    def weights(self, host: Mixer) -> Any:
        """What `recur` needs besides streams: convolutions, and parameters of the decay."""
        return None

    @nn.nowrap
    def recur(
        self, weights: Any, streams: dict[str, Array], held: tuple, segments: parts.Segments
    ) -> tuple[Array, tuple]:
        """Outputs ``[B,T,H,V]`` of the memory, and what it is afterwards; `held` as `zeros` gives it."""
        raise NotImplementedError

    @nn.nowrap
    def readout(self, host: Mixer, o: Array, streams: dict[str, Array], context: Context) -> Array:
        """``[B,T,H,V] -> [B,T,D]``: norm, gate, output projection."""
        raise NotImplementedError

    @nn.nowrap
    def zeros(self, *lead: int) -> tuple:
        """The state without its cursor, every array with leading axes `lead`, such as ``(B,)`` or ``(B, S)``."""
        raise NotImplementedError
