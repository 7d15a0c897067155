"""Softmax attention (Vaswani et al. 2017, arXiv:1706.03762) as modern models use it.

``o_t = Σ_s softmax_s(q_tᵀ k_s / sqrt(K)) v_s`` over the past, or over the last `window` tokens (sliding window).
Rotary phases turn queries and keys by their position (RoFormer, arXiv:2104.09864); groups of query heads may
share keys and values (GQA, arXiv:2305.13245). Optional: biases on q, k, v; RMS norms on the queries and keys of a
head; a sigmoid gate on the output; and a learned logit per head that takes part in the softmax without a value (a
sink). The state is a ring buffer of rotated keys.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from seqmodels import ops
from seqmodels.axes import Array
from seqmodels.errors import UserError
from seqmodels.layers.norm import RMSNorm
from seqmodels.layers.param import param
from seqmodels.mixers import parts
from seqmodels.mixers.base import Context, Cursor, Entry, Mixer, MixerConfig
from seqmodels.ops import segments


@dataclasses.dataclass(frozen=True)
class RotaryConfig:
    """Rotary phases: angles ``position / base^(2i/d)`` over the first d channels of a head."""

    base: float = 10000.0
    """Base of the geometric series of frequencies."""
    fraction: float = 1.0
    """Share of a head's channels that are turned (partial rotary)."""
    interleaved: bool = False
    """Turn neighbouring channels as pairs; otherwise channel i pairs with channel i + d/2."""

    def __post_init__(self):
        parts.require_positive(self, "base", "fraction")
        if self.fraction > 1:
            raise UserError(f"RotaryConfig.fraction={self.fraction} exceeds 1; give the share of channels to turn")

    def width(self, head_dim: int) -> int:
        """Number of turned channels d of a head."""
        width = int(head_dim * self.fraction)
        if width < 2 or width % 2:
            raise UserError(
                f"RotaryConfig.fraction={self.fraction} turns {width} of {head_dim} channels; an even number is needed"
            )
        return width


@dataclasses.dataclass(frozen=True)
class AttentionConfig(MixerConfig):
    """Options of `Attention`."""

    num_heads: int = 8
    """Query heads H."""
    num_kv_heads: int | None = None
    """Heads Hk of keys and values, a divisor of `num_heads`; as many as queries by default."""
    head_dim: int | None = None
    """Size K of a head; ``dim / num_heads`` by default."""
    window: int | None = None
    """Number of keys that a query sees, itself included; ``None`` means all of the past."""
    rotary: RotaryConfig | None = dataclasses.field(default_factory=RotaryConfig)
    """Rotary phases; ``None`` leaves positions out."""
    qkv_bias: bool = False
    """Add biases to queries, keys and values."""
    qk_norm: bool = False
    """Apply RMS norms over a head's channels to queries and keys, before the phases (Qwen3)."""
    output_gate: bool = False
    """Multiply the output by ``σ(W_g x)``."""
    sink: bool = False
    """Learn one extra softmax logit per head."""
    norm_eps: float = 1e-6
    """Added to the mean square in the norms."""
    max_length: int = 2048
    """Tokens that the state of full attention holds, where ``init_state`` is not told."""
    bidirectional: bool = False
    """See later tokens too, for classifiers: the layer has no state, and no language model takes it."""

    def __post_init__(self):
        parts.require_positive(self, "num_heads", "num_kv_heads", "head_dim", "window", "norm_eps", "max_length")
        parts.divide(self, "num_kv_heads", self.kv_heads, "num_heads", self.num_heads)

    @classmethod
    def tiny(cls) -> AttentionConfig:
        return cls(num_heads=4, num_kv_heads=2, max_length=32)

    @property
    def causal(self) -> bool:
        return not self.bidirectional

    @property
    def kv_heads(self) -> int:
        """The number of key and value heads."""
        return self.num_kv_heads or self.num_heads

    def head_size(self, dim: int) -> int:
        """Size of a head for model width `dim`."""
        return self.head_dim or parts.divide(self, "num_heads", self.num_heads, "dim", dim)

    def make(self, dim: int, **kwargs: Any) -> Attention:
        K = self.head_size(dim)
        if self.rotary is not None:
            self.rotary.width(K)
        return Attention(self, dim, **kwargs)

    def flops_per_token(self, dim: int, length: int) -> float:
        K, H, Hk = self.head_size(dim), self.num_heads, self.kv_heads
        seen = min(self.window or length, length)
        keys = seen - seen * (seen - 1) / (2 * length) if length else 0.0  # mean number of keys that a query sees
        return 2 * dim * K * ((3 if self.output_gate else 2) * H + 2 * Hk) + 4 * H * K * keys


