"""Mixture of memories (MoM; Du et al. 2025, arXiv:2502.13685): several memories, of which a token uses a few.

A router gives every token k of M memories, ``p = softmax(W_r x)``, ``g = top_k(p) / Σ top_k(p)``. Memory m sees the
tokens that chose it and no others: for it they are the whole sequence, convolution included. All other memories stay as
they are, bit for bit. A shared memory sees every token. The output is ``readout(Σ_m g_m o_m + o_shared)``; the
recurrence behind ``o_m``, the norm, the gate and the output projection are those of any `Recurrent` mixer (the paper's
main model has `GatedDeltaNet`). All memories share the projection of queries, the convolutions and the decay's
parameters; keys, values and rates have a projection per memory, or one for all.

``Σ_m g_m (S_mᵀ q) = (Σ_m g_m S_m)ᵀ q``: to mix what is read is to mix the memories.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from seqmodels.axes import Array
from seqmodels.errors import UserError
from seqmodels.layers import routing
from seqmodels.layers.grouped_linear import GroupedLinear, GroupedLowRank
from seqmodels.mixers import parts
from seqmodels.mixers.base import Context, Cursor, Mixer, MixerConfig
from seqmodels.mixers.gated_delta_net import GatedDeltaNetConfig
from seqmodels.mixers.memory_order import MemoryOrder, order_by_memory, token_capacity
from seqmodels.mixers.recurrent import Projection, Recurrent, RecurrentConfig
from seqmodels.ops.segments import document_index


@dataclasses.dataclass(frozen=True)
class MixtureOfMemoriesConfig(MixerConfig):
    """Options of `MixtureOfMemories`."""

    inner: MixerConfig = GatedDeltaNetConfig(num_heads=4, head_dim=256, expand_v=1.0)  # noqa: RUF009  (frozen)
    """The recurrence of each memory: the config of any `Recurrent` mixer."""
    num_memories: int = 4
    """Memories M that tokens are routed to."""
    top_k: int = 2
    """Memories k of a token."""
    shared_memory: bool = True
    """One more memory that sees every token; its output is added with weight 1."""
    single_kv_proj: bool = False
    """All memories use one projection of keys, values and rates: that of the shared memory."""
    balance: Literal["layer", "pooled"] = "layer"
    """The sum of every layer's own balance loss, or one loss of shares averaged over all layers (the public code)."""
    balance_weight: float = 0.01
    """Factor of the balance loss, which is k for a uniform router."""
    z_loss_weight: float = 0.0
    """Factor of the router's z-loss."""
    capacity: float | None = None
    """A memory takes at most this times an equal share of a row's tokens in one call, rounded up: the first ones. What
    comes later neither writes to it nor reads from it, and the token's other weights stay. ``None``: all tokens."""

    def __post_init__(self):
        parts.require_positive(self, "num_memories", "top_k", "capacity")
        parts.require_choice(self, "balance", ("layer", "pooled"))
        if not isinstance(self.inner, RecurrentConfig):
            name = type(self.inner).__name__
            raise UserError(f"MixtureOfMemoriesConfig.inner={name} is not in three parts; use a RecurrentConfig")
        if self.top_k > self.num_memories:
            raise UserError(f"MixtureOfMemoriesConfig.top_k={self.top_k} exceeds num_memories={self.num_memories}")
        for field in ("balance_weight", "z_loss_weight"):
            value = getattr(self, field)
            if not 0 <= value < math.inf:
                raise UserError(f"MixtureOfMemoriesConfig.{field}={value} must be finite and not negative; 0 is none")

    @classmethod
    def tiny(cls) -> MixtureOfMemoriesConfig:
        return cls(GatedDeltaNetConfig(num_heads=2, head_dim=8, expand_v=1.0))

    @property
    def label(self) -> str:
        shared = "1 + " if self.shared_memory else ""
        return f"MixtureOfMemories({shared}{self.top_k} of {self.num_memories} {self.inner.label})"

    @property
    def rule(self) -> RecurrentConfig:
        """`inner`, whose kind `__post_init__` has checked."""
        assert isinstance(self.inner, RecurrentConfig)
        return self.inner

    def make(self, dim: int, **kwargs: Any) -> MixtureOfMemories:
        self.inner.make(dim, parent=None)
        return MixtureOfMemories(self, dim, **kwargs)

    def flops_per_token(self, dim: int, length: int) -> float:
        rule = self.rule
        memory = sum(projection.flops(dim) for projection in rule.streams(dim).memory.values())
        once = rule.flops_per_token(dim, length) - memory - rule.recurrence_flops(dim)
        used = self.top_k + self.shared_memory
        projections = 1 if self.single_kv_proj else used
        mixing = 2.0 * self.top_k * rule.value_width(dim)
        return once + projections * memory + used * rule.recurrence_flops(dim) + mixing + 2.0 * dim * self.num_memories


class MixtureOfMemoriesState(NamedTuple):
    """The states of all memories, as the inner mixer has them, without its cursor."""

    cursor: Cursor
    memories: tuple  # [B,M,...]
    shared: tuple  # [B,...]; () without a shared memory


