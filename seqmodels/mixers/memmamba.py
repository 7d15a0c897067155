"""MemMamba (arXiv:2510.03279): Mamba with a small pool of notes in every layer, read by attention.

Only the abstract, public reviews and second-hand summaries of the paper could be read, and there is no official code.
REPORTED: a layer that finds a token important (score > τ₁) writes a compressed note of it into a bounded pool; a layer
that judges its state to be forgetting (score > τ₂) attends to its own notes; every p layers, attention over the notes
of the layers before; both results are added to the input of the next layer; 50 notes of 64 numbers.

Everything else is INFERRED, our own design and not the authors':

* importance ``I = σ(w₂ silu(W₁ x))`` of the layer's input x; note ``I rms_norm(W_n x)``, so that the scorer has a
  gradient where a note is read; a full pool drops its oldest note (a replacement by priority is reported as well);
* forgetting ``J = σ(w_s z + b)`` of the Mamba output z of the token before; a reading is multiplied by J;
* a reading of notes S, those written before the token, is ``c = softmax(W_q x (W_k S)ᵀ / sqrt(d)) W_v S``, without
  positions, and enters as ``σ(W_f [x; c]) ⊙ W_o c``, with ``W_o = 0`` at the start: an untrained layer is Mamba;
* layer l reads other layers' notes if p divides l: one softmax over the pools of the last p layers with notes.

Do not read results of this as a reproduction.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from seqmodels import ops
from seqmodels.axes import Array
from seqmodels.errors import UserError
from seqmodels.layers.linear import Linear
from seqmodels.layers.norm import RMSNorm
from seqmodels.layers.param import param
from seqmodels.layers.sparse_activation import pack
from seqmodels.mixers import parts
from seqmodels.mixers.base import Context, Cursor, Entry, Mixer, MixerConfig
from seqmodels.mixers.mamba import MambaConfig, MambaState
from seqmodels.mixers.working_memory import Line, WorkingMemory, attend, document_numbers, windows

NOTES, MARKS, RANKS = "memmamba_notes", "memmamba_marks", "memmamba_ranks"  # of the last p layers, in `shared`


@dataclasses.dataclass(frozen=True)
class MemMambaConfig(MixerConfig):
    """Options of `MemMamba`."""

    inner: MambaConfig = MambaConfig()  # noqa: RUF009  (frozen)
    """The layer that the notes are added to."""
    pool_size: int = 50
    """Notes P of a layer's pool (REPORTED); 0 leaves notes out, which is Mamba."""
    note_dim: int = 64
    """Size d of a note (REPORTED)."""
    note_threshold: float = 0.5
    """τ₁: a token whose importance exceeds it is noted. INFERRED; 1 notes none, a negative number all."""
    read_threshold: float = 0.5
    """τ₂: a token whose state's forgetting exceeds it reads its layer's notes. INFERRED."""
    cross_layer_every: int = 4
    """p: every p-th layer reads the notes of the p layers before it. INFERRED."""

    def __post_init__(self):
        parts.require_positive(self, "note_dim", "cross_layer_every")
        parts.require_whole(self, "pool_size")
        if self.pool_size < 0:
            raise UserError(f"MemMambaConfig.pool_size={self.pool_size} must not be negative; 0 leaves notes out")
        for field in ("note_threshold", "read_threshold"):
            if math.isnan(getattr(self, field)):
                raise UserError(f"MemMambaConfig.{field}=nan compares with nothing; give a number such as 0.5")

    @classmethod
    def tiny(cls) -> MemMambaConfig:
        return cls(MambaConfig.tiny(), pool_size=3, note_dim=8, cross_layer_every=1)

    def make(self, dim: int, **kwargs: Any) -> MemMamba:
        return MemMamba(self, dim, **kwargs)

    def shared_values(self, batch: int, length: int, dtype: Any) -> dict[str, Array]:
        if not self.pool_size:
            return {}
        lead = (self.cross_layer_every, batch)
        places = self.pool_size + length
        return {
            NOTES: jnp.zeros((*lead, places, self.note_dim), dtype),
            MARKS: jnp.zeros((*lead, places), jnp.int32),
            RANKS: jnp.zeros((*lead, length), jnp.int32),
        }

    def flops_per_token(self, dim: int, length: int) -> float:
        d, inner = self.note_dim, self.inner.flops_per_token(dim, length)
        if not self.pool_size:
            return inner
        write = 2 * dim * 2 * d + 2 * d + 2 * dim
        notes = min(self.pool_size, length)
        reader = 2 * dim * (d + dim + d) + 2 * d * dim + 4 * d * d
        return inner + write + 2 * reader + 4 * d * notes * (1 + 1)  # p pools in every p-th layer, and its own