class AttentionState(NamedTuple):
    """A ring buffer of the current document's last keys and values; M is its capacity."""

    cursor: Cursor
    k: Array  # [B,M,Hk,K], rotated
    v: Array  # [B,M,Hk,K]
    positions: Array  # [B,M] int32: position of a key in its document, -1 where the place is empty


class Attention(Mixer):
    """``[B,T,D] -> [B,T,D]``; see the module's docstring and `AttentionConfig`.

    The state's capacity is the window, or the `max_length` given to ``init_state``. Full attention forgets its oldest
    keys when a sequence outgrows the capacity: it becomes a window of that size, however calls are cut. A single call
    longer than the capacity raises a ``ValueError``.
    """

    cfg: AttentionConfig

    @nn.compact
    def __call__(
        self,
        x: Array,
        state: AttentionState | None = None,
        segment_ids: Array | None = None,
        context: Context = Context(),  # noqa: B008
    ) -> tuple[Array, AttentionState | None, dict[str, Any]]:
        cfg = self.cfg
        sink = None
        if cfg.sink:
            sink = param(self, "sinks", nn.initializers.zeros, (cfg.num_heads,), (None,), self.param_dtype)
        attend = self._attend_everything if cfg.bidirectional else self._attend_the_past
        o, after = attend(x, state, segment_ids, {"window": cfg.window, "sink": sink})
        o = parts.merge(o)
        if cfg.output_gate:
            gate = jax.nn.sigmoid(parts.wide(parts.into(self, "g_proj", o.shape[-1])(x)))
            o = (parts.wide(o) * gate).astype(self.dtype)
        return parts.out_of(self)(o), after, {}

    def _attend_everything(
        self, x: Array, state: AttentionState | None, segment_ids: Array | None, options: dict[str, Any]
    ) -> tuple[Array, None]:
        """Heads ``[B,T,H,K]`` that see the whole document."""
        if state is not None:
            self._require_causal()
        entry = Cursor.zeros(x.shape[0]).enter(segment_ids, x.shape[1])
        return ops.attention(*self._project(x, entry.positions), causal=False, segment_ids=segment_ids, **options), None

    def _attend_the_past(
        self, x: Array, state: AttentionState | None, segment_ids: Array | None, options: dict[str, Any]
    ) -> tuple[Array, AttentionState]:
        """Heads ``[B,T,H,K]`` that see what was before, and the cache after the call."""
        cfg, T = self.cfg, x.shape[1]
        held = self.init_state(x.shape[0], max(T, cfg.max_length)) if state is None else state
        capacity = held.k.shape[1]
        if cfg.window is None and capacity < T:
            raise ValueError(f"Attention: the state holds {capacity} tokens, got a call of {T}; raise max_length")
        entry = held.cursor.enter(segment_ids, T)
        q, k, v = self._project(x, entry.positions)
        cache = held._replace(cursor=entry.cursor, positions=_carried_positions(held.positions, entry))
        after = _write(cache, k, v, entry)
        if state is None:
            return ops.attention(q, k, v, segment_ids=segment_ids, **options), after
        if T == 1:
            return _attend_one(q, after, entry, **options), after
        reach = options | {"window": cfg.window or capacity}  # what the state holds, however calls are cut
        return _attend_past(q, k, v, cache, entry, **reach), after

    @nn.nowrap
    def _require_causal(self) -> None:
        if self.cfg.bidirectional:
            raise UserError(
                "AttentionConfig.bidirectional=True reads the future and keeps no state; set it to False to decode"
            )

    def _project(self, x: Array, positions: Array) -> tuple[Array, Array, Array]:
        """Queries [B,T,H,K], keys and values [B,T,Hk,K]; queries and keys are normalised and turned."""
        cfg, K = self.cfg, self.cfg.head_size(self.dim)
        heads = {"q": cfg.num_heads, "k": cfg.kv_heads, "v": cfg.kv_heads}
        into = {name: parts.into(self, f"{name}_proj", n * K, use_bias=cfg.qkv_bias) for name, n in heads.items()}
        q, k, v = (parts.split(into[name](x), n) for name, n in heads.items())
        if cfg.qk_norm:
            norm = {"eps": cfg.norm_eps, "param_dtype": self.param_dtype}
            q, k = RMSNorm(name="q_norm", **norm)(q), RMSNorm(name="k_norm", **norm)(k)
        if cfg.rotary is not None:
            turn = {"base": cfg.rotary.base, "dim": cfg.rotary.width(K), "interleaved": cfg.rotary.interleaved}
            q, k = ops.rotary(q, positions, **turn), ops.rotary(k, positions, **turn)
        return q, k, v

    def init_state(self, batch: int, max_length: int | None = None) -> AttentionState:
        self._require_causal()
        capacity = self.cfg.window or max_length or self.cfg.max_length
        shape = (batch, capacity, self.cfg.kv_heads, self.cfg.head_size(self.dim))
        empty = jnp.full((batch, capacity), -1, jnp.int32)
        return AttentionState(Cursor.zeros(batch), jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype), empty)