class MixtureOfMemories(Mixer):
    """``[B,T,D] -> [B,T,D]``; see the module's docstring and `MixtureOfMemoriesConfig`.

    ``aux``: ``loss/balance`` or ``pool/balance``, ``loss/router_z``; ``stat/balance`` (k when even), ``stat/load_max``
    and ``stat/load_min`` (1 when even): the largest and the smallest share of a memory.
    """

    cfg: MixtureOfMemoriesConfig

    @nn.compact
    def __call__(
        self,
        x: Array,
        state: MixtureOfMemoriesState | None = None,
        segment_ids: Array | None = None,
        context: Context = Context(),  # noqa: B008
    ) -> tuple[Array, MixtureOfMemoriesState, dict[str, Any]]:
        cfg, inner, streams = self.cfg, self._inner(), self.cfg.rule.streams(self.dim)
        held = self.init_state(x.shape[0]) if state is None else state
        entry = held.cursor.enter(segment_ids, x.shape[1])
        real = jnp.ones(x.shape[:2], bool) if segment_ids is None else segment_ids != 0
        routed = routing.Router(cfg.num_memories, cfg.top_k, self.param_dtype, name="gate")(x)
        weights = inner.weights(self)
        queries = {name: spec.make(self, f"{name}_proj")(x) for name, spec in streams.query.items()}
        gates = {name: spec.make(self, f"{name}_proj")(x) for name, spec in streams.gate.items()}
        common = {}
        if cfg.shared_memory or cfg.single_kv_proj:
            common = {name: spec.make(self, f"shared_{name}")(x) for name, spec in streams.memory.items()}

        order = self._order(routed.choice, real, segment_ids)
        written = (
            {name: order.spread(stream) for name, stream in common.items()}
            if cfg.single_kv_proj
            else self._per_memory(streams.memory, order, x)
        )
        spread = {name: order.spread(stream) for name, stream in queries.items()} | written
        with order.rows_as_batch():
            o, memories = inner.recur(weights, spread, order.take(entry.carried(held.memories)), order.segments)
        o, memories, shared = order.collect(o, routed.weight), order.give(memories), ()
        if cfg.shared_memory:
            everything = parts.Segments(segment_ids)
            added, shared = inner.recur(weights, queries | common, entry.carried(held.shared), everything)
            o = o + added
        y = inner.readout(self, o, gates, context)
        return y, MixtureOfMemoriesState(entry.cursor, memories, shared), self._aux(routed, real)

    @nn.nowrap
    def _inner(self) -> Recurrent:
        inner = self.cfg.inner.make(self.dim, dtype=self.dtype, param_dtype=self.param_dtype, parent=None)
        assert isinstance(inner, Recurrent)
        return inner

    @nn.nowrap
    def _order(self, choice: Array, real: Array, segment_ids: Array | None) -> MemoryOrder:
        cfg = self.cfg
        documents = None if segment_ids is None else document_index(segment_ids)
        devices = routing.mesh_size("expert")
        groups = devices if cfg.num_memories % devices == 0 else 1
        capacity = token_capacity(cfg.capacity, choice.shape[1], cfg.top_k, cfg.num_memories)
        return order_by_memory(choice, real, documents, cfg.num_memories, groups, capacity)

    @nn.nowrap
    def _per_memory(self, specs: dict[str, Projection], order: MemoryOrder, x: Array) -> dict[str, Array]:
        """Streams ``[R,P,·]``, each token's by the projection of the memory it goes to."""
        places = order.spread(x)
        blocks, member = order.in_blocks(places)
        made = {name: self._grouped(f"{name}_proj", spec)(blocks, member) for name, spec in specs.items()}
        return {name: stream.reshape(*places.shape[:2], stream.shape[-1]) for name, stream in made.items()}

    @nn.nowrap
    def _grouped(self, name: str, spec: Projection) -> GroupedLinear | GroupedLowRank:
        """`spec` once per memory."""
        M, types = self.cfg.num_memories, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        if spec.rank is None:
            return GroupedLinear(spec.features, M, ("embed", spec.axis), False, spec.kernel_init, name=name, **types)
        return GroupedLowRank(spec.features, spec.rank, M, spec.use_bias, name=name, **types)

    @nn.nowrap
    def _aux(self, routed: routing.Routing, real: Array) -> dict[str, Array]:
        cfg, load = self.cfg, routing.load(routed, real)
        balance, even = routing.balance_loss(load), cfg.top_k / cfg.num_memories
        share = load.fraction / even
        aux = {"stat/balance": balance, "stat/load_max": jnp.max(share), "stat/load_min": jnp.min(share)}
        if cfg.balance == "layer":
            aux["loss/balance"] = cfg.balance_weight * balance
        else:
            factor = cfg.balance_weight * cfg.num_memories
            aux["pool/balance"] = jnp.stack([factor * load.fraction, load.probability])
        if cfg.z_loss_weight:
            aux["loss/router_z"] = cfg.z_loss_weight * routing.router_z_loss(routed, real)
        return aux

    def init_state(self, batch: int, max_length: int | None = None) -> MixtureOfMemoriesState:
        inner = self._inner()
        shared = inner.zeros(batch) if self.cfg.shared_memory else ()
        return MixtureOfMemoriesState(Cursor.zeros(batch), inner.zeros(batch, self.cfg.num_memories), shared)