class MemMambaState(NamedTuple):
    """Mamba's state, its output for the last token, and the pool."""

    cursor: Cursor
    mamba: MambaState
    output: Array  # [B,1,D] float32
    pool: WorkingMemory  # rows: notes [B,P,d]


class MemMamba(Mixer):
    """``[B,T,D] -> [B,T,D]``; see the module's docstring and `MemMambaConfig`.

    ``aux``: ``stat/notes`` and ``stat/reads``, the shares of real tokens that are noted and that read their layer's
    notes; and the notes of the last p layers in ``shared``, where the model gave room for them.
    """

    cfg: MemMambaConfig

    @nn.compact
    def __call__(
        self,
        x: Array,
        state: MemMambaState | None = None,
        segment_ids: Array | None = None,
        context: Context = Context(),  # noqa: B008
    ) -> tuple[Array, MemMambaState, dict[str, Any]]:
        cfg = self.cfg
        held = self.init_state(x.shape[0]) if state is None else state
        entry = held.cursor.enter(segment_ids, x.shape[1])
        inner = cfg.inner.make(self.dim, dtype=self.dtype, param_dtype=self.param_dtype, name="mamba")
        z, mamba, aux = inner(x, held.mamba, segment_ids, context)
        if not cfg.pool_size:
            return z, MemMambaState(entry.cursor, mamba, held.output, held.pool), aux
        before, output = _previous(parts.wide(z), entry.carried(held.output), segment_ids)
        line, rank, pool, noted = self._write(x, entry, entry.carried(held.pool))
        document, _ = document_numbers(entry)
        wide = {"dtype": before.dtype, "param_dtype": self.param_dtype}
        forgetting = jax.nn.sigmoid(Linear(1, ("embed", None), use_bias=True, name="state_scorer", **wide)(before))
        gate = jnp.where(forgetting > cfg.read_threshold, forgetting, 0.0)
        lower = context.shared if context.shared and NOTES in context.shared else self._nothing_below(x)
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        own = Reader(cfg, self.dim, name="cross_token", **types)(x, [(line, rank)], document, True)
        pools = [_line_of(lower, i) for i in range(cfg.cross_layer_every)]
        turn = context.layer % cfg.cross_layer_every == 0
        others = Reader(cfg, self.dim, name="cross_layer", **types)(x, pools, document, turn)
        real = document != 0
        total = jnp.maximum(jnp.sum(real), 1)
        aux = aux | {"stat/notes": jnp.sum(noted) / total, "stat/reads": jnp.sum((gate[..., 0] > 0) & real) / total}
        if lower is context.shared:
            aux["shared"] = lower | _pushed(lower, line, rank)
        y = (parts.wide(z) + gate * parts.wide(own) + parts.wide(others)).astype(self.dtype)
        return y, MemMambaState(entry.cursor, mamba, output, pool), aux

    def _write(self, x: Array, entry: Entry, held: WorkingMemory) -> tuple[Line, Array, WorkingMemory, Array]:
        """The pool and all notes of this call behind it, the notes ``[B,T]`` before every token, the pool afterwards,
        and which tokens are noted ``[B,T]``."""
        cfg, wide = self.cfg, parts.wide(x)
        types = {"dtype": wide.dtype, "param_dtype": self.param_dtype}
        hidden = jax.nn.silu(Linear(cfg.note_dim, ("embed", None), name="importance_up", **types)(wide))
        score = jax.nn.sigmoid(Linear(1, (None, None), name="importance_down", **types)(hidden))
        note = parts.into(self, "note_proj", cfg.note_dim, None)(x)
        note = RMSNorm(param_dtype=self.param_dtype, name="note_norm")(note)
        document, current = document_numbers(entry)
        noted = (score[..., 0] > cfg.note_threshold) & (document != 0)
        packing = pack(noted, x.shape[1])
        rows = packing.compress((score * note).astype(self.dtype))
        line = held.extended((rows,), packing.compress(entry.positions + 1), packing.compress(document))
        rank = jnp.cumsum(noted, axis=1, dtype=jnp.int32) - noted
        return line, rank, line.memory(cfg.pool_size, packing.count, current), noted

    def _nothing_below(self, x: Array) -> dict[str, Array]:
        return self.cfg.shared_values(x.shape[0], x.shape[1], self.dtype)

    def init_state(self, batch: int, max_length: int | None = None) -> MemMambaState:
        cfg = self.cfg
        inner = cfg.inner.make(self.dim, dtype=self.dtype, parent=None).init_state(batch)
        pool = WorkingMemory.empty(batch, cfg.pool_size, cfg.note_dim, dtype=self.dtype)
        return MemMambaState(Cursor.zeros(batch), inner, jnp.zeros((batch, 1, self.dim), jnp.float32), pool)


