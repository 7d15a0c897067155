"""SeqBoat (Ren et al. 2023, arXiv:2306.11197), causal: a linear recurrence on all tokens, attention on some.

``m = silu(EMA(x))`` with Mega's damped moving average. A router picks tokens by m (`layers.sparse_activation`); a
gated attention unit (GAU) runs on these alone, packed, within a working memory: a token sees itself and the last w
active tokens, which may be arbitrarily old. With ``base, r, v = silu(W_h m)`` and ``q, k = base ⊙ γ + β``, a GAU gives
``o = W_o (attend(q, k, v) ⊙ r)``, and ``y = silu(W_s m + p o + x)`` with the router's confidence p, the activation
after the sum. Attention is softmax or ``relu(q k / w + b)²`` (not normalised).

Departures: the released layer is a whole residual layer, whose norm stands before or after; here `Block` puts its norm
before and adds its own residual around. Dropout is left out.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from seqmodels import ops
from seqmodels.axes import Array
from seqmodels.errors import UserError
from seqmodels.layers.ema import DampedEMA
from seqmodels.layers.linear import Linear
from seqmodels.layers.param import param
from seqmodels.layers.sparse_activation import Packing, SparseActivation
from seqmodels.mixers import parts
from seqmodels.mixers.base import Context, Cursor, Entry, Mixer, MixerConfig
from seqmodels.mixers.working_memory import (
    Windows,
    WorkingMemory,
    attend,
    blocks,
    document_numbers,
    softmax,
    squared_relu,
    windows,
)

truncated = nn.initializers.truncated_normal(0.02)


@dataclasses.dataclass(frozen=True)
class SeqBoatConfig(MixerConfig):
    """Options of `SeqBoat`; defaults of the enwik8 language model."""

    head_dim: int = 128
    """Size z of queries and keys; there is one head."""
    expand_v: float = 2.0
    """Width h of the values as a multiple of the model width."""
    ema_states: int = 16
    """States n of a channel's moving average."""
    memory_size: int = 1024
    """Active tokens w before a token that it sees."""
    attention: Literal["softmax", "relu2"] = "softmax"
    """How scores become weights."""
    position: Literal["rotary", "gap", "local"] = "rotary"
    """Positions: rotary phases of the original ones, a learned bias by the distance of the original ones, or a learned
    bias by the number of active tokens in between."""
    rotary_base: float = 10000.0
    """Base of the geometric series of frequencies, for "rotary"."""
    max_gap: int = 8192
    """Distances that have a bias of their own, for "gap"; larger ones share the last. The released table spans the
    longest sequence instead."""
    temperature_scale: float = 1.0
    """Initial temperature of the router over sqrt(dim): 0.3 to 1.0 in the released runs."""
    capacity: float | None = None
    """A call of T tokens activates at most this share of them, rounded up: the first ones. ``None``: no limit."""

    def __post_init__(self):
        parts.require_positive(self, "head_dim", "expand_v", "ema_states", "memory_size", "rotary_base", "max_gap")
        parts.require_positive(self, "temperature_scale", "capacity")
        parts.require_choice(self, "attention", ("softmax", "relu2"))
        parts.require_choice(self, "position", ("rotary", "gap", "local"))
        if self.capacity is not None and self.capacity > 1:
            raise UserError(
                f"SeqBoatConfig.capacity={self.capacity} exceeds 1; give the share of tokens that find a place"
            )
        if self.position == "rotary" and self.head_dim % 2:
            raise UserError(f"SeqBoatConfig.head_dim={self.head_dim} is odd; rotary phases turn pairs of channels")

    @classmethod
    def tiny(cls) -> SeqBoatConfig:
        return cls(head_dim=8, expand_v=0.5, ema_states=2, memory_size=3, temperature_scale=0.3)

    def value_width(self, dim: int) -> int:
        """Width h of the values for model width `dim`."""
        return parts.whole(self, "expand_v * dim", self.expand_v * dim)

    def make(self, dim: int, **kwargs: Any) -> SeqBoat:
        self.value_width(dim)
        return SeqBoat(self, dim, **kwargs)

    def flops_per_token(self, dim: int, length: int) -> float:
        z, h = self.head_dim, self.value_width(dim)
        seen = min(self.memory_size + 1, length)
        keys = seen - seen * (seen - 1) / (2 * length) if length else 0.0
        unit = 2 * dim * (z + 3 * h) + 2 * (z + h) * keys
        return 2 * dim * (dim + 2) + 6 * dim * self.ema_states + (self.capacity or 1.0) * unit


class SeqBoatState(NamedTuple):
    """The moving average, and the working memory: keys, values and positions of the last w active tokens."""

    cursor: Cursor
    ema: Array  # [B,D,n] float32
    memory: WorkingMemory  # rows: keys [B,w,z], values [B,w,h]