def _carried_positions(positions: Array, entry: Entry) -> Array:
    """Positions of cached keys, -1 in the rows where this call starts a new document."""
    return positions if entry.fresh is None else jnp.where(entry.fresh[:, None], -1, positions)


def _attend_one(q: Array, cache: AttentionState, entry: Entry, **options: Any) -> Array:
    """One query per row against a cache that holds its own key too; padding sees nothing."""
    at = entry.positions if entry.segment_ids is None else jnp.where(entry.segment_ids == 0, -1, entry.positions)
    return ops.attention(q, cache.k, cache.v, positions=at, kv_positions=cache.positions, **options)


def _attend_past(q: Array, k: Array, v: Array, cache: AttentionState, entry: Entry, **options: Any) -> Array:
    """Queries against the cache, which belongs to the first document of the call, and the call's own keys."""
    if entry.segment_ids is not None:
        ids = jnp.where(entry.segment_ids == 0, 0, segments.document_index(entry.segment_ids) + 1)
        options |= {
            "segment_ids": ids,
            "kv_segment_ids": jnp.concatenate([jnp.ones_like(cache.positions), ids], axis=1),
        }
    return ops.attention(
        q,
        jnp.concatenate([cache.k, k], axis=1),
        jnp.concatenate([cache.v, v], axis=1),
        positions=entry.positions,
        kv_positions=jnp.concatenate([cache.positions, entry.positions], axis=1),
        **options,
    )


def _write(cache: AttentionState, k: Array, v: Array, entry: Entry) -> AttentionState:
    """The ring buffer after the call: the newest tokens of the last document, each at its position modulo M."""
    capacity, length = cache.k.shape[1], k.shape[1]
    if length == 0:
        return cache
    positions, held = entry.positions, cache.positions
    kept = positions > entry.cursor.position[:, None] - 1 - capacity
    if entry.segment_ids is not None:
        document = segments.document_index(entry.segment_ids)
        kept = kept & (entry.segment_ids != 0) & (document == document[:, -1:])
        held = jnp.where(document[:, -1:] > 0, -1, held)
    slot = jnp.where(kept, positions % capacity, capacity)  # `capacity` is out of range, hence dropped
    put = jax.vmap(lambda buffer, at, new: buffer.at[at].set(new, mode="drop"))
    return cache._replace(
        k=put(cache.k, slot, k.astype(cache.k.dtype)),
        v=put(cache.v, slot, v.astype(cache.v.dtype)),
        positions=put(held, slot, positions),
    )