class Reader(nn.Module):
    """Attention to notes and its fusion, ``σ(W_f [x; c]) ⊙ W_o c``; zero where `on` is false."""

    cfg: MemMambaConfig
    dim: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, pools: Sequence[tuple[Line, Array]], document: Array, on: Any) -> Array:
        d = self.cfg.note_dim
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        q = Linear(d, ("embed", None), name="q_proj", **types)(x)
        init = nn.initializers.normal(0.02)
        k_kernel, v_kernel = (
            param(self, name, init, (d, d), (None, None), self.param_dtype).astype(self.dtype)
            for name in ("k_kernel", "v_kernel")
        )

        def read() -> Array:
            seen = [windows(line, rank, document, self.cfg.pool_size) for line, rank in pools]
            every = seen[0]
            for other in seen[1:]:
                every = every.beside(other)
            notes = every.rows[0]
            return attend(q, notes @ k_kernel, notes @ v_kernel, every.seen, scale=d**-0.5)

        c = jax.lax.cond(on, read, lambda: jnp.zeros_like(q))
        both = jnp.concatenate([x.astype(self.dtype), c], axis=-1)
        gate = jax.nn.sigmoid(parts.wide(Linear(self.dim, ("embed", None), name="gate_proj", **types)(both)))
        zero = nn.initializers.zeros
        out = Linear(self.dim, (None, "embed"), kernel_init=zero, name="o_proj", **types)(c)
        return (gate * parts.wide(out)).astype(self.dtype)


def _previous(z: Array, state: Array, segment_ids: Array | None) -> tuple[Array, Array]:
    """``z_{t-1}`` within the document, and the last z; zeros before a document."""
    return ops.short_conv(z, jnp.zeros((2, z.shape[-1]), z.dtype).at[0].set(1), state=state, segment_ids=segment_ids)


def _line_of(shared: dict[str, Array], number: int) -> tuple[Line, Array]:
    """One of the last p layers' notes, and how many of them stand before every token."""
    marks = shared[MARKS][number]
    return Line((shared[NOTES][number],), marks, marks), shared[RANKS][number]


def _pushed(shared: dict[str, Array], line: Line, rank: Array) -> dict[str, Array]:
    """The notes of this layer in the place of those of the layer p layers below."""
    newest = {NOTES: line.rows[0], MARKS: line.document, RANKS: rank}
    return {name: jnp.concatenate([shared[name][1:], new[None]]) for name, new in newest.items()}