class SeqBoat(Mixer):
    """``[B,T,D] -> [B,T,D]``; see the module's docstring and `SeqBoatConfig`.

    ``aux``: ``stat/activation``, ``stat/activation_spread`` and ``stat/overflow``, as `SparseActivation` has them.
    """

    cfg: SeqBoatConfig

    @nn.compact
    def __call__(
        self,
        x: Array,
        state: SeqBoatState | None = None,
        segment_ids: Array | None = None,
        context: Context = Context(),  # noqa: B008
    ) -> tuple[Array, SeqBoatState, dict[str, Any]]:
        cfg = self.cfg
        held = self.init_state(x.shape[0]) if state is None else state
        entry = held.cursor.enter(segment_ids, x.shape[1])
        real = jnp.ones(x.shape[:2], bool) if segment_ids is None else segment_ids != 0
        average = DampedEMA(cfg.ema_states, self.param_dtype, name="ema")
        m, ema = average(parts.wide(x), entry.carried(held.ema), segment_ids)
        m = jax.nn.silu(m)
        skip = parts.into(self, "skip_proj", self.dim, None, use_bias=True, kernel_init=truncated)(m)
        unit = GatedAttentionUnit(cfg, self.dim, self.dtype, self.param_dtype, name="gau")
        router = SparseActivation(cfg.capacity, cfg.temperature_scale, self.param_dtype, name="sma")
        o, memory, aux = router(m, lambda rows, packing: unit(rows, packing, entry, entry.carried(held.memory)), real)
        y = jnp.where(real[..., None], jax.nn.silu(skip + o + x.astype(self.dtype)), 0)
        return y.astype(self.dtype), SeqBoatState(entry.cursor, ema, memory), aux

    def init_state(self, batch: int, max_length: int | None = None) -> SeqBoatState:
        cfg = self.cfg
        widths = (cfg.head_dim, cfg.value_width(self.dim))
        memory = WorkingMemory.empty(batch, cfg.memory_size, *widths, dtype=self.dtype)
        return SeqBoatState(Cursor.zeros(batch), jnp.zeros((batch, self.dim, cfg.ema_states), jnp.float32), memory)


class GatedAttentionUnit(nn.Module):
    """The GAU of `SeqBoat` on packed tokens ``[B,P,D]``: its outputs ``[B,P,D]`` and the working memory afterwards."""

    cfg: SeqBoatConfig
    dim: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, packing: Packing, entry: Entry, held: WorkingMemory) -> tuple[Array, WorkingMemory]:
        cfg, h = self.cfg, self.cfg.value_width(self.dim)
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype, "use_bias": True, "kernel_init": truncated}
        document, current = document_numbers(entry)
        seat, packed = packing.compress(entry.positions + 1), packing.compress(document)
        hidden = jax.nn.silu(Linear(cfg.head_dim + 2 * h, axes=("embed", "heads"), name="in_proj", **types)(x))
        base, gate, v = jnp.split(hidden, (cfg.head_dim, cfg.head_dim + h), axis=-1)
        q, k = self._turned(base, seat - 1)
        line = held.extended((k, v), seat, packed)
        rank = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), packed.shape)
        seen = windows(line, rank, packed, cfg.memory_size + 1)
        keys, values = seen.rows
        plain = cfg.attention == "softmax"
        o = attend(
            q,
            keys,
            values,
            seen.seen,
            scale=cfg.head_dim**-0.5 if plain else 1 / cfg.memory_size,
            bias=self._bias(seen, seat),
            weights=softmax if plain else squared_relu,
        )
        out = Linear(self.dim, axes=("heads", "embed"), name="out_proj", **types)(o * gate)
        return out, line.memory(cfg.memory_size, packing.count, current)

    def _turned(self, base: Array, positions: Array) -> tuple[Array, Array]:
        """Queries and keys ``[B,P,z]``: two affine maps of `base`, turned by rotary phases if the config says so."""
        cfg, shape = self.cfg, (2, self.cfg.head_dim)
        gamma = param(self, "gamma", nn.initializers.normal(0.02), shape, (None, None), self.param_dtype)
        beta = param(self, "beta", nn.initializers.zeros, shape, (None, None), self.param_dtype)
        both = base[..., None, :] * gamma.astype(self.dtype) + beta.astype(self.dtype)
        if cfg.position == "rotary":
            both = ops.rotary(both, positions, base=cfg.rotary_base)
        return both[..., 0, :], both[..., 1, :]

    def _bias(self, seen: Windows, seat: Array) -> Array | None:
        """``[B,N,C,W]`` from a learned vector over distances."""
        cfg = self.cfg
        if cfg.position == "rotary":
            return None
        size = cfg.max_gap if cfg.position == "gap" else cfg.memory_size + 1
        table = param(self, "position_bias", nn.initializers.normal(0.02), (size,), (None,), self.param_dtype)
        distance = seen.distance
        if cfg.position == "gap":
            distance = blocks(seat, distance.shape[2])[..., None] - seen.seat[:, :, None, :]
        return jnp.take(parts.wide(table), jnp.clip(distance, 0, size - 1))
